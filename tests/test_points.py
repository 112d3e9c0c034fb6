"""Stratified, antithetic and Sobol points: each number is uniform, the estimates are unbiased, and they vary less."""

import pytest
import torch as th
from torch.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
)

from sb3_reinforce import ScoreFunctionEstimator
from sb3_reinforce.baselines import LeaveOneOutBaseline
from sb3_reinforce.estimators import Rebar
from sb3_reinforce.estimators.points import inverse, leave_set_out, sample, set_sizes, uniform
from tests.estimator_cases import DISCRETE, exact, sampled
from tests.score_cases import tensor, z_scores

POINTS = ["antithetic", "stratified", "sobol"]


def test_set_sizes():
    assert set_sizes("iid", 3, True) == [1, 1, 1]
    assert set_sizes("antithetic", 4, True) == [2, 2]
    assert set_sizes("stratified", 5, True) == [3, 2]
    assert set_sizes("sobol", 5, False) == [5]


def test_leave_set_out():
    # f = 1, 2, 6 in sets of 2 and 1: b = 6, 6, (1 + 2)/2
    assert leave_set_out(tensor([1, 2, 6]), [2, 1]).tolist() == [6, 6, 1.5]
    # sets of one: leave_one_out
    assert leave_set_out(tensor([1, 2, 6]), [1, 1, 1]).tolist() == [4, 3.5, 1.5]


def points(sampling, n, batch=(), event=(), sets=1):
    return uniform(sampling, [n] * sets, th.Size(batch), th.Size(event), tensor(0.0))


def test_antithetic_points_come_in_pairs():
    u = uniform("antithetic", [2, 2], th.Size([3]), th.Size([2]), tensor(0.0))
    th.testing.assert_close(u[0] + u[1], th.ones(3, 2).double())
    th.testing.assert_close(u[2] + u[3], th.ones(3, 2).double())
    assert not th.equal(u[0], u[2])


def test_stratified_points_fill_each_interval_once():
    u = points("stratified", 8, (3,), (2,))
    assert (u * 8).floor().sort(0).values.tolist() == [[[k, k]] * 3 for k in range(8)]


def test_sobol_points_are_one_shifted_sequence():
    """Of eight points each of the 8 boxes of 1/2 x 1/4 has one, up to the shift; batch elements have shifts of their own."""
    u = points("sobol", 8, (2,), (2,))
    shift = u[0]
    back = (u - shift) % 1.0
    th.testing.assert_close(back[:, 0], back[:, 1])
    boxes = {(int(a * 2), int(b * 4)) for a, b in (back[:, 0] + 1e-9).tolist()}
    assert len(boxes) == 8
    assert not th.equal(shift[0], shift[1])


@pytest.mark.parametrize("sampling", POINTS)
def test_each_point_is_uniform(sampling):
    """Mean 1/2 and second moment 1/3 of every number, over 20,000 draws: this is all that unbiasedness needs."""
    th.manual_seed(0)
    u = points(sampling, 2, (20_000,), (2,))
    for moment, truth in ((u, 1 / 2), (u**2, 1 / 3)):
        assert z_scores(moment.movedim(1, 0), truth).abs().max() < 4


@pytest.mark.parametrize(
    "p",
    [
        Normal(tensor(0.5), tensor(2.0)),
        Exponential(tensor(1.5)),
        Laplace(tensor(0.5), tensor(2.0)),
        LogNormal(tensor(0.1), tensor(0.3)),
        Bernoulli(tensor(0.3)),
        Independent(Normal(tensor([0.5, -1.0]), tensor([2.0, 0.3])), 1),
        MultivariateNormal(tensor([0.5, -1.0]), scale_tril=tensor([[1.0, 0.0], [0.4, 0.8]])),
        OneHotCategorical(tensor([0.2, 0.5, 0.3])),
    ],
    ids=lambda p: type(p).__name__,
)
def test_samples_have_the_mean_of_the_distribution(p):
    th.manual_seed(0)
    x = sample(p, "stratified", [50_000])
    # a Latin hypercube knows the mean of each coordinate to about 1/n
    th.testing.assert_close(x.mean(0), p.mean.to(x), atol=2e-3, rtol=2e-3)
    th.testing.assert_close(x.var(0), p.variance.to(x), atol=3e-2, rtol=3e-2)


def test_inverse_of_categories():
    # cumulated 0.2, 0.7, 1
    p = Categorical(tensor([0.2, 0.5, 0.3]))
    assert inverse(p, tensor([0.1, 0.19, 0.21, 0.69, 0.71, 0.99])).tolist() == [0, 0, 1, 1, 2, 2]


NORMAL = (lambda t: Normal(t, 0.8), [tensor(0.5)], lambda x: x**3, 3 * 0.25 + 3 * 0.64)


@pytest.mark.parametrize("n_samples", [2, 3, 4])
@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
@pytest.mark.parametrize("sampling", POINTS)
def test_score_is_unbiased(sampling, baseline, n_samples):
    if sampling == "antithetic" and (n_samples == 3 or (n_samples == 2 and baseline == "leave_one_out")):
        with pytest.raises(ValueError, match=r"must be even|needs two sets"):
            ScoreFunctionEstimator(n_samples, baseline, sampling=sampling)
        return
    th.manual_seed(1)
    make, parameters, cost, truth = NORMAL
    found = sampled(make, parameters, cost, n_samples, 50_000, baseline=baseline, sampling=sampling)[0]
    assert z_scores(found, truth).abs() < 4
    parameter, make, cost = DISCRETE["Categorical vector"]
    found = sampled(make, [parameter], cost, n_samples, 50_000, baseline=baseline, sampling=sampling)[0]
    assert z_scores(found, exact("Categorical vector")).abs().max() < 4


@pytest.mark.parametrize("method", ["disarm", "rebar", "relax"])
@pytest.mark.parametrize("sampling", POINTS)
def test_other_methods_are_unbiased(sampling, method):
    for case in ("Bernoulli vector",) if method == "relax" else ("Bernoulli vector", "OneHotCategorical"):
        th.manual_seed(2)
        parameter, make, cost = DISCRETE[case]
        given = Rebar(learn=False) if method == "rebar" else method
        found = sampled(make, [parameter], cost, 4, 10_000, method=given, sampling=sampling)[0]
        assert z_scores(found, exact(case)).abs().max() < 4


def test_detects_a_baseline_within_the_set(monkeypatch):
    """The mean of the other samples, the pair's own one included, depends on the sample through it."""
    make, parameters, cost, truth = NORMAL
    from sb3_reinforce.estimators import points as module

    monkeypatch.setattr(module, "leave_set_out", lambda values, sizes: (values.sum(0) - values) / (len(values) - 1))
    th.manual_seed(3)
    found = sampled(make, parameters, cost, 4, 20_000, sampling="antithetic")[0]
    assert z_scores(found, truth).abs() > 4


def test_points_lessen_the_variance():
    """A smooth cost of a Normal, K = 64: stratified and Sobol points leave less than a third."""
    th.manual_seed(4)
    make, parameters, cost, _ = NORMAL
    variance = {
        name: sampled(make, parameters, cost, 64, 2000, baseline="none", sampling=name)[0].var().item()
        for name in ("iid", "stratified", "sobol")
    }
    assert max(variance["stratified"], variance["sobol"]) < variance["iid"] / 3


def test_errors():
    loc = tensor([1.0, 2.0], grad=True)
    with pytest.raises(ValueError, match="sampling must be one of"):
        ScoreFunctionEstimator(4, sampling="halton")
    with pytest.raises(ValueError, match="must be even, got 3"):
        ScoreFunctionEstimator(3, sampling="antithetic")
    with pytest.raises(ValueError, match="takes samples for independent"):
        ScoreFunctionEstimator(4, "optimal", sampling="sobol")
    with pytest.raises(ValueError, match="takes samples for independent"):
        ScoreFunctionEstimator(4, LeaveOneOutBaseline(), sampling="sobol")
    with pytest.raises(ValueError, match="needs two sets"):
        ScoreFunctionEstimator(1, sampling="sobol")
    with pytest.raises(ValueError, match="whose samples must be independent"):
        ScoreFunctionEstimator(4, method="double_cv", sampling="sobol")
    with pytest.raises(ValueError, match="needs the inverse of the distribution function, which torch does not have"):
        ScoreFunctionEstimator(4, sampling="sobol")(Gamma(loc, 1.0), lambda x: x)


def test_estimate_takes_calls_for_terms():
    """Points depend on each other, so that their spread says nothing of the estimate's error."""
    loc = tensor(0.5, grad=True)
    estimator = ScoreFunctionEstimator(8, "none", sampling="sobol")
    with pytest.raises(ValueError, match="n_calls >= 2"):
        estimator.estimate(Normal(loc, 0.8), lambda x: x**3, loc)
    with pytest.raises(ValueError, match="n_calls must be a whole number >= 1, got 0"):
        estimator.estimate(Normal(loc, 0.8), lambda x: x**3, loc, n_calls=0)
    th.manual_seed(5)
    found = estimator.estimate(Normal(loc, 0.8), lambda x: x**3, loc, n_calls=100)
    assert abs(found.gradients[0] - NORMAL[3]) < 4 * found.standard_errors[0]
    iid = ScoreFunctionEstimator(8, "none").estimate(Normal(loc, 0.8), lambda x: x**3, loc, n_calls=100)
    assert found.standard_errors[0] < iid.standard_errors[0]
