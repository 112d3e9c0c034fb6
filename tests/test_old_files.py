"""A model and a checkpoint from before the package was split into rollout/, update/ and running/ (November 2026)."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE, TrainingCheckpoint

DATA = Path(__file__).parent / "data"


def test_model():
    """CartPole-v1, 313 steps in 4 updates: parameters, optimiser, schedule, moving average and counters are there."""
    env = make_vec_env("CartPole-v1", 1)
    model = REINFORCE.load(DATA / "model.zip", env=env, device="cpu")
    assert (model.num_timesteps, model._n_updates) == (313, 4)
    assert model.baseline == "moving_average"
    assert model.policy.action_net.bias.tolist() == [0.010538983158767223, -0.010538982227444649]
    assert model.policy.optimizer.state_dict()["state"][0]["step"] == 4
    assert model.lr_schedule(0.5) == pytest.approx(0.005)
    model.learn(400, reset_num_timesteps=False)
    # b of the next update is the saved average
    assert model._n_updates > 4
    first = REINFORCE.load(DATA / "model.zip", env=env, device="cpu").learn(1, reset_num_timesteps=False)
    assert first.batch.baseline.unique().tolist() == [15.873488724724933]


def test_checkpoint(tmp_path):
    """CartPole-v1 in VecNormalize, 422 steps in 5 updates: it resumes, and so does the next checkpoint."""
    shutil.copy(DATA / "checkpoint_422_steps.zip", tmp_path)
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was saved with")  # other versions of the libraries
        model = REINFORCE.resume(tmp_path, env)
    assert (model.num_timesteps, model._n_updates) == (422, 5)
    assert env.obs_rms.count == pytest.approx(432.0001)
    assert env.obs_rms.mean[0] == pytest.approx(0.004243199772576364, rel=1e-12)
    assert model.ep_info_buffer[-1]["r"] == 34.0
    before = model.policy.action_net.bias.tolist()
    assert before == [-0.007839162833988667, 0.007839162833988667]
    model.learn(600, reset_num_timesteps=False, callback=TrainingCheckpoint(tmp_path))
    assert model.policy.action_net.bias.tolist() != before
    newest = TrainingCheckpoint(tmp_path)
    assert newest.can_resume()
    path = max(tmp_path.glob("checkpoint_*_steps.zip"), key=lambda path: int(path.name.split("_")[1]))
    again = REINFORCE.resume(path, VecNormalize(make_vec_env("CartPole-v1", 2)))
    assert again.num_timesteps == model.num_timesteps > 422
    assert th.equal(again.policy.action_net.bias, model.policy.action_net.bias)
