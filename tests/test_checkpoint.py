"""Runs that are stopped, killed or fail, and go on: equal to runs that were never stopped, or a clear error."""

import base64
import hashlib
import json
import multiprocessing
import os
import random
import signal
import warnings
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, TrainingCheckpoint, VectorEnvAdapter
from sb3_reinforce.baselines import BASELINES
from sb3_reinforce.running.callbacks import callbacks_by_name
from sb3_reinforce.running.checkpoint_file import CheckpointError, checkpoint_bytes, checkpoints_in, read_parts
from sb3_reinforce.running.logs import appending_logger
from sb3_reinforce.running.training_state import equal, plain
from tests.envs import RewardListEnv
from tests.runs import N_ENVS, Kill, StopAt, child, differences, make_env, play, results, rows


class Stopped(Exception):
    pass


def stop() -> None:
    raise Stopped


def check_equal_to_a_run_never_stopped(tmp_path: Path, stops: tuple[int, ...] = (45, 100), **arguments: Any) -> None:
    """Stop by an error at the given numbers of calls, go on each time, and compare with one go."""
    never_stopped = play(tmp_path / "whole", **arguments)
    for at in stops:
        with pytest.raises(Stopped):
            play(tmp_path / "pieces", more=[StopAt(at, stop)], **arguments)
        assert checkpoints_in(tmp_path / "pieces" / "checkpoints")
    resumed = play(tmp_path / "pieces", **arguments)
    assert differences(results(never_stopped), results(resumed)) == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "pieces")
    assert len(rows(tmp_path / "whole")) > 6


# ---------------------------------------------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("actions", ["discrete", "box"])
@pytest.mark.parametrize("baseline", list(BASELINES))
def test_every_baseline(tmp_path, baseline, actions):
    # greedy plays every reset twice: half of the steps reach the callbacks
    episodes = dict(n_episodes=N_ENVS, total=900) if baseline == "greedy" else {}
    check_equal_to_a_run_never_stopped(tmp_path, env=dict(actions=actions), baseline=baseline, **episodes)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(env=dict(vec="subproc"), stops=(60,)), id="SubprocVecEnv"),
        pytest.param(dict(env=dict(normalize=False)), id="without VecNormalize"),
        pytest.param(dict(freeze_normalization_after=70), id="frozen statistics"),
        pytest.param(dict(learning_rate="lin_1e-2", ent_coef="lin_0.1"), id="schedules by name"),
        pytest.param(
            dict(learning_rate=LinearSchedule(1e-2, 1e-4, 0.7), value_learning_rate=lambda p: 0.01 * p * p), id="schedules"
        ),
        pytest.param(dict(n_epochs=2, batch_size=16, value_batch_size=8, clip_range="lin_0.2"), id="minibatches"),
        pytest.param(dict(n_epochs=np.int64(2)), id="NumPy's whole numbers"),
        pytest.param(dict(n_episodes=2 * N_ENVS, stops=(35, 60), total=300), id="n_episodes"),
        pytest.param(dict(env=dict(actions="box"), use_sde=True, sde_sample_freq=1), id="gSDE"),
        pytest.param(dict(policy_kwargs=dict(net_arch=[8], activation_fn=th.nn.ReLU)), id="policy_kwargs"),
        pytest.param(dict(learn=dict(log_interval=3)), id="log_interval"),
        pytest.param(dict(every=1, stops=(30, 31, 60, 61, 100)), id="many stops"),
    ],
)
def test_every_setting(tmp_path, arguments):
    check_equal_to_a_run_never_stopped(tmp_path, **arguments)


def test_a_run_that_was_finished_stays_as_it_is(tmp_path):
    before = results(play(tmp_path))
    assert differences(before, results(play(tmp_path))) == []  # resumed, and nothing left to do


def test_what_was_frozen_stays_frozen(tmp_path):
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, seed=0, device="cpu")
    model.policy.mlp_extractor.policy_net.requires_grad_(False)
    model.learn(60, TrainingCheckpoint(tmp_path))
    resumed = REINFORCE.resume(tmp_path, make_env())
    before = resumed.policy.mlp_extractor.policy_net[0].weight.clone()
    resumed.learn(60, TrainingCheckpoint(tmp_path), reset_num_timesteps=False)
    assert th.equal(resumed.policy.mlp_extractor.policy_net[0].weight, before)
    assert not th.equal(resumed.policy.action_net.weight, model.policy.action_net.weight)


def test_an_error_behind_an_update_loses_none(tmp_path):
    """The disk is full when the row of update 3 is written: update 3 is in the checkpoint."""

    class Full(KVWriter):
        n_rows = 0

        def write(self, key_values, key_excluded, step=0):
            self.n_rows += 1
            if self.n_rows == 3:
                raise OSError("no space left")

    checkpoint = TrainingCheckpoint(tmp_path, every_n_updates=10)
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, seed=0, device="cpu")
    model.set_logger(Logger(None, [Full()]))
    with pytest.raises(OSError, match="no space left"):
        model.learn(1000, checkpoint)
    resumed = REINFORCE.resume(tmp_path, make_env())
    assert resumed._n_updates == model._n_updates == 3
    assert th.equal(resumed.policy.action_net.weight, model.policy.action_net.weight)
    assert read_parts(resumed.newest_checkpoint)[2]["iteration"] == 3


def vector_env(env_id="CartPole-v1"):
    return VectorEnvAdapter(gym.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point"))


def test_evaluations_in_a_vector_environment_go_on(tmp_path):
    """One generator for all environments inside: its state is put back."""

    def learn(n_steps, model):
        evaluation = EvalCallback(vector_env(), eval_freq=40, n_eval_episodes=2, verbose=0, warn=False)
        callbacks = [TrainingCheckpoint(tmp_path / "run", every_n_updates=1), evaluation]
        model.learn(n_steps, callbacks, reset_num_timesteps=model.newest_checkpoint is None)
        return evaluation.eval_env.get_attr("np_random")[0].bit_generator.state

    state = learn(200, REINFORCE("MlpPolicy", vector_env(), n_steps=16, seed=0, device="cpu"))
    resumed = REINFORCE.resume(tmp_path / "run", vector_env())
    assert learn(0, resumed) == state  # nothing is left to do
    with pytest.raises(ValueError, match="is of another environment: id was CartPole-v1, got CartPole-v0"):
        REINFORCE.resume(tmp_path / "run", vector_env("CartPole-v0"))


def test_settings_of_vec_normalize_are_compared_by_value(tmp_path):
    """norm_obs_keys as a tuple and a NumPy number: JSON has neither."""
    make = lambda: VecNormalize(  # noqa: E731
        DummyVecEnv([lambda: SimpleMultiObsEnv(random_start=False)]), norm_obs_keys=("vec",), clip_obs=np.float64(5)
    )
    REINFORCE("MultiInputPolicy", make(), n_steps=16, seed=0, device="cpu").learn(60, TrainingCheckpoint(tmp_path))
    assert REINFORCE.resume(tmp_path, make()).num_timesteps >= 60


def test_stop_finishes_the_update(tmp_path):
    checkpoint = TrainingCheckpoint(tmp_path, every_n_updates=100)
    assert not checkpoint.can_resume()
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, seed=0, device="cpu")
    model.learn(10_000, callback=[checkpoint, StopAt(70, checkpoint.stop)])
    assert model._n_updates == 4  # call 70 is in the fourth update, of 16 steps and the rest of an episode each
    assert checkpoint.can_resume()
    assert checkpoint.newest == checkpoints_in(tmp_path)[0]
    assert REINFORCE.resume(tmp_path, make_env()).num_timesteps == model.num_timesteps


def test_learn_in_pieces_with_the_same_folder(tmp_path):
    checkpoint = TrainingCheckpoint(tmp_path, every_n_updates=2)
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, seed=0, device="cpu", learning_rate=1e-3)
    model.learn(200, callback=checkpoint)
    model.learn(200, callback=checkpoint, reset_num_timesteps=False)
    assert checkpoint.newest == tmp_path / f"checkpoint_{model.num_timesteps}_steps.zip"
    with pytest.raises(ValueError, match="path must be a folder without checkpoints of another run"):
        model.learn(200, callback=checkpoint)  # from 0 again
    with pytest.raises(ValueError, match=r"resume that run by REINFORCE.resume\(path, env\)"):
        REINFORCE("MlpPolicy", make_env()).learn(200, callback=TrainingCheckpoint(tmp_path))


def test_keep(tmp_path):
    play(tmp_path, every=1)
    found = checkpoints_in(tmp_path / "checkpoints")
    assert len(found) == 3
    assert sorted(path.name for path in found) == sorted(os.listdir(tmp_path / "checkpoints"))
    steps = [int(path.name.split("_")[1]) for path in found]
    assert steps == sorted(steps, reverse=True)  # the newest first: by number, not by name


def test_a_checkpoint_is_a_model_file(tmp_path):
    model = play(tmp_path, evaluate=False)
    loaded = REINFORCE.load(checkpoints_in(tmp_path / "checkpoints")[0])
    assert all(th.equal(value, loaded.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())


# ------------------------------------------------------------------------------------------------------ callbacks


class WithState(BaseCallback):
    """Its attributes are not looked at."""

    def __init__(self):
        super().__init__()
        self.seen = self.given = None

    def _on_step(self) -> bool:
        self.seen = self.model.num_timesteps
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "array": np.arange(3.0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given = state_dict


def test_callbacks_go_on_where_they_were(tmp_path):
    def callbacks() -> list[BaseCallback]:
        patience = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1000)
        evaluation = EvalCallback(
            make_env(seed=1), callback_after_eval=patience, eval_freq=10, log_path=str(tmp_path), verbose=0
        )
        return [CallbackList([evaluation]), WithState(), CheckpointCallback(1000, str(tmp_path))]

    first = callbacks()
    with pytest.raises(Stopped):
        play(tmp_path, every=1, evaluate=False, more=[*first, StopAt(100, stop)])
    evaluation = first[0].callbacks[0]
    second = callbacks()
    second[2].save_freq = 500  # a setting is the user's, now as then
    play(tmp_path, evaluate=False, more=second, total=0)
    resumed = second[0].callbacks[0]
    n_evaluations = resumed.n_calls // 10
    assert 5 < n_evaluations <= 10
    assert resumed.evaluations_results == evaluation.evaluations_results[:n_evaluations]
    assert resumed.best_mean_reward == max(np.mean(result) for result in resumed.evaluations_results)
    assert resumed.callback.n_calls == n_evaluations
    assert resumed.callback.last_best_mean_reward == resumed.best_mean_reward
    assert second[1].given["seen"] == resumed.num_timesteps
    np.testing.assert_array_equal(second[1].given["array"], [0.0, 1.0, 2.0])
    assert (second[2].save_freq, second[2].n_calls) == (500, resumed.n_calls)


def test_the_state_of_a_callback_that_is_missing_is_told(tmp_path):
    play(tmp_path)
    with pytest.warns(UserWarning, match="has the state of EvalCallback0, which this learn"):
        play(tmp_path, evaluate=False)


def test_names_of_callbacks():
    def convert() -> BaseCallback:
        return StopAt(1, stop)

    inner = EvalCallback(make_env(), callback_after_eval=convert())
    names = list(callbacks_by_name(CallbackList([convert(), CallbackList([inner, convert()])])))
    assert names == ["StopAt0", "EvalCallback0", "EvalCallback0/StopAt0", "StopAt1"]


def test_plain_values_survive(tmp_path):
    value = {
        "float": 0.1, "nan": float("nan"), "inf": -float("inf"), "big": 2**100, "none": None, "list": [1, (2, "x"), True],
        "array": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.float32(0.3), "tensor": th.tensor([1, 2]), 3: {},
        "empty": np.array([]), "texts": np.array(["a", "bc"]),
    }  # fmt: skip
    model = REINFORCE("MlpPolicy", make_env(), device="cpu")
    path = tmp_path / "checkpoint_0_steps.zip"
    path.write_bytes(checkpoint_bytes(model, plain(value)))
    back = read_parts(path)[2]
    assert equal(back, value)
    assert type(back["scalar"]) is np.float32
    assert not equal(back, {**value, "float": 0.2})
    with pytest.raises(TypeError, match="object"):
        plain({"x": [object()]})


# ------------------------------------------------------------------------------------------------- killed processes


def killed_runs(folder: Path, kills: list[Kill], arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """
    Let processes play the run, each killed somewhere (see ``child``); then one to its end.

    :return: the last one's results, and how many were killed before they were done
    """
    context = multiprocessing.get_context("forkserver")
    result, n_killed = folder / "result.pt", 0
    for kill in [*kills, None]:
        process = context.Process(target=child, args=(folder, result, kill, arguments))
        process.start()
        process.join(600)
        assert process.exitcode in (0, -signal.SIGKILL)
        n_killed += process.exitcode != 0
    return th.load(result, weights_only=False), n_killed


def test_killed_while_it_writes(tmp_path):
    arguments = dict(total=450, every=1)
    expected = results(play(tmp_path / "whole", **arguments))
    kills = [("half", 4), ("before", 3), ("after", 3)]
    result, n_killed = killed_runs(tmp_path / "killed", kills, arguments)
    assert n_killed == 3
    assert differences(expected, result) == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".checkpoint*"))  # what was left half written


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(total=8_000, every=1), id="value"),
        pytest.param(dict(total=10_000, every=3, env=dict(actions="box"), baseline="moving_average"), id="box"),
        pytest.param(dict(total=5_000, every=2, env=dict(vec="subproc"), learning_rate="lin_1e-2"), id="subproc"),
    ],
)
def test_killed_at_twenty_random_moments(tmp_path, arguments):
    expected = results(play(tmp_path / "whole", **arguments))
    rng = random.Random(0)
    places = ("half", "before", "after")
    # A fifth of the kills come while a checkpoint is written. An update is about 20 calls, so 20 kills leave calls to play.
    kills: list[Kill] = [
        (rng.choice(places), rng.randint(2, 4)) if rng.random() < 0.2 else (rng.randint(1, 120), 0.02 * rng.random())
        for _ in range(20)
    ]
    result, n_killed = killed_runs(tmp_path / "killed", kills, arguments)
    assert n_killed == 20
    assert differences(expected, result) == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


# -------------------------------------------------------------------------------------------------- damaged, foreign


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    play(folder, evaluate=False)
    return folder / "checkpoints"


def copy_of(run_folder: Path, folder: Path) -> list[Path]:
    for path in checkpoints_in(run_folder):
        (folder / path.name).write_bytes(path.read_bytes())
    return checkpoints_in(folder)


def changed_manifest(path: Path, **values: Any) -> None:
    """Rewrite a checkpoint with another manifest."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["manifest.json"] = json.dumps({**json.loads(parts["manifest.json"]), **values}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_torn_anywhere(run_folder, tmp_path):
    """Cut behind every byte of the first part's header and of the directory at the end, and at random elsewhere."""
    path = copy_of(run_folder, tmp_path)[0]
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x05\x06")  # where the zip file's last record begins
    cuts = [*range(200), *range(directory - 200, len(whole)), *random.Random(0).sample(range(len(whole)), 60)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(
            CheckpointError, match=f"{path.name} is no checkpoint to resume from: it (is torn|has no manifest)"
        ):
            read_parts(path)


def test_damaged_anywhere(run_folder, tmp_path):
    """One bit turned: an error, or, where the zip file does not use the byte, the same contents."""
    path = copy_of(run_folder, tmp_path)[0]
    whole = path.read_bytes()
    _, manifest, state = read_parts(path)
    rng, noticed = random.Random(0), 0
    for position in rng.sample(range(len(whole)), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            _, manifest_now, state_now = read_parts(path)
        except CheckpointError:
            noticed += 1
        else:
            assert manifest_now == manifest
            assert equal(state_now, state)
    assert noticed > 280


def test_the_newest_good_one_is_taken(run_folder, tmp_path):
    newest, second, _ = copy_of(run_folder, tmp_path)
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(
        UserWarning, match=f"{newest.name} is no checkpoint to resume from: it is torn.*resumes from .*{second.name}"
    ):
        model = REINFORCE.resume(tmp_path, make_env())
    assert model.num_timesteps == int(second.name.split("_")[1])
    # going on, the damaged one is put out of the way
    model.learn(1, reset_num_timesteps=False, callback=TrainingCheckpoint(tmp_path))
    assert newest.with_name(f"{newest.name}.old").exists()
    assert checkpoints_in(tmp_path)[0].name == f"checkpoint_{model.num_timesteps}_steps.zip"

    second.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{second.name} is no checkpoint"):
        REINFORCE.resume(second, make_env())


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(format=1), r"it has the format 1, this version reads 2"),
        (dict(sb3_reinforce="9.9"), r"is of another version: it was saved by sb3-reinforce 9\.9, this is"),
        (dict(algorithm="a.B"), r"is of another algorithm: it was saved by a\.B, not by sb3_reinforce\.reinforce\.REINFORCE"),
        (dict(sha256={}), "its parts are not those of its manifest"),
    ],
)
def test_another_version_or_algorithm(run_folder, tmp_path, values, words):
    paths = copy_of(run_folder, tmp_path)
    changed_manifest(paths[0], **values)
    with pytest.raises(CheckpointError, match=f"{paths[0].name}.*{words}"):
        REINFORCE.resume(paths[0], make_env())
    with pytest.warns(UserWarning, match=words):  # and the one before it is taken
        REINFORCE.resume(tmp_path, make_env())


@pytest.mark.parametrize(
    "env, words",
    [
        (dict(actions="box"), r"observation_space was Box\(0.0, 1.0, \(3,\), float32\).*, got Box\(-inf, inf"),
        (dict(normalize=False), r"wrappers was \['VecNormalize'\], got \[\]"),
    ],
)
def test_another_environment(run_folder, env, words):
    with pytest.raises(
        CheckpointError, match=f"none of the checkpoints .* can be used: .* is of another environment: {words}"
    ):
        REINFORCE.resume(run_folder, make_env(**env))


def test_other_settings_of_vec_normalize(run_folder):
    env = make_env()
    env.clip_reward = 5.0
    with pytest.raises(CheckpointError, match=r"VecNormalize was .*'clip_reward': 10.0.*, got .*'clip_reward': 5.0"):
        REINFORCE.resume(run_folder, env)


def test_a_model_file_is_no_checkpoint(tmp_path):
    A2C("MlpPolicy", "CartPole-v1").save(tmp_path / "checkpoint_1_steps.zip")
    with pytest.raises(CheckpointError, match=r"has no manifest\.json: torn, or a model file, which load\(\) reads"):
        REINFORCE.resume(tmp_path, "CartPole-v1")


@pytest.mark.parametrize("name", ["nothing", "."])
def test_nothing_there(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"path must be a folder with checkpoints.*which (does not exist|has none)"):
        REINFORCE.resume(tmp_path / name, make_env())


class Poison:
    ran = False

    def __reduce__(self):
        return (setattr, (Poison, "ran", True))


def test_nothing_is_unpickled_for_plain_arguments(run_folder, tmp_path, monkeypatch):
    """Even pickles that were put into the file, with matching checksums, do not run."""
    path = copy_of(run_folder, tmp_path)[0]
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data, manifest = json.loads(parts["data"]), json.loads(parts["manifest.json"])
    pickled = [name for name, value in data.items() if isinstance(value, dict) and ":serialized:" in value]
    assert sorted(pickled) == ["action_space", "observation_space", "policy_class", "rollout_buffer_class"]
    for name in pickled:
        data[name][":serialized:"] = base64.b64encode(cloudpickle.dumps(Poison())).decode()
    parts["data"] = json.dumps(data).encode()
    manifest["sha256"]["data"] = hashlib.sha256(parts["data"]).hexdigest()
    parts["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    monkeypatch.setattr(cloudpickle, "loads", lambda *_: pytest.fail("unpickled"))
    REINFORCE.resume(path, make_env())
    assert not Poison.ran


# ------------------------------------------------------------------------------------------- what cannot be written


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    real = os.fsync

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    more = [
        StopAt(60, lambda: monkeypatch.setattr(os, "fsync", full)),
        StopAt(100, lambda: monkeypatch.setattr(os, "fsync", real)),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disturbed = play(tmp_path / "full", every=1, more=more)
    texts = [str(w.message) for w in caught if "could not be written" in str(w.message)]
    assert 1 <= len(texts) == len(set(texts)) <= 4  # one for each checkpoint
    assert "No space left on device" in texts[0]
    assert differences(results(disturbed), results(play(tmp_path / "fine", every=1))) == []
    assert sorted(os.listdir(tmp_path / "full" / "checkpoints")) == sorted(os.listdir(tmp_path / "fine" / "checkpoints"))


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16)
    callback = TrainingCheckpoint(tmp_path / "file" / "folder", every_n_updates=2)
    with pytest.warns(UserWarning, match=r"_steps\.zip could not be written, training goes on without it: \w+Error"):
        model.learn(300, callback=callback)
    assert model.num_timesteps >= 300


# ------------------------------------------------------------------------------------------------ errors in training


class Spoilt(RewardListEnv):
    """From a given episode on, the reward of step 2 is not a number."""

    def __init__(self, from_episode: int):
        super().__init__([1.0, 2.0, 3.0])
        self.episodes_left = from_episode

    def reset(self, **kwargs):
        self.episodes_left -= 1
        return super().reset(**kwargs)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.episodes_left < 0 and self.t == 2 else reward, *rest


def test_a_reward_that_is_no_number_leaves_the_last_good_state(tmp_path):
    def env(from_episode: int) -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: RewardListEnv([1.0, 2.0, 3.0]), lambda: Spoilt(from_episode)]), gamma=0.9)

    model = REINFORCE("MlpPolicy", env(20), n_steps=12, seed=0, device="cpu")
    with pytest.raises(ValueError, match="reward must be finite, got nan from environment 1 at step"):
        model.learn(1000, callback=TrainingCheckpoint(tmp_path, every_n_updates=100))
    assert model._n_updates > 2
    resumed = REINFORCE.resume(tmp_path, env(1000))
    assert resumed._n_updates == model._n_updates
    assert all(th.equal(value, resumed.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())
    assert np.isfinite(resumed.env.ret_rms.var)  # not as the spoilt rollout left it
    resumed.learn(100, reset_num_timesteps=False, callback=TrainingCheckpoint(tmp_path))


def test_an_update_that_is_not_finite_puts_the_optimisers_back(tmp_path):
    """The value network's step gives NaN: its moments too would stay NaN for good."""
    model = REINFORCE("MlpPolicy", make_env(normalize=False), n_steps=16, seed=0, device="cpu", learning_rate=1e-3)
    model.learn(300, callback=TrainingCheckpoint(tmp_path, every_n_updates=100))
    before = results(model)
    folder = tmp_path / "second"
    model.value_learning_rate = 1e30
    model._setup_lr_schedule()
    with pytest.raises(ValueError, match="the parameters from before it were put back"):
        model.learn(300, reset_num_timesteps=False, callback=TrainingCheckpoint(folder))
    after = results(model)
    assert not {"parameters", "optimizer", "value_optimizer", "baseline"} & set(differences(before, after))


def test_a_worker_that_dies(tmp_path):
    env = make_env(vec="subproc", normalize=False)
    model = REINFORCE("MlpPolicy", env, n_steps=16, seed=0, device="cpu")

    def kill_worker() -> None:
        process = env.unwrapped.processes[1]
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    with pytest.raises(RuntimeError, match=r"environment 1 died \(exit code -9\) in step \d+ of the rollout"):
        model.learn(10_000, callback=[StopAt(60, kill_worker), TrainingCheckpoint(tmp_path)])
    assert REINFORCE.resume(tmp_path, make_env(normalize=False)).num_timesteps >= 2 * 16 * N_ENVS


# -------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(every_n_updates=0), "every_n_updates must be a whole number >= 1, got 0"),
        (dict(keep=0), "keep must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        TrainingCheckpoint(tmp_path, **arguments)


def test_what_cannot_be_gone_on_with(tmp_path):
    with pytest.raises(ValueError, match='TrainingCheckpoint needs unfinished="finish", got unfinished="bootstrap"'):
        REINFORCE("MlpPolicy", "CartPole-v1", unfinished="bootstrap").learn(100, callback=TrainingCheckpoint(tmp_path))
    with pytest.raises(ValueError, match="TrainingCheckpoint saves runs of REINFORCE, got A2C"):
        A2C("MlpPolicy", "CartPole-v1").learn(100, callback=TrainingCheckpoint(tmp_path))


# ------------------------------------------------------------------------------------------------------------- logs


def test_rows_are_appended_and_a_torn_one_removed(tmp_path):
    logger = appending_logger(tmp_path, ["csv", "json", "log"])
    for step, values in enumerate([{"a": 1}, {"a": 2, "b": 3}]):
        for key, value in values.items():
            logger.record(key, value)
        logger.dump(step)
    logger.close()
    for name in ("progress.csv", "progress.json"):
        with (tmp_path / name).open("a") as file:
            file.write("4,")  # a crash in the middle of a row
    logger = appending_logger(tmp_path, ["csv", "json", "log"])
    logger.record("c", 5)
    logger.dump(2)
    logger.close()
    assert (tmp_path / "progress.csv").read_text() == "a,b,c\n1,,\n2,3,\n,,5\n"
    assert [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()] == [
        {"a": 1},
        {"a": 2, "b": 3},
        {"c": 5},
    ]
    assert (tmp_path / "log.txt").read_text().count("| a") == 2


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="Unknown format specified: xml"):
        appending_logger(tmp_path, ["xml"])
