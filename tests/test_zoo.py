"""The command line, run as a user runs it: in a process of its own, from a directory of its own."""

import os
import random
import re
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo import cli, config_file, register

CHECKOUT = Path(__file__).resolve().parents[1]


def environment(home: Path) -> dict[str, str]:
    """Variables of a newcomer: nobody logged in at W&B, nothing configured; also works where nothing is installed."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    path = os.pathsep.join(filter(None, [str(CHECKOUT), variables.get("PYTHONPATH")]))
    return variables | {"HOME": str(home), "NETRC": str(home / "netrc"), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def sb3_reinforce(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sb3_reinforce", *arguments],
        cwd=cwd,
        env=environment(cwd),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def last_lines(output: str) -> dict[str, str]:
    """The four lines about results: what stands before the first colon, and after it; the next commands by what they do."""
    lines = output.rstrip().splitlines()
    assert lines[-4] == "Next:"
    found = [line.split(":", 1) for line in lines[-8:-4]] + [re.split("  +", line.strip()) for line in lines[-3:]]
    return {name: text.strip() for name, text in found}


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and path.stat().st_size > 5_000


# --- register, config file ---


def test_register():
    rl_zoo3 = pytest.importorskip("rl_zoo3")
    others = {name: algo for name, algo in rl_zoo3.ALGOS.items() if name != "reinforce"}
    register()
    assert rl_zoo3.ALGOS["reinforce"] is REINFORCE
    assert {name: rl_zoo3.ALGOS[name] for name in others} == others


def test_the_main_job_needs_nothing_but_the_model():
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load(config_file().read_text())["CartPole-v1"]
    assert not {"normalize", "frame_stack", "env_wrapper", "vec_env_wrapper"} & set(settings)
    assert isinstance(settings["n_timesteps"], (int, float))  # a bare 1e5 would be a string


def test_config_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"no nothing\.yml in .*zoo_configs"):
        config_file("nothing.yml")


# --- verbs ---


def test_help(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert cli.main([]) == 2


@pytest.mark.parametrize("typo", ["trian", "Train", "trai"])
def test_unknown_verb_names_the_nearest(typo: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main([typo, "--env", "CartPole-v1"]) == 2
    error = capsys.readouterr().err
    assert f"unknown command {typo!r}, did you mean 'train'?" in error


def test_without_rl_zoo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == 'sb3-reinforce: error: train needs RL Zoo: pip install "sb3-reinforce[zoo]"\n'


def test_track_without_wandb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("rl_zoo3")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--track"])
    assert '--track: WandbCallback needs wandb: pip install "sb3-reinforce[wandb]"' in capsys.readouterr().err


# --- the report's parts ---


def test_episodes_are_ordered_over_environments(tmp_path: Path):
    from sb3_reinforce.zoo.report import episodes_of

    # environment 0 started at 100 s, environment 1 at 101 s; ends at 102 (l=5), 102.5 (l=2), 104 (l=3)
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 100.0, "env_id": "x"}\nr,l,t\n1.0,5,2.0\n3.0,3,4.0\n')
    (tmp_path / "1.monitor.csv").write_text('#{"t_start": 101.0, "env_id": "x"}\nr,l,t\n2.0,2,1.5\n')
    steps, returns = episodes_of(tmp_path)
    np.testing.assert_array_equal(steps, [5, 7, 10])
    np.testing.assert_array_equal(returns, [1.0, 2.0, 3.0])


def test_learning_curve_of_a_run_without_a_finished_episode(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from sb3_reinforce.zoo.report import draw_learning_curve

    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 100.0}\nr,l,t\n')
    named = SimpleNamespace(gym_id="CartPole-v1")
    experiment = SimpleNamespace(save_path=str(tmp_path), algo="reinforce", env_name=named, seed=0)
    assert is_png(draw_learning_curve(experiment, None))
    np.savez(tmp_path / "evaluations.npz", timesteps=[10, 20], results=[[1.0, 3.0], [4.0, 6.0]], ep_lengths=[[7, 9], [9, 9]])
    assert is_png(draw_learning_curve(experiment, None))


# --- train ---


def test_train(tmp_path: Path):
    pytest.importorskip("rl_zoo3")
    pytest.importorskip("wandb")
    pytest.importorskip("matplotlib")
    arguments = ["--env", "CartPole-v1", "-n", "2000", "--seed", "1", "-P", "--save-freq", "1000"]
    tracking = ["--track", "--wandb-mode", "offline", "-tags", "a", "b"]
    done = sb3_reinforce("train", *arguments, *tracking, "--eval-final", "10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = last_lines(done.stdout)
    of_runs = ["curves of all runs", "without a baseline"]
    assert list(lines) == ["Score", "Learning curve", "Model", "W&B run", list(lines)[4], *of_runs]

    # what it names is there, relative to where the user stands
    run = Path("logs/reinforce/CartPole-v1_1")
    assert lines["Model"] == str(run / "CartPole-v1.zip")
    assert lines["Learning curve"] == str(run / "learning_curve.png")
    assert is_png(tmp_path / lines["Learning curve"])
    assert list((tmp_path / run).glob("rl_model_*_steps.zip"))  # --save-freq went to the zoo
    wandb_run = Path(lines["W&B run"].split(" ")[0])
    assert wandb_run.parent == Path("wandb")
    assert list((tmp_path / wandb_run).glob("*.wandb"))
    own = " ".join([*arguments, *tracking, "--eval-final", "10"])
    assert lines["without a baseline"].endswith(f"""sb3-reinforce train {own} -params 'baseline:"none"'""")
    assert lines["curves of all runs"].endswith("sb3-reinforce report logs wandb")

    # the score is the saved model's, and plausible: a CartPole episode returns 8 to 500
    model = REINFORCE.load(tmp_path / lines["Model"])
    assert model.num_timesteps >= 2000
    mean, std = lines["Score"].removesuffix(" over 10 deterministic episodes").split(" +- ")
    assert 8 <= float(mean) <= 500
    assert 0 <= float(std) <= 250

    # a second run goes to a folder of its own; without --track nothing is tracked
    done = sb3_reinforce("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = last_lines(done.stdout)
    assert lines["Model"] == "logs/reinforce/CartPole-v1_2/CartPole-v1.zip"
    assert lines["Score"] == "not evaluated, add --eval-final 100"
    assert lines["W&B run"] == "not tracked, add --track"
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_what_the_user_gives_wins_over_our_defaults(tmp_path: Path):
    """Another config file with normalised observations; the statistics are used when the saved model is evaluated."""
    pytest.importorskip("rl_zoo3")
    config = (
        "CartPole-v1:\n  n_timesteps: !!float 300\n  n_envs: 2\n  policy: MlpPolicy\n  normalize: true\n  frame_stack: 2\n"
    )
    (tmp_path / "mine.yml").write_text(config)
    arguments = ["--env", "CartPole-v1", "--conf-file", "mine.yml", "-params", "gamma:0.9", "--eval-freq", "-1"]
    done = sb3_reinforce("train", *arguments, "--eval-final", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = REINFORCE.load(tmp_path / last_lines(done.stdout)["Model"])
    assert model.gamma == 0.9
    assert model.observation_space.shape == (8,)
    assert model.n_envs == 2


def test_another_algorithm_keeps_the_zoos_config(tmp_path: Path):
    pytest.importorskip("rl_zoo3")
    done = sb3_reinforce("train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert last_lines(done.stdout)["Model"] == "logs/a2c/CartPole-v1_1/CartPole-v1.zip"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["-n", "-5"], "-n must be a number of steps >= 1, got -5"),
        (["-optimize", "--n-trials", "0"], "--n-trials must be a number of trials >= 1, got 0"),
        (["--eval-final", "-3"], "--eval-final must be a number of episodes >= 0, got -3"),
        (["--wandb-mode", "of"], "invalid choice: 'of'"),
        (["--checkpoint-every", "-1"], "--checkpoint-every must be a number of updates >= 0, got -1"),
        (["--resume", "nowhere"], "--resume must be the folder of a run of `sb3-reinforce train`, got nowhere, which has no"),
        (["--wandb-video-freq", "-1"], "--wandb-video-freq must be a number of steps >= 0, got -1"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_usage_errors_of_train(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("rl_zoo3")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", *arguments])
    assert words in capsys.readouterr().err


# --- stop and go on ---


def run_of(folder: Path) -> dict[str, Any]:
    """What two equal runs have in common, Monitor's times apart."""
    evaluations = np.load(folder / "evaluations.npz")
    rows = [line.split(",")[:2] for line in (folder / "0.monitor.csv").read_text().splitlines()[1:]]
    model = REINFORCE.load(folder / "CartPole-v1.zip")
    return {
        "steps": model.num_timesteps,
        "episodes": rows,
        **{name: evaluations[name].tolist() for name in evaluations},
        **{name: value.tolist() for name, value in model.policy.state_dict().items()},
    }


def test_stopped_by_a_signal_and_gone_on_with(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo.checkpoints import RunCheckpoint

    arguments = [
        "train",
        "--env",
        "CartPole-v1",
        "-n",
        "5000",
        "--seed",
        "3",
        "--eval-freq",
        "1500",
        "--checkpoint-every",
        "2",
    ]
    monkeypatch.chdir(tmp_path)
    whole, stopped = Path("logs/reinforce/CartPole-v1_1"), Path("logs/reinforce/CartPole-v1_2")
    assert cli.main(arguments) == 0

    def at_step_2500(callback: RunCheckpoint) -> bool:
        if callback.n_calls == 2500:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "_on_step", at_step_2500)
        capsys.readouterr()
        assert cli.main(arguments) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    saved, go_on = capsys.readouterr().out.splitlines()[-2:]
    newest = Path(saved.removeprefix("Saved:   "))
    assert newest.parent == stopped / "checkpoints"
    assert 2500 <= int(newest.stem.split("_")[1]) < 4000  # the update was finished
    assert go_on.endswith(f"sb3-reinforce train --resume {stopped}")
    # rows of a rollout that a crash has cut off, to be played again
    with (stopped / "0.monitor.csv").open("a") as file:
        file.write("1.0,1,99.0\n")

    assert cli.main(["train", "--resume", str(stopped / "checkpoints"), "--eval-final", "2"]) == 0
    assert last_lines(capsys.readouterr().out)["Model"] == str(stopped / "CartPole-v1.zip")
    assert run_of(stopped) == run_of(whole)


def test_ctrl_c_in_a_terminal_leaves_the_workers_alone(tmp_path: Path):
    """A terminal sends Ctrl-C to the environments' processes, too; a second one ends everything at once."""
    pytest.importorskip("rl_zoo3")
    arguments = ["--env", "CartPole-v1", "-n", "10000000", "--vec-env", "subproc", "--checkpoint-every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_reinforce", "train", *arguments, "--eval-freq", "-1", "-params", "n_envs:2", "n_steps:64"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "logs/reinforce/CartPole-v1_1/checkpoints"
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint_*.zip")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Finishing this update, then saving and leaving; once more to leave at once." in err
    assert "Traceback" not in err
    assert "Go on:" in out.splitlines()[-1]


def test_the_second_signal_leaves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from sb3_reinforce.zoo.checkpoints import RunCheckpoint, stopped_by_signals

    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    checkpoint = RunCheckpoint(tmp_path, 1)
    with stopped_by_signals(checkpoint) as came:
        os.kill(os.getpid(), signal.SIGINT)
        assert (came, left) == ([signal.SIGINT], [])
        os.kill(os.getpid(), signal.SIGTERM)
    assert left == [128 + signal.SIGTERM]


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path):
    """SIGKILL whenever it comes, and `--resume` until the run is done: as if it had never stopped."""
    pytest.importorskip("rl_zoo3")
    arguments = ["--env", "CartPole-v1", "-n", "150000", "--seed", "3", "--eval-freq", "10000"]
    assert sb3_reinforce("train", *arguments, cwd=tmp_path).returncode == 0
    folder, rng = tmp_path / "logs/reinforce/CartPole-v1_2", random.Random(0)
    for n_killed in range(4):
        before = set((folder / "checkpoints").glob("checkpoint_*.zip"))
        process = subprocess.Popen(
            [sys.executable, "-m", "sb3_reinforce", "train", *(["--resume", str(folder)] if before else arguments)],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if n_killed == 3:
            assert process.wait(timeout=300) == 0
            break
        while set((folder / "checkpoints").glob("checkpoint_*.zip")) <= before:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5 * rng.random())
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert run_of(folder) == run_of(tmp_path / "logs/reinforce/CartPole-v1_1")


def test_arguments_of_a_run_are_kept(tmp_path: Path):
    from sb3_reinforce.zoo.checkpoints import SavedRun, plain_hyperparams, read_run, without_resume, write_run

    assert without_resume(["--resume", "a", "-n", "3", "--resume=b", "--other-ranks", "-P"]) == ["-n", "3", "-P"]
    hyperparams = {
        "n_timesteps": 1e5,
        "policy": "MlpPolicy",
        "normalize": "dict(norm_obs=True)",
        "env_wrapper": [{"a": {"b": 1}}],
    }
    assert plain_hyperparams(hyperparams) == hyperparams
    assert plain_hyperparams({"learning_rate": print}) is None
    assert plain_hyperparams({"net_arch": (1, 2)}) is None  # JSON would make a list of it
    write_run(SavedRun(tmp_path, ["-n", "3"], hyperparams))
    # the arguments are kept unmasked
    assert stat.S_IMODE((tmp_path / "checkpoints/run.json").stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="has no checkpoint yet: start the run anew, sb3-reinforce train -n 3"):
        read_run(tmp_path)
    (tmp_path / "checkpoints/checkpoint_5_steps.zip").touch()
    assert read_run(tmp_path) == read_run(tmp_path / "checkpoints") == SavedRun(tmp_path, ["-n", "3"], hyperparams)
    (tmp_path / "checkpoints/run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        read_run(tmp_path)


def test_what_was_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    exp_manager = pytest.importorskip("rl_zoo3.exp_manager")
    before, arguments = exp_manager.ExperimentManager, sys.argv
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--env", "CartPole-v1", "--conf-file", "no.yml"]) == 2
    assert "--conf-file no.yml cannot be read" in capsys.readouterr().err
    assert exp_manager.ExperimentManager is before
    assert sys.argv is arguments


def test_help_of_train_shows_our_options_and_the_zoos(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("rl_zoo3")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    output = capsys.readouterr().out
    assert "--eval-final N" in output
    assert "--n-timesteps" in output


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_nothing_is_asked_on_a_terminal(tmp_path: Path):
    """Nobody is logged in at W&B, a person could answer, the mode is left at `auto`: an offline run, no question."""
    pytest.importorskip("rl_zoo3")
    pytest.importorskip("wandb")
    import pty

    terminal, process_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_reinforce", "train", "--env", "CartPole-v1", "-n", "200", "-P", "--track"],
        cwd=tmp_path,
        env=environment(tmp_path) | {"TERM": "xterm"},
        stdin=process_side,
        stdout=process_side,
        stderr=process_side,
        start_new_session=True,
    )
    os.close(process_side)
    output = b""
    try:
        # nothing is ever written to the terminal: after a question the process would stay, silent or not
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and select.select([terminal], [], [], 30)[0]:
            try:
                output += os.read(terminal, 4096)
            except OSError:  # Linux: the process closed its side
                break
        assert process.wait(timeout=10) == 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"still waiting after:\n{output.decode()}")
    finally:
        process.kill()
        os.close(terminal)
    assert b"Learning curve: logs/reinforce/CartPole-v1_1/learning_curve.png" in output
    assert b"W&B run:        wandb/offline-run-" in output
