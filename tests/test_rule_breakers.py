"""Environments and VecEnvs that keep to no rule: what they are trained with is right all the same, or an error says so."""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_reinforce import REINFORCE, VectorEnvAdapter
from tests.envs import OneLife, RewardListEnv, parameters


class HomeMadeVecEnv(VecEnv):
    """
    Two environments whose episodes a time limit ends after ``lengths`` steps; observation t is filled with t. It keeps one
    buffer for observations, and returns whatever the other arguments say.
    """

    def __init__(
        self,
        lengths=(5, 5),
        dones_dtype=bool,
        rewards_shape=(2,),
        info=None,
        terminal=lambda observation: observation,
        image=False,
    ):
        shape, low, high, dtype = ((3, 36, 40), 0, 255, np.uint8) if image else ((2,), -np.inf, np.inf, np.float32)
        super().__init__(2, spaces.Box(low, high, shape, dtype), spaces.Discrete(2))
        self.lengths, self.dones_dtype, self.rewards_shape = lengths, dones_dtype, rewards_shape
        self.info, self.terminal = info or {}, terminal
        self.buffer = np.zeros((2, *shape), dtype)

    def reset(self):
        self.t = [0, 0]
        self.buffer[:] = 0
        return self.buffer

    def step_async(self, actions):
        pass

    def step_wait(self):
        dones, infos = np.zeros(2, self.dones_dtype), [{}, {}]
        for i, observation in enumerate(self.buffer):
            self.t[i] += 1
            observation[:] = self.t[i]
            if self.t[i] == self.lengths[i]:
                dones[i] = 1
                last = self.terminal(observation.copy())
                infos[i] = {"terminal_observation": last, "TimeLimit.truncated": True, **self.info}
                self.t[i] = observation[:] = 0
        return self.buffer, np.ones(self.rewards_shape, np.float32), dones, infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * 2

    def set_attr(self, attr_name, value, indices=None):
        pass

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return [None] * 2

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * 2


class WritesIntoActions(gym.Env):
    """Overwrites the action that it is given, after paying the first component of it."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        reward = float(action[0])
        action[:] = 0
        return np.zeros(2, np.float32), reward, self.t == 20, False, {}


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)])
def test_the_action_that_was_drawn_is_learned_from(space):
    model = REINFORCE("MlpPolicy", WritesIntoActions(space), n_episodes=1, baseline="none", seed=0).learn(20)
    buffer = model.rollout_buffer
    assert buffer.rewards.any()
    np.testing.assert_array_equal(buffer.actions.reshape(20, 2)[:, 0], buffer.rewards.reshape(20))


def test_a_vec_env_may_return_its_own_buffer():
    model = REINFORCE("MlpPolicy", HomeMadeVecEnv(), n_episodes=2, seed=0).learn(10)
    np.testing.assert_array_equal(model.rollout_buffer.observations.reshape(10, 2)[:, 0], [0, 1, 2, 3, 4] * 2)
    assert all((span.last_observation == 5).all() for span in model.rollout.spans)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
@pytest.mark.parametrize("unfinished", ["finish", "bootstrap"])
def test_dones_may_be_numbers(dtype, unfinished):
    def train(dones_dtype):
        arguments = {"n_steps": 7, "unfinished": unfinished, "discount_state": True, "baseline": "value", "seed": 0}
        return REINFORCE("MlpPolicy", HomeMadeVecEnv((5, 3), dones_dtype), **arguments).learn(40)

    assert th.equal(parameters(train(dtype)), parameters(train(bool)))


def to_last(observation):
    """The image with its channels last, as most environments return it."""
    return np.moveaxis(observation, 0, -1)


def test_a_terminal_image_with_its_channels_last_is_transposed():
    """Rows differ, so that a reshape instead of a transposition would be seen."""
    image = np.arange(3 * 36 * 40).reshape(3, 36, 40).astype(np.uint8)
    env = HomeMadeVecEnv(terminal=lambda _: to_last(image), image=True)
    model = REINFORCE("CnnPolicy", env, n_episodes=2, truncation="bootstrap", seed=0).learn(10)
    np.testing.assert_array_equal(model.rollout.spans[0].last_observation, image)


@pytest.mark.parametrize("terminal", [lambda o: o[:, None], lambda o: o[None, :, None], lambda o: np.append(o, 0)])
def test_a_terminal_observation_of_another_shape(terminal):
    message = r"terminal observation must have the shape \(2,\) .* from environment 0 at step 5 of the rollout"
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", HomeMadeVecEnv(terminal=terminal), n_episodes=2).learn(10)


class ReusesItsArray(RewardListEnv):
    """Writes each observation into the array that it has returned before."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.array = np.zeros(2, np.float32)

    def _observation(self):
        self.array[:] = self.t
        return self.array


@pytest.mark.parametrize("as_dict", [False, True])
def test_an_environment_may_reuse_its_observation_array(as_dict):
    """The observation behind a time limit is 3, not the 0 of the reset that overwrites it."""

    def make():
        env = ReusesItsArray([1.0] * 3, truncated=True)
        as_dicts = spaces.Dict(x=env.observation_space)
        return gym.wrappers.TransformObservation(env, lambda o: {"x": o}, as_dicts) if as_dict else env

    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    model = REINFORCE(policy, DummyVecEnv([make, make]), n_steps=6, truncation="bootstrap", seed=0).learn(10)
    for span in model.rollout.spans:
        last = span.last_observation
        np.testing.assert_array_equal(last["x"] if as_dict else last, [3.0, 3.0])


def test_a_reused_array_in_another_process_is_warned_of():
    env = SubprocVecEnv([lambda: ReusesItsArray([1.0] * 3, truncated=True)], start_method="fork")
    with pytest.warns(UserWarning, match="the observation at each time limit equals that of the reset"):
        REINFORCE("MlpPolicy", env, n_steps=6, truncation="bootstrap").learn(10)
    env.close()


class KillsWorker(BaseCallback):
    def _on_step(self):
        if self.n_calls == 5:
            process = self.training_env.env.unwrapped.processes[1]
            process.kill()
            process.join()
        return True


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_killed_worker_of_a_vector_environment(mode):
    workers = AsyncVectorEnv([lambda: RewardListEnv([1.0] * 20)] * 2, context="fork", autoreset_mode=mode)
    with pytest.raises(RuntimeError, match=r"environment 1 died \(exit code -9\) in step 5 of the rollout"):
        REINFORCE("MlpPolicy", VectorEnvAdapter(workers)).learn(100, callback=KillsWorker())
    workers.close(terminate=True)


def test_returns_of_whole_games_where_a_monitor_counts_them():
    """Three lives of two steps that pay 5: a game is worth 30 and takes 6 steps, a life counts 2 after clipping."""
    model = REINFORCE("MlpPolicy", OneLife(Monitor(RewardListEnv([5.0] * 6))), n_episodes=6, seed=0)
    model.learn(12, log_interval=100)
    logged = model.logger.name_to_value
    assert [logged[f"rollout/ep_return_{name}"] for name in ("mean", "min", "max", "std")] == [30, 30, 30, 0]
    assert logged["rollout/n_episodes"] == 6
    games = [(span.total_reward, span.total_length) for span in model.rollout.spans if span.total_reward is not None]
    assert games == [(30, 6), (30, 6)]
    # a rollout without the end of a game has no return
    model = REINFORCE("MlpPolicy", OneLife(Monitor(RewardListEnv([5.0] * 6))), n_episodes=2, seed=0)
    model.learn(4, log_interval=100)
    assert "rollout/ep_return_mean" not in model.logger.name_to_value


def test_each_life_counts_where_there_is_no_monitor():
    model = REINFORCE("MlpPolicy", DummyVecEnv([lambda: OneLife(RewardListEnv([5.0] * 6))]), n_episodes=3, seed=0)
    model.learn(6, log_interval=100)
    assert model.logger.name_to_value["rollout/ep_return_mean"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards_shape": (2, 1)}, r"reward of 2 environments must have the shape \(2,\), got \(2, 1\) at step 0 of"),
        ({"rewards_shape": ()}, r"reward of 2 environments must have the shape \(2,\), got \(\) at step 0 of"),
        ({"info": {"episode": {"l": 5}}}, r"""info\["episode"\] must .*return "r".* from environment 0 at step 5 of"""),
        ({"info": {"episode": 3}}, r"""info\["episode"\] must .*, got 3 from environment 0 at step 5 of"""),
        ({"info": {"is_success": "yes"}}, r"""info\["is_success"\] must .*, got 'yes' from environment 0 at step 5 of"""),
        ({"terminal": lambda _: None}, r"""info\["terminal_observation"\] must be given .* environment 0 at step 5 of"""),
        (
            {"terminal": lambda o: o * np.float64(1e300)},
            "terminal observation must fit into float32, got 5e.300 from environment 0",
        ),
    ],
)
def test_what_a_vec_env_returns_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", HomeMadeVecEnv(**arguments), n_episodes=2).learn(10)


@pytest.mark.parametrize("reward", [np.array([1.0]), "x", None, 10**400])
@pytest.mark.parametrize("monitor", [Monitor, lambda env: env])
def test_a_reward_that_is_no_number(reward, monitor):
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 3), lambda: monitor(RewardListEnv([1.0, reward, 1.0]))])
    message = "reward must be (one number|finite), got .* environment 1 (in|at) step 1 of the rollout"
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", env, n_steps=3).learn(10)


@pytest.mark.parametrize(
    ("space", "observation", "message"),
    [
        (spaces.Discrete(3), 7, r"observation must be in Discrete\(3\), got 7"),
        (spaces.Discrete(3), -1, r"observation must be in Discrete\(3\), got -1"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 3]), r"observation must be in MultiDiscrete\(\[2 3\]\), got 3"),
        (
            spaces.Box(-np.inf, np.inf, (2,), np.float64),
            np.array([0, 1e300]),
            r"observation must fit into float32, got 1e.300",
        ),
    ],
)
def test_an_observation_that_the_space_does_not_have(space, observation, message):
    class Outside(RewardListEnv):
        observation_space = space

        def _observation(self):
            return observation if self.t == 2 else np.zeros_like(observation)

    inside = gym.wrappers.TransformObservation(RewardListEnv([1.0] * 5), lambda _: np.zeros_like(observation), space)
    env = DummyVecEnv([lambda: inside, lambda: Outside([1.0] * 5)])
    with pytest.raises(ValueError, match=message + " from environment 1 at step 2 of the rollout"), np.errstate(over="ignore"):
        REINFORCE("MlpPolicy", env, n_steps=5).learn(10)


@pytest.mark.parametrize("shape", [(2, 1), (2,)])
def test_observations_of_another_shape_are_not_repeated(shape):
    """NumPy would write them into an array of shape [2, 2] without a word."""
    env = HomeMadeVecEnv()
    env.buffer = np.zeros(shape, np.float32)
    message = f"observation of 2 environments must have the shape (2, 2), got {shape} at step 0 of the rollout"
    with pytest.raises(ValueError, match=re.escape(message)):
        REINFORCE("MlpPolicy", env).learn(10)
