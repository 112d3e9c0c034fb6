"""Rollouts: which episodes count, where the next rollout starts, and what an interruption leaves behind."""

import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE
from tests.envs import RewardListEnv, parameters


def test_episodes_of_waiting_environments_are_not_counted():
    """Environment 0 plays five episodes while environment 1 plays one: only the first is used and counted."""
    env = DummyVecEnv([lambda: Monitor(RewardListEnv([1.0])), lambda: Monitor(RewardListEnv([2.0] * 5))])
    model = REINFORCE("MlpPolicy", env, n_episodes=2, seed=0)
    with pytest.warns(UserWarning, match="4 of 10 steps of a rollout were played by environments that waited"):
        model.learn(1)
    assert model.num_timesteps == 10
    assert sorted(info["r"] for info in model.ep_info_buffer) == [1.0, 10.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(1, reset_num_timesteps=False)  # one warning is enough


@pytest.mark.parametrize(("norm_reward", "monitor"), [(True, True), (True, False), (False, False)])
def test_logged_returns_are_those_before_normalization(norm_reward, monitor):
    make = lambda: Monitor(RewardListEnv([100.0] * 5)) if monitor else RewardListEnv([100.0] * 5)  # noqa: E731
    env = VecNormalize(DummyVecEnv([make]), norm_reward=norm_reward)
    model = REINFORCE("MlpPolicy", env, n_episodes=1, seed=0).learn(20, log_interval=100)
    logged = model.logger.name_to_value.get("rollout/ep_return_mean")
    assert logged == (500 if monitor or not norm_reward else None)  # unknown where only VecNormalize has seen it


class StopAfter(BaseCallback):
    def __init__(self, n_steps):
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self):
        return self.n_calls < self.n_steps


def test_a_callback_stops_in_the_middle_of_a_rollout():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0)
    before = parameters(model)
    model.learn(10_000, callback=StopAfter(10))
    assert model.num_timesteps == 10
    assert th.equal(before, parameters(model))
    model.learn(100, reset_num_timesteps=False)  # training can continue
    assert model.num_timesteps >= 110


def test_a_dropped_rollout_leaves_no_hole():
    """
    unfinished="bootstrap", stopped at step 2 of [1, 2, 3, 4, 5]: the next learn() starts at a reset, because the steps
    before the stop are not in its rollout.
    """
    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3, 4, 5])])
    model = REINFORCE("MlpPolicy", env, n_steps=4, unfinished="bootstrap", seed=0)
    model.learn(100, callback=StopAfter(2))
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.observations[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(model.rollout_buffer.episode_starts[:, 0], [1, 0, 0, 0])
    # without a stop the environment continues where it was, at t = 4
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.observations[:, 0], [4, 0, 1, 2])


def test_ctrl_c_leaves_no_hole():
    """As above, with an exception instead of a callback's False."""

    class CtrlC(BaseCallback):
        def _on_step(self):
            if self.n_calls == 2:
                raise KeyboardInterrupt
            return True

    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3, 4, 5])])
    model = REINFORCE("MlpPolicy", env, n_steps=4, unfinished="bootstrap", seed=0)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=CtrlC())
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.observations[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(model.rollout_buffer.episode_starts[:, 0], [1, 0, 0, 0])


def test_a_learn_without_a_rollout_leaves_no_reset_behind():
    """learn(0) resets the environment. It may be stepped before the next learn(), which must therefore reset it again."""
    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3])])
    model = REINFORCE("MlpPolicy", env, n_episodes=1, seed=0).learn(0)
    env.step(np.array([0]))
    model.learn(1, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.rewards[:, 0], [1, 2, 3])


def test_environments_are_reset_once_per_rollout():
    resets = []

    class Counts(RewardListEnv):
        def reset(self, *, seed=None, options=None):
            resets.append((seed is not None, options))
            return super().reset(seed=seed, options=options)

    env = DummyVecEnv([lambda: Counts([1.0] * 3)])
    env.set_options({"difficulty": 2})
    REINFORCE("MlpPolicy", env, n_episodes=1, seed=0).learn(6)
    # each rollout: a seeded reset, and one by DummyVecEnv after the episode; the first gets the options
    assert resets == [(True, {"difficulty": 2}), (False, None), (True, None), (False, None)]


def test_rollout_buffer_class():
    class Own(RolloutBuffer):
        def __init__(self, *args, colour, **kwargs):
            super().__init__(*args, **kwargs)
            self.colour = colour

    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, rollout_buffer_class=Own, rollout_buffer_kwargs=dict(colour=3))
    model.learn(16)
    assert model.rollout_buffer.colour == 3
    assert model.rollout_buffer.size() >= 16
    data = next(model.rollout_buffer.get(8))
    assert data.observations.shape == (8, 4)
    with pytest.raises(ValueError, match=r"rollout_buffer_kwargs=.*unexpected keyword argument"):
        REINFORCE("MlpPolicy", "CartPole-v1", rollout_buffer_kwargs=dict(colour=3))
    with pytest.raises(AssertionError, match="must be used with Dict obs space only"):
        REINFORCE("MlpPolicy", "CartPole-v1", rollout_buffer_class=DictRolloutBuffer)
