"""gSDE with squashed outputs: log pi is that of what was drawn before tanh, also where tanh saturates."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.squashed import before_tanh
from sb3_reinforce.scores import Scores
from sb3_reinforce.update.steps import steps_of
from tests.envs import rows_of


class Steps(gym.Env):
    """Episodes of so many steps; the observation is 1, actions are in [-2, 2], the reward is the action received."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, n_steps: int):
        self.n_steps = n_steps

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.ones(1, np.float32), float(action[0]), self.t == self.n_steps, False, {}


def squashed(lengths: list[int], log_std: float, **kwargs: Any) -> REINFORCE:
    env = DummyVecEnv([lambda length=length: Steps(length) for length in lengths])
    policy_kwargs = dict(squash_output=True, log_std_init=log_std, net_arch=[])
    given = dict(use_sde=True, sde_sample_freq=1, baseline="none", seed=0, learning_rate=0.0, policy_kwargs=policy_kwargs)
    return REINFORCE("MlpPolicy", env, **{**given, **kwargs})


def test_the_mean_score_is_zero_where_tanh_saturates():
    """
    4,000 actions of one state, mean 0.3 and standard deviation exp(2): tanh rounds a quarter of them to -1 or 1. With
    z = (u - 0.3) / std, u before tanh, d log pi / d log_std = z^2 - 1 and d log pi / d bias = z / std: both have the mean 0.
    Computed from tanh(u), the first had the mean -0.42.
    """
    model = squashed([1] * 100, log_std=2.0, n_steps=40)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.fill_(0.3)
    model.learn(1)
    buffer, drawn = model.rollout_buffer, before_tanh(model.rollout_buffer)
    assert np.mean(np.abs(buffer.actions) == 1) > 0.2
    scores = Scores(model.policy, steps_of(buffer, model.batch.episodes)).of_steps(slice(0, 4000)).double()
    z = th.as_tensor((drawn[:, 0] - 0.3) / np.exp(2.0)).double()
    # in the order of the parameters: log_std, weight and bias of the mean (the observation is 1)
    by_hand = th.stack([z**2 - 1, z / np.exp(2.0), z / np.exp(2.0)], dim=1)
    th.testing.assert_close(scores, by_hand, rtol=1e-4, atol=1e-5)
    standard_error = scores.std(0) / 4000**0.5
    assert (scores.mean(0).abs() < 4 * standard_error).all()
    assert standard_error[0] < 0.03


@pytest.mark.parametrize(
    "kwargs", [dict(n_steps=7), dict(n_episodes=6), dict(n_steps=7, unfinished="bootstrap", baseline="value")]
)
def test_rows_belong_to_the_actions_played(kwargs):
    """
    Episodes of 2, 3 and 5 steps, some of whose steps are discarded: each row has the number whose tanh is its action, which is
    half of the reward.
    """
    model = squashed([2, 3, 5], log_std=0.0, n_epochs=2, batch_size=4, **kwargs).learn(1)
    buffer, drawn = model.rollout_buffer, before_tanh(model.rollout_buffer)
    np.testing.assert_allclose(np.tanh(drawn[:, 0]), buffer.actions.flatten(), rtol=1e-6)
    np.testing.assert_allclose(2 * buffer.actions.flatten(), buffer.rewards[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(rows_of(model).samples(np.array([3, 1])).actions[:, 0], drawn[[3, 1], 0])
    # the parameters have not moved: all importance ratios are 1
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-10)


def test_nothing_is_kept_of_other_policies():
    model = REINFORCE("MlpPolicy", DummyVecEnv([lambda: Steps(3)]), n_steps=8, use_sde=True).learn(1)
    assert before_tanh(model.rollout_buffer) is None
