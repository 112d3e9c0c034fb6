"""What the score function refuses: argument, rule, value received, cure."""

import math

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
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from sb3_reinforce import Baseline, ScoreFunctionEstimator, score_function_loss
from sb3_reinforce.baselines import LeaveOneOutBaseline, ValueBaseline
from tests.score_cases import tensor

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
        ([LOGIT], dict(n_samples=1, baseline="none"), "a standard error needs two terms or more, got one.*n_samples=1"),
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
