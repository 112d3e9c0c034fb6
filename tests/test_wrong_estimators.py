"""Wrong variants of each method, and that the tests of test_estimators.py would see them."""

from dataclasses import replace

import pytest
import torch as th
from torch.distributions import Normal

from sb3_reinforce.estimators import DoubleCV, Rebar, Relax, SumAndSample, disarm
from sb3_reinforce.estimators import relax as relax_module
from sb3_reinforce.estimators import without_replacement as unordered
from sb3_reinforce.estimators.measure_valued import DECOMPOSITIONS
from tests.estimator_cases import (
    CONTINUOUS,
    draws_of_disarm,
    draws_of_sum_and_sample,
    draws_of_without_replacement,
    draws_of_x,
    exact,
    expectation,
    relaxed_estimates,
    sampled,
    values_of,
)
from tests.score_cases import tensor, z_scores


def own_sample_included(kind):
    """The method with a mean over all samples in place of the others."""

    class Wrong(kind):
        def terms(self, problem, drawn):
            return super().terms(replace(problem, leave_one_out=lambda v: v.mean(0).expand_as(v)), drawn)

    return Wrong()


class WrongBaselineOfSums(SumAndSample):
    @staticmethod
    def _baseline(p, summed, sampled, left):
        return ((p * summed).sum(0) + left * sampled.mean(0)).expand_as(sampled)


class WrongWeightOfSums(SumAndSample):
    def terms(self, problem, drawn):
        """The samples count as if nothing had been summed: what is summed counts twice."""
        left = super().terms(problem, drawn)
        return left + 0.1 * problem.p.log_prob(values_of("Categorical")[0][drawn.sampled[0]])


def bias(case, found):
    return (found[1] - exact(case)).abs().max().item()


WRONG = {
    "disarm without its weight": (disarm, "pair_weight", lambda found, drawn: th.ones(())),
    "disarm with the squared weight": (disarm, "pair_weight", lambda found, drawn: WEIGHT(found, drawn) ** 2),
}
WEIGHT = disarm.pair_weight


@pytest.mark.parametrize("case", ["Bernoulli vector", "Categorical"])
@pytest.mark.parametrize("wrong", WRONG)
def test_detects_a_wrong_disarm(wrong, case, monkeypatch):
    monkeypatch.setattr(*WRONG[wrong])
    assert bias(case, expectation(case, "disarm", 1, *draws_of_disarm(case, 1))) > 0.01


def test_detects_sticks_from_the_likeliest_on(monkeypatch):
    """There a probability may exceed 1/2, and some pairs never meet."""
    monkeypatch.setattr(disarm, "sticks", lambda p: descending(p))
    th.manual_seed(6)
    assert z_scores(relaxed_estimates("likely Categorical", "disarm", 1, 20_000), exact("likely Categorical")).abs().max() > 4


def descending(p):
    in_order, order = p.sort(-1, descending=True)
    left = in_order.flip(-1).cumsum(-1).flip(-1)
    return order, in_order / left, left


def test_detects_a_wrong_unordered_set(monkeypatch):
    """All weights p(s), as if each value of the set had been drawn first for certain."""
    draws = draws_of_without_replacement("Categorical", 2)
    monkeypatch.setattr(unordered, "probability_to_complete", lambda p, outside: th.ones(4, *outside.shape).double())
    assert bias("Categorical", expectation("Categorical", "without_replacement", 2, *draws)) > 0.01


def test_detects_a_wrong_sum():
    draws = draws_of_sum_and_sample("Categorical", 3, 1)
    for wrong in (WrongBaselineOfSums(1), WrongWeightOfSums(1)):
        assert bias("Categorical", expectation("Categorical", wrong, 3, *draws)) > 0.01


@pytest.mark.parametrize("n_samples", [2, 3])
def test_detects_a_double_cv_with_its_own_sample(n_samples):
    case = "Bernoulli vector"
    found = expectation(case, own_sample_included(DoubleCV), n_samples, *draws_of_x(case, n_samples))
    assert bias(case, found) > 0.01


def test_detects_a_wrong_rebar(monkeypatch):
    """z in place of z~: no longer independent of u, given x."""
    right = relax_module.relaxed

    def wrong(found, phi, noise):
        x, z, _ = right(found, phi, noise)
        return x, z, z

    case = "Bernoulli vector"
    th.manual_seed(7)
    monkeypatch.setattr(relax_module, "relaxed", wrong)
    assert z_scores(relaxed_estimates(case, Rebar(learn=False), 1, 20_000), exact(case)).abs().max() > 4
    assert z_scores(relaxed_estimates(case, own_sample_included(Relax), 2, 5000), exact(case)).abs().max() > 4


def test_detects_a_wrong_decomposition(monkeypatch):
    """Maxwell with one dimension too few is Rayleigh: the derivative of the scale is wrong."""
    right = DECOMPOSITIONS[Normal]

    def wrong(p, n):
        x, (loc, scale) = right(p, n)
        return x, [loc, scale._replace(plus=loc.plus)]

    monkeypatch.setitem(DECOMPOSITIONS, Normal, wrong)
    th.manual_seed(8)
    make, parameters, cost, truth = CONTINUOUS["Normal"]
    found = sampled(make, [tensor(p) for p in parameters], cost, 1, 20_000, method="measure_valued")
    assert z_scores(found[1], truth[1]).abs() > 4
