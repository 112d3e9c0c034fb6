"""The unordered set estimator: K different values of x, each weighted by the probability that it was the first."""

from functools import cache
from itertools import combinations

import torch as th
from torch.distributions import Distribution

from sb3_reinforce.estimators.method import Method, Problem
from sb3_reinforce.estimators.support import check_support, support, take
from sb3_reinforce.score_checks import precise_dtype

MAX_SAMPLES = 12


class WithoutReplacement(Method):
    """
    With S the set of K values drawn without replacement, p(S) its probability in any order, and p^{D\\s} the distribution
    without s::

        sum_{s in S} grad p(s) R(S, s) (f(s) - b_s),    R(S, s) = p^{D\\s}(S \\ s) / p(S)
        b_s = p(s) f(s) + sum_{s' in S \\ s} p(s') R^{D\\s}(S \\ s, s') f(s')

    p(s) R(S, s) is the probability that s was drawn first, given S; so this is the mean over all orders of drawing S of the
    score function with the first value, which cannot vary more. b_s estimates E[f] without bias, whatever s is. With K equal
    to the number of values this is the exact gradient. Differentiable any number of times.

    Source: Kool, van Hoof and Welling (2020), "Estimating gradients for discrete random variables by sampling without
    replacement".
    """

    name = "without_replacement"

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        check_support(p, self.name)
        if n_samples > MAX_SAMPLES:
            raise ValueError(
                f"method={self.name!r} sums over all orders in which a set can be drawn: n_samples must be <= {MAX_SAMPLES}, "
                f"got {n_samples}: call it several times, or use 'sum_and_sample'"
            )
        if n_samples < 2 and baseline == "leave_one_out":
            raise ValueError('baseline="leave_one_out" is made of the other values: n_samples must be >= 2, got 1: or "none"')

    def draw(self, problem: Problem) -> th.Tensor:
        """Indices of the K largest of log p + Gumbel noise, which are K draws without replacement, in order: [K, ...]."""
        log_p = problem.p.log_prob(support(problem.p)).detach()
        gumbel = -th.empty_like(log_p).exponential_().log()
        return (log_p + gumbel).topk(min(problem.n_samples, len(log_p)), dim=0).indices

    def terms(self, problem: Problem, drawn: th.Tensor) -> th.Tensor:
        x = support(problem.p)
        log_p = problem.p.log_prob(x)
        all_p = log_p.to(precise_dtype(log_p)).exp()
        costs = problem.cost(take(x, drawn))
        p = all_p.gather(0, drawn)
        outside = all_p.detach().scatter(0, drawn, 0.0).sum(0)
        completes = probability_to_complete(p.detach(), outside)
        alone = 2 ** th.arange(len(drawn), device=drawn.device)
        ratio = completes[alone] / completes[0]
        baseline = th.zeros_like(costs)
        if problem.baseline == "leave_one_out":
            # for each s and s' the weight p(s') R^{D\\s}(S \\ s, s'); G({s}) itself stands at s' = s, whose ratio is 1
            ratio_without = completes[alone[:, None] | alone] / completes[alone][:, None]
            baseline = (ratio_without * (p * costs).detach()).sum(1)
        terms = ratio * (p.detach() * costs + (p - p.detach()) * (costs - baseline))
        return terms.sum(0, keepdim=True)


def probability_to_complete(p: th.Tensor, outside: th.Tensor) -> th.Tensor:
    """
    For each part T of S: the probability G(T) that draws without replacement, after T, are the rest of S, in any order.

    G(T) = sum_{s in S \\ T} p(s) / (1 - p(T)) G(T + s), and G(S) = 1. So G of nothing is p(S), and G(s) is p^{D\\s}(S \\ s).

    :param p: of the K values of S, [K, ...]
    :param outside: probability of all other values, [...]
    :return: [2^K, ...]; T is the number whose bits say which values are in it
    """
    found = p.new_ones(2 ** len(p), *outside.shape)
    for parts, others in _by_size(len(p)):
        # a sum of what is left, because 1 - p(T) loses it to rounding
        left = (outside + p[others].sum(1)).clamp(min=th.finfo(p.dtype).tiny)
        found[parts] = (p[others] * found[parts[:, None] | 2**others]).sum(1) / left
    return found


@cache
def _by_size(n: int) -> list[tuple[th.Tensor, th.Tensor]]:
    """The parts of n values, the largest but the whole first: their numbers, and for each the values not in it."""
    tables = []
    for size in reversed(range(n)):
        left_out = list(combinations(range(n), n - size))
        parts = [2**n - 1 - sum(2**s for s in others) for others in left_out]
        tables.append((th.tensor(parts), th.tensor(left_out)))
    return tables
