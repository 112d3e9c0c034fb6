"""The score function against enumerated expectations and closed forms; what is biased is shown to be so."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch as th
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Categorical,
    Exponential,
    ExpTransform,
    GeneralizedPareto,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from sb3_reinforce import Baseline, GradientEstimate, ScoreFunctionEstimator, score_function_loss
from sb3_reinforce.baselines import LeaveOneOutBaseline, MovingAverageBaseline, ValueBaseline
from sb3_reinforce.score_function import leave_one_out, optimal, squared_score_norms

LOGITS = th.tensor([0.3, -0.8, 0.5], dtype=th.float64)
COSTS = th.tensor([7.0, 1.0, 4.0], dtype=th.float64)


def tensor(values, grad=False):
    return th.tensor(values, dtype=th.float64, requires_grad=grad)


def moving_average(average=None):
    baseline = MovingAverageBaseline()
    baseline.average = average
    return baseline


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
    # beside a score that would drown the others' in rounding errors, if it were subtracted from the sum: (1*2 + 3*6)/4
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
    """Costs are held in double precision until b is subtracted: a large offset does no harm to a float32 gradient."""
    gradients = []
    for offset in (0, 10**12):
        logit = th.zeros((), requires_grad=True)
        log_prob = Bernoulli(logits=logit).log_prob(th.tensor([1.0, 1.0, 0.0]))
        score_function_loss(log_prob, th.tensor([1, 2, 6]) + offset).backward()
        gradients.append(logit.grad.item())
    assert gradients[0] == gradients[1]


# --- enumerated: the expectation itself, not a sample of it ---------------------------------------------------------


def enumerated(n_samples, derivative):
    """Sum over all batches of ``n_samples`` draws from Categorical(LOGITS), weighted by their probability."""
    total = 0.0
    for batch in itertools.product(range(3), repeat=n_samples):
        logits = LOGITS.clone().requires_grad_()
        x = th.tensor(batch)
        log_prob = Categorical(logits=logits).log_prob(x)
        total = total + log_prob.sum().exp().item() * derivative(log_prob, COSTS[x], logits)
    return total


def gradient(log_prob, costs, logits, baseline):
    return th.autograd.grad(score_function_loss(log_prob, costs, baseline), logits)[0]


def expected_cost(logits):
    return logits.softmax(0) @ COSTS


TRUE_GRADIENT = th.autograd.functional.jacobian(expected_cost, LOGITS)


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
    if isinstance(baseline, MovingAverageBaseline):  # it remembers the batches: keep its state as if of an earlier call
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
    # One sample's Hessian has the cross terms of its own batch only: K = 2 draws are enough to show all of it.
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


def z_scores(samples, truth):
    return (samples.mean(0) - truth) / (samples.std(0) / len(samples) ** 0.5)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "optimal", "moving_average", "function"])
@pytest.mark.parametrize("case", CASES)
def test_unbiased(case, baseline):
    """`optimal` costs a backward pass for each of its samples, hence fewer of them."""
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


def test_a_control_variate_equal_to_the_cost_leaves_no_variance():
    logits = LOGITS.clone().requires_grad_()
    exact = (lambda x: COSTS[x], lambda categorical: categorical.probs @ COSTS)
    estimate = ScoreFunctionEstimator(4, control_variate=exact).estimate(
        Categorical(logits=logits), lambda x: COSTS[x], [logits]
    )
    th.testing.assert_close(estimate.gradients[0], TRUE_GRADIENT)
    assert estimate.value == pytest.approx(expected_cost(LOGITS).item())
    assert estimate.variance == pytest.approx(0, abs=1e-20)


# --- what a cost may be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cost",
    [
        [True, False, True],
        np.array([True, False, True]),
        th.tensor([True, False, True]),
        np.array([1, 0, 1]),
        np.array([1.0, 0.0, 1.0]),
        [th.tensor(1), th.tensor(0), th.tensor(1)],
        [th.tensor(1.0, requires_grad=True), th.tensor(0.0), th.tensor(1.0)],
        th.tensor([1, 0, 1], dtype=th.uint8),
        th.tensor([1.0, 0.0, 1.0], requires_grad=True),
    ],
    ids=lambda cost: f"{type(cost).__name__}-{getattr(cost, 'dtype', '')}",
)
@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16])
def test_kinds_of_costs(cost, dtype):
    logit = th.zeros((), dtype=dtype, requires_grad=True)
    loss = score_function_loss(Bernoulli(logits=logit).log_prob(th.tensor([1, 1, 0], dtype=dtype)), cost)
    assert loss.dtype == dtype
    loss.backward()
    # b = 1/2, 1, 1/2: (0.5 * 0.5 + 0.5 * -1 - 0.5 * 0.5) / 3
    assert logit.grad.item() == pytest.approx(-0.5 / 3, rel=1e-2 if dtype == th.bfloat16 else 1e-6)
    if isinstance(cost, th.Tensor):
        assert cost.grad is None


def test_inputs_are_not_modified():
    logits = LOGITS.clone().requires_grad_()
    log_prob, costs = Categorical(logits=logits).log_prob(th.tensor([0, 1])), tensor([1, 2])
    before = log_prob.clone(), costs.clone()
    score_function_loss(log_prob, costs).backward()
    assert th.equal(log_prob, before[0])
    assert th.equal(costs, before[1])


def test_cost_inputs_agree():
    """The same samples, seen as torch, as NumPy and one by one: one gradient."""
    gradients, seen = [], {}

    def cost(kind, x):
        seen[kind] = (type(x), x.shape)
        return (x**2).sum(-1)

    for kind in ("torch", "numpy", "sample"):
        loc = tensor([[0.5, 1.0], [2.0, 3.0], [1.0, 1.0]], grad=True)
        th.manual_seed(0)
        normal = Independent(Normal(loc, 1.0), 1)
        ScoreFunctionEstimator(4, cost_input=kind)(normal, partial(cost, kind)).backward()
        gradients.append(loc.grad)
    assert seen == {"torch": (th.Tensor, (4, 3, 2)), "numpy": (np.ndarray, (4, 3, 2)), "sample": (np.ndarray, (3, 2))}
    assert th.equal(gradients[0], gradients[1])
    assert th.equal(gradients[0], gradients[2])


def test_numpy_gets_bfloat16_as_float32():
    """NumPy has no bfloat16."""
    loc = th.zeros((), dtype=th.bfloat16, requires_grad=True)
    seen = []
    ScoreFunctionEstimator(4, cost_input="numpy")(Normal(loc, 1.0), lambda x: seen.append(x.dtype) or x).backward()
    assert seen == [np.float32]
    assert loc.grad.dtype == th.bfloat16


def test_a_sample_without_axes_is_a_number():
    logits = LOGITS.clone().requires_grad_()
    table = {0: 7, 1: 1, 2: 4}
    loss = ScoreFunctionEstimator(8, cost_input="sample")(Categorical(logits=logits), lambda x: table[x])
    assert 1 <= loss.item() <= 7


def test_a_cost_that_writes_into_its_samples_does_no_harm():
    """Bernoulli.log_prob keeps x for the backward pass."""

    def cost(x):
        result = x.sum(-1)
        x[:] = 0
        return result

    gradients = []
    for function in (cost, lambda x: x.sum(-1)):
        logits = tensor([1.0, 2.0], grad=True)
        th.manual_seed(0)
        ScoreFunctionEstimator(4, cost_input="numpy")(Independent(Bernoulli(logits=logits), 1), function).backward()
        gradients.append(logits.grad)
    assert th.equal(*gradients)


def test_costs_are_computed_without_gradient_unless_asked():
    scale = tensor(2.0, grad=True)
    seen = []

    def cost(x):
        seen.append((scale * x).requires_grad)
        return scale * x

    logit = tensor(0.0, grad=True)
    ScoreFunctionEstimator(4)(Bernoulli(logits=logit), cost).backward()
    assert scale.grad is None
    th.manual_seed(0)
    ScoreFunctionEstimator(4, cost_gradient=True)(Bernoulli(logits=logit), cost).backward()
    th.manual_seed(0)
    assert scale.grad == Bernoulli(logits=logit).sample((4,)).mean()
    assert seen == [False, True]


# --- the estimator -------------------------------------------------------------------------------------------------


def test_batched_parameters_have_costs_and_baselines_of_their_own():
    """Two problems side by side, the second 100 times as costly: each gets the gradient that it has alone, over B = 2."""
    logits = tensor([0.3, -0.8], grad=True)
    x, weights = tensor([[1, 0], [0, 0], [1, 1]]), tensor([1, 100])
    score_function_loss(Bernoulli(logits=logits).log_prob(x), x * weights + weights).backward()
    for i in range(2):
        alone = logits.detach()[i].clone().requires_grad_()
        score_function_loss(Bernoulli(logits=alone).log_prob(x[:, i]), x[:, i] * weights[i] + weights[i]).backward()
        assert logits.grad[i].item() == pytest.approx(alone.grad.item() / 2)


def test_a_baseline_object_sees_samples_as_groups():
    """[K, B] costs: the own sample's other elements are left out too. f = [[1, 2], [3, 5]]: b = 4, 4, 1.5, 1.5."""
    seen = {}

    class Spy(LeaveOneOutBaseline):
        def predict(self, episodes):
            seen["b"] = super().predict(episodes)
            return seen["b"]

    logits = tensor([0.0, 0.0], grad=True)
    score_function_loss(Bernoulli(logits=logits).log_prob(tensor([[1, 0], [0, 1]])), [[1, 2], [3, 5]], Spy())
    assert seen["b"].tolist() == [4, 4, 1.5, 1.5]


def test_moving_average_remembers():
    estimator = ScoreFunctionEstimator(2, baseline="moving_average")
    logit = tensor(0.0, grad=True)
    estimator(Bernoulli(logits=logit), lambda x: 0 * x + 5)
    assert estimator.baseline.average == 5  # after its use
    estimator(Bernoulli(logits=logit), lambda x: 0 * x + 5).backward()
    assert logit.grad.item() == 0  # cost - b = 0, for any sample
    estimator(Bernoulli(logits=logit), lambda x: 0 * x + 15)
    assert estimator.baseline.average == pytest.approx(0.9 * 5 + 0.1 * 15)
    assert ScoreFunctionEstimator(2, baseline="moving_average").baseline.average is None
    # one sample is enough for it
    ScoreFunctionEstimator(1, baseline="moving_average")(Bernoulli(logits=logit), lambda x: x).backward()


def test_several_nodes():
    """
    x ~ Bernoulli(p), y ~ Normal(a x + c, 1), f = x + y^2; E = p + p ((a + c)^2 + 1) + (1 - p)(c^2 + 1).

    With p = 1/2, a = 2, c = 1: d/dlogit = 1/4 (1 + 9 - 1) = 2.25, d/da = p 2 (a + c) = 3, d/dc = 3 + (1 - p) 2 c = 4.
    """
    th.manual_seed(0)
    parameters = [p.expand(20_000).clone().requires_grad_() for p in (tensor(0.0), tensor(2.0), tensor(1.0))]
    logit, a, c = parameters
    nodes = [Bernoulli(logits=logit), lambda x: Normal(a * x + c, 1.0)]
    (ScoreFunctionEstimator(4)(nodes, lambda x, y: x + y**2) * 20_000).backward()
    for parameter, truth in zip(parameters, (2.25, 3.0, 4.0), strict=True):
        assert abs(z_scores(parameter.grad, truth)) < 4


def test_independent_nodes_are_the_sum_of_their_log_probs():
    first, second = tensor(0.5, grad=True), tensor(-0.2, grad=True)
    th.manual_seed(0)
    ScoreFunctionEstimator(5)([Normal(first, 1.0), Bernoulli(logits=second)], lambda x, y: x * y).backward()
    th.manual_seed(0)
    x, y = Normal(first, 1.0).sample((5,)), Bernoulli(logits=second).sample((5,))
    again = score_function_loss(Normal(first, 1.0).log_prob(x) + Bernoulli(logits=second).log_prob(y), x * y)
    gradients = th.autograd.grad(again, [first, second])
    assert gradients == (first.grad, second.grad)


def test_a_transform_with_a_cache_keeps_its_gradient():
    """Such a transform hands out its kept inverse, in which loc and scale are constants; N(3, 2^2) is the same thing."""
    gradients = []
    for make in (
        lambda loc, scale: TransformedDistribution(
            Normal(tensor(0.0), tensor(1.0)), AffineTransform(loc, scale, cache_size=1)
        ),
        Normal,
    ):
        loc, scale = tensor(3.0, grad=True), tensor(2.0, grad=True)
        th.manual_seed(0)
        ScoreFunctionEstimator(8)(make(loc, scale), lambda x: x**2).backward()
        gradients.append(th.stack([loc.grad, scale.grad]))
    th.testing.assert_close(*gradients)


def test_rsample_gives_another_gradient():
    """Why the docstring wants sample(): with x = loc + scale * eps, log p(x) does not depend on loc at all."""
    loc = tensor(1.5, grad=True)
    normal = Normal(loc, 1.0)
    x = normal.rsample((100,))
    score_function_loss(normal.log_prob(x), x**2).backward()
    assert loc.grad.item() == pytest.approx(0, abs=1e-12)  # and not near 3


def estimate_of(n_samples, baseline="leave_one_out", **kwargs):
    logits = LOGITS.clone().requires_grad_()
    estimator = ScoreFunctionEstimator(n_samples, baseline, **kwargs)
    return estimator.estimate(Categorical(logits=logits), lambda x: COSTS[x], [logits]), logits


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "optimal"])
def test_estimate_is_the_same_gradient(baseline):
    estimate, logits = estimate_of(6, baseline)
    assert isinstance(estimate, GradientEstimate)
    estimate.loss.backward()
    th.testing.assert_close(logits.grad, estimate.gradients[0])
    assert estimate.loss.item() == pytest.approx(estimate.value)


def test_estimate_by_hand():
    # costs 1, 2, 6 have mean 3 and variance (4 + 1 + 9)/2 = 7; b = 0; scores at p = 1/2: x - p
    logit, costs = tensor(0.0, grad=True), tensor([1, 2, 6])
    th.manual_seed(0)
    x = Bernoulli(logits=logit).sample((3,))
    th.manual_seed(0)
    estimate = ScoreFunctionEstimator(3, "none").estimate(Bernoulli(logits=logit), lambda _: costs, [logit])
    terms = (x - 0.5) * costs
    assert estimate.value == 3
    assert estimate.value_standard_error == pytest.approx(math.sqrt(7 / 3))
    assert estimate.gradients[0].item() == pytest.approx(terms.mean().item())
    assert estimate.variance == pytest.approx(terms.var().item())
    assert estimate.standard_errors[0].item() == pytest.approx(terms.std().item() / math.sqrt(3))


def test_estimate_of_one_tensor():
    """A tensor is a list of one, not of its elements, which no distribution was made from."""
    logits = LOGITS.clone().requires_grad_()
    estimate = ScoreFunctionEstimator(4).estimate(Categorical(logits=logits), lambda x: COSTS[x], logits)
    assert [g.shape for g in estimate.gradients] == [(3,)]
    assert estimate.variance > 0


def test_estimate_of_unused_parameters_is_zero():
    logit, unused = tensor(0.0, grad=True), tensor([1.0, 2.0], grad=True)
    estimate = ScoreFunctionEstimator(3).estimate(Bernoulli(logits=logit), lambda x: x, [logit, unused])
    assert estimate.gradients[1].tolist() == estimate.standard_errors[1].tolist() == [0, 0]


@pytest.mark.parametrize("n_samples", [2, 3, 4])
def test_standard_error_of_leave_one_out(n_samples):
    """Enumerated: the squared standard error is on average that of the estimate, less g^2 / (K - 1)^2."""

    def moments(log_prob, costs, logits):
        surrogate = log_prob * (costs - leave_one_out(costs))
        terms = th.stack([th.autograd.grad(s, logits, retain_graph=True)[0] for s in surrogate])
        return th.stack([terms.mean(0), terms.mean(0) ** 2, terms.var(0) / n_samples])

    mean, square, squared_error = enumerated(n_samples, moments)
    expected = square - mean**2 - TRUE_GRADIENT**2 / (n_samples - 1) ** 2
    th.testing.assert_close(squared_error, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n_samples", [2, 3, 4])
def test_variance_of_leave_one_out(n_samples):
    """
    Enumerated: V / K, with V that of one sample and b = E[f], and (E[|s|^2] Var[f] + |g|^2) / (K (K - 1)) more, because
    E[f] is not known (docs/theory.md).
    """
    p = LOGITS.softmax(0)
    centred = COSTS - p @ COSTS
    fisher_trace = (p * (th.eye(3, dtype=th.float64) - p).square().sum(1)).sum()
    of_one = (p * (th.eye(3, dtype=th.float64) - p).square().sum(1) * centred**2).sum() - TRUE_GRADIENT.square().sum()
    square = enumerated(n_samples, lambda *args: gradient(*args, "leave_one_out").square().sum())
    extra = (fisher_trace * (p @ centred**2) + TRUE_GRADIENT.square().sum()) / (n_samples * (n_samples - 1))
    th.testing.assert_close(square - TRUE_GRADIENT.square().sum(), of_one / n_samples + extra)


def test_standard_errors_are_calibrated():
    """400 estimates with K = 16: their spread is what each of them says, to 15 % (an F quantile would be 1.1)."""
    th.manual_seed(0)
    found = [estimate_of(16)[0] for _ in range(400)]
    spread = th.stack([estimate.gradients[0] for estimate in found]).std(0)
    said = th.stack([estimate.standard_errors[0] ** 2 for estimate in found]).mean(0).sqrt()
    th.testing.assert_close(spread, said, rtol=0.15, atol=0)
    values = th.tensor([estimate.value for estimate in found])
    assert values.std().item() == pytest.approx(np.mean([e.value_standard_error for e in found]), rel=0.15)


def test_variance_falls_from_none_to_leave_one_out():
    th.manual_seed(0)
    logits = LOGITS.clone().requires_grad_()
    variance = {
        name: ScoreFunctionEstimator(1000, name).estimate(Categorical(logits=logits), lambda x: COSTS[x], [logits]).variance
        for name in ("none", "leave_one_out", "optimal")
    }
    assert variance["optimal"] < variance["leave_one_out"] < 0.5 * variance["none"]


# --- bad input -------------------------------------------------------------------------------------------------------

LOG_PROB = Bernoulli(logits=th.zeros(3, requires_grad=True)).log_prob(th.ones(3))
LOG_PROB_2D = Bernoulli(logits=th.zeros(2, requires_grad=True)).log_prob(th.ones(3, 2))


class WithGradient(Baseline):
    def predict(self, episodes):
        return th.zeros(len(episodes.returns), requires_grad=True)


class WrongShape(Baseline):
    def predict(self, episodes):
        return episodes.returns[:2]


@pytest.mark.parametrize(
    ("log_prob", "cost", "baseline", "message"),
    [
        (th.zeros(3), th.zeros(3), "none", "log_prob must be a tensor with gradient, got a tensor without: .*no_grad"),
        ([0.0, 0.0], th.zeros(2), "none", "log_prob must be a tensor with gradient, got list"),
        (th.zeros((), requires_grad=True), 1.0, "none", r"log_prob must have the shape \[K, ...\] .* got shape \(\)"),
        (th.zeros(0, requires_grad=True), [], "none", r"K >= 1 samples, got shape \(0,\)"),
        (LOG_PROB, th.zeros(4), "none", r"equal shapes .* log_prob of shape \(3,\) and cost of shape \(4,\)"),
        (LOG_PROB, th.zeros(3, 1), "none", r"equal shapes .* \(3,\) and cost of shape \(3, 1\): one cost for each log_prob"),
        (LOG_PROB_2D, th.zeros(3), "none", r"\(3, 2\) .*\(3,\): .*torch.distributions.Independent\(distribution, 1\)"),
        (LOG_PROB_2D, 3.0, "none", r"Independent\(distribution, 2\)"),
        (LOG_PROB_2D, th.zeros(2, 3), "none", r"equal shapes \[K, ...\], got log_prob of shape \(3, 2\)"),
        (LOG_PROB, [0.0, math.nan, 1.0], "none", "cost must be finite, got nan for sample 1$"),
        (LOG_PROB_2D, [[0, 0], [0, 0], [0, math.inf]], "none", r"got inf for sample 2, element \[1\]"),
        (th.tensor([0.0, -math.inf], requires_grad=True), [0, 0], "none", "log_prob .* got -inf for sample 1: .* drawn it"),
        (LOG_PROB, ["good", "bad", "bad"], "none", "cost must be numbers of one shape per sample, got \\['good'"),
        (LOG_PROB, [1, [2, 3], 4], "none", "cost must be numbers of one shape per sample"),
        (LOG_PROB, None, "none", "cost must be numbers, got None"),
        (LOG_PROB, th.zeros(3, dtype=th.complex64), "none", "cost must be real, got torch.complex64"),
        (LOG_PROB, th.zeros(3), "loo", "baseline must be one of 'none', 'mean', .* a Baseline object, got 'loo'"),
        (LOG_PROB, th.zeros(3), None, "baseline must be a name, values, .* got None"),
        (LOG_PROB, th.zeros(3), LeaveOneOutBaseline, "baseline must be a name, values, .* got <class"),
        (LOG_PROB, th.zeros(3), "moving_average", r"must remember past calls.*MovingAverageBaseline\(\)"),
        (LOG_PROB, th.zeros(3), ValueBaseline(), r"can only be given costs here, got .*which needs \['values'\]"),
        (LOG_PROB[:1], th.zeros(1), "leave_one_out", "made of the other samples: K must be >= 2, got 1"),
        (LOG_PROB[:1], th.zeros(1), "optimal", "made of the other samples: K must be >= 2, got 1"),
        (LOG_PROB[:1], th.zeros(1), LeaveOneOutBaseline(), "made of the other samples: K must be >= 2, got 1"),
        (LOG_PROB, th.zeros(3), th.zeros(2), r"baseline must be a number or have the shape of the costs, \(3,\), got \(2,\)"),
        (LOG_PROB_2D, th.zeros(3, 2), th.zeros(2), r"shape of the costs, \(3, 2\), got \(2,\)"),
        (LOG_PROB, th.zeros(3), lambda c: c[:1], r"the baseline function must .* \(3,\), got \(1,\)"),
        (LOG_PROB, th.zeros(3), WrongShape(), r"WrongShape.predict must .* \(3,\), got \(2,\)"),
        (LOG_PROB, th.zeros(3), th.zeros(3, requires_grad=True), r"baseline must be without gradient.*detach\(\)"),
        (LOG_PROB, th.zeros(3), WithGradient(), r"WithGradient.predict must be without gradient"),
        (LOG_PROB, th.zeros(3), math.nan, "baseline must be finite, got nan"),
        (LOG_PROB, th.zeros(3), {"b": 1}, "baseline must be numbers of one shape per sample, got {'b': 1}"),
    ],
)
def test_bad_input(log_prob, cost, baseline, message):
    with pytest.raises(ValueError, match=message):
        score_function_loss(log_prob, cost, baseline)


def test_cost_gradient_of_a_cost_without():
    with pytest.raises(ValueError, match="cost_gradient=True needs a cost with gradient, got one without"):
        score_function_loss(LOG_PROB, th.zeros(3), cost_gradient=True)


H, EXPECTATION = lambda x: x, lambda d: d.probs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n_samples=0), "n_samples must be a whole number >= 1, got 0"),
        (dict(n_samples=2.0), "n_samples must be a whole number >= 1, got 2.0"),
        (dict(n_samples=True), "n_samples must be a whole number >= 1, got True"),
        (dict(n_samples=1), "'leave_one_out' is made of the other samples: K must be >= 2, got 1"),
        (dict(baseline="greedy"), "baseline must be one of .*moving_average.* got 'greedy'"),
        (dict(cost_input="pandas"), "cost_input must be one of 'torch', 'numpy', 'sample', got 'pandas'"),
        (
            dict(cost_input="numpy", cost_gradient=True),
            "cost_gradient=True needs cost_input=\"torch\".* got cost_input='numpy'",
        ),
        (dict(control_variate=H), "control_variate must be a tuple of two functions"),
        (dict(control_variate=(H, 3.0)), "control_variate must be a tuple of two functions"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreFunctionEstimator(**arguments)


LOGIT = th.zeros((), requires_grad=True)


@pytest.mark.parametrize(
    ("distribution", "cost", "arguments", "message"),
    [
        (Bernoulli(logits=th.zeros(3)), lambda x: 1 / 0, {}, "log_prob must be a tensor with gradient"),  # before any cost
        (Normal(th.zeros(3, requires_grad=True), 1.0), lambda x: x.sum(-1), {}, r"Independent\(distribution, 1\)"),
        (Bernoulli(logits=LOGIT), th.ones(4), {}, "cost must be a function of the samples, got tensor.*score_function_loss"),
        ("normal", lambda x: x, {}, "distribution must be a torch Distribution, .* got 'normal'"),
        ([lambda: "normal"], lambda x: x, {}, "distribution must be a torch Distribution, .* got 'normal'"),
        (
            [Bernoulli(logits=LOGIT), Normal(th.zeros(3), LOGIT.exp())], lambda x, y: x, {},
            r"equal batch shapes .* got log_prob of shapes \[\(4,\), \(4, 3\)\] with K = 4: .*Independent",
        ),
        ([Bernoulli(logits=LOGIT), lambda x: Normal(LOGIT, 1.0)], lambda x, y: x, {}, "with K in front"),
        (Uniform(0.0, LOGIT + 1), lambda x: x, {}, "support of a distribution must not depend on parameters.*rsample"),
        (
            MixtureSameFamily(Categorical(th.ones(2)), Uniform(th.zeros(2), LOGIT + th.ones(2))), lambda x: x, {},
            "support of a distribution",
        ),
        (Independent(Uniform(th.zeros(2), LOGIT + th.ones(2)), 1), lambda x: x[:, 0], {}, "support of a distribution"),
        (Bernoulli(logits=LOGIT), lambda x: [1, 2], {}, r"cost of shape \(2,\)"),
        (
            Bernoulli(logits=LOGIT), lambda x: math.nan, dict(cost_input="sample"), "finite, got nan for sample 0",
        ),
        (
            Bernoulli(logits=LOGIT), H, dict(control_variate=(lambda x: x[:2], EXPECTATION)),
            r"h must return a finite tensor of shape \(4,\), got shape \(2,\)",
        ),
        (
            Bernoulli(logits=LOGIT), H, dict(control_variate=(H, lambda d: d.probs.expand(4))),
            r"expectation must return a finite tensor of shape \(\), got shape \(4,\)",
        ),
        (Bernoulli(logits=LOGIT), H, dict(control_variate=(lambda x: x * LOGIT, EXPECTATION)), "h must be a fixed function"),
        (
            Bernoulli(logits=LOGIT), H, dict(control_variate=(H, lambda d: th.tensor(0.5))),
            "expectation must carry the gradient",
        ),
    ],
)  # fmt: skip
def test_bad_calls(distribution, cost, arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreFunctionEstimator(4, **arguments)(distribution, cost)


@pytest.mark.parametrize(
    ("parameters", "arguments", "message"),
    [
        ([], {}, "parameters must be one or more tensors that require gradient"),
        ([th.zeros(2)], {}, "parameters must be one or more tensors that require gradient"),
        ([th.zeros(2, requires_grad=True)], {}, "parameters must be what the distribution was computed from"),
        ([LOGIT], dict(n_samples=1, baseline="none"), "a standard error needs n_samples >= 2, got 1"),
    ],
)
def test_bad_estimates(parameters, arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreFunctionEstimator(**arguments).estimate(Bernoulli(logits=LOGIT), lambda x: x, parameters)


THETA = th.tensor(2.0, requires_grad=True)


@pytest.mark.parametrize(
    ("distribution", "moves"),
    [
        (TransformedDistribution(Uniform(0.0, 1.0), [AffineTransform(0.0, THETA)]), True),
        (TransformedDistribution(Exponential(1.0), [AffineTransform(THETA, 1.0)]), True),
        (TransformedDistribution(Exponential(1.0), [AffineTransform(THETA**2, 1.0), ExpTransform()]), True),
        (Independent(TransformedDistribution(Uniform(th.zeros(2), th.ones(2)), [AffineTransform(0.0, THETA)]), 1), True),
        (GeneralizedPareto(THETA, 1.0, 0.1), True),
        # the end of a scaled Exponential stays at 0, that of a logistic variable at infinity, a Normal has none
        (TransformedDistribution(Exponential(1.0), [AffineTransform(0.0, THETA)]), False),
        (TransformedDistribution(Uniform(0.0, 1.0), [SigmoidTransform().inv, AffineTransform(THETA, THETA)]), False),
        (TransformedDistribution(Normal(THETA, 1.0), [ExpTransform()]), False),
        (GeneralizedPareto(0.0, THETA, 0.1), False),
        (Exponential(THETA), False),
        (Categorical(logits=THETA * th.ones(3)), False),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
def test_a_support_that_moves_is_seen_through_transforms(distribution, moves):
    estimator = ScoreFunctionEstimator(n_samples=4)
    if moves:
        with pytest.raises(ValueError, match="the support of a distribution must not depend on parameters"):
            estimator(distribution, lambda x: x.reshape(len(x), -1).sum(1))
    else:
        estimator(distribution, lambda x: x.reshape(len(x), -1).sum(1)).backward()


def test_a_support_that_moves_really_is_wrong():
    """x ~ Uniform(0, a), E[x] = a/2: the truth is 1/2; the "score" is -1/a for every x, its expectation -1/a * a/2."""
    a = tensor(2.0, grad=True)
    x = Uniform(0.0, a).sample((1000,))
    score_function_loss(Uniform(0.0, a).log_prob(x), x, "none").backward()
    assert a.grad.item() == pytest.approx(-0.5, abs=0.05)
