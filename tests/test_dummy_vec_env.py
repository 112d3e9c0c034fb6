"""DummyVecEnv as training steps it: what SB3's own returns, and nothing that the environments can change afterwards."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_reinforce.vec_env.dummy import quicken, step_wait

BOX = spaces.Box(-1, 1, (2,), np.float32)
SPACES = [BOX, spaces.Discrete(5), spaces.Dict(a=BOX, b=spaces.Discrete(3)), spaces.Tuple([BOX, BOX])]


class Infos(gym.Env):
    """Episodes of three steps with infos of several kinds, of which it keeps and changes those that can change."""

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space):
        self.observation_space = copy.deepcopy(observation_space)  # its random numbers are its own
        self.array, self.nested = np.zeros(2), {"n": 0}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {"reset": True}

    def step(self, action):
        self.t += 1
        self.array += 1
        self.nested["n"] += 1
        info = {"t": self.t, "x": np.float64(0.5), "text": "a", "array": self.array, "nested": self.nested, "action": action}
        return self.observation_space.sample(), 0.1 * self.t, False, self.t == 3, info


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_steps_are_those_of_stable_baselines3(space):
    envs = [VecMonitor(DummyVecEnv([lambda: Infos(space), lambda: Infos(space)])) for _ in range(2)]
    quicken(envs[1])
    quicken(envs[1])  # twice is once
    steps = []
    for env in envs:
        env.seed(3)
        env.reset()
        steps.append([env.step(np.array([0, 1])) for _ in range(7)])
    for (observations, rewards, dones, infos), (expected, rewards2, dones2, infos2) in zip(*steps[::-1], strict=True):
        np.testing.assert_equal(observations, expected)
        assert type(observations) is type(expected)
        np.testing.assert_array_equal(rewards, rewards2)
        np.testing.assert_array_equal(dones, dones2)
        for info, info2 in zip(infos, infos2, strict=True):
            info.get("episode", {}).pop("t", None), info2.get("episode", {}).pop("t", None)  # seconds
            np.testing.assert_equal(info, info2)
    assert envs[0].reset_infos == envs[1].reset_infos


def test_nothing_that_was_returned_changes_later():
    env = DummyVecEnv([lambda: Infos(BOX)])
    quicken(env)
    env.reset()
    observations, rewards, _, infos = env.step(np.array([0]))
    before = observations.copy(), rewards.copy()
    env.step(np.array([1]))
    assert infos[0]["array"].tolist() == [1, 1]
    assert infos[0]["nested"] == {"n": 1}
    np.testing.assert_array_equal(observations, before[0])
    np.testing.assert_array_equal(rewards, before[1])


def test_steps_of_ones_own_stay():
    class Own(DummyVecEnv):
        def step_wait(self):
            return super().step_wait()

    own, replaced = Own([lambda: Infos(BOX)]), DummyVecEnv([lambda: Infos(BOX)])
    replaced.step_wait = lambda: "mine"
    for env in (own, replaced):
        quicken(env)
    assert own.step_wait.__func__ is Own.step_wait
    assert replaced.step_wait() == "mine"
    plain = DummyVecEnv([lambda: Infos(BOX)])
    quicken(plain)
    assert plain.step_wait.__func__ is step_wait
