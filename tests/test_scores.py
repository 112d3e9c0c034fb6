"""Scores of single steps and their sums over episodes, against plain autograd, for all kinds of policies and pieces."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import sb3_reinforce.scores
from sb3_reinforce import REINFORCE
from sb3_reinforce.scores import Scores
from sb3_reinforce.update.likelihood import log_prob_and_entropy
from sb3_reinforce.update.steps import steps_of
from tests.envs import BOX, played, rows_of


class BatchNorm(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh())

    def forward(self, observations):
        return self.layers(observations)


class Untraceable(ActorCriticPolicy):
    """Calls ``item()`` inside, which vmap refuses."""

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values, log_prob * (1.0 if log_prob.sum().item() < 1e9 else 2.0), entropy


CASES = {
    "Box": (BOX, BOX, {}, True),
    "Discrete": (BOX, spaces.Discrete(3), {}, True),
    "MultiDiscrete": (BOX, spaces.MultiDiscrete([2, 3]), {}, True),
    "MultiBinary": (BOX, spaces.MultiBinary(2), {}, True),
    "discrete observations": (spaces.Discrete(4), spaces.Discrete(2), {}, False),
    "gSDE": (BOX, BOX, dict(use_sde=True), True),
    "batch norm": (BOX, spaces.Discrete(2), dict(policy_kwargs=dict(features_extractor_class=BatchNorm)), True),
    "no vmap": (BOX, spaces.Discrete(2), dict(policy=Untraceable), False),
}


def scores_of(model: REINFORCE) -> Scores:
    return Scores(model.policy, steps_of(model.rollout_buffer, model.batch.episodes), model.chunk_size)


def by_hand(model: REINFORCE) -> th.Tensor:
    """grad log pi of every step by one backward pass each, for all parameters that have a gradient."""
    rows = []
    model.policy.set_training_mode(False)
    parameters = [p for p in model.policy.parameters() if p.requires_grad]
    for row in range(model.batch.n_steps):
        data = rows_of(model).samples(np.array([row]))
        log_prob = log_prob_and_entropy(model.policy, data)[0]
        rows.append(th.autograd.grad(log_prob.sum(), parameters, allow_unused=True))
    kept = [k for k in range(len(parameters)) if any(row[k] is not None for row in rows)]
    return th.stack([th.cat([row[k].flatten() for k in kept]) for row in rows])


@pytest.mark.parametrize("single", [True, False], ids=["single", "episodes"])
@pytest.mark.parametrize("name", CASES)
def test_against_a_backward_pass_per_step(monkeypatch, name, single):
    monkeypatch.setattr(sb3_reinforce.scores, "SINGLE", 2**30 if single else 0)
    observation_space, action_space, kwargs, vmap = CASES[name]
    model = played(observation_space, action_space, **kwargs)
    scores, expected = scores_of(model), by_hand(model)
    assert scores._by_single_steps == vmap
    assert scores.n_parameters == expected.shape[1]
    th.testing.assert_close(scores.of_steps(slice(0, len(expected))), expected, atol=1e-5, rtol=1e-4)
    assert scores.mean_square_norm() == pytest.approx(float(expected.square().sum(1).mean()), rel=1e-4)

    lengths = model.rollout.lengths
    weights = th.randn(2, len(expected), generator=th.Generator().manual_seed(0))
    sums = th.stack(
        [th.stack([w[rows] @ expected[rows] for w in weights]) for rows in th.arange(len(expected)).split(lengths.tolist())]
    )
    th.testing.assert_close(th.cat(list(scores.of_episodes(lengths, weights))), sums, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("piece", [1, 2, 5, 2**24])
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_pieces_change_nothing(monkeypatch, piece, chunk_size):
    """Pieces of one, of a few and of all steps; episodes are longer and shorter than a piece."""
    model = played(BOX, spaces.Discrete(2), chunk_size=chunk_size)
    scores, lengths = scores_of(model), model.rollout.lengths
    assert lengths.min() < 3 < lengths.max()
    weights = th.ones(1, model.batch.n_steps)
    expected = th.stack([rows.sum(0) for rows in by_hand(model).split(lengths.tolist())])
    monkeypatch.setattr(sb3_reinforce.scores, "PIECE", piece if piece == 2**24 else 2 * piece * scores.n_parameters)
    blocks = list(scores.of_episodes(lengths, weights))
    th.testing.assert_close(th.cat(blocks)[:, 0], expected, atol=1e-5, rtol=1e-4)
    if piece == 1:
        assert len(blocks) == len(lengths)
    assert scores.mean_square_norm() == pytest.approx(float(by_hand(model).square().sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize(("policy", "make_env"), [
    ("CnnPolicy", lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)),
    ("MultiInputPolicy", lambda: SimpleMultiObsEnv(discrete_actions=True)),
])  # fmt: skip
def test_images_and_dicts(policy, make_env):
    """A shared features extractor belongs to the policy; the value's own layers do not."""
    model = REINFORCE(policy, DummyVecEnv([make_env]), n_steps=4, seed=0, device="cpu").learn(1)
    expected = by_hand(model)
    scores = scores_of(model)
    assert scores.n_parameters == expected.shape[1]
    th.testing.assert_close(scores.of_steps(slice(0, 3)), expected[:3], atol=1e-4, rtol=1e-3)
    ones = th.ones(1, len(expected))
    sums = th.stack([rows.sum(0) for rows in expected.split(model.rollout.lengths.tolist())])
    th.testing.assert_close(th.cat(list(scores.of_episodes(model.rollout.lengths, ones)))[:, 0], sums, atol=1e-4, rtol=1e-3)


def test_norms_of_evenly_spaced_steps(monkeypatch):
    """Where a policy is too large for all steps, the norms of 16 steps are used, spread over the batch."""
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=4, seed=0, device="cpu").learn(1)
    monkeypatch.setattr(sb3_reinforce.scores, "NORMS", 1)
    norms = by_hand(model).square().sum(1)
    rows = th.linspace(0, len(norms) - 1, 16).round().long()
    assert scores_of(model).mean_square_norm() == pytest.approx(float(norms[rows].mean()), rel=1e-4)


def test_the_distribution_is_restored():
    """vmap leaves no traced tensors in the policy's last distribution, so the policy can be copied and saved."""
    model = played(BOX, BOX)
    before = model.policy.action_dist.distribution
    next(scores_of(model).of_episodes(model.rollout.lengths, th.ones(1, model.batch.n_steps)))
    assert model.policy.action_dist.distribution is before


@pytest.mark.parametrize("name", ["Box", "batch norm"])
def test_the_parameters_are_the_same_objects_as_before(name):
    """torch's functional_call with tied weights would leave other tensors in an extractor that policy and value share."""
    observation_space, action_space, kwargs, _ = CASES[name]
    model = played(observation_space, action_space, **kwargs)
    parameters = lambda: list(model.policy.named_parameters(remove_duplicate=False))  # noqa: E731
    before = parameters()
    scores_of(model).of_steps(slice(0, 2))
    for (name, parameter), (same_name, same) in zip(parameters(), before, strict=True):
        assert name == same_name
        assert parameter is same


class Tied(BaseFeaturesExtractor):
    """Two layers share one weight: the same Parameter in two modules."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 3)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, observations):
        return self.second(th.tanh(self.first(observations)))


def test_tied_parameters():
    model = played(BOX, spaces.Discrete(2), policy_kwargs=dict(features_extractor_class=Tied))
    scores, expected = scores_of(model), by_hand(model)
    assert not scores._by_single_steps
    th.testing.assert_close(scores.of_steps(slice(0, 3)), expected[:3], atol=1e-5, rtol=1e-4)


def test_frozen_parameters_have_no_score():
    model = played(BOX, spaces.Discrete(2))
    full = scores_of(model).n_parameters
    model.policy.action_net.bias.requires_grad_(False)
    assert scores_of(model).n_parameters == full - 2
