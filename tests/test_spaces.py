"""Training with every kind of space, policy and wrapper that Stable-Baselines3 has."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_reinforce import REINFORCE
from tests.envs import collect, parameters

SMALL_NET = dict(net_arch=[8])


class SpacesEnv(gym.Env):
    """Any spaces; ends after 5 steps."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert np.shape(action) == self.action_space.shape
        self.t += 1
        return self.observation_space.sample(), float(np.sum(action)), self.t == 5, False, {}


OBSERVATION_SPACES = [
    spaces.Box(-1, 1, (3,), np.float64),
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2,), np.float32)),
    spaces.Box(0, 255, (3, 36, 36), np.uint8),
]


ACTION_SPACES = [
    spaces.Box(-1, 1, (2, 2), np.float32),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(4),
]


BOX = OBSERVATION_SPACES[0]


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (spaces.Box(-1, 1, (0,)), spaces.Discrete(2), r"observation_space must have at least one element, got Box\(.*\(0,\)"),
        (spaces.Dict(), spaces.Discrete(2), r"observation_space must have at least one element, got Dict\(\)"),
        (
            spaces.Dict(a=BOX, b=spaces.Box(-1, 1, (2, 0))),
            spaces.Discrete(2),
            "observation_space must have at least one element",
        ),
        (spaces.MultiDiscrete([[2, 3], [3, 4]]), spaces.Discrete(2), "observation_space must have one axis where it is Multi"),
        (BOX, spaces.Box(-1, 1, (0,)), "action_space must have at least one element, got Box"),
    ],
)
def test_spaces_that_no_policy_can_serve(observation_space, action_space, message):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=message):
        REINFORCE(policy, SpacesEnv(observation_space, action_space))


@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES, ids=str)
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_spaces(observation_space, action_space):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = DummyVecEnv([lambda: SpacesEnv(observation_space, action_space)] * 2)
    model = REINFORCE(policy, env, n_steps=8, seed=0, policy_kwargs=SMALL_NET, truncation="bootstrap", unfinished="bootstrap")
    before = parameters(model)
    model.learn(40)
    assert not th.equal(before, parameters(model))
    assert model.predict(env.reset())[0].shape == (2, *action_space.shape)


@pytest.mark.parametrize(
    ("policy", "env", "kwargs"),
    [
        ("CnnPolicy", FakeImageEnv, dict(chunk_size=3)),
        ("MultiInputPolicy", SimpleMultiObsEnv, {}),
        ("MlpPolicy", lambda: gym.make("Pendulum-v1"), dict(use_sde=True, sde_sample_freq=4)),
        (
            "MlpPolicy",
            lambda: gym.make("Pendulum-v1"),
            dict(use_sde=True, policy_kwargs=dict(squash_output=True, full_std=False), ent_coef=0.01, n_epochs=2),
        ),
    ],
)
def test_policies(policy, env, kwargs):
    model = REINFORCE(policy, env(), learning_rate=1e-3, n_steps=16, seed=0, **kwargs)
    before = parameters(model)
    model.learn(16)
    assert not th.equal(before, parameters(model))


def test_a_policy_that_masks_its_actions():
    """Logits of -inf where the observation's mask is 0: only NaN for a mask of zeros, which no state has."""

    class Masked(gym.Env):
        observation_space = spaces.Dict(mask=spaces.MultiBinary(3), x=spaces.Box(-1, 1, (2,), np.float32))
        action_space = spaces.Discrete(3)

        def _observation(self):
            return {"mask": np.array([1, 0, 1], np.int8), "x": np.zeros(2, np.float32)}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self._observation(), {}

        def step(self, action):
            assert action != 1
            self.t += 1
            return self._observation(), 1.0, self.t == 4, False, {}

    class MaskedPolicy(MultiInputActorCriticPolicy):
        def get_distribution(self, obs):
            distribution = super().get_distribution(obs)
            logits = distribution.distribution.logits.masked_fill(obs["mask"] == 0, -th.inf)
            return distribution.proba_distribution(logits)

    REINFORCE(MaskedPolicy, DummyVecEnv([Masked]), n_steps=40, seed=0).learn(40)


@pytest.mark.parametrize("kind", ["normalize", "stack", "subproc"])
def test_vec_env_wrappers(kind):
    vec_env_class = SubprocVecEnv if kind == "subproc" else DummyVecEnv
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=vec_env_class)
    env = {"normalize": VecNormalize, "stack": lambda e: VecFrameStack(e, 3), "subproc": lambda e: e}[kind](env)
    model = REINFORCE("MlpPolicy", env, n_steps=16, seed=0).learn(100)
    assert model._n_updates > 1
    assert evaluate_policy(model, env, 2, warn=False)[0] > 0
    env.close()


class Counting(gym.Env):
    """Observation t of the episode is t, a whole number; the time limit is 4."""

    action_space = spaces.Discrete(2)

    def __init__(self, dtype, as_dict):
        whole = spaces.Box(0, 100, (2,), dtype)
        self.as_dict = as_dict
        self.observation_space = spaces.Dict(a=whole, b=spaces.MultiBinary(2)) if as_dict else whole

    def _observation(self):
        a = np.full(2, self.t, self.observation_space["a"].dtype if self.as_dict else self.observation_space.dtype)
        return {"a": a, "b": np.ones(2, np.int8)} if self.as_dict else a

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), 1.0, False, self.t == 4, {}


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_vec_normalize_turns_whole_numbers_into_floats(dtype, as_dict):
    """The gradient is computed on what the policy saw: (t - 1) / 2, not rounded to whole numbers."""
    env = VecNormalize(
        DummyVecEnv([lambda: Counting(dtype, as_dict)]), norm_reward=False, norm_obs_keys=["a"] * as_dict or None
    )
    env.training, obs_rms = False, env.obs_rms["a"] if as_dict else env.obs_rms
    obs_rms.mean, obs_rms.var = np.full(2, 1.0), np.full(2, 4.0)
    model = REINFORCE("MultiInputPolicy" if as_dict else "MlpPolicy", env, n_episodes=1, seed=0, gamma=0.5)
    model._setup_learn(10)
    collect(model)
    observations = model.rollout_buffer.observations
    observations = observations["a"] if as_dict else observations
    np.testing.assert_allclose(observations[:, 0, 0], [-0.5, 0, 0.5, 1])
    # also after the time limit: R_3 = 1 + gamma V(s_4)
    last = {"a": th.full((1, 2), 1.5), "b": th.ones(1, 2)} if as_dict else th.full((1, 2), 1.5)
    with th.no_grad():
        value = model.policy.predict_values(last).item()
    assert model.rollout_buffer.returns[3, 0] == pytest.approx(1 + 0.5 * value, rel=1e-5)
    model.train()
