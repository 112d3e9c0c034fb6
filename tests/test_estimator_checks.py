"""What each method refuses, and what its message says would do."""

import pytest
import torch as th
from torch.distributions import Bernoulli, Binomial, Categorical, Gamma, Independent, Normal, OneHotCategorical, Poisson

from sb3_reinforce import ScoreFunctionEstimator
from sb3_reinforce.estimators import Rebar, Relax, SumAndSample
from tests.score_cases import tensor

LOGITS = tensor([0.2, -0.3, 0.1], grad=True)
BITS = Independent(Bernoulli(logits=LOGITS), 1)
NORMAL = Normal(LOGITS, 1.0)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(method="gumbel"), "method must be one of 'score', 'enumerate'.*got 'gumbel'"),
        (dict(method="disarm", baseline="optimal"), "'leave_one_out' .* or 'none', got 'optimal'"),
        (dict(method="disarm", baseline=2.0), "got 2.0: others are for method='score'"),
        (dict(method="rebar", cost_input="numpy"), "differentiates the cost.*use 'relax' or 'disarm'"),
        (dict(method="double_cv", cost_input="sample"), "differentiates the cost"),
        (dict(method="disarm", control_variate=(len, len)), "control_variate is for method='score'"),
    ],
)
def test_options(kwargs, words):
    with pytest.raises(ValueError, match=words):
        ScoreFunctionEstimator(4, **kwargs)


@pytest.mark.parametrize(
    ("method", "n_samples", "p", "words"),
    [
        ("disarm", 2, NORMAL, "needs Bernoulli, Categorical or OneHotCategorical variables.*use 'score'"),
        ("rebar", 2, NORMAL, "needs Bernoulli"),
        ("rebar", 2, Categorical(logits=LOGITS), "use OneHotCategorical .*or 'relax' or 'disarm'"),
        ("relax", 2, Poisson(LOGITS.exp()), "needs Bernoulli"),
        ("double_cv", 2, OneHotCategorical(logits=LOGITS), "needs Bernoulli variables.*'disarm' for categories"),
        ("double_cv", 1, BITS, "n_samples must be >= 2, got 1"),
        ("enumerate", 1, NORMAL, "no finite support.*use 'score'"),
        ("enumerate", 1, Independent(Bernoulli(logits=th.zeros(20, requires_grad=True)), 1), "which has more: use 'score'"),
        ("enumerate", 1, Binomial(tensor([2.0, 3.0]), logits=tensor([0.0, 1.0], grad=True)), "no finite support"),
        ("sum_and_sample", 2, Poisson(LOGITS.exp()), "no finite support"),
        ("sum_and_sample", 1, BITS, "n_samples must be >= 2, got 1: or \"none\""),
        ("without_replacement", 2, NORMAL, "no finite support"),
        ("without_replacement", 13, BITS, "n_samples must be <= 12"),
        ("without_replacement", 1, BITS, "n_samples must be >= 2"),
        ("measure_valued", 2, Categorical(logits=LOGITS), "knows Bernoulli, .*Gamma.*'disarm' or 'enumerate' for categories"),
        ("measure_valued", 2, Gamma(LOGITS.exp(), 1.0), "no decomposition for the concentration"),
        ("disarm", 2, [BITS, BITS], "takes one distribution, got a list of 2"),
        ("disarm", 2, Bernoulli(logits=tensor([0.1])), "must have parameters with gradient"),
        (SumAndSample(3), 3, BITS, "n_summed must be less than n_samples"),
    ],
)  # fmt: skip
def test_distributions(method, n_samples, p, words):
    with pytest.raises(ValueError, match=words):
        ScoreFunctionEstimator(n_samples, method=method)(p, lambda x: x.sum(-1))


@pytest.mark.parametrize("method", ["rebar", "double_cv"])
@pytest.mark.parametrize("cost", [lambda x: (x > 0.5).double().sum(-1), lambda x: LOGITS.sum() * x.detach().sum(-1)])
def test_costs_without_gradient_in_x(method, cost):
    with pytest.raises(ValueError, match="needs a cost that is a torch function with a gradient in x"):
        ScoreFunctionEstimator(2, method=method)(BITS, cost)


def test_costs_of_a_wrong_shape_or_value():
    with pytest.raises(ValueError, match="equal shapes"):
        ScoreFunctionEstimator(2, method="disarm")(BITS, lambda x: th.zeros(3))
    with pytest.raises(ValueError, match="cost must be finite"):
        ScoreFunctionEstimator(2, method="disarm")(BITS, lambda x: x.sum(-1) * th.nan)


def test_surrogates():
    with pytest.raises(ValueError, match=r"surrogate must return a tensor of shape \(4,\) with gradient in z"):
        ScoreFunctionEstimator(2, method=Relax(lambda z: z))(BITS, lambda x: x.sum(-1))
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        Rebar(temperature=0)
    with pytest.raises(ValueError, match="n_summed must be >= 0"):
        SumAndSample(-1)


def test_black_box_costs():
    """NumPy and Python costs work with every method that does not differentiate them."""
    for kind in ("numpy", "sample"):
        for method in ("enumerate", "sum_and_sample", "disarm", "without_replacement", "relax", "measure_valued"):
            p = Independent(Bernoulli(logits=LOGITS), 1)
            loss = ScoreFunctionEstimator(2, cost_input=kind, method=method)(p, lambda x: (x > 0).sum(-1))
            assert th.autograd.grad(loss, LOGITS)[0].isfinite().all()


def test_a_method_keeps_what_it_has_learned():
    """An object is used as it is, so that two estimators may share it, and a copy can be saved."""
    method = Relax()
    assert method.parameters() == []
    ScoreFunctionEstimator(2, method=method)(BITS, lambda x: x.sum(-1))
    assert len(method.parameters()) == 4
    assert method.optimizer is not None
    before = [p.clone() for p in method.parameters()]
    ScoreFunctionEstimator(2, method=method)(BITS, lambda x: x.sum(-1))
    assert any(not th.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))
    still = Rebar(learn=False)
    ScoreFunctionEstimator(2, method=still)(BITS, lambda x: x.sum(-1))
    assert still.optimizer is None
