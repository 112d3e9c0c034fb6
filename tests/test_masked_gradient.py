"""
The gradient, entropy, KL divergence and Fisher information of masked policies, against enumerations.

Variants that are known to be wrong are tested too: each must be detected.
"""

import math
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_reinforce.episodic
from sb3_reinforce import REINFORCE
from sb3_reinforce.natural_gradient import FisherProduct, flatten
from sb3_reinforce.rollout.sampling import NumpySampler, TorchSampler, make_sampler
from sb3_reinforce.scores import Scores
from sb3_reinforce.update.likelihood import log_prob_and_entropy
from sb3_reinforce.update.rows import Rows
from sb3_reinforce.update.steps import steps_of
from tests.envs import (
    baseline_of,
    collect,
    expected_change,
    logits,
    one_update,
    rows_of,
    script_probability,
    scripted_sampler,
    scripts_by_episodes,
    scripts_by_steps,
    tabular_model,
)
from tests.masked_envs import ACTION_SPACES, MASKED, MASKS, GivenMasks, MaskedScriptedEnv, allowed_logits, strict

pytest.importorskip("sb3_contrib")


def expected_update(monkeypatch: Any, n_envs: int = 1, unmasked: bool = False, **kwargs: Any) -> tuple[th.Tensor, REINFORCE]:
    """
    The exact expectation of the update over all batches that the policy can play, and the model.

    :param unmasked: whether the actions are drawn from all, in spite of the masks
    """
    env = DummyVecEnv([MaskedScriptedEnv] * n_envs)
    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", scripted_sampler(env))
    model = tabular_model(env, policy="MaskableMlpPolicy", **kwargs)
    if kwargs.get("baseline") == "moving_average":
        baseline_of(model).average = 0.7
    n_episodes = None if model.n_episodes is None else model.n_episodes // n_envs
    log_policy = (logits(model).double() if unmasked else allowed_logits(logits(model))).log_softmax(dim=1)
    played = scripts_by_steps(MASKED, model.n_steps) if n_episodes is None else scripts_by_episodes(MASKED, n_episodes)
    return expected_change(model, env, MASKED, log_policy, played), model


def exact(model: REINFORCE) -> th.Tensor:
    discounted = model.discount_state or model.returns == "episode"
    return MASKED.exact_gradient(allowed_logits(logits(model)), model.gamma, discounted)


def test_exact_gradient_is_that_of_the_enumerated_return():
    """Autograd through the probability of every trajectory, where pi(a|s) = exp(l_a) / sum of exp(l) over the allowed a."""
    weights = th.tensor([[0.4, -0.3, 0.8], [0.2, 0.9, -0.5]], dtype=th.float64, requires_grad=True)
    exponentials, gamma = weights.exp() * th.as_tensor(MASKS), 0.8
    policy = exponentials / exponentials.sum(1, keepdim=True)
    expected_return = sum(
        trajectory.env_probability
        * policy[trajectory.states, trajectory.actions].prod()
        * sum(gamma**t * reward for t, reward in enumerate(trajectory.rewards))
        for trajectory in MASKED.trajectories()
    )
    gradient = th.autograd.grad(expected_return, weights)[0]
    th.testing.assert_close(MASKED.exact_gradient(allowed_logits(weights.detach()), gamma, discount_state=True), gradient)
    assert (gradient[~th.as_tensor(MASKS)] == 0).all()


@pytest.mark.parametrize(
    "arguments",
    [
        *(dict(baseline=baseline) for baseline in ("none", "leave_one_out", "moving_average", "value", "optimal")),
        dict(baseline="per_step", returns="episode"),
        dict(baseline="value", discount_state=True),
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
def test_n_episodes_is_exact(monkeypatch, arguments):
    expected, model = expected_update(monkeypatch, n_episodes=2, **arguments)
    th.testing.assert_close(expected, exact(model), atol=1e-6, rtol=0)


def test_two_environments_are_exact(monkeypatch):
    expected, model = expected_update(monkeypatch, 2, n_episodes=2, baseline="leave_one_out")
    th.testing.assert_close(expected, exact(model), atol=1e-6, rtol=0)


def test_n_steps_has_the_exact_direction(monkeypatch):
    """By Wald's identity; see tests/test_gradient.py."""
    expected, model = expected_update(monkeypatch, n_steps=2, baseline="value")
    log_policy = allowed_logits(logits(model)).log_softmax(dim=1)
    n_episodes = sum(script_probability(script, log_policy) * len(script) for script in scripts_by_steps(MASKED, 2))
    th.testing.assert_close(expected, exact(model) * n_episodes / 2, atol=1e-6, rtol=0)


def test_detects_a_score_without_the_mask(monkeypatch):
    samples = Rows.samples
    monkeypatch.setattr(Rows, "samples", lambda self, rows: replace(samples(self, rows), action_masks=None))
    expected, model = expected_update(monkeypatch, n_episodes=1)
    assert (expected - exact(model)).abs().max() > 0.05


def test_detects_actions_drawn_without_the_mask(monkeypatch):
    expected, model = expected_update(monkeypatch, n_episodes=1, unmasked=True)
    assert (expected - exact(model)).abs().max() > 0.05


# --- all kinds of actions ---------------------------------------------------------------------------------------------

# Of each kind a mask that leaves some choices, and the actions that it allows
ALLOWED: dict[str, tuple[list[int], list[list[int]]]] = {
    "Discrete": ([1, 0, 1, 1], [[0], [2], [3]]),
    "MultiDiscrete": ([1, 1, 0, 1, 1], [[0, 1], [0, 2], [1, 1], [1, 2]]),
    "MultiBinary": ([0, 1, 1, 1], [[1, 0], [1, 1]]),
}


def one_step_model(kind: str, **kwargs: Any) -> REINFORCE:
    """One step per episode and one observation; the reward is the sum of the action's numbers."""
    env = DummyVecEnv([lambda: GivenMasks([ALLOWED[kind][0]], ACTION_SPACES[kind], length=1)])
    return tabular_model(env, policy="MaskableMlpPolicy", **kwargs)


def masked_log_prob(weights: th.Tensor, kind: str, action: list[int]) -> th.Tensor:
    """log pi of an action by hand: each part is a softmax over its allowed choices."""
    sizes = {"Discrete": [4], "MultiDiscrete": [2, 3], "MultiBinary": [2, 2]}[kind]
    parts = zip(weights.split(sizes), th.tensor(ALLOWED[kind][0]).split(sizes), action, strict=True)
    return sum(part[chosen] - part[mask == 1].logsumexp(0) for part, mask, chosen in parts)


def parameters_of_policy(model: REINFORCE) -> list[th.nn.Parameter]:
    return [*model.policy.action_net.parameters()]


@pytest.mark.parametrize("kind", ALLOWED)
def test_every_kind_is_exact(monkeypatch, kind):
    """sum_a pi(a) update(a) = grad sum_a pi(a) r(a), all actions enumerated."""
    model = one_step_model(kind, n_episodes=1)
    weights = model.policy.action_net.weight[:, 0].detach().double().requires_grad_()
    log_probs = th.stack([masked_log_prob(weights, kind, action) for action in ALLOWED[kind][1]])
    assert log_probs.exp().sum().item() == pytest.approx(1.0)
    rewards = th.tensor([float(sum(action)) for action in ALLOWED[kind][1]])
    truth = th.autograd.grad((log_probs.exp() * rewards).sum(), weights)[0]
    expected: Any = 0.0
    for action, log_prob in zip(ALLOWED[kind][1], log_probs.tolist(), strict=True):
        sampler = Mock(return_value=np.array(action).reshape(1, *model.action_space.shape))
        monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", lambda *_, sampler=sampler: sampler)
        expected = expected + math.exp(log_prob) * one_update(model)[0]
    th.testing.assert_close(expected, truth, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ALLOWED)
def test_likelihood_entropy_scores_and_fisher(kind):
    """Of one step: against log pi by hand; F = sum_a pi(a) score score^T."""
    model = collect(one_step_model(kind, n_episodes=1))
    data, parameters = rows_of(model).samples(slice(0, 1)), parameters_of_policy(model)
    weights = flatten([model.policy.action_net.weight]).detach().double().requires_grad_()
    fisher, entropy = th.zeros(2 * len(weights), 2 * len(weights), dtype=th.float64), 0.0
    for action in ALLOWED[kind][1]:
        steps = replace(data, actions=th.tensor([action]).float())
        expected = masked_log_prob(weights, kind, action)
        log_prob, found_entropy = log_prob_and_entropy(model.policy, steps)
        assert log_prob.item() == pytest.approx(expected.item(), abs=1e-6)
        score = th.autograd.grad(expected, weights)[0].repeat(2)  # of the weights, then of the bias: the observation is 1
        th.testing.assert_close(Scores(model.policy, steps).of_steps(slice(0, 1))[0].double(), score, atol=1e-6, rtol=0)
        fisher += expected.exp().item() * th.outer(score, score)
        entropy -= expected.exp().item() * expected.item()
    assert found_entropy.item() == pytest.approx(entropy, abs=1e-6)
    product = FisherProduct(model.policy, rows_of(model), parameters)
    columns = th.stack([product(column) for column in th.eye(len(fisher))], dim=1)
    th.testing.assert_close(columns.double(), fisher, atol=1e-6, rtol=0)
    # KL(old, new) = sum_a pi_old (log pi_old - log pi_new)
    moved = th.linspace(-0.3, 0.5, len(weights)).double()
    kl = sum(
        math.exp(old := masked_log_prob(weights, kind, action).item())
        * (old - masked_log_prob(weights + moved, kind, action).item())
        for action in ALLOWED[kind][1]
    )
    with th.no_grad():
        model.policy.action_net.bias.add_(moved.float())
    assert product.kl() == pytest.approx(kl, abs=1e-6)


def test_scores_by_vmap_are_those_of_autograd():
    model = REINFORCE("MaskableMlpPolicy", strict(kind="MultiDiscrete"), n_steps=20, seed=0, device="cpu")
    model._setup_learn(1)
    collect(model)
    scores = Scores(model.policy, steps_of(model.rollout_buffer, model.batch.episodes))
    assert scores._by_single_steps
    whole = slice(0, scores.n_steps)
    by_autograd = scores._by_autograd(whole, th.eye(scores.n_steps))
    th.testing.assert_close(scores.of_steps(whole), by_autograd, atol=1e-6, rtol=1e-4)


# --- sampling ---------------------------------------------------------------------------------------------------------


def masked_probabilities(policy: Any, kind: str, observation: np.ndarray) -> np.ndarray:
    """By hand from the network's output, one number per allowed action."""
    with th.no_grad():
        latent = policy.mlp_extractor.forward_actor(policy.extract_features(th.as_tensor(observation)))
        output = policy.action_net(latent)[0].double()
    return np.array([masked_log_prob(output, kind, action).exp().item() for action in ALLOWED[kind][1]])


@pytest.mark.parametrize("use_torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("kind", ALLOWED)
def test_samples_are_of_the_masked_distribution(kind, use_torch):
    """20,000 draws: each allowed action within 4 standard errors of its probability, and nothing else."""
    policy = REINFORCE("MaskableMlpPolicy", strict(kind=kind), seed=0).policy
    with th.no_grad():
        policy.action_net.weight.mul_(30.0)  # far from uniform
    n = 20_000
    observation = np.array([[0.3, -0.8, 0.5]], np.float32)
    rng = np.random.default_rng(0)
    sampler = TorchSampler(policy, rng) if use_torch else make_sampler(policy, n, rng)
    assert isinstance(sampler, TorchSampler if use_torch else NumpySampler)
    masks = np.repeat(np.array([ALLOWED[kind][0]], bool), n, axis=0)
    drawn = sampler(np.repeat(observation, n, axis=0), masks).reshape(n, -1)
    counts = np.array([(drawn == action).all(axis=1).sum() for action in ALLOWED[kind][1]])
    assert counts.sum() == n
    expected = masked_probabilities(policy, kind, observation)
    errors = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(counts / n - expected) < 4 * errors).all()
    best = ALLOWED[kind][1][int(expected.argmax())]
    assert sampler.greedy(np.repeat(observation, n, axis=0), masks).reshape(n, -1)[0].tolist() == best


@pytest.mark.parametrize("kind", ALLOWED)
def test_numpy_and_torch_draw_the_same(kind):
    policy = REINFORCE("MaskableMlpPolicy", strict(kind=kind), seed=0).policy
    rng = np.random.default_rng(1)
    observations = rng.standard_normal((64, 3)).astype(np.float32)
    masks = np.repeat(np.array([ALLOWED[kind][0]], bool), 64, axis=0)
    numpy_sampler, torch_sampler = (
        NumpySampler(policy, 64, np.random.default_rng(2)),
        TorchSampler(policy, np.random.default_rng(2)),
    )
    for _ in range(3):
        np.testing.assert_array_equal(numpy_sampler(observations, masks), torch_sampler(observations, masks))
        np.testing.assert_array_equal(numpy_sampler.greedy(observations, masks), torch_sampler.greedy(observations, masks))


def test_entropy_of_a_uniform_policy_counts_the_allowed_actions():
    """Masks of 1, 2 and 3 allowed actions: the mean entropy is (log 1 + log 2 + log 3) / 3."""
    env = DummyVecEnv([lambda: GivenMasks([[1, 0, 0], [0, 1, 1], [1, 1, 1]], length=3)])
    model = tabular_model(env, policy="MaskableMlpPolicy", n_episodes=1, ent_coef=0.1)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
    one_update(model)
    assert model.logger.name_to_value["train/entropy_loss"] == pytest.approx(-math.log(6) / 3)
    assert model.rollout_buffer.action_masks.reshape(3, 3).tolist() == [[1, 0, 0], [0, 1, 1], [1, 1, 1]]
