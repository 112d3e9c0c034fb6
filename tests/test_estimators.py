"""Each method of ScoreFunctionEstimator: its expectation over all draws is the exact gradient."""

import math

import pytest
import torch as th
from torch.distributions import Bernoulli, Independent, Normal, OneHotCategorical, Poisson

from sb3_reinforce import ScoreFunctionEstimator
from sb3_reinforce.estimators import Disarm, DoubleCV, MeasureValued, Rebar, Relax, SumAndSample, WithoutReplacement
from tests.estimator_cases import (
    BERNOULLI,
    CATEGORIES,
    CONTINUOUS,
    DISCRETE,
    draws_of_disarm,
    draws_of_sum_and_sample,
    draws_of_without_replacement,
    draws_of_x,
    exact,
    expectation,
    expected_cost,
    of_vector,
    poisson_draws,
    relaxed_estimates,
    sampled,
    surrogate,
    values_of,
)
from tests.score_cases import tensor, z_scores

NUMBERS = [1, 2, 3, 4]


def assert_exact(case, found):
    value, gradient = found
    th.testing.assert_close(value, expected_cost(case)(DISCRETE[case][0]), atol=1e-10, rtol=0)
    th.testing.assert_close(gradient, exact(case), atol=1e-10, rtol=0)


# --- every draw, with its probability -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", NUMBERS)
@pytest.mark.parametrize("case", DISCRETE)
def test_score(case, n_samples):
    if len(values_of(case)[0]) ** n_samples > 7000:
        n_samples = 3  # of 9 values: 729 draws
    parameter, make, cost = DISCRETE[case]
    probability, x = draws_of_x(case, n_samples)
    for baseline in ["none", 2.5] if n_samples == 1 else ["none", 2.5, "leave_one_out"]:
        copies = parameter.expand(len(probability), *parameter.shape).clone().requires_grad_()
        estimator = ScoreFunctionEstimator(n_samples, baseline)
        estimator._sample = lambda p: x
        weighted = estimator._draw(make(copies), cost)[0].mean(0) * probability
        assert_exact(case, (weighted.sum(), th.autograd.grad(weighted.sum(), copies)[0].sum(0)))


@pytest.mark.parametrize("case", DISCRETE)
def test_enumerate(case):
    assert_exact(case, expectation(case, "enumerate", 1, th.ones(1, dtype=th.float64), None))


@pytest.mark.parametrize("n_samples", NUMBERS)
@pytest.mark.parametrize("case", DISCRETE)
def test_sum_and_sample(case, n_samples):
    """With every number of summed values, down to none, where it is the score function."""
    for n_summed in range(min(n_samples, len(values_of(case)[0]))):
        baselines = ["none"] if n_samples == 1 else ["none", "leave_one_out"]
        for baseline in baselines:
            draws = draws_of_sum_and_sample(case, n_samples, n_summed)
            assert_exact(case, expectation(case, SumAndSample(n_summed), n_samples, *draws, baseline))


@pytest.mark.parametrize("n_samples", NUMBERS)
@pytest.mark.parametrize("case", DISCRETE)
def test_without_replacement(case, n_samples):
    for baseline in ["none"] if n_samples == 1 else ["none", "leave_one_out"]:
        draws = draws_of_without_replacement(case, n_samples)
        assert_exact(case, expectation(case, "without_replacement", n_samples, *draws, baseline))


@pytest.mark.parametrize("n_samples", NUMBERS)
@pytest.mark.parametrize("case", [*BERNOULLI, *CATEGORIES])
def test_disarm(case, n_samples):
    if case.endswith("Categorical vector"):
        n_samples = min(n_samples, 2)  # 66 pairs, so 4356 draws of two
    assert_exact(case, expectation(case, "disarm", n_samples, *draws_of_disarm(case, n_samples)))


@pytest.mark.parametrize("n_samples", NUMBERS[1:])
@pytest.mark.parametrize("case", BERNOULLI)
def test_double_cv(case, n_samples):
    for product in (0.0, 0.7):  # the factor a, as if learned
        method = DoubleCV()
        method.product, method.square = product, 1.0
        assert_exact(case, expectation(case, method, n_samples, *draws_of_x(case, n_samples)))


class DrawnBefore(MeasureValued):
    """Samples that are given, for distributions whose x+ and x- follow from x."""

    def __init__(self, x):
        self.x = x

    def draw(self, problem):
        base = problem.p.base_dist if isinstance(problem.p, Independent) else problem.p
        base.sample = lambda shape: self.x
        return super().draw(problem)


@pytest.mark.parametrize("n_samples", NUMBERS)
@pytest.mark.parametrize("case", BERNOULLI)
def test_measure_valued_of_bernoulli(case, n_samples):
    probability, x = draws_of_x(case, n_samples)
    parameter, make, cost = DISCRETE[case]
    copies = parameter.expand(len(probability), *parameter.shape).clone().requires_grad_()
    terms, _ = ScoreFunctionEstimator(n_samples, method=DrawnBefore(x))._draw(make(copies), cost)
    (terms.mean(0) * probability).sum().backward()
    th.testing.assert_close(copies.grad.sum(0), exact(case), atol=1e-10, rtol=0)


@pytest.mark.parametrize("n_samples", NUMBERS)
def test_measure_valued_of_poisson(n_samples):
    """E[x^2] = rate + rate^2."""
    probability, x = poisson_draws(0.4, n_samples)
    rate = tensor(0.4).expand(len(probability)).clone().requires_grad_()
    terms, _ = ScoreFunctionEstimator(n_samples, method=DrawnBefore(x))._draw(Poisson(rate), lambda x: x**2)
    (terms.mean(0) * probability).sum().backward()
    assert rate.grad.sum().item() == pytest.approx(1 + 2 * 0.4, abs=1e-8)


# --- 100,000 samples, within 4 standard errors ----------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", NUMBERS)
@pytest.mark.parametrize("case", CONTINUOUS)
def test_measure_valued(case, n_samples):
    th.manual_seed(1)
    make, parameters, cost, truth = CONTINUOUS[case]
    found = sampled(make, [tensor(p) for p in parameters], cost, n_samples, 100_000 // n_samples, method="measure_valued")
    for estimates, gradient in zip(found, truth, strict=True):
        assert z_scores(estimates, gradient).abs() < 4
        assert estimates.var() > 0


def test_measure_valued_of_a_vector():
    """Two variables with one cost, x y^2: E = mu_x (mu_y^2 + sigma_y^2)."""
    th.manual_seed(2)
    loc, scale = tensor([0.5, -1.0]), tensor([0.8, 0.6])
    found = sampled(
        lambda loc, scale: Independent(Normal(loc, scale), 1), [loc, scale], lambda x: x[..., 0] * x[..., 1] ** 2, 2, 50_000,
        method="measure_valued",
    )  # fmt: skip
    assert z_scores(found[0], tensor([1 + 0.36, 2 * 0.5 * -1.0])).abs().max() < 4
    assert z_scores(found[1][:, 1], tensor(2 * 0.5 * 0.6)).abs() < 4
    # x is linear in its own variable, so x+ and x- of its scale have the same mean
    assert z_scores(found[1][:, 0], tensor(0.0)).abs() < 4


RELAXED = {
    "rebar": [*BERNOULLI, "OneHotCategorical", "OneHotCategorical vector"],
    "relax": [*BERNOULLI, *CATEGORIES],
}


def surrogate_of(z):
    """A control variate of its own, for which RELAX is to be unbiased as well."""
    return (1.3 * th.sin(z) + z**2 / 5).flatten(2).sum(-1) if z.ndim > 2 else 1.3 * th.sin(z)


@pytest.mark.parametrize("n_samples", NUMBERS)
@pytest.mark.parametrize(("method", "case"), [(method, case) for method, cases in RELAXED.items() for case in cases])
def test_rebar_and_relax(method, case, n_samples):
    th.manual_seed(3)
    given = Rebar(temperature=0.4, scale=0.8, learn=False) if method == "rebar" else Relax(surrogate_of)
    # of one sample the second call, because it has the average over past calls for a baseline
    estimates = relaxed_estimates(case, given, n_samples, 100_000 // n_samples, n_calls=2 if n_samples == 1 else 1)
    assert z_scores(estimates, exact(case)).abs().max() < 4


def test_one_sample_has_the_average_of_past_calls():
    """A constant cost of 5: the first gradient is 5 times the score, the second 0."""
    method = Relax(lambda z: 0 * z.sum(-1))
    for expected in (5.0, 0.0, 0.0):
        logits = tensor([0.0], grad=True)
        loss = ScoreFunctionEstimator(1, method=method)(Independent(Bernoulli(logits=logits), 1), lambda x: 5 + 0 * x.sum(-1))
        loss.backward()
        assert logits.grad.abs().item() == pytest.approx(expected / 2)  # p = 1/2: a score of 1/2 or -1/2


@pytest.mark.parametrize("method", ["rebar", "relax"])
def test_learning_lessens_the_variance_and_adds_no_bias(method):
    th.manual_seed(4)
    case = "Bernoulli vector"
    given = {"rebar": Rebar(scale=0.0), "relax": Relax()}[method]  # from the score function on
    before = relaxed_estimates(case, given, 2, 10_000)
    for _ in range(120):
        relaxed_estimates(case, given, 2, 100)
    after = relaxed_estimates(case, given, 2, 10_000)
    assert z_scores(after, exact(case)).abs().max() < 4
    assert after.var(0).sum() < 0.9 * before.var(0).sum()


def test_double_cv_learns_its_factor():
    """Where the slopes at 0 and 1 differ, a Taylor expansion is too steep, and a is less than 1."""
    th.manual_seed(5)
    given = DoubleCV()
    assert given.factor == 1.0
    for _ in range(30):
        make, cost = lambda t: Independent(Bernoulli(logits=t), 1), lambda x: ((x - 0.4) ** 2).sum(-1)
        sampled(make, [th.zeros(10).double()], cost, 2, 50, method=given)
    # f is linear on {0, 1}, with slope 1 - 0.8 = 0.2, but has the slopes 1.2 and -0.8 there, whose mean is 0.2
    assert 0 < given.factor < 0.9


# --- variance and draws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logit", [0.8, -2.0, 0.0])
def test_variance_of_disarm_on_one_bernoulli(logit):
    """
    With D = f(1) - f(0): x differs from x' with probability 2 min(p, 1 - p), and then g = D max(p, 1 - p) / 2. So
    Var = D^2 p (1 - p) (max(p, 1 - p) / 2 - p (1 - p)); two independent samples have 1/2 in place of max / 2.
    """
    p = 1 / (1 + math.exp(-logit))
    th.manual_seed(9)

    def variance(**kwargs):
        make, cost = lambda t: Bernoulli(logits=t), lambda x: 5 * x + 1
        return sampled(make, [tensor(logit)], cost, n_replicates=200_000, **kwargs)[0].var().item()

    closed = 25 * p * (1 - p) * (max(p, 1 - p) / 2 - p * (1 - p))
    assert variance(n_samples=1, method="disarm") == pytest.approx(closed, rel=0.03, abs=1e-12)
    assert variance(n_samples=2) == pytest.approx(25 * p * (1 - p) * (1 / 2 - p * (1 - p)), rel=0.03)


def test_draws_have_the_probabilities_that_the_tests_above_use():
    """The draws themselves: frequencies of 40,000 against the probabilities, within 4.5 standard errors."""
    th.manual_seed(10)
    n = 40_000
    for case, method, draws in (
        ("likely Categorical", Disarm(), draws_of_disarm("likely Categorical", 1)),
        ("Bernoulli", Disarm(), draws_of_disarm("Bernoulli", 1)),
        ("Categorical", WithoutReplacement(), draws_of_without_replacement("Categorical", 2)),
        ("Categorical", SumAndSample(1), draws_of_sum_and_sample("Categorical", 3, 1)),
    ):
        seen = {}
        parameter, make, cost = DISCRETE[case]
        n_samples = 3 if isinstance(method, SumAndSample) else 2 if isinstance(method, WithoutReplacement) else 1
        estimator = ScoreFunctionEstimator(n_samples, method=method)
        right = method.draw
        method.draw = lambda problem, right=right, seen=seen: seen.setdefault("drawn", right(problem))
        estimator(make(parameter.expand(n, *parameter.shape).clone().requires_grad_()), cost)

        def rows(drawn):
            parts = drawn if isinstance(drawn, tuple) else (drawn,)
            width = parts[0].shape[1]
            return [tuple(row) for row in th.cat([part.movedim(1, 0).reshape(width, -1) for part in parts], 1).tolist()]

        counts = {}
        for row in rows(seen["drawn"]):
            counts[row] = counts.get(row, 0) + 1
        for row, p in zip(rows(draws[1]), draws[0].tolist(), strict=True):
            assert abs(counts.pop(row, 0) - n * p) < 4.5 * math.sqrt(n * p * (1 - p)) + 1e-9
        assert not counts  # nothing else is drawn


def test_sum_and_sample_sums_what_lessens_the_bound():
    """p = 0.9, 0.06, 0.04 with K = 3: (1 - P_C) / (K - k) = 1/3, 0.1/2, 0.04/1: two are summed."""
    chosen = SumAndSample()._number_to_sum(tensor([[0.9], [0.06], [0.04]]), 3)
    assert chosen == 2
    # p = 1/5 each with K = 2: 1/2, 0.8/1: none is summed
    assert SumAndSample()._number_to_sum(tensor([[0.2]] * 5), 2) == 0


# --- higher derivatives -----------------------------------------------------------------------------------------------

HIGHER = {
    "enumerate": lambda: (th.ones(1, dtype=th.float64), None),
    "sum_and_sample": lambda: draws_of_sum_and_sample("Categorical", 3, 1),
    "without_replacement": lambda: draws_of_without_replacement("Categorical", 2),
}


@pytest.mark.parametrize("method", HIGHER)
def test_hessian_vector_products(method):
    """Expected Hessian times v, and the third derivative along v, against those of the expected cost."""
    case, v = "Categorical", tensor([1.0, -0.5, 2.0])
    draws = HIGHER[method]()
    given = SumAndSample(1) if method == "sum_and_sample" else method
    copies, weighted = surrogate(case, given, len(draws[1]) if method == "without_replacement" else 3, *draws)
    (first,) = th.autograd.grad(weighted.sum(), copies, create_graph=True)
    (second,) = th.autograd.grad((first * v).sum(), copies, create_graph=True)
    (third,) = th.autograd.grad((second * v).sum(), copies)
    parameter = DISCRETE[case][0].clone().requires_grad_()
    (g,) = th.autograd.grad(expected_cost(case)(parameter), parameter, create_graph=True)
    (hv,) = th.autograd.grad(g @ v, parameter, create_graph=True)
    (hvv,) = th.autograd.grad(hv @ v, parameter)
    th.testing.assert_close(second.sum(0), hv, atol=1e-10, rtol=0)
    th.testing.assert_close(third.sum(0), hvv, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", ["disarm", "rebar", "relax", "double_cv", "measure_valued"])
def test_others_refuse_second_derivatives(method):
    logits = tensor([0.2, -0.3], grad=True)
    loss = ScoreFunctionEstimator(2, method=method)(Independent(Bernoulli(logits=logits), 1), of_vector)
    with pytest.raises(ValueError, match="first derivatives only"):
        th.autograd.grad(loss, logits, create_graph=True)
    assert th.autograd.grad(loss, logits)[0].isfinite().all()


# --- a cost that depends on the parameters itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["enumerate", "sum_and_sample", "disarm", "without_replacement", "rebar", "relax", "double_cv", "measure_valued"]
)
def test_cost_gradient(method):
    """E[(w x)^2] = w^2 p: the gradient in w, 2 w p, comes with the cost; that in the logit, w^2 p (1 - p), from the method."""
    th.manual_seed(11)
    p = th.sigmoid(tensor(0.4)).item()
    w = tensor(1.5).expand(40_000).clone().requires_grad_()
    logit = tensor(0.4).expand(40_000).clone().requires_grad_()
    loss = (
        ScoreFunctionEstimator(2, cost_gradient=True, method=method)(Bernoulli(logits=logit), lambda x: (w * x) ** 2) * 40_000
    )
    of_w, of_logit = th.autograd.grad(loss, [w, logit])
    for found, truth in ((of_w, 3 * p), (of_logit, 2.25 * p * (1 - p))):
        error = (found.std() / 200).item()
        assert abs(found.mean().item() - truth) < max(4 * error, 1e-10)


def test_float32_and_one_hot_batches():
    """Batch axes stay batch axes: [K, B] costs, one gradient for each element, in the dtype of the parameters."""
    logits = th.zeros(5, 2, 3, requires_grad=True)
    p = Independent(OneHotCategorical(logits=logits), 1)
    for method in ("enumerate", "sum_and_sample", "disarm", "without_replacement", "rebar", "relax"):
        logits.grad = None
        loss = ScoreFunctionEstimator(3, method=method)(p, lambda x: (x * th.arange(3.0)).sum((-1, -2)))
        assert loss.dtype == th.float32
        loss.backward(retain_graph=True)
        assert logits.grad.shape == (5, 2, 3)
        assert logits.grad.abs().sum() > 0
