"""
What sb3-contrib's users of RecurrentPPO expect of a recurrent policy, with REINFORCE in its place: kinds of policies, spaces,
states in ``predict``, evaluation, saving and resuming.
"""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.squashed import before_tanh
from tests.envs import BOX, Random

pytest.importorskip("sb3_contrib")
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

POLICY_KWARGS = {
    "default": {},
    "separate extractors": dict(share_features_extractor=False),
    "shared LSTM": dict(shared_lstm=True, enable_critic_lstm=False),
    "dropout": dict(n_lstm_layers=2, lstm_kwargs=dict(dropout=0.5)),
    "no LSTM for V": dict(enable_critic_lstm=False, n_lstm_layers=2, lstm_kwargs=dict(dropout=0.5)),
    "separate extractors, no LSTM for V": dict(enable_critic_lstm=False, share_features_extractor=False),
}


def learned(policy: Any, env: Any, policy_kwargs: dict[str, Any], **kwargs: Any) -> REINFORCE:
    """After two updates."""
    kwargs = {"n_episodes": 2, "device": "cpu", **kwargs}
    policy_kwargs = dict(lstm_hidden_size=4, net_arch=[4]) | policy_kwargs
    model = REINFORCE(policy, env, seed=0, policy_kwargs=policy_kwargs, **kwargs)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(1)
    model.learn(1)
    moved = [name for name, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[name])]
    assert any(name.startswith("lstm_actor.weight_hh") for name in moved)
    assert any(name.startswith("value_net") for name in moved)
    return model


@pytest.mark.parametrize("kwargs", POLICY_KWARGS.values(), ids=POLICY_KWARGS)
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MultiInputLstmPolicy"])
def test_policy_kwargs(policy, kwargs):
    space = BOX if policy == "MlpLstmPolicy" else spaces.Dict(a=BOX, b=spaces.Discrete(3))
    model = learned(policy, Random(space, spaces.Discrete(2)), kwargs)
    evaluate_policy(model, model.get_env(), n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("kwargs", [{}, dict(shared_lstm=True, enable_critic_lstm=False)])
def test_images(kwargs):
    kwargs = kwargs | dict(features_extractor_kwargs=dict(features_dim=8))
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)
    learned("CnnLstmPolicy", gym.wrappers.TimeLimit(env, 3), kwargs)


@pytest.mark.parametrize(
    "space", [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)], ids=lambda s: type(s).__name__
)
def test_actions(space):
    learned(RecurrentActorCriticPolicy, DummyVecEnv([lambda: Random(BOX, space)] * 2), {})


@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde(squash_output):
    model = learned("MlpLstmPolicy", Random(BOX, BOX), dict(squash_output=squash_output), use_sde=True, sde_sample_freq=4)
    assert (before_tanh(model.rollout_buffer) is not None) == squash_output


def test_observations_of_one_number():
    learned("MlpLstmPolicy", Random(spaces.Discrete(4), spaces.Discrete(2)), {})


def test_predict_as_in_recurrent_ppo():
    """The same actions and states from the same parameters, with and without a state, and reset by ``episode_start``."""
    model = learned("MlpLstmPolicy", DummyVecEnv([lambda: Random(BOX, spaces.Discrete(5))] * 3), {}, n_episodes=3)
    ppo = RecurrentPPO("MlpLstmPolicy", model.get_env(), policy_kwargs=model.policy_kwargs, device="cpu")
    ppo.policy.load_state_dict(model.policy.state_dict())
    observations = np.random.default_rng(0).normal(size=(4, 3, 3)).astype(np.float32)
    own = other = None
    for step, observation in enumerate(observations):
        start = np.array([step == 0, step == 2, False])
        action, own = model.predict(observation, own, start, deterministic=True)
        expected, other = ppo.predict(observation, other, start, deterministic=True)
        np.testing.assert_array_equal(action, expected)
        np.testing.assert_array_equal(own, other)
    assert own[0].shape == (1, 3, 4)
    single, state = model.predict(observations[0, 0], deterministic=True)
    assert single.shape == ()
    assert state[0].shape == (1, 1, 4)


class Recall(gym.Env):
    """The first observation tells which action pays in the second and last step, when nothing tells it any more."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.secret, self.t = int(self.np_random.integers(2)), 0
        return np.array([2.0 * self.secret - 1], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.zeros(1, np.float32), float(self.t == 2 and action == self.secret), self.t == 2, False, {}


def test_what_must_be_remembered_is_learned():
    """An LSTM gets all of the reward, in training, evaluation and after loading; an MLP can get a half."""
    arguments: dict[str, Any] = dict(n_episodes=64, learning_rate=0.03, seed=0, device="cpu", gamma=1.0)
    env = make_vec_env(Recall, 8, seed=0)
    model = REINFORCE("MlpLstmPolicy", env, policy_kwargs=dict(lstm_hidden_size=8, net_arch=[]), **arguments)
    evaluation = EvalCallback(make_vec_env(Recall, 2, seed=1), eval_freq=128, n_eval_episodes=40, verbose=0)
    model.learn(64 * 2 * 25, callback=evaluation)
    assert evaluation.best_mean_reward == 1.0
    file = io.BytesIO()
    model.save(file)
    loaded = REINFORCE.load(file, env)
    assert loaded.policy_class is RecurrentActorCriticPolicy
    assert evaluate_policy(loaded, env, n_eval_episodes=40)[0] == 1.0
    loaded.learn(1)
    without = REINFORCE("MlpPolicy", env, **arguments).learn(64 * 2 * 10)
    assert evaluate_policy(without, env, n_eval_episodes=100)[0] < 0.7


def test_normalised_observations():
    env = VecNormalize(DummyVecEnv([lambda: Random(BOX, spaces.Discrete(2))] * 2))
    learned("MlpLstmPolicy", env, {}, n_epochs=2, batch_size=4, value_batch_size=4, chunk_size=2)


def test_an_own_class_may_change_its_layers():
    class Own(RecurrentActorCriticPolicy):
        def _build_mlp_extractor(self) -> None:
            self.net_arch = dict(pi=[3], vf=[2])
            super()._build_mlp_extractor()

    model = learned(Own, Random(BOX, spaces.Discrete(2)), {})
    assert model.policy.action_net.in_features == 3
