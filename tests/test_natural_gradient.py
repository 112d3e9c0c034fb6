"""The natural gradient: products and steps against explicit matrices, closed forms, and the target KL divergence."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.bias import MDP
from sb3_reinforce.natural_gradient import FisherProduct, conjugate_gradient, flatten, natural_step
from sb3_reinforce.update.likelihood import log_prob_and_entropy
from tests.envs import BOX, SMALL, MDPEnv, RewardListEnv, one_update, played, policy_step, rows_of, tabular_model

DISCRETE, MULTI_DISCRETE, MULTI_BINARY = spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)
ALL_ACTIONS = {
    "Discrete": (DISCRETE, [[0], [1], [2]]),
    "MultiDiscrete": (MULTI_DISCRETE, [[i, j] for i in range(2) for j in range(3)]),
    "MultiBinary": (MULTI_BINARY, [[i, j] for i in range(2) for j in range(2)]),
}
SPACES = {
    "Box": (BOX, {}),
    "gSDE": (BOX, dict(use_sde=True)),
    "squashed": (BOX, dict(use_sde=True, policy_kwargs=dict(squash_output=True))),
    "Discrete": (DISCRETE, {}),
    "MultiDiscrete": (MULTI_DISCRETE, {}),
    "MultiBinary": (MULTI_BINARY, {}),
}


def policy_parameters(model):
    """The parameters that the actions depend on."""
    return [p for name, p in model.policy.named_parameters() if "value" not in name]


def matrix_of(product, size):
    return th.stack([product(column) for column in th.eye(size)], dim=1)


# --- Fisher-vector products ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("name", ALL_ACTIONS)
def test_product_is_the_explicit_matrix(name, chunk_size):
    """F = mean over states of sum_a pi(a|s) score score^T: all actions are enumerated, with one backward pass each."""
    space, actions = ALL_ACTIONS[name]
    model = played(BOX, space, chunk_size=chunk_size)
    model.policy.set_training_mode(False)
    parameters = policy_parameters(model)
    n_steps = model.batch.n_steps
    expected: th.Tensor = 0.0
    for row in range(n_steps):
        data = rows_of(model).samples(np.array([row]))
        for action in actions:
            log_prob = log_prob_and_entropy(model.policy, replace(data, actions=th.tensor([action]).float()))[0].sum()
            score = flatten(th.autograd.grad(log_prob, parameters))
            expected = expected + th.exp(log_prob.detach()) * th.outer(score, score) / n_steps
    product = matrix_of(FisherProduct(model.policy, rows_of(model), parameters), len(expected))
    th.testing.assert_close(product, expected, atol=1e-6, rtol=1e-4)


def test_product_of_a_gaussian_is_the_explicit_matrix():
    """F = J^T diag(1/sigma^2) J for the mean's Jacobian J, and 2 for each log sigma, which the mean does not depend on."""
    model = played(BOX, BOX, policy_kwargs=dict(log_std_init=-0.7))
    parameters = policy_parameters(model)
    variances = th.exp(2 * model.policy.log_std.detach())
    expected: th.Tensor = 0.0
    for row in range(model.batch.n_steps):
        distribution = model.policy.get_distribution(rows_of(model).samples(np.array([row])).observations).distribution
        jacobian = th.stack(
            [
                flatten(th.autograd.grad(mean, parameters, retain_graph=True, materialize_grads=True))
                for mean in distribution.mean[0]
            ]
        )
        expected = expected + jacobian.T @ (jacobian / variances[:, None]) / model.batch.n_steps
    assert parameters[0] is model.policy.log_std
    expected[range(3), range(3)] += 2.0
    product = matrix_of(FisherProduct(model.policy, rows_of(model), parameters), len(expected))
    th.testing.assert_close(product, expected, atol=1e-5, rtol=1e-4)


# --- conjugate gradients -------------------------------------------------------------------------------------------


def test_conjugate_gradient_by_hand():
    """A = diag(1, 2, 4) takes three products, one per different eigenvalue; b = 0 gives x = 0."""
    a, b = th.diag(th.tensor([1.0, 2.0, 4.0])).double(), th.tensor([1.0, 1.0, 1.0]).double()
    calls = []
    x, residual = conjugate_gradient(lambda v: (calls.append(0), a @ v)[1], b, max_steps=10)
    th.testing.assert_close(x, th.tensor([1.0, 0.5, 0.25]).double())
    assert len(calls) == 3
    assert residual.norm() < 1e-5 * b.norm()

    # one step along b, of length b.b / b.Ab = 3/7, and the residual
    x, residual = conjugate_gradient(lambda v: a @ v, b, max_steps=1)
    th.testing.assert_close(x, th.full((3,), 3 / 7).double())
    th.testing.assert_close(residual, b - a @ x)

    x, residual = conjugate_gradient(lambda v: a @ v, 0 * b, max_steps=10)
    assert x.eq(0).all()
    assert residual.eq(0).all()


# --- steps ---------------------------------------------------------------------------------------------------------


def test_softmax_bandit_in_closed_form():
    """
    One state: F = diag(pi) - pi pi^T, so F x = g = pi (A - mean A) is solved by x = A - sum_a A / n: the natural gradient
    raises each logit by its action's advantage, whatever its probability. Length sqrt(2 target_kl / Var_pi(A)).
    """
    model = tabular_model(DummyVecEnv([lambda: RewardListEnv([0.0])]), n_steps=4, cg_damping=1e-8, target_kl=1e-3)
    one_update(model)
    parameter = model.policy.action_net.bias
    with th.no_grad():
        parameter.copy_(th.tensor([0.5, -1.0]))
        model.policy.action_net.weight.zero_()
    pi, advantages = th.softmax(parameter.detach(), 0), th.tensor([1.0, 3.0])
    mean = pi @ advantages
    parameter.grad = -pi * (advantages - mean)  # of the loss
    before = parameter.detach().clone()
    natural_step(model.policy, rows_of(model), [parameter], 1e-3, model.cg_max_steps, model.cg_damping)
    variance = pi @ (advantages - mean) ** 2
    expected = math.sqrt(2e-3 / variance) * (advantages - advantages.mean())
    th.testing.assert_close(parameter.detach() - before, expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("target_kl", "tolerance"), [(1e-4, 0.01), (1e-2, 0.15)])
@pytest.mark.parametrize("name", SPACES)
def test_kl_of_the_step_is_the_target(name, target_kl, tolerance):
    """Only to second order, so a longer step may miss it by more."""
    action_space, kwargs = SPACES[name]
    model = played(BOX, action_space, natural_gradient=True, target_kl=target_kl, **kwargs)
    observations = rows_of(model).samples(rows_of(model).all).observations
    model.policy.set_training_mode(False)
    before = copy.copy(model.policy.get_distribution(observations))
    policy_step(model)
    kl = kl_divergence(before, model.policy.get_distribution(observations)).sum().item() / model.batch.n_steps
    assert kl == pytest.approx(target_kl, rel=tolerance)


def test_a_step_too_long_is_halved():
    """
    Two actions, pi = (p, 1 - p) with p tiny: the Fisher information p (1 - p) grows along the step, so that a step whose KL is
    0.01 to second order flips the policy. Expected: the first halving whose KL is at most 1.5 times the target.
    """
    target_kl, ratio = 0.01, 1.5
    model = tabular_model(DummyVecEnv([lambda: RewardListEnv([0.0])]), n_steps=4, cg_damping=1e-12)
    one_update(model)
    parameter = model.policy.action_net.bias
    start = th.tensor([-9.0, 0.0])
    with th.no_grad():
        parameter.copy_(start)
        model.policy.action_net.weight.zero_()
    pi = th.softmax(start.double(), 0)
    parameter.grad = (-pi[0] * pi[1] * th.tensor([1.0, -1.0])).float()  # of the loss: raises the rare action
    natural_step(model.policy, rows_of(model), [parameter], target_kl, model.cg_max_steps, model.cg_damping)
    # Only the log-odds of the rare action matter; their Fisher information is p (1 - p)
    length = math.sqrt(2 * target_kl / (pi[0] * pi[1]).item())

    def kl(odds):
        new = th.softmax(start.double() + odds * th.tensor([0.5, -0.5]), 0)
        return (pi * (pi / new).log()).sum().item()

    halvings = next(k for k in range(11) if kl(length / 2**k) <= ratio * target_kl)
    assert kl(length) > 10 * target_kl
    assert halvings >= 2
    moved = parameter.detach() - start
    assert (moved[0] - moved[1]).item() == pytest.approx(length / 2**halvings, rel=0.01)


def test_no_step_where_none_is_short_enough(monkeypatch):
    """With a KL of NaN the parameters keep their values, to the bit, and their memory."""
    model = played(BOX, BOX, natural_gradient=True)
    monkeypatch.setattr(FisherProduct, "kl", lambda self: float("nan"))
    parameters = policy_parameters(model)
    before, storages = [p.detach().clone() for p in parameters], [p.data_ptr() for p in parameters]
    policy_step(model)
    th.testing.assert_close([p.detach() for p in parameters], before, atol=0, rtol=0)
    assert [p.data_ptr() for p in parameters] == storages


def test_kl_of_a_step_to_an_invalid_policy():
    """torch has no distribution with a standard deviation of 0, so the step counts as too long."""
    model = played(BOX, BOX, natural_gradient=True)
    fisher = FisherProduct(model.policy, rows_of(model), policy_parameters(model))
    assert fisher.kl() == 0
    with th.no_grad():
        model.policy.log_std.fill_(-200)
    assert fisher.kl() == math.inf


def test_products_that_are_not_finite(monkeypatch):
    """An error, rather than an update without a step; the parameters from before are restored."""
    model = played(BOX, BOX, natural_gradient=True)
    monkeypatch.setattr(FisherProduct, "__call__", lambda self, vector: vector * float("inf"))
    before = [p.detach().clone() for p in model.policy.parameters()]
    message = r"finite numbers.*the Fisher information along the natural gradient is nan; lower target_kl \(now 0.01\)"
    with pytest.raises(ValueError, match=message):
        model.train()
    th.testing.assert_close([p.detach() for p in model.policy.parameters()], before, atol=0, rtol=0)


def test_same_step_for_rewards_of_any_scale():
    """Neither the scale of the rewards nor the clipping of the gradient's norm matters."""
    changes = []
    for scale in (1.0, 1000.0):
        mdp = MDP(SMALL.transitions, scale * SMALL.rewards, SMALL.start, SMALL.horizon)
        env = DummyVecEnv([lambda mdp=mdp: MDPEnv(mdp)])
        changes.append(one_update(tabular_model(env, n_steps=64, natural_gradient=True)))
    assert changes[0].norm() > 0.01
    th.testing.assert_close(*changes, atol=1e-6, rtol=1e-4)


def test_step_solves_the_damped_system():
    """The step is parallel to (F + damping)^-1 g, with explicit F and g."""
    model = played(BOX, BOX, natural_gradient=True, target_kl=1e-3, cg_damping=0.1, cg_max_steps=100)
    parameters = policy_parameters(model)
    fisher = matrix_of(FisherProduct(model.policy, rows_of(model), parameters), sum(p.numel() for p in parameters))
    before = flatten([p.detach() for p in parameters])
    data = rows_of(model).samples(rows_of(model).all)
    loss = -(data.advantages * log_prob_and_entropy(model.policy, data)[0]).sum()
    gradient = flatten(th.autograd.grad(loss, parameters))
    policy_step(model)
    change = flatten([p.detach() for p in parameters]) - before
    expected = -th.linalg.solve(fisher + 0.1 * th.eye(len(fisher)), gradient)
    expected *= math.sqrt(2e-3 / (expected @ fisher @ expected))
    th.testing.assert_close(change, expected, atol=1e-5, rtol=1e-2)


def test_no_gradient_no_step():
    """Advantages of 0 change nothing, without a division by 0."""
    model = tabular_model(DummyVecEnv([lambda: RewardListEnv([0.0, 0.0])]), n_steps=4, natural_gradient=True)
    assert one_update(model).eq(0).all()


def test_target_kl_may_be_a_schedule():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, natural_gradient=True, target_kl="lin_0.02", seed=0)
    assert getattr(model, model.schedules["target_kl"])(0.5) == pytest.approx(0.01)
    model.learn(200)
    assert "train/learning_rate" not in model.logger.name_to_value
    assert model.logger.name_to_value["train/target_kl"] < 0.02


class OwnLogProb(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(natural_gradient=1), "natural_gradient must be one of True, False, got 1"),
    (dict(natural_gradient=True, n_epochs=2), "n_epochs must be 1 and batch_size None, got n_epochs=2"),
    (dict(natural_gradient=True, batch_size=8), "n_epochs must be 1 and batch_size None.*batch_size=8"),
    (dict(cg_max_steps=0), "cg_max_steps must be a whole number >= 1, got 0"),
    (dict(cg_damping=0.0), "cg_damping must be a finite number > 0, got 0.0"),
    (dict(cg_damping=None), "cg_damping must be a finite number > 0, got None"),
    (dict(target_kl=0.0), "target_kl must be > 0 at the start of training, got 0.0"),
    (dict(target_kl="1e-2"), "target_kl must be a number >= 0"),
])  # fmt: skip
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", **arguments)


def test_a_policy_with_an_unknown_distribution():
    with pytest.raises(ValueError, match=r"get_distribution\(observations\), got OwnLogProb"):
        REINFORCE(OwnLogProb, "CartPole-v1", natural_gradient=True)
