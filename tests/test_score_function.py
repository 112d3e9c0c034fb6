"""The score function against enumerated expectations and closed forms; the bias of what is biased is measured."""

import math
from functools import partial

import numpy as np
import pytest
import torch as th
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal

from sb3_reinforce import Baseline, ScoreFunctionEstimator, score_function_loss
from sb3_reinforce.baselines import LeaveOneOutBaseline, MovingAverageBaseline
from sb3_reinforce.score_function import leave_one_out, optimal, squared_score_norms
from tests.score_cases import (
    COSTS,
    LOGITS,
    TRUE_GRADIENT,
    enumerated,
    expected_cost,
    gradient,
    moving_average,
    tensor,
    z_scores,
)

# --- worked out by hand ------------------------------------------------------------------------------------------


def test_leave_one_out():
    # f = 1, 2, 6: b = (2+6)/2, (1+6)/2, (1+2)/2; the second column is another variable: f = 0, 0, 4: b = 2, 2, 0
    costs = tensor([[1, 0], [2, 0], [6, 4]])
    assert leave_one_out(costs).tolist() == [[4, 2], [3.5, 2], [1.5, 0]]


def test_optimal():
    # f = 1, 2, 6 with |s|^2 = 1, 3, 0: b = (3*2 + 0)/3, (1*1 + 0)/1, (1*1 + 3*2)/4
    assert optimal(tensor([1, 2, 6]), tensor([1, 3, 0])).tolist() == [2, 1, 1.75]
    # |s|^2 = 0, 0, 5: for the third the others have no scores: the mean of their costs, (1 + 2)/2
    assert optimal(tensor([1, 2, 6]), tensor([0, 0, 5])).tolist() == [6, 6, 1.5]
    # subtracting a score this large from the sum would lose the others to rounding: (1*2 + 3*6)/4
    assert optimal(tensor([1, 2, 6]), tensor([1e20, 1, 3])).tolist()[0] == 5


def test_squared_score_norms():
    # Bernoulli: d log p / d logit = x - p, so with p = 1/4: 9/16 for x = 1, 1/16 for x = 0
    logit = tensor(math.log(1 / 3), grad=True)
    x = tensor([[1, 0], [0, 0]])
    expected = tensor([[9 / 16, 1 / 16], [1 / 16, 1 / 16]])
    th.testing.assert_close(squared_score_norms(Bernoulli(logits=logit).log_prob(x)), expected)
    # two parameters, one of them through a network: Normal(w*3, s), d/dw = 3 (x-mu)/s^2, d/ds = ((x-mu)^2/s^2 - 1)/s
    w, s = tensor(1.0, grad=True), tensor(2.0, grad=True)
    # x = 7: (x-mu) = 4: 3*4/4 = 3; (16/4 - 1)/2 = 1.5: 9 + 2.25
    th.testing.assert_close(squared_score_norms(Normal(w * 3, s).log_prob(tensor([7]))), tensor([11.25]))


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # scores of logit at p = 1/2: x - p = 1/2, 1/2, -1/2; costs 1, 2, 6; gradient = mean of score * (cost - b)
        ("none", (0.5 + 1 - 3) / 3),
        ("mean", (0.5 * -2 + 0.5 * -1 - 0.5 * 3) / 3),
        ("leave_one_out", (0.5 * -3 + 0.5 * -1.5 - 0.5 * 4.5) / 3),
        ("optimal", (0.5 * -3 + 0.5 * -1.5 - 0.5 * 4.5) / 3),  # all |s| are equal
        (2, (0.5 * -1 + 0 - 0.5 * 4) / 3),
        ([1, 0, 5], (0 + 0.5 * 2 - 0.5 * 1) / 3),
        (np.array([1, 0, 5]), (0 + 0.5 * 2 - 0.5 * 1) / 3),
        (lambda costs: costs - 1, (0.5 + 0.5 - 0.5) / 3),
        (LeaveOneOutBaseline(), (0.5 * -3 + 0.5 * -1.5 - 0.5 * 4.5) / 3),
        (moving_average(2.0), (0.5 * -1 + 0 - 0.5 * 4) / 3),
    ],
)
def test_by_hand(baseline, expected):
    logit = tensor(0.0, grad=True)
    loss = score_function_loss(Bernoulli(logits=logit).log_prob(tensor([1, 1, 0])), tensor([1, 2, 6]), baseline)
    assert loss.item() == 3  # the mean cost, whatever the baseline
    loss.backward()
    assert logit.grad.item() == pytest.approx(expected, abs=1e-12)


def test_leave_one_out_is_the_sample_covariance_of_score_and_cost():
    logits, costs = th.randn(5, dtype=th.float64, requires_grad=True), th.randn(8, dtype=th.float64)
    x = th.randint(5, (8,))
    score_function_loss(Categorical(logits=logits).log_prob(x), costs).backward()
    scores = th.nn.functional.one_hot(x, 5) - logits.detach().softmax(0)
    covariance = th.cov(th.cat([scores.T, costs[None]]))[:5, 5]
    th.testing.assert_close(logits.grad, covariance)


def test_costs_that_differ_by_a_constant():
    """Costs are float64 until b is subtracted, so a large offset does not change a float32 gradient."""
    gradients = []
    for offset in (0, 10**12):
        logit = th.zeros((), requires_grad=True)
        log_prob = Bernoulli(logits=logit).log_prob(th.tensor([1.0, 1.0, 0.0]))
        score_function_loss(log_prob, th.tensor([1, 2, 6]) + offset).backward()
        gradients.append(logit.grad.item())
    assert gradients[0] == gradients[1]


# --- enumerated: the expectation itself, not a sample of it ---------------------------------------------------------


class FirstOfTheOthers(Baseline):
    """b_k = the cost of the sample before k."""

    def predict(self, episodes):
        return episodes.returns.roll(1)


UNBIASED = {
    "none": "none",
    "leave_one_out": "leave_one_out",
    "optimal": "optimal",
    "moving_average": moving_average(2.5),
    "number": 3.0,
    "function of the others": lambda costs: costs.roll(1, 0) ** 2,
    "Baseline object": FirstOfTheOthers(),
    "LeaveOneOutBaseline": LeaveOneOutBaseline(),
}


@pytest.mark.parametrize("baseline", UNBIASED.values(), ids=UNBIASED)
@pytest.mark.parametrize("n_samples", [2, 3])
def test_expectation_is_exact(baseline, n_samples):
    if isinstance(baseline, MovingAverageBaseline):  # decay 1 keeps the average of an earlier call
        baseline.decay = 1.0
    found = enumerated(n_samples, partial(gradient, baseline=baseline))
    th.testing.assert_close(found, TRUE_GRADIENT, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 5])
def test_mean_is_biased_by_exactly_one_sample(n_samples):
    """E[gradient] = (K - 1)/K of the truth: with K = 1 nothing is left."""
    found = enumerated(n_samples, partial(gradient, baseline="mean"))
    th.testing.assert_close(found, (n_samples - 1) / n_samples * TRUE_GRADIENT, atol=1e-12, rtol=0)


def test_detects_an_optimal_baseline_that_includes_its_own_sample():
    def with_own_sample(log_prob, costs, logits):
        squares = squared_score_norms(log_prob)
        return gradient(log_prob, costs, logits, ((squares * costs).sum() / squares.sum()).item())

    assert (enumerated(2, with_own_sample) - TRUE_GRADIENT).abs().max() > 0.05


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_second_derivatives(baseline):
    """The expected Hessian of the loss is the Hessian of the expectation (DiCE)."""

    def hessian(log_prob, costs, logits):
        (first,) = th.autograd.grad(score_function_loss(log_prob, costs, baseline), logits, create_graph=True)
        return th.stack([th.autograd.grad(g, logits, retain_graph=True)[0] for g in first])

    truth = th.autograd.functional.hessian(expected_cost, LOGITS)
    # A Hessian has cross terms within its batch only, so K = 2 shows all of them.
    th.testing.assert_close(enumerated(2, hessian), truth, atol=1e-12, rtol=0)


def test_cost_gradient_is_added_only_if_asked():
    """f(x; theta) = COSTS[x] * theta_0: E[f] = theta_0 * p(theta) @ COSTS."""

    def expectation(logits):
        return logits[0] * expected_cost(logits)

    def derivative(log_prob, costs, logits, cost_gradient):
        loss = score_function_loss(log_prob, costs * logits[0], cost_gradient=cost_gradient)
        return th.autograd.grad(loss, logits)[0]

    truth = th.autograd.functional.jacobian(expectation, LOGITS)
    with_it = enumerated(2, partial(derivative, cost_gradient=True))
    th.testing.assert_close(with_it, truth, atol=1e-12, rtol=0)
    without = enumerated(2, partial(derivative, cost_gradient=False))
    th.testing.assert_close(without, LOGITS[0] * TRUE_GRADIENT, atol=1e-12, rtol=0)


def test_variance_of_the_optimal_constant_is_least():
    """E|s (f - b)|^2 over the three values of x is least at E[|s|^2 f] / E[|s|^2], which `optimal` tends to."""
    p = LOGITS.softmax(0)
    squares = (th.eye(3, dtype=th.float64) - p).square().sum(1)
    best = ((p * squares * COSTS).sum() / (p * squares).sum()).item()
    second_moment = {b: (p * squares * (COSTS - b) ** 2).sum().item() for b in (0.0, (p @ COSTS).item(), best, best + 0.1)}
    assert min(second_moment, key=second_moment.get) == best
    x = Categorical(probs=p).sample((20_000,))
    assert optimal(COSTS[x], squares[x]).mean().item() == pytest.approx(best, abs=0.1)


# --- sampled: 4 standard errors from closed forms -----------------------------------------------------------------

PARITY_LOGITS = [0.8, -0.5, 1.2]


def parity_gradient():
    # E prod (2 x_i - 1) = prod (2 p_i - 1), and d p_i / d logit_i = p_i (1 - p_i)
    p = th.sigmoid(tensor(PARITY_LOGITS))
    q = 2 * p - 1
    return 2 * p * (1 - p) * q.prod() / q


P = th.sigmoid(tensor(0.4))


MIX = tensor([[1.0, 0.5], [0.5, 2.0]])


# name: parameters, distribution of them, cost, closed form of the gradient, per parameter
CASES = {
    # E[(x - 0.45)^2] = 0.55^2 p + 0.45^2 (1 - p), dp/dlogit = p (1 - p)
    "Bernoulli": (
        [tensor(0.4)], lambda logit: Bernoulli(logits=logit), lambda x: (x - 0.45) ** 2 + 1,
        [P * (1 - P) * (0.55**2 - 0.45**2)],
    ),
    "Categorical": ([LOGITS], lambda logits: Categorical(logits=logits), lambda x: COSTS[x], [TRUE_GRADIENT]),
    # E[x^2] = mu^2 + sigma^2
    "Normal": ([tensor(1.5), tensor(0.7)], Normal, lambda x: x**2, [tensor(3.0), tensor(1.4)]),
    # E[x'Ax] = mu'A mu + tr(A C), A symmetric: 2 A mu
    "MultivariateNormal": (
        [tensor([0.5, -1.0])],
        lambda loc: MultivariateNormal(loc, scale_tril=tensor([[1.0, 0.0], [0.4, 0.8]])),
        lambda x: th.einsum("...i,ij,...j->...", x, MIX, x),
        [2 * MIX @ tensor([0.5, -1.0])],
    ),
    "Bernoulli vector": (
        [tensor(PARITY_LOGITS)], lambda logits: Independent(Bernoulli(logits=logits), 1), lambda x: (2 * x - 1).prod(-1) + 2,
        [parity_gradient()],
    ),
}  # fmt: skip


def estimates(case, baseline, n_replicates, n_samples=4, control_variate=None):
    """Independent estimates of the gradient, one for each element of the batch shape; [n_replicates, ...] per parameter."""
    parameters, make, cost, _ = CASES[case]
    replicated = [p.expand(n_replicates, *p.shape).clone().requires_grad_() for p in parameters]
    estimator = ScoreFunctionEstimator(n_samples, baseline, control_variate=control_variate)
    if baseline == "moving_average":
        estimator(make(*replicated), cost)  # the first call, of b = 0, is that of "none"
    (estimator(make(*replicated), cost) * n_replicates).backward()
    return [p.grad for p in replicated]


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "optimal", "moving_average", "function"])
@pytest.mark.parametrize("case", CASES)
def test_unbiased(case, baseline):
    """`optimal` needs a backward pass per sample, hence fewer replicates."""
    th.manual_seed(1)
    n_replicates = 1000 if baseline == "optimal" else 20_000
    given = (lambda costs: costs.roll(1, 0).clamp(max=2)) if baseline == "function" else baseline
    for samples, truth in zip(estimates(case, given, n_replicates), CASES[case][3], strict=True):
        assert z_scores(samples, truth).abs().max() < 4


@pytest.mark.parametrize("case", CASES)
def test_measured_bias_of_the_mean(case):
    """With K = 4 three quarters of the gradient are left, and the test above would see it."""
    th.manual_seed(2)
    n_replicates = 400_000 if case == "Bernoulli" else 40_000
    seen = []
    for samples, truth in zip(estimates(case, "mean", n_replicates), CASES[case][3], strict=True):
        assert z_scores(samples, 0.75 * truth).abs().max() < 4
        seen.append(z_scores(samples, truth).abs().max())
    assert max(seen) > 4


def test_unbiased_control_variate():
    """h(x) = 2 m x - m^2 is the tangent of x^2 at m, E[h] = 2 m mu - m^2; what is left, (x - m)^2, varies less."""
    m = 1.5  # the parameter's value, as a number: h must not move with it
    h, expectation = lambda x: 2 * m * x - m**2, lambda normal: 2 * m * normal.loc - m**2
    th.manual_seed(3)
    plain = estimates("Normal", "leave_one_out", 20_000)
    better = estimates("Normal", "leave_one_out", 20_000, control_variate=(h, expectation))
    for samples, truth in zip(better, CASES["Normal"][3], strict=True):
        assert z_scores(samples, truth).abs().max() < 4
    assert better[0].var() < 0.5 * plain[0].var()


# --- shapes and inputs ----------------------------------------------------------------------------------------------


def test_inputs_are_not_modified():
    logits = LOGITS.clone().requires_grad_()
    log_prob, costs = Categorical(logits=logits).log_prob(th.tensor([0, 1])), tensor([1, 2])
    before = log_prob.clone(), costs.clone()
    score_function_loss(log_prob, costs).backward()
    assert th.equal(log_prob, before[0])
    assert th.equal(costs, before[1])


def test_batched_parameters_have_costs_and_baselines_of_their_own():
    """Two problems side by side, the second 100 times as costly: each gets 1/B = 1/2 of the gradient that it has alone."""
    logits = tensor([0.3, -0.8], grad=True)
    x, weights = tensor([[1, 0], [0, 0], [1, 1]]), tensor([1, 100])
    score_function_loss(Bernoulli(logits=logits).log_prob(x), x * weights + weights).backward()
    for i in range(2):
        alone = logits.detach()[i].clone().requires_grad_()
        score_function_loss(Bernoulli(logits=alone).log_prob(x[:, i]), x[:, i] * weights[i] + weights[i]).backward()
        assert logits.grad[i].item() == pytest.approx(alone.grad.item() / 2)


def test_a_baseline_object_sees_samples_as_groups():
    """[K, B] costs: b_k leaves out all elements of sample k. f = [[1, 2], [3, 5]]: b = 4, 4, 1.5, 1.5."""
    seen = {}

    class Spy(LeaveOneOutBaseline):
        def predict(self, episodes):
            seen["b"] = super().predict(episodes)
            return seen["b"]

    logits = tensor([0.0, 0.0], grad=True)
    score_function_loss(Bernoulli(logits=logits).log_prob(tensor([[1, 0], [0, 1]])), [[1, 2], [3, 5]], Spy())
    assert seen["b"].tolist() == [4, 4, 1.5, 1.5]


def test_rsample_gives_another_gradient():
    """Why the docstring asks for sample(): with x = loc + scale * eps, log p(x) does not depend on loc at all."""
    loc = tensor(1.5, grad=True)
    normal = Normal(loc, 1.0)
    x = normal.rsample((100,))
    score_function_loss(normal.log_prob(x), x**2).backward()
    assert loc.grad.item() == pytest.approx(0, abs=1e-12)  # and not near 3
