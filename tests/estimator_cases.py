"""Distributions with an exact gradient, and expectations over every possible draw of each method."""

import itertools
import math

import torch as th
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Exponential,
    Gamma,
    Independent,
    Normal,
    OneHotCategorical,
    Poisson,
)

from sb3_reinforce import ScoreFunctionEstimator
from sb3_reinforce.estimators import METHODS
from sb3_reinforce.estimators.disarm import Pairs
from sb3_reinforce.estimators.sum_and_sample import Drawn
from sb3_reinforce.estimators.support import support
from tests.score_cases import tensor

TABLE = tensor([[7.0, 1.0, 4.0], [2.0, -3.0, 0.5], [0.0, 5.0, 1.0]])
WEIGHTS = tensor([1.5, -2.0, 0.7])


def of_vector(x):
    """A torch function with a gradient, of vectors of any length."""
    return ((x * WEIGHTS[: x.shape[-1]]).sum(-1) - 0.3) ** 2 + 2 * x.prod(-1)


def of_vectors(x):
    return of_vector(x.flatten(-2) @ tensor([[1, 0], [0, 2], [-1, 1], [0.5, 0], [0, -2], [3, 1]]))


# name: parameter, distribution of it, cost
DISCRETE = {
    "Bernoulli": (tensor(0.8), lambda t: Bernoulli(logits=t), lambda x: (x - 0.45) ** 2 + 3 * x),
    "unlikely Bernoulli": (tensor(-2.0), lambda t: Bernoulli(logits=t), lambda x: 5 * x + 1),
    "Bernoulli of probs": (tensor(0.3), lambda t: Bernoulli(probs=t), lambda x: 5 * x + 1),
    "Bernoulli vector": (tensor([0.8, -1.1]), lambda t: Independent(Bernoulli(logits=t), 1), of_vector),
    "Categorical": (tensor([0.3, -0.8, 0.5]), lambda t: Categorical(logits=t), lambda x: TABLE[0][x]),
    "likely Categorical": (tensor([3.0, -0.8, 0.5]), lambda t: Categorical(logits=t), lambda x: TABLE[0][x]),
    "OneHotCategorical": (tensor([0.3, -0.8, 0.5]), lambda t: OneHotCategorical(logits=t), of_vector),
    "Categorical vector": (
        tensor([[0.3, -0.8, 0.5], [1.0, 0.0, -0.5]]),
        lambda t: Independent(Categorical(logits=t), 1),
        lambda x: TABLE[x[..., 0], x[..., 1]],
    ),
    "OneHotCategorical vector": (
        tensor([[0.3, -0.8, 0.5], [1.0, 0.0, -0.5]]),
        lambda t: Independent(OneHotCategorical(logits=t), 1),
        of_vectors,
    ),
    "Binomial": (tensor(0.4), lambda t: Binomial(3, logits=t), lambda x: (x - 1.2) ** 2),
}
BERNOULLI = ["Bernoulli", "unlikely Bernoulli", "Bernoulli of probs", "Bernoulli vector"]
CATEGORIES = ["Categorical", "likely Categorical", "OneHotCategorical", "Categorical vector", "OneHotCategorical vector"]


def values_of(case):
    """All values of x, their log-probs at a parameter, and their costs."""
    parameter, make, cost = DISCRETE[case]
    x = support(make(parameter))
    return x, lambda t: make(t).log_prob(x), cost(x)


def expected_cost(case):
    _, log_p, costs = values_of(case)
    return lambda t: (log_p(t).exp() * costs).sum()


def exact(case):
    return th.autograd.functional.jacobian(expected_cost(case), DISCRETE[case][0])


def products(weights, n):
    """Indices [N, n] of all rows of n choices, and the probability of each, [N]."""
    rows = th.tensor(list(itertools.product(range(len(weights)), repeat=n)))
    return rows, weights[rows].prod(-1)


def draws_of_disarm(case, n_samples):
    """Of each variable: antithetic bits for Bernoulli; for categories a stick broken by antithetic bits, on paper."""
    parameter, make, _ = DISCRETE[case]
    p = make(parameter)
    base = p.base_dist if isinstance(p, Independent) else p
    if isinstance(base, Bernoulli):
        tables = [{(1, 1): max(0, 2 * q - 1), (0, 0): max(0, 1 - 2 * q), (1, 0): min(q, 1 - q), (0, 1): min(q, 1 - q)}
                  for q in base.probs.view(-1).tolist()]  # fmt: skip
    else:
        tables = [joint_of_sticks(q) for q in base.probs.view(-1, base.probs.shape[-1]).tolist()]
    pairs, weights = [], []
    for choice in itertools.product(*[table.items() for table in tables]):
        if weight := math.prod(probability for _, probability in choice):
            pairs.append([pair for pair, _ in choice])
            weights.append(weight)
    pairs = th.tensor(pairs)  # [N, D, 2]
    rows, probability = products(tensor(weights), n_samples)
    drawn = pairs[rows].movedim(0, 1)  # [K, N, D, 2]
    indicators = []
    for index in drawn.unbind(-1):
        e = index.double() if isinstance(base, Bernoulli) else th.nn.functional.one_hot(index, 3).double()
        indicators.append(e if p.event_shape[: 1 if isinstance(base, (Bernoulli, Categorical)) else -1] else e.squeeze(2))
    return probability, Pairs(*indicators)


def joint_of_sticks(p):
    """P(z, z') where each category, from the least likely on, asks both walkers still there: antithetic bits."""
    order = sorted(range(len(p)), key=p.__getitem__)
    joint = {}

    def walk(place, first, second, probability):
        if probability == 0:
            return
        if first is not None and second is not None:
            joint[first, second] = joint.get((first, second), 0) + probability
            return
        c = order[place]
        stick = p[c] / sum(p[o] for o in order[place:]) if place < len(p) - 1 else 1.0
        if first is None and second is None and stick < 1:
            walk(place + 1, c, None, probability * stick)
            walk(place + 1, None, c, probability * stick)
            walk(place + 1, None, None, probability * (1 - 2 * stick))
            return
        here = [z if z is not None else c for z in (first, second)]
        walk(place, *here, probability * stick)
        walk(place + 1, first, second, probability * (1 - stick))

    walk(0, None, None, 1.0)
    return joint


def draws_of_without_replacement(case, n_samples):
    p = values_of(case)[1](DISCRETE[case][0]).exp()
    orders = list(itertools.permutations(range(len(p)), min(n_samples, len(p))))
    weights = []
    for order in orders:
        left, weight = 1.0, 1.0
        for s in order:
            weight *= p[s].item() / left
            left -= p[s].item()
        weights.append(weight)
    return tensor(weights), th.tensor(orders).T


def draws_of_sum_and_sample(case, n_samples, n_summed):
    p = values_of(case)[1](DISCRETE[case][0]).exp()
    order = p.argsort(descending=True)
    summed, others = order[:n_summed], order[n_summed:]
    rows, probability = products(p[others] / p[others].sum(), n_samples - n_summed)
    return probability, Drawn(summed[:, None].expand(-1, len(rows)), others[rows].T)


def draws_of_x(case, n_samples):
    """Independent samples: [K, N, event]."""
    x, log_p, _ = values_of(case)
    rows, probability = products(log_p(DISCRETE[case][0]).exp(), n_samples)
    return probability, x[rows.T]


def surrogate(case, method, n_samples, probability, drawn, baseline="leave_one_out", **kwargs):
    """
    A copy of the problem for each draw: the parameters [N, ...], and the terms of each draw times its probability, [N].

    Their sum is the expectation.
    """
    parameter, make, cost = DISCRETE[case]
    copies = parameter.expand(len(probability), *parameter.shape).clone().requires_grad_()
    estimator = ScoreFunctionEstimator(n_samples, baseline, method=method, **kwargs)
    estimator.method.draw = lambda problem: drawn
    terms, _ = estimator._draw(make(copies), cost)
    return copies, terms.mean(0) * probability


def expectation(case, method, n_samples, probability, drawn, baseline="leave_one_out", **kwargs):
    """The expected value and gradient, by a sum over draws."""
    assert abs(probability.sum().item() - 1) < 1e-12
    copies, weighted = surrogate(case, method, n_samples, probability, drawn, baseline, **kwargs)
    return weighted.sum(), th.autograd.grad(weighted.sum(), copies)[0].sum(0)


def sampled(make, parameters, cost, n_samples, n_replicates, n_calls=1, **kwargs):
    """Independent estimates of the gradient, one for each element of the batch: [n_replicates, ...] per parameter."""
    copies = [p.expand(n_replicates, *p.shape).clone().requires_grad_() for p in parameters]
    estimator = ScoreFunctionEstimator(n_samples, **kwargs)
    for _ in range(n_calls):
        loss = estimator(make(*copies), cost) * n_replicates
    return th.autograd.grad(loss, copies)


def poisson_draws(rate, n_samples):
    """All x up to 14 of a Poisson variable, whose tail is below 1e-12 for rates under 1."""
    weights = Poisson(tensor(rate)).log_prob(th.arange(15.0, dtype=th.float64)).exp()
    rows, probability = products(weights, n_samples)
    return probability, rows.T.double()


def relaxed_estimates(case, method, n_samples, n_replicates, n_calls=1, **kwargs):
    parameter, make, cost = DISCRETE[case]
    return sampled(make, [parameter], cost, n_samples, n_replicates, n_calls, method=method, **kwargs)[0]


# distribution, parameters, cost, gradient
CONTINUOUS = {
    # E[x^3] = mu^3 + 3 mu sigma^2
    "Normal": (Normal, [0.5, 0.8], lambda x: x**3, [3 * 0.25 + 3 * 0.64, 6 * 0.5 * 0.8]),
    # E[x^2] = 2 / rate^2
    "Exponential": (Exponential, [1.5], lambda x: x**2, [-4 / 1.5**3]),
    # E[x^2] = a (a + 1) / rate^2
    "Gamma": (lambda rate: Gamma(tensor(2.5), rate), [1.5], lambda x: x**2, [-2 * 2.5 * 3.5 / 1.5**3]),
    # E[x^2] = N p (1 - p) + N^2 p^2
    "Binomial": (lambda p: Binomial(3, p), [0.3], lambda x: x**2, [3 * (1 - 0.6) + 18 * 0.3]),
    "Poisson": (Poisson, [2.0], lambda x: x**2, [5.0]),
}


assert set(METHODS) == {
    "enumerate", "sum_and_sample", "disarm", "without_replacement", "rebar", "relax", "double_cv", "measure_valued",
}  # fmt: skip
