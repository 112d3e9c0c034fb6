"""Measure-valued derivatives: the difference of two costs, from two distributions that the derivative consists of."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from torch.distributions import Bernoulli, Binomial, Distribution, Exponential, Gamma, Normal, Poisson

from sb3_reinforce.estimators.method import Method, Problem, base_of, with_gradient


class Decomposition(NamedTuple):
    """
    d p(x; theta) / d theta = weight (p_plus - p_minus), with samples of both.

    :param parameter: theta
    :param weight: a tensor that broadcasts to samples [K, ...]
    :param plus: samples of p_plus; None: x itself
    :param minus: samples of p_minus; None: x itself
    """

    parameter: th.Tensor
    weight: th.Tensor
    plus: th.Tensor | None
    minus: th.Tensor | None


Drawn = tuple[th.Tensor, list[Decomposition]]


def _bernoulli(p: Bernoulli, n: int) -> Drawn:
    # p_plus is at 1 and p_minus at 0, and x is one of the two already
    x = p.sample((n,))
    return x, [Decomposition(p.probs, 1 - 2 * x, 1 - x, None)]


def _binomial(p: Binomial, n: int) -> Drawn:
    # Binomial(N - 1) plus one, and Binomial(N - 1); x adds the last trial to it
    fewer = Binomial(p.total_count - 1, p.probs.detach()).sample((n,))
    x = fewer + th.bernoulli(p.probs.detach().expand(fewer.shape))
    return x, [Decomposition(p.probs, p.total_count, fewer + 1, fewer)]


def _poisson(p: Poisson, n: int) -> Drawn:
    x = p.sample((n,))
    return x, [Decomposition(p.rate, th.ones_like(p.rate), x + 1, None)]


def _normal(p: Normal, n: int) -> Drawn:
    # A double-sided Maxwell variable m times a uniform one is normal: x and p_plus of the scale share m.
    shape = (n, *p.batch_shape)
    like: dict[str, Any] = dict(dtype=p.loc.dtype, device=p.loc.device)
    loc, scale = p.loc.detach(), p.scale.detach()
    maxwell = th.randn(3, *shape, **like).norm(dim=0) * (2 * th.randint(2, shape, **like) - 1)
    rayleigh = th.randn(2, *shape, **like).norm(dim=0)
    x = loc + scale * maxwell * th.rand(shape, **like)
    of_loc = Decomposition(p.loc, 1 / (scale * math.sqrt(2 * math.pi)), loc + scale * rayleigh, loc - scale * rayleigh)
    return x, [of_loc, Decomposition(p.scale, 1 / scale, loc + scale * maxwell, None)]


def _exponential(p: Exponential, n: int) -> Drawn:
    x = p.sample((n,))  # with one more it is Erlang(2)
    return x, [Decomposition(p.rate, 1 / p.rate.detach(), None, x + p.sample((n,)))]


def _gamma(p: Gamma, n: int) -> Drawn:
    if p.concentration.requires_grad:
        raise ValueError(
            "method='measure_valued' knows no decomposition for the concentration of a Gamma, got one with gradient: use "
            "'score', or rsample() with a cost that has a gradient"
        )
    x = p.sample((n,))  # with an exponential one more it is Gamma(concentration + 1)
    return x, [Decomposition(p.rate, (p.concentration / p.rate).detach(), None, x + Exponential(p.rate).sample((n,)))]


DECOMPOSITIONS: dict[type[Distribution], Callable[..., Drawn]] = {
    Bernoulli: _bernoulli,
    Binomial: _binomial,
    Poisson: _poisson,
    Normal: _normal,
    Exponential: _exponential,
    Gamma: _gamma,
}


class MeasureValued(Method):
    """
    For each variable i and parameter theta_i, with the other variables as in x::

        d E[f] / d theta_i = weight_i (f(x with x_i+) - f(x with x_i-))

    =========== ========================= ============== ==============
    theta       weight                    x+             x-
    =========== ========================= ============== ==============
    Bernoulli   1                         1              0
    Binomial    N                         Bin(N-1) + 1   Bin(N-1)
    Poisson     1                         x + 1          x
    Normal: mu  1 / (sigma sqrt(2 pi))    mu + sigma R   mu - sigma R
    sigma       1 / sigma                 mu + sigma M   x
    Exponential 1 / rate                  x              x + Exp(rate)
    Gamma: rate concentration / rate      x              x + Exp(rate)
    =========== ========================= ============== ==============

    R is Rayleigh, M double-sided Maxwell. x+ and x- share their randomness where that is possible (x = mu + sigma M U, with U
    uniform). The cost is not differentiated. Dear in evaluations, 1 + D or more per sample with D variables, and it
    needs no baseline.

    Source: Mohamed, Rosca, Figurnov and Mnih (2020), "Monte Carlo gradient estimation in machine learning", section 6 and
    table 1; Heidergott and Vazquez-Abad (2008).
    """

    name = "measure_valued"

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        if type(base_of(p)) not in DECOMPOSITIONS:
            known = ", ".join(kind.__name__ for kind in DECOMPOSITIONS)
            raise ValueError(
                f"method={self.name!r} knows {known}, alone or in Independent, got {p}: use 'score', or 'disarm' or "
                "'enumerate' for categories"
            )

    def draw(self, problem: Problem) -> Drawn:
        base = base_of(problem.p)
        x, decompositions = DECOMPOSITIONS[type(base)](base, problem.n_samples)
        return x, [d for d in decompositions if d.parameter.requires_grad]

    def terms(self, problem: Problem, drawn: Drawn) -> th.Tensor:
        x, decompositions = drawn
        batch = problem.p.batch_shape
        replaced = [_each_variable(x, y, batch) for d in decompositions for y in (d.plus, d.minus) if y is not None]
        costs = problem.cost(th.cat([x, *replaced]))
        values, *found = costs.split([len(x), *map(len, replaced)])
        at_x = values.detach()
        terms = values
        for d in decompositions:
            plus, minus = (at_x[..., None] if y is None else _by_variable(found.pop(0), len(x)) for y in (d.plus, d.minus))
            difference = (plus - minus).view(*at_x.shape, *x.shape[1 + len(batch) :])
            terms = with_gradient(terms, d.parameter, d.weight * difference)
        return terms


def _each_variable(x: th.Tensor, y: th.Tensor, batch: th.Size) -> th.Tensor:
    """x with one of its D variables taken from y, for each: [D * K, ..., event]."""
    flat_x, flat_y = (v.reshape(*v.shape[: 1 + len(batch)], -1) for v in (x, y))
    n_variables = flat_x.shape[-1]
    replace = th.eye(n_variables, dtype=th.bool, device=x.device).view(n_variables, *[1] * (1 + len(batch)), n_variables)
    return th.where(replace, flat_y, flat_x).reshape(-1, *x.shape[1:])


def _by_variable(costs: th.Tensor, n_samples: int) -> th.Tensor:
    """[D * K, ...] -> [K, ..., D]."""
    return costs.detach().view(-1, n_samples, *costs.shape[1:]).movedim(0, -1)
