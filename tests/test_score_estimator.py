"""ScoreFunctionEstimator: kinds of costs, several random variables, variance and standard errors."""

import math
from functools import partial

import numpy as np
import pytest
import torch as th
from torch.distributions import AffineTransform, Bernoulli, Categorical, Independent, Normal, TransformedDistribution

from sb3_reinforce import GradientEstimate, ScoreFunctionEstimator, score_function_loss
from sb3_reinforce.score_function import leave_one_out
from tests.score_cases import COSTS, LOGITS, TRUE_GRADIENT, enumerated, expected_cost, gradient, tensor, z_scores


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


def test_cost_inputs_agree():
    """The same samples as a tensor, as an array and one by one give the same gradient."""
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
    # K = 1 is enough
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
    """Its cached inverse treats loc and scale as constants; the same distribution, N(3, 2^2), gives the true gradient."""
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
    """A tensor counts as one parameter. Its elements are new tensors, of which the distribution was not made."""
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
    """400 estimates with K = 16: their spread equals the reported standard error to 15 % (an F quantile would be 1.1)."""
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


def test_a_control_variate_equal_to_the_cost_leaves_no_variance():
    logits = LOGITS.clone().requires_grad_()
    exact = (lambda x: COSTS[x], lambda categorical: categorical.probs @ COSTS)
    estimate = ScoreFunctionEstimator(4, control_variate=exact).estimate(
        Categorical(logits=logits), lambda x: COSTS[x], [logits]
    )
    th.testing.assert_close(estimate.gradients[0], TRUE_GRADIENT)
    assert estimate.value == pytest.approx(expected_cost(LOGITS).item())
    assert estimate.variance == pytest.approx(0, abs=1e-20)
