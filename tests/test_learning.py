"""It learns: fixed seeds, with thresholds that leave room for other machines. For published numbers see docs/results.md."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE


class Corridor(gym.Env):
    """
    Six cells; action 1 goes right, 0 left; each step pays -1; ends at the last cell or after 30 steps. The best return is -5,
    a random walk's about -23.
    """

    observation_space = spaces.Discrete(6)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.t = 0, 0
        return self.cell, {}

    def step(self, action):
        self.cell = max(self.cell + (1 if action == 1 else -1), 0)
        self.t += 1
        return self.cell, -1.0, self.cell == 5, self.t == 30, {}


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out", "per_step", "moving_average", "value"])
@pytest.mark.parametrize("returns", ["reward_to_go", "episode"])
def test_corridor(baseline, returns):
    env = DummyVecEnv([Corridor] * 4)
    model = REINFORCE(
        "MlpPolicy", env, n_episodes=8, baseline=baseline, returns=returns, learning_rate=1e-2, seed=0,
        policy_kwargs=dict(net_arch=[16]),
    )  # fmt: skip
    model.learn(15_000)
    assert evaluate_policy(model, DummyVecEnv([Corridor]), 5, warn=False)[0] == -5
    # the sampled policy is far better than a random walk, too
    assert np.mean([info["r"] for info in model.ep_info_buffer] or [model.logger.name_to_value["rollout/ep_return_mean"]]) > -8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_with_default_arguments(seed):
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=seed).learn(98_900)
    assert evaluate_policy(model, make_vec_env("CartPole-v1", 1, seed=99), 50)[0] >= 450
