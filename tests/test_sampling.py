"""NumPy and torch sample from the same distribution, and NumPy is used only where that is certain."""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.sampling import ACTIVATIONS, NumpySampler, TorchSampler, make_sampler, needs_torch

ACTION_SPACES = {
    "Box": spaces.Box(-1, 1, (3,), np.float32),
    "Box2d": spaces.Box(-2, 1, (2, 2), np.float32),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(3),
}
OBSERVATION_SPACE = spaces.Box(-1, 1, (5,), np.float32)


def make_policy(action_space, observation_space=OBSERVATION_SPACE, policy_class=ActorCriticPolicy, **kwargs):
    th.manual_seed(1)
    policy = policy_class(observation_space, action_space, lambda _: 1e-3, ortho_init=False, **kwargs)
    with th.no_grad():
        policy.action_net.weight.mul_(4.0)  # far from uniform
    policy.set_training_mode(False)
    return policy


def torch_parameters(policy, observations):
    """Logits or means, computed by torch."""
    with th.no_grad():
        features = policy.extract_features(th.as_tensor(observations), policy.pi_features_extractor)
        return policy.action_net(policy.mlp_extractor.forward_actor(features)).numpy()


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("net_arch", [[], [64, 64], dict(pi=[7], vf=[3]), dict(pi=[16, 8, 4, 4], vf=[])], ids=str)
def test_same_distribution_parameters(action_space, net_arch):
    policy = make_policy(action_space, net_arch=net_arch)
    observations = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    sampler = make_sampler(policy, 6, np.random.default_rng(0))
    assert isinstance(sampler, NumpySampler)
    expected = torch_parameters(policy, observations)
    np.testing.assert_allclose(sampler.distribution_parameters(observations), expected, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_all_activations(activation):
    policy = make_policy(ACTION_SPACES["Discrete"], activation_fn=activation)
    observations = 3 * np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    sampler = make_sampler(policy, 6, np.random.default_rng(0))
    assert isinstance(sampler, NumpySampler)
    np.testing.assert_allclose(
        sampler.distribution_parameters(observations), torch_parameters(policy, observations), atol=1e-6
    )


@pytest.mark.parametrize("make", [lambda p, rng: NumpySampler(p, 2, rng), TorchSampler], ids=["numpy", "torch"])
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_samples_have_the_policys_distribution(action_space, make):
    """
    20,000 actions for each of two observations: for Box, mean and standard deviation are within 5 standard errors of those of
    torch's distribution; for the others, the frequencies of actions are.
    """
    policy = make_policy(action_space, log_std_init=-0.7)
    observations = np.array([[0.5, -1, 0.3, 2, 0], [-1, 1, 1, 0, 0.7]], np.float32)
    sample = make(policy, np.random.default_rng(0))
    n = 20_000
    actions = np.stack([sample(observations) for _ in range(n)]).astype(np.float64)
    assert actions.shape == (n, 2, *action_space.shape)
    outputs = torch_parameters(policy, observations).astype(np.float64)
    drawn = actions.reshape(n, 2, -1)

    if isinstance(action_space, spaces.Box):
        std = np.exp(-0.7)
        assert np.abs(drawn.mean(0) - outputs).max() < 5 * std / n**0.5
        assert np.abs(drawn.std(0) / std - 1).max() < 5 / (2 * n) ** 0.5
        # the noise of each number is independent
        correlations = np.corrcoef((drawn - outputs).reshape(n, -1).T) - np.eye(outputs.size)
        assert np.abs(correlations).max() < 5 / n**0.5
        return
    if isinstance(action_space, spaces.MultiBinary):
        probabilities, frequencies = 1 / (1 + np.exp(-outputs)), drawn.mean(0)
    else:
        sizes = [action_space.n] if isinstance(action_space, spaces.Discrete) else action_space.nvec
        parts = np.split(outputs, np.cumsum(sizes)[:-1], axis=1)
        probabilities = np.concatenate([np.exp(p) / np.exp(p).sum(1, keepdims=True) for p in parts], axis=1)
        frequencies = np.concatenate([(drawn[:, :, [k]] == np.arange(size)).mean(0) for k, size in enumerate(sizes)], axis=1)
    standard_errors = np.sqrt(probabilities * (1 - probabilities) / n)
    assert (np.abs(frequencies - probabilities) / standard_errors).max() < 5


@pytest.mark.parametrize("make", [lambda p, rng: NumpySampler(p, 6, rng), TorchSampler], ids=["numpy", "torch"])
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_greedy_actions_are_those_of_predict(action_space, make):
    policy = make_policy(action_space)
    observations = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    with th.no_grad():
        expected = policy.get_distribution(th.as_tensor(observations)).mode().numpy()
    actions = make(policy, np.random.default_rng(0)).greedy(observations)
    assert actions.shape == (6, *action_space.shape)
    np.testing.assert_allclose(actions.reshape(expected.shape), expected, atol=1e-6)


def test_views_follow_the_parameters_and_the_seed():
    policy = make_policy(ACTION_SPACES["Box"])
    observations = np.ones((2, 5), np.float32)
    first, second = (NumpySampler(policy, 2, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal([first(observations) for _ in range(50)], [second(observations) for _ in range(50)])
    before = first.distribution_parameters(observations).copy()
    with th.no_grad():
        policy.action_net.bias += 1.0
    np.testing.assert_allclose(first.distribution_parameters(observations), before + 1.0, atol=1e-6)


class OverridesOneMethod(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(-obs)


class OwnExtractor(FlattenExtractor):
    pass


class OwnMlp(MlpExtractor):
    pass


class OwnMlpPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = OwnMlp(self.features_dim, self.net_arch, self.activation_fn, self.device)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (lambda: make_policy(ACTION_SPACES["Discrete"], policy_class=OverridesOneMethod), "policy class OverridesOneMethod"),
        (lambda: make_policy(ACTION_SPACES["Discrete"], policy_class=OwnMlpPolicy), "policy class OwnMlpPolicy"),
        (
            lambda: make_policy(ACTION_SPACES["Discrete"], features_extractor_class=OwnExtractor),
            "features extractor OwnExtractor",
        ),
        (lambda: make_policy(ACTION_SPACES["Discrete"], activation_fn=nn.Softplus), "layer Softplus"),
        (lambda: make_policy(ACTION_SPACES["Discrete"], spaces.Discrete(3)), r"observation space Discrete\(3\)"),
        (lambda: make_policy(ACTION_SPACES["Box"], use_sde=True), "StateDependentNoiseDistribution"),
        (lambda: make_policy(ACTION_SPACES["Box"]).double(), "torch.float64"),
    ],
)
def test_torch_where_numpy_is_not_exact(policy, reason):
    assert re.search(reason, needs_torch(policy()) or "")


def test_hooks_and_replaced_methods_need_torch():
    policy = make_policy(ACTION_SPACES["Discrete"])
    assert needs_torch(policy) is None
    handle = policy.action_net.register_forward_hook(lambda module, args, output: output + 1)
    assert "hook" in needs_torch(policy)
    handle.remove()
    assert needs_torch(policy) is None
    policy.mlp_extractor.forward_actor = lambda features: features
    assert "MlpExtractor" in needs_torch(policy)


@pytest.mark.parametrize(
    ("policy", "env"),
    [("CnnPolicy", FakeImageEnv), ("MultiInputPolicy", SimpleMultiObsEnv)],
)
def test_image_and_dict_observations_use_torch(policy, env, capsys):
    REINFORCE(policy, env(), n_steps=8, n_value_epochs=1, verbose=1).learn(8)
    assert "Sampling actions with torch" in capsys.readouterr().out


class OwnForward(ActorCriticPolicy):
    """Overrides ``forward``, as policies written for A2C may; notes calls of ``evaluate_actions``."""

    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return th.ones_like(actions), values, log_prob

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        self.evaluated = True
        return values, log_prob, entropy


def test_policies_that_override_forward_sample_by_it():
    model = REINFORCE(OwnForward, gym.make("CartPole-v1"), n_steps=8, n_value_epochs=1)
    model.learn(8)
    assert (model.rollout_buffer.actions == 1).all()
    assert model.policy.evaluated


def test_a_users_distribution_samples_by_its_own_method():
    """A torch distribution inside SB3's wrapper whose samples ignore its logits."""

    class AlwaysZero(th.distributions.Categorical):
        def sample(self, sample_shape=()):
            return th.zeros(self.logits.shape[0], dtype=th.long)

    class OwnDistribution(ActorCriticPolicy):
        def get_distribution(self, obs):
            distribution = super().get_distribution(obs)
            distribution.distribution = AlwaysZero(logits=distribution.distribution.logits)
            return distribution

    policy = make_policy(ACTION_SPACES["Discrete"], policy_class=OwnDistribution)
    sample = make_sampler(policy, 6, np.random.default_rng(0))
    assert all((sample(np.ones((6, 5), np.float32)) == 0).all() for _ in range(20))


def test_modules_that_keep_tensors():
    """A tensor that a module makes while sampling can be used in the update."""

    class Keeps(FlattenExtractor):
        kept = None

        def forward(self, observations):
            if self.kept is None or len(self.kept) != len(observations):
                self.kept = observations * 0 + 1
            return super().forward(observations) * self.kept

    policy_kwargs = dict(features_extractor_class=Keeps)
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 4)
    REINFORCE("MlpPolicy", env, n_steps=8, chunk_size=4, policy_kwargs=policy_kwargs).learn(8)


def test_logged_once(capsys):
    REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8, verbose=1).learn(100)
    assert capsys.readouterr().out.count("Sampling actions with NumPy") == 1


def test_neither_values_nor_log_probs_while_sampling(monkeypatch):
    """With baseline="none" the value network is never called, and log-probabilities only for whole batches."""
    model = REINFORCE("CnnPolicy", FakeImageEnv(), n_steps=8, baseline="none")
    monkeypatch.setattr(model.policy.value_net, "forward", lambda *_: pytest.fail("the value network was called"))
    batches = []
    log_prob = type(model.policy.action_dist).log_prob
    monkeypatch.setattr(
        type(model.policy.action_dist), "log_prob", lambda self, a: (batches.append(len(a)), log_prob(self, a))[1]
    )
    model.learn(8)
    assert batches
    assert all(n >= 8 for n in batches)
