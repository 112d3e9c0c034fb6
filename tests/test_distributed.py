"""Several processes as one: real ones started by torchrun on this machine, and the arithmetic by itself."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from distributed_cases import ENVS_OF_RANK, GRADIENT_CASES, SCRIPTS, updated
from envs import RewardListEnv
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE, Episodes
from sb3_reinforce.episodes import join_episodes
from sb3_reinforce.running import callbacks, exchange, normalization, ranks
from sb3_reinforce.update import rows

HERE = Path(__file__).resolve().parent
CASES = HERE / "distributed_cases.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def variables(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


# ------------------------------------------------------------------------------------------- the arithmetic by itself


def test_a_plain_run_is_one_rank():
    parameter = th.nn.Parameter(th.zeros(2))
    parameter.grad = gradient = th.tensor([1.0, 2.0])
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    assert ranks.start("auto") == "auto"
    assert exchange.gather("x") == ["x"]
    assert exchange.broadcast("x") == "x"
    assert exchange.sum_gradients([parameter], (3.0,)) == [3.0]
    assert parameter.grad is gradient
    # 1, 2, 6: mean 3, squared deviations 4 + 1 + 9
    assert exchange.moments(np.array([1.0, 2.0, 6.0]), th.tensor([[5.0]])) == [(3, 3.0, 14.0), (1, 5.0, 0.0)]


def test_a_group_of_the_users_must_serve_the_cpu():
    """As init_process_group("nccl") does not; "cuda:gloo" is another one that this machine can make."""
    code = (
        "import torch.distributed as dist; from sb3_reinforce import REINFORCE\n"
        'dist.init_process_group("{}", store=dist.HashStore(), rank=0, world_size=1)\n'
        'REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8).learn(1)'
    )
    for backend, words in (
        ("gloo", ""),
        ("cuda:gloo", "the process group must serve tensors on the CPU, too, got 'cuda:gloo'"),
    ):
        command = [sys.executable, "-c", code.format(backend)]
        done = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == (not words), done.stderr
        assert words in done.stderr


def test_nobody_meets_in_what_an_earlier_attempt_has_left():
    """torchrun keeps its store over a restart; the part of the first attempt must not be met in again."""
    store = ranks.dist.HashStore()
    parts = []
    for late in (1, 0):  # rank 0 comes last, then first
        with ThreadPoolExecutor() as threads:
            meeting = [threads.submit(ranks._unused_part, store, rank, 3) for rank in (1, 2)] if late else []
            time.sleep(0.1)
            meeting.append(threads.submit(ranks._unused_part, store, 0, 3))
            time.sleep(0.1)
            meeting += [] if late else [threads.submit(ranks._unused_part, store, rank, 3) for rank in (1, 2)]
            met = [rank.result(timeout=20) for rank in meeting]
        met[0].set("word", str(late))
        assert [part.get("word").decode() for part in met] == [str(late)] * 3
        parts.append(met[0])
    late_attempt = [part.get("word").decode() for part in parts]
    assert late_attempt == ["1", "0"]  # two parts, not one


def moments_of(*samples: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    values = np.concatenate(samples)
    return len(values), values.mean(axis=0), values.var(axis=0)


def test_merged_statistics():
    # start: 0, 2 (mean 1, variance 1); rank 0 adds 4, rank 1 adds 6 and 8: all are 0, 2, 4, 6, 8
    start, own, others = np.array([0.0, 2.0]), np.array([4.0]), np.array([6.0, 8.0])
    count, mean, variance = normalization.merged_statistics(
        moments_of(start), [moments_of(start, own), moments_of(start, others)]
    )
    assert count == 5
    np.testing.assert_allclose([mean, variance], [4.0, 8.0], rtol=1e-12)


def test_merged_statistics_far_from_zero():
    """Values near 10^6, long since seen: sums of squares about 0 would lose the variance."""
    rng = np.random.default_rng(0)
    start, *parts = (1e6 + rng.normal(size=(n, 3)) for n in (100_000, 50, 70, 20))
    count, mean, variance = normalization.merged_statistics(moments_of(start), [moments_of(start, part) for part in parts])
    expected = moments_of(start, *parts)
    assert count == expected[0]
    np.testing.assert_allclose(mean, expected[1], rtol=1e-15)
    np.testing.assert_allclose(variance, expected[2], rtol=1e-7)


def test_frozen_statistics_stay_equal_to_the_bit():
    start = (0.1 + 0.2, np.array([0.1]), np.array([0.7]))
    assert normalization.merged_statistics(start, [start, start, start]) is start


def test_merged_statistics_are_those_of_sb3():
    """From SB3's first count of 1e-4 on, as one process would have them that sees the ranks' parts one after the other."""
    parts = [np.array([[1.0], [2.0]]), np.array([[5.0]])]
    one, ranks = RunningMeanStd(shape=(1,)), [RunningMeanStd(shape=(1,)) for _ in parts]
    start = (one.count, one.mean, one.var)
    for rms, part in zip(ranks, parts, strict=True):
        one.update(part)
        rms.update(part)
    count, mean, variance = normalization.merged_statistics(start, [(rms.count, rms.mean, rms.var) for rms in ranks])
    np.testing.assert_allclose(count, one.count)
    np.testing.assert_allclose([mean, variance], [one.mean, one.var], rtol=1e-9)


def test_statistics_of_dict_observations():
    pixels, returns = RunningMeanStd(shape=(2,)), RunningMeanStd()
    env: Any = SimpleNamespace(obs_rms={"pixels": pixels}, ret_rms=returns)
    statistics = normalization.statistics_of(env)
    assert list(statistics) == ["returns", "observations/pixels"]
    normalization.set_statistics(env, statistics | {"observations/pixels": (7.0, np.ones(2), np.full(2, 3.0))})
    assert (pixels.count, pixels.mean.tolist(), pixels.var.tolist()) == (7.0, [1.0, 1.0], [3.0, 3.0])
    assert list(normalization.statistics_of(SimpleNamespace(ret_rms=returns))) == ["returns"]  # type: ignore[arg-type]
    assert normalization.statistics_of(None) == {}


def test_join_episodes():
    def part(first: float, lengths: list[int], envs: list[int]) -> Episodes:
        n = sum(lengths)
        return Episodes(
            returns=first + th.arange(n), lengths=th.tensor(lengths), env_indices=th.tensor(envs), fixed_count=False,
            observations={"a": th.full((n, 2), first)}, first_steps=th.zeros(len(lengths), dtype=th.int64),
        )  # fmt: skip

    joined = join_episodes([part(0.0, [2, 1], [0, 1]), part(10.0, [1], [0]), part(20.0, [1, 1], [0, 0])], [2, 1, 1])
    assert joined.returns.tolist() == [0, 1, 2, 10, 20, 21]
    assert joined.env_indices.tolist() == [0, 1, 2, 3, 3]
    assert joined.groups.tolist() == [0, 0, 1, 2, 3, 3]
    assert joined.observations["a"][:, 0].tolist() == [0, 0, 0, 10, 20, 20]
    assert joined.values is None
    assert not joined.fixed_count


@pytest.mark.parametrize("sizes", [[10, 3, 1], [8, 8], [1, 9]])
def test_minibatches_of_ranks(monkeypatch, sizes: list[int]):
    """All ranks make as many as the largest needs, none above batch_size, each row once; everybody knows the sum."""
    of_ranks = []
    for rank, size in enumerate(sizes):
        monkeypatch.setattr(rows, "rank", lambda rank=rank: rank)
        buffer = SimpleNamespace(get=lambda batch_size: iter([None]))
        of_ranks.append(list(rows.Rows(buffer, sizes, None).minibatches(4, np.random.default_rng(0))))
        assert sorted(np.concatenate([part for part, _ in of_ranks[-1]])) == list(range(size))
    assert {len(minibatches) for minibatches in of_ranks} == {-(-max(sizes) // 4)}
    for minibatch in zip(*of_ranks, strict=True):
        lengths = [len(part) for part, _ in minibatch]
        assert max(lengths) <= 4
        assert {total for _, total in minibatch} == {sum(lengths)}


class Everywhere(BaseCallback):
    def _on_step(self) -> bool:
        return True


class OnlyRankZero(Everywhere):
    rank_zero_only = True


def test_callbacks_of_other_ranks(tmp_path: Path):
    stop, everywhere, function = StopTrainingOnMaxEpisodes(3), Everywhere(), lambda locals_, globals_: True
    evaluation = EvalCallback(DummyVecEnv([lambda: RewardListEnv([1.0])]), callback_after_eval=Everywhere())
    saving = EveryNTimesteps(10, CheckpointCallback(1, str(tmp_path / "not_there")))
    nested = CallbackList([CallbackList([OnlyRankZero(), everywhere]), saving])
    assert callbacks.callbacks_of_other_ranks([stop, evaluation, nested, function]) == [stop, nested, function]
    assert nested.callbacks[0].callbacks == [everywhere]
    assert nested.callbacks[1] is saving
    assert saving.callback is None
    for callback in (evaluation, OnlyRankZero(), None):
        assert callbacks.callbacks_of_other_ranks(callback) is None
    assert not (tmp_path / "not_there").exists()


def test_wandb_is_for_rank_zero():
    pytest.importorskip("wandb")
    from sb3_reinforce.tracking import WandbCallback

    assert callbacks.callbacks_of_other_ranks(WandbCallback(mode="disabled")) is None


@pytest.mark.parametrize("local_rank", ["0", "3"])
def test_device_of_a_rank(local_rank: str, monkeypatch: pytest.MonkeyPatch):
    """Local rank, not rank; never two ranks on one GPU. Without a GPU: what a machine with two would say."""
    used = []
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks, "_store", th.distributed.HashStore())  # the group is our own
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(th.cuda, "set_device", used.append)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("RANK", "5")
    assert ranks.start("cpu") == "cpu"
    assert ranks.start("cuda:1") == "cuda:1"
    if local_rank == "0":
        assert ranks.start("auto") == "cuda:0"
        assert used == [0]
    else:
        with pytest.raises(ValueError, match=r"a GPU of its own, got local rank 3 on a machine with 2: start fewer"):
            ranks.start("auto")


# ------------------------------------------------------------------------------------------------- two real processes


def results_of_ranks(n_ranks: int, case: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """:return: what each of so many ranks found, and what was printed"""
    torchrun = [*TORCHRUN[:-1], str(n_ranks)]
    done = subprocess.run(
        [*torchrun, str(CASES), case, str(folder)], env=variables(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{case}-{rank}.pkl").read_bytes()) for rank in range(n_ranks)], done.stdout


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str, Path]:
    """What both ranks found, what was printed, and the folder that they wrote into."""
    folder = tmp_path_factory.mktemp("two_ranks")
    return *results_of_ranks(2, "all", folder), folder


@pytest.fixture(scope="module")
def found(two_ranks: tuple[list[dict[str, Any]], str, Path]) -> list[dict[str, Any]]:
    return two_ranks[0]


def test_exchanges(found):
    for rank, exchanged in enumerate(both["exchanges"] for both in found):
        assert [value["rank"] for value in exchanged["gather"]] == [0, 1]
        assert [value["ragged"].tolist() for value in exchanged["gather"]] == [[0], [0, 1]]
        assert exchanged["broadcast"]["of rank"] == 0
        assert exchanged["broadcast"]["tensor"].tolist() == [0, 0, 0]
        # [1, 10] * 1 + [1, 10] * 2; nowhere a gradient; on rank 1 alone
        assert exchanged["grads"] == [[3, 30], None, [[5]]]
        assert exchanged["sums"] == [3.0, 1.0]
        assert exchanged["lengths"] == [[n, n + 1] for n in (8_000, 8_165, 8_166, 100_000)]
        assert exchanged["many"] == [3.0]
        assert exchanged["buffer"] == 4.0
        # 1, 2, 6; three times 7
        assert exchanged["moments"] == [(3, 3.0, 14.0), (3, 7.0, 0.0)], rank


def test_the_ranks_are_unequal():
    """What the next test compares has other numbers of environments, episodes and steps on each rank."""
    n_steps = [sum(len(SCRIPTS[index]) for index in indices) for indices in ENVS_OF_RANK[2]]
    assert n_steps[0] != n_steps[1]
    assert len(ENVS_OF_RANK[2][0]) != len(ENVS_OF_RANK[2][1])


def assert_equal_to_one_process(case: str, found: list[dict[str, Any]], but: str = "nothing") -> None:
    """:param but: how the names of logged values begin that may differ"""
    expected = updated(case)
    first, *others = (each["gradients"][case] for each in found)
    for name, parameter in expected["parameters"].items():
        np.testing.assert_allclose(first["parameters"][name], parameter, rtol=0, atol=1e-6, err_msg=f"{case} {name}")
        for other in others:
            np.testing.assert_array_equal(first["parameters"][name], other["parameters"][name], err_msg=f"{case} {name}")
    logged, in_one = (
        {key: value for key, value in each["logged"].items() if not key.startswith(but)} for each in (first, expected)
    )
    assert logged == pytest.approx(in_one, rel=1e-5, abs=1e-6, nan_ok=True)
    assert first["state"] == pytest.approx(expected["state"])
    assert all(other["state"] == first["state"] for other in others)


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_two_ranks_equal_one_process(case: str, found):
    assert_equal_to_one_process(case, found)


@pytest.mark.slow
def test_three_ranks_equal_one_process(tmp_path: Path):
    found, _ = results_of_ranks(3, "gradients", tmp_path)
    for case in GRADIENT_CASES:
        # an environment that is alone on its rank waits for no other
        assert_equal_to_one_process(case, found, but="rollout/discarded")


def test_equal_to_the_bit_after_every_update(found):
    first, second = (both["training"] for both in found)
    assert len(first["at_rollout_end"]) == len(second["at_rollout_end"]) == first["n_updates"] / 2 > 3
    # num_timesteps and all parameters
    assert first["at_rollout_end"] == second["at_rollout_end"]
    assert len({parameters for _, parameters in first["at_rollout_end"]}) == len(first["at_rollout_end"])
    for name, parameter in first["parameters"].items():
        np.testing.assert_array_equal(parameter, second["parameters"][name])


def test_statistics_are_global(found):
    first, second = (both["training"] for both in found)
    for name, (count, mean, variance) in first["statistics"].items():
        assert count == second["statistics"][name][0]
        np.testing.assert_array_equal([mean, variance], second["statistics"][name][1:])
    # every step of every environment once, the resets too; VecNormalize begins to count at 1e-4
    n_rollouts, n_envs = first["n_updates"] / 2, 1 + 2
    assert first["statistics"]["returns"][0] == pytest.approx(1e-4 + first["num_timesteps"])
    assert first["statistics"]["observations/"][0] == pytest.approx(1e-4 + first["num_timesteps"] + n_rollouts * n_envs)


def test_steps_and_episodes_are_global(found):
    first, second = (both["training"] for both in found)
    assert first["num_timesteps"] == second["num_timesteps"] == first["own_steps"] + second["own_steps"] >= 2_000
    for both in (first, second):
        assert np.all(np.diff(both["seen"]) > 0)  # never back
    assert first["infos"] == second["infos"]
    assert len(first["infos"]) == 100 or sum(length for _, length in first["infos"]) <= first["num_timesteps"]


def test_ranks_play_episodes_of_their_own(found):
    first, second = (both["training"]["first_observation"] for both in found)
    # same seed: no environment of one rank plays what any of the other plays
    assert not np.isin(first, second).any()
    # generators seeded alike by the user, no seed given: the actions differ all the same
    first, second = (both["unseeded"] for both in found)
    assert len(first) == len(second) == 30
    assert first.tolist() != second.tolist()


def test_rank_zero_alone_writes(two_ranks):
    found, printed, folder = two_ranks
    assert (folder / "model0.zip").exists()
    assert not (folder / "model1.zip").exists()
    assert (folder / "best0").exists()
    assert not (folder / "best1").exists()
    rows = (folder / "log0" / "progress.csv").read_text().splitlines()
    assert len(rows) > found[0]["training"]["n_updates"] / 2  # a row each, and those of the evaluations
    assert (folder / "log1" / "progress.csv").read_text() == ""
    assert found[0]["training"]["evaluations"] > 0
    assert found[1]["training"]["evaluations"] == 0
    assert printed.count("Using cpu device") == 1
    assert printed.count("Sampling actions with NumPy") == 1


def test_exchanges_of_an_update(found):
    # policy gradient, statistics, three fits of the value network, whether to stop; what was played
    assert [both["counted"] for both in found] == [[1 + 1 + 3 + 1 + 1] * 3] * 2


def test_a_callback_stops_all_ranks(found):
    # 20 steps per rollout; rank 1 stops at its step 45, five into the third; rank 0 plays its 20
    for both in found:
        assert both["stopping"] == {"num_timesteps": 2 * 2 * 20 + 20 + 5, "n_updates": 2}


def test_a_checkpoint_that_is_asked_to_stop_stops_all_ranks(two_ranks):
    found, _, folder = two_ranks
    # three updates of 2 ranks * 20 steps; rank 0 alone writes, both can resume
    for both in (rank["asked_to_stop"] for rank in found):
        assert (both["num_timesteps"], both["n_updates"]) == ((120, 120), 3)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint_120_steps.zip"]
    assert Path(found[0]["asked_to_stop"]["newest"]).name == "checkpoint_120_steps.zip"
    assert found[1]["asked_to_stop"]["newest"] == "None"


def test_steps_of_the_greedy_baseline_are_global(found):
    # two updates of 2 ranks * 2 environments * 20 steps
    assert [both["greedy"] for both in found] == [160, 160]


def test_different_arguments_are_refused(found):
    for both in found:
        assert both["refusal"] == (
            "n_value_epochs must be the same on all ranks, got 1 on rank 0, 2 on rank 1; then: "
            "this process has left its group of ranks because of an error: start the run again"
        )


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 120
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, f"no {paths}"
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["kill", "nan"])
def test_a_lost_rank_ends_the_run(kind: str, tmp_path: Path):
    """SIGKILL, which no process can answer, or an error: torchrun ends the run, and its report names the rank."""
    run = subprocess.Popen([*TORCHRUN, str(CASES), kind, str(tmp_path)], env=variables(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "started0", tmp_path / "started1")
        lost = time.monotonic()
        if kind == "kill":
            os.kill(int((tmp_path / "started1").read_text()), signal.SIGKILL)
        _, report = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1
    assert time.monotonic() - lost < 30
    cause = report[report.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in cause
    assert ("Signal 9 (SIGKILL)" if kind == "kill" else "exitcode  : 1") in cause
    assert ("ValueError: reward must be finite, got nan from environment 0" in report) == (kind == "nan")


@pytest.mark.parametrize("kind", ["kill", pytest.param("nan", marks=pytest.mark.slow)])
def test_without_a_launcher(kind: str, tmp_path: Path):
    """Processes that nobody watches, as SLURM's srun starts them: the survivor says whom it has lost."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(CASES), kind, str(tmp_path)],
            env=variables(RANK=str(rank), LOCAL_RANK=str(rank), **address),
            stderr=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    try:
        wait_for(tmp_path / "started0", tmp_path / "started1")
        if kind == "kill":
            ranks[1].kill()
        codes = [process.wait(timeout=60) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    message = (tmp_path / "error0").read_text()
    if kind == "kill":
        assert codes == [1, -signal.SIGKILL]
        assert message == (
            "LostRankError: the connection to rank 1 is lost: its process was killed, or its machine or network is gone"
        )
    else:
        assert codes == [1, 1]
        assert message.startswith("LostRankError: rank 1 has failed: ValueError: reward must be finite, got nan from")


# -------------------------------------------------------------------------------------------------- the command line


def train(*arguments: str, torchrun: tuple[str, ...] = ()) -> list[str]:
    return [*TORCHRUN, *torchrun, "-m", "sb3_reinforce", "train", "--env", "CartPole-v1", "--eval-freq", "-1", *arguments]


def steps_in(monitor_file: Path) -> list[str]:
    """Return and length of each episode; the seconds behind them differ from run to run."""
    return [row.rsplit(",", 1)[0] for row in monitor_file.read_text().splitlines()[2:]]


def test_train_under_torchrun(tmp_path: Path):
    pytest.importorskip("rl_zoo3")
    arguments = ["-n", "3000", "--save-freq", "1000", "--eval-final", "2", "--checkpoint-every", "1"]
    done = subprocess.run(train(*arguments), cwd=tmp_path, env=variables(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    # one folder, one report, one seed, chosen by rank 0
    run = tmp_path / "logs/reinforce/CartPole-v1_1"
    assert list((tmp_path / "logs/reinforce").iterdir()) == [run]
    for words in ("Seed: ", "Score: ", "Saving to ", "Using cpu device"):
        assert done.stdout.count(words) == 1, words
    model = REINFORCE.load(run / "CartPole-v1.zip")
    played = [sum(int(row.split(",")[1]) for row in steps_in(run / f"{rank}.monitor.csv")) for rank in (0, 1)]
    # up to the episodes that the reset of the next rollout would have ended, Monitor has them all
    assert sum(played) == model.num_timesteps >= 3000
    assert min(played) > 1000
    # every 1000 steps of all ranks together
    assert 2 <= len(list(run.glob("rl_model_*_steps.zip"))) <= 4


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    """SIGKILL in mid-run, ``--max-restarts``: parameters and episodes are those of a run that was left alone."""
    pytest.importorskip("rl_zoo3")
    arguments = ["-n", "20000", "--seed", "3", "--checkpoint-every", "2", "-params", "n_steps:128", "normalize:True"]
    folders = [tmp_path / name for name in ("left_alone", "killed")]
    for folder in folders:
        folder.mkdir()
    command = train(*arguments)
    subprocess.run(command, cwd=folders[0], env=variables(), check=True, timeout=300, stdout=subprocess.DEVNULL)
    with (folders[1] / "output").open("w") as output:
        command = train(*arguments, torchrun=("--max-restarts", "2"))
        launch = subprocess.Popen(command, cwd=folders[1], env=variables(), stdout=output)
    try:
        checkpoints = folders[1] / "logs/reinforce/CartPole-v1_1/checkpoints"
        deadline = time.monotonic() + 120
        while len(list(checkpoints.glob("*.zip"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        ranks = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        assert launch.wait(timeout=240) == 0
    finally:
        launch.kill()
    assert (folders[1] / "output").read_text().count("Going on from ") == 1
    runs = [folder / "logs/reinforce/CartPole-v1_1" for folder in folders]
    models = [REINFORCE.load(run / "CartPole-v1.zip") for run in runs]
    assert models[0].num_timesteps == models[1].num_timesteps >= 20_000
    for name, parameter in models[0].policy.state_dict().items():
        np.testing.assert_array_equal(parameter, models[1].policy.state_dict()[name], err_msg=name)
    for rank in (0, 1):
        assert steps_in(runs[0] / f"{rank}.monitor.csv") == steps_in(runs[1] / f"{rank}.monitor.csv")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--algo", "ppo"], "torchrun trains --algo reinforce, got 'ppo'"),
        (["-optimize"], "a search is not for torchrun: start the same command once per worker, without torchrun"),
    ],
)
def test_usage_errors_under_torchrun(arguments: list[str], words: str, monkeypatch, capsys):
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo import cli

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", *arguments])
    assert words in capsys.readouterr().err


def test_the_run_of_a_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a restart the run is found by the launch that began it, not by its age or name."""
    from sb3_reinforce.zoo.checkpoints import SavedRun as Run
    from sb3_reinforce.zoo.checkpoints import run_of_launch, write_run

    for number, launch in enumerate(["a", "b", "a", None]):
        folder = tmp_path / f"logs/reinforce/CartPole-v1_{number}"
        write_run(Run(folder, [], None, launch))
        (folder / "checkpoints/checkpoint_5_steps.zip").write_text("")
        os.utime(folder / "checkpoints/run.json", (number, number))
    found = run_of_launch(tmp_path / "logs", "a")
    assert found is not None
    assert found.folder.name == "CartPole-v1_2"
    (folder.parent / "CartPole-v1_2/checkpoints/checkpoint_5_steps.zip").unlink()
    assert run_of_launch(tmp_path / "logs", "a") is None  # not the older one of the same name
    assert run_of_launch(tmp_path / "logs", "c") is run_of_launch(tmp_path / "logs", None) is None

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert ranks.launch_id() == f"{socket.gethostname()} {os.getppid()}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "12")
    assert ranks.launch_id() == "12"
    assert not ranks.restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ranks.restarted()
