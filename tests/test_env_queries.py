"""VecEnvs that cannot tell about their environments, and environments that offer action masks."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from sb3_reinforce import REINFORCE, VectorEnvAdapter, compare_baselines
from sb3_reinforce.running.env_queries import env_name, forbids_early_resets, offers_action_masks
from sb3_reinforce.running.training_state import evaluation_random_state, set_evaluation_random_state
from tests.envs import RewardListEnv


class Silent(VecEnvWrapper):
    """Answers no question about its environments."""

    error: type[Exception] = NotImplementedError

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()

    def get_attr(self, *args, **kwargs):
        if args == ("render_mode",):  # VecEnv's constructor asks
            return [None, None]
        raise self.error("cannot say")

    has_attr = set_attr = env_method = env_is_wrapped = get_attr


def episodes(n_envs=2, **kwargs):
    return make_vec_env(RewardListEnv, n_envs, env_kwargs=dict(rewards=[1.0, 2.0]), **kwargs)


@pytest.mark.parametrize("error", [NotImplementedError, AttributeError, RuntimeError, TypeError])
def test_a_vec_env_that_cannot_say(error, monkeypatch):
    monkeypatch.setattr(Silent, "error", error)
    env = Silent(episodes())
    model = REINFORCE("MlpPolicy", env, n_episodes=2, baseline="greedy", seed=0).learn(8)
    assert model._n_updates == 1  # the greedy episodes count
    assert compare_baselines(env, model, n_episodes=4, baselines=["mean"], n_bootstrap=2).title.startswith("DummyVecEnv: 4 ")


class IsaacLab(Silent):
    """As Isaac Lab's Sb3VecEnvWrapper: always the same two answers about Monitor, and attributes of the whole."""

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [True, True]

    def get_attr(self, name, indices=None):
        return [getattr(self.venv.envs[0], name)] * (self.num_envs if indices is None else len(indices))

    def has_attr(self, name):
        return hasattr(self.venv.envs[0], name)


class SameAnswer(Silent):
    """Answers every question with None."""

    def get_attr(self, *args, **kwargs):
        return [None] * self.num_envs

    def has_attr(self, name):
        return self.get_attr(name) is not None

    env_is_wrapped = env_method = get_attr


def test_answers_that_are_none():
    for env in (IsaacLab(episodes(1)), SameAnswer(episodes())):
        assert not forbids_early_resets(env)
        assert not offers_action_masks(env)
        assert env_name(env) == "DummyVecEnv"
    early = DummyVecEnv(
        [lambda: Monitor(RewardListEnv([1.0])), lambda: Monitor(RewardListEnv([1.0]), allow_early_resets=False)]
    )
    assert forbids_early_resets(early)
    assert env_name(make_vec_env("CartPole-v1")) == "CartPole-v1"


def test_the_random_state_of_an_evaluation_that_cannot_be_set():
    """As of Isaac Lab, whose generator is the environment's own: its state is restored where it is."""
    env = IsaacLab(episodes(1))
    env.reset()
    callback = EvalCallback(env)
    state = evaluation_random_state(callback)
    drawn = env.venv.envs[0].np_random.random(3)
    set_evaluation_random_state(callback, state)
    assert np.array_equal(env.venv.envs[0].np_random.random(3), drawn)
    assert evaluation_random_state(EvalCallback(Silent(episodes()))) == {}


class Masks(gym.Wrapper):
    def action_masks(self):
        raise RuntimeError("not before the first reset")


def test_masks_are_recognised_but_not_asked_for():
    """AsyncVectorEnv would call the method, and its workers would end."""
    env = VectorEnvAdapter(gym.vector.AsyncVectorEnv([lambda: Masks(RewardListEnv([1.0]))] * 2))
    assert offers_action_masks(env)
    assert env.reset().shape == (2, 2)
    env.close()
    assert not offers_action_masks(VectorEnvAdapter(gym.vector.SyncVectorEnv([lambda: RewardListEnv([1.0])])))


def test_action_masks_are_not_used_without_a_word(tmp_path):
    """One warning, at construction, and for a loaded model one when it is trained."""
    message = r"has action masks \(method action_masks\), which MlpPolicy does not take: .* Use \"MaskableMlpPolicy\""
    make_env = lambda: episodes(wrapper_class=Masks)  # noqa: E731
    with pytest.warns(UserWarning, match=message) as caught:
        model = REINFORCE("MlpPolicy", make_env(), n_steps=8).learn(1).learn(1)
    assert len(caught) == 1
    model = REINFORCE("MlpPolicy", episodes(), n_steps=8)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=message) as caught:
        REINFORCE.load(tmp_path / "model", make_env()).learn(1)
    assert len(caught) == 1


def test_no_warning_without_masks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        REINFORCE(
            "MlpPolicy", DummyVecEnv([lambda: Masks(gym.make("CartPole-v1")), lambda: gym.make("CartPole-v1")]), n_steps=8
        )
