"""TrainingCheckpoint: when it saves, what it keeps, and what it does when an update or a write fails."""

import os
import signal
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running.checkpoint_file import checkpoints_in, read_parts
from tests.envs import RewardListEnv
from tests.runs import N_ENVS, StopAt, differences, make_env, play, results


def test_stop_finishes_the_update(tmp_path):
    checkpoint = TrainingCheckpoint(tmp_path, every_n_updates=100)
    assert not checkpoint.can_resume()
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, seed=0, device="cpu")
    model.learn(10_000, callback=[checkpoint, StopAt(70, checkpoint.stop)])
    assert model._n_updates == 4  # call 70 is in the fourth update: each has 16 steps and the rest of an episode
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
        model.learn(200, callback=checkpoint)  # starts from 0 again
    with pytest.raises(ValueError, match=r"resume that run by REINFORCE.resume\(path, env\)"):
        REINFORCE("MlpPolicy", make_env()).learn(200, callback=TrainingCheckpoint(tmp_path))


def test_keep(tmp_path):
    play(tmp_path, every=1)
    found = checkpoints_in(tmp_path / "checkpoints")
    assert len(found) == 3
    assert sorted(path.name for path in found) == sorted(set(os.listdir(tmp_path / "checkpoints")) - {".lock"})
    steps = [int(path.name.split("_")[1]) for path in found]
    assert steps == sorted(steps, reverse=True)  # the newest first, by number, not by name


def test_a_checkpoint_is_a_model_file(tmp_path):
    model = play(tmp_path, evaluate=False)
    loaded = REINFORCE.load(checkpoints_in(tmp_path / "checkpoints")[0])
    assert all(th.equal(value, loaded.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())


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


def test_runs_that_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match='TrainingCheckpoint needs unfinished="finish", got unfinished="bootstrap"'):
        REINFORCE("MlpPolicy", "CartPole-v1", unfinished="bootstrap").learn(100, callback=TrainingCheckpoint(tmp_path))
    with pytest.raises(ValueError, match="TrainingCheckpoint saves runs of REINFORCE, got A2C"):
        A2C("MlpPolicy", "CartPole-v1").learn(100, callback=TrainingCheckpoint(tmp_path))


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
    assert 1 <= len(texts) == len(set(texts)) <= 4  # one warning for each checkpoint
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


def test_an_error_after_an_update_keeps_the_update(tmp_path):
    """The disk is full when the log row of update 3 is written: the checkpoint contains update 3."""

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


class Spoilt(RewardListEnv):
    """Starting with a given episode, the reward of step 2 is NaN."""

    def __init__(self, from_episode: int):
        super().__init__([1.0, 2.0, 3.0])
        self.episodes_left = from_episode

    def reset(self, **kwargs):
        self.episodes_left -= 1
        return super().reset(**kwargs)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.episodes_left < 0 and self.t == 2 else reward, *rest


def test_a_nan_reward_leaves_the_last_good_state(tmp_path):
    def env(from_episode: int) -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: RewardListEnv([1.0, 2.0, 3.0]), lambda: Spoilt(from_episode)]), gamma=0.9)

    model = REINFORCE("MlpPolicy", env(20), n_steps=12, seed=0, device="cpu")
    with pytest.raises(ValueError, match="reward must be finite, got nan from environment 1 at step"):
        model.learn(1000, callback=TrainingCheckpoint(tmp_path, every_n_updates=100))
    assert model._n_updates > 2
    resumed = REINFORCE.resume(tmp_path, env(1000))
    assert resumed._n_updates == model._n_updates
    assert all(th.equal(value, resumed.policy.state_dict()[name]) for name, value in model.policy.state_dict().items())
    assert np.isfinite(resumed.env.ret_rms.var)  # as before the spoilt rollout
    resumed.learn(100, reset_num_timesteps=False, callback=TrainingCheckpoint(tmp_path))


def test_an_update_that_is_not_finite_restores_the_optimisers(tmp_path):
    """The value network's step gives NaN, and without the restore the optimiser's moments would stay NaN."""
    model = REINFORCE("MlpPolicy", make_env(normalize=False), n_steps=16, seed=0, device="cpu", learning_rate=1e-3)
    model.learn(300, callback=TrainingCheckpoint(tmp_path, every_n_updates=100))
    before = results(model)
    folder = tmp_path / "second"
    model.value_learning_rate = 1e30
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
