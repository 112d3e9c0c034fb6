"""DisARM: pairs of samples that differ on purpose, weighted so that they count as independent ones."""

from typing import NamedTuple

import torch as th
from torch.distributions import Distribution

from sb3_reinforce.estimators.factors import Factors, factors, one_hot
from sb3_reinforce.estimators.method import Method, Problem, with_gradient


class Pairs(NamedTuple):
    """
    :param x: indicators, see :class:`~sb3_reinforce.estimators.factors.Factors`; [K, ..., D] or [K, ..., D, C]
    :param other: of the second sample of each pair
    """

    x: th.Tensor
    other: th.Tensor


class Disarm(Method):
    """
    For each variable i, with e_i the indicator of its value and w its weight::

        g_i = 1/2 w_i (f(x) - f(x')) (e_i - e'_i),    w_i = p(x_i) p(x'_i) / p(x_i, x'_i)

    Two independent samples with w = 1 are ``"leave_one_out"`` with K = 2. Here x and x' are each distributed as p, but
    differ more often, and the weight makes up for that; where x_i = x'_i the term is 0, so only pairs that differ need to
    be possible. Two evaluations per sample, K pairs.

    Bernoulli: x = 1[u > 1 - p] and x' = 1[1 - u > 1 - p], w = max(p, 1 - p).
    Categories: break a stick: from the least likely category to the likeliest, one Bernoulli each, "is it this one?", with
    such antithetic pairs; in this order no probability exceeds 1/2, and any two different categories can meet. With
    Q_c the probability of c and those after it, and z the earlier of the two: w = Q_z Q_{z+1} / prod_{c<z} (1 - 2 p_c / Q_c).

    Source: Dong, Mnih and Tucker (2020), "DisARM: an antithetic gradient estimator for binary latent variables"; Yin et al.
    (2020), the same under the name U2G; for categories, Dong, Mnih and Tucker (2021), "Coupled gradient estimators for
    discrete latent variables" (importance weights with a stick-breaking coupling).
    """

    name = "disarm"
    takes_points = True

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        factors(p, self.name)

    def draw(self, problem: Problem) -> Pairs:
        found = factors(problem.p, self.name)
        batch = problem.p.batch_shape
        if not found.categories:
            u = problem.uniform(batch, found.mean.shape[len(batch) :])
            return Pairs(*((v > 1 - found.mean).to(found.mean.dtype) for v in (u, 1 - u)))
        n_sticks = found.mean.shape[-1] - 1
        u = problem.uniform(batch, th.Size([*found.mean.shape[len(batch) : -1], n_sticks]))
        order, stick, _ = sticks(found.mean)
        indices = [_first_hit(v < stick[..., :-1]) for v in (u, 1 - u)]
        chosen = [order.expand(len(u), *order.shape).gather(-1, i[..., None])[..., 0] for i in indices]
        return Pairs(*(one_hot(index, found.mean) for index in chosen))

    def terms(self, problem: Problem, drawn: Pairs) -> th.Tensor:
        found = factors(problem.p, self.name)
        n = len(drawn.x)
        costs = problem.cost(th.cat([found.sample_of(drawn.x), found.sample_of(drawn.other)]))
        first, second = costs[:n], costs[n:]
        difference = found.over_event((first - second).detach(), len(problem.p.batch_shape))
        gradient = 0.5 * pair_weight(found, drawn) * difference * (drawn.x - drawn.other)
        return with_gradient((first + second) / 2, found.logits, gradient)


def sticks(p: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    :param p: probabilities [..., C]
    :return: the categories in ascending order; p_c / Q_c in that order, the last 1; Q_c
    """
    in_order, order = p.sort(-1)
    left = in_order.flip(-1).cumsum(-1).flip(-1)
    stick = (in_order / left.clamp(min=th.finfo(p.dtype).tiny)).clamp(max=1.0)
    return order, th.cat([stick[..., :-1], th.ones_like(stick[..., :1])], -1), left


def _first_hit(is_it: th.Tensor) -> th.Tensor:
    """Number of the first True of each row [..., C - 1]; C - 1 if there is none."""
    with_last = th.cat([is_it, th.ones_like(is_it[..., :1])], -1)
    return with_last.to(th.uint8).argmax(-1)


def pair_weight(found: Factors, drawn: Pairs) -> th.Tensor:
    """w, of the indicators' shape or broadcast to it. Where the two are equal it plays no part."""
    if not found.categories:
        return th.maximum(found.mean, 1 - found.mean)
    order, stick, left = sticks(found.mean)
    both_pass = (1 - 2 * stick[..., :-1]).clamp(min=th.finfo(stick.dtype).eps).cumprod(-1)
    passed = th.cat([th.ones_like(both_pass[..., :1]), both_pass[..., :-1]], -1)
    weight = left[..., :-1] * left[..., 1:] / passed
    weight = th.cat([weight, th.zeros_like(weight[..., :1])], -1)  # the last cannot be the earlier of two
    place = order.argsort(-1)
    earlier = th.minimum(*((place * e).sum(-1) for e in (drawn.x.long(), drawn.other.long())))
    return weight.expand(*earlier.shape, weight.shape[-1]).gather(-1, earlier[..., None])
