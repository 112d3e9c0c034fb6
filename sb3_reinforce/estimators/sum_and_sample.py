"""Sum and sample: the likeliest values of x are summed exactly, the others are sampled."""

from typing import NamedTuple

import torch as th
from torch.distributions import Distribution

from sb3_reinforce.estimators.method import Method, Problem
from sb3_reinforce.estimators.support import check_support, support, take
from sb3_reinforce.score_checks import precise_dtype


class Drawn(NamedTuple):
    """
    :param summed: indices of the likeliest values, [k, ...]
    :param sampled: indices of samples among the others, [K - k, ...]
    """

    summed: th.Tensor
    sampled: th.Tensor


class SumAndSample(Method):
    """
    With C the k likeliest values and P_C their probability::

        sum_{x in C} grad p(x) (f(x) - b) + (1 - P_C) / (K - k) sum_j grad log p(x_j) (f(x_j) - b_j),  x_j ~ p given x not in C

    ``"leave_one_out"``: b_j estimates E[f] from C and the other samples (from C alone, if there is only one sample), and b
    is the mean of the b_j; so what is subtracted has mean zero. Differentiable any number of times.

    Source: Liu, Regier, Tripuraneni, Jordan and McAuliffe (2019), "Rao-Blackwellized stochastic gradients for discrete
    distributions".

    :param n_summed: k, at most K - 1. None: the k that makes (1 - P_C) / (K - k) least, their bound on the variance relative
        to that of one sample; over a batch, least on average
    """

    name = "sum_and_sample"

    def __init__(self, n_summed: int | None = None):
        if n_summed is not None and n_summed < 0:
            raise ValueError(f"n_summed must be >= 0 or None, got {n_summed}")
        self.n_summed = n_summed

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        check_support(p, self.name)
        if self.n_summed is not None and self.n_summed >= n_samples:
            raise ValueError(
                f"n_summed must be less than n_samples, so that the rest is sampled, got {self.n_summed} and {n_samples}"
            )
        if n_samples < 2 and baseline == "leave_one_out":
            raise ValueError('baseline="leave_one_out" is made of the other values: n_samples must be >= 2, got 1: or "none"')

    def draw(self, problem: Problem) -> Drawn:
        p = problem.p.log_prob(support(problem.p)).detach().exp()
        in_order = p.argsort(0, descending=True)
        k = self._number_to_sum(p.gather(0, in_order), problem.n_samples)
        rest = p.scatter(0, in_order[:k], 0.0)
        # where the rest has no probability left, any of its values will do: its weight is zero
        rest = th.where(rest.sum(0) > 0, rest, th.ones_like(rest).scatter(0, in_order[:k], 0.0))
        flat = rest.reshape(len(rest), -1).T
        sampled = th.multinomial(flat, problem.n_samples - k, replacement=True).T
        return Drawn(in_order[:k], sampled.reshape(-1, *p.shape[1:]))

    def _number_to_sum(self, p: th.Tensor, n_samples: int) -> int:
        most = min(n_samples, len(p)) - 1
        if self.n_summed is not None:
            return min(self.n_summed, most)
        left = 1 - th.cat([th.zeros_like(p[:1]), p[:most].cumsum(0)])
        bounds = left.reshape(most + 1, -1).mean(1) / (n_samples - th.arange(most + 1, device=p.device))
        return int(bounds.argmin())

    def terms(self, problem: Problem, drawn: Drawn) -> th.Tensor:
        x = support(problem.p)
        log_p = problem.p.log_prob(x)
        log_p = log_p.to(precise_dtype(log_p))
        k, n_sampled = len(drawn.summed), len(drawn.sampled)
        index = th.cat([drawn.summed, drawn.sampled])
        costs = problem.cost(take(x, index))
        summed, sampled = costs[:k], costs[k:]
        p_summed = log_p.gather(0, drawn.summed).exp()
        log_p_sampled = log_p.gather(0, drawn.sampled)
        left = (1 - p_summed.detach().sum(0)).clamp(min=0.0)
        if problem.baseline == "leave_one_out":
            others = self._baseline(p_summed.detach(), summed.detach(), sampled.detach(), left)
        else:
            others = th.zeros_like(sampled)
        box = (log_p_sampled - log_p_sampled.detach()).exp()
        exact = p_summed.detach() * summed + (p_summed - p_summed.detach()) * (summed - others.mean(0))
        rest = left / n_sampled * (sampled + (box - 1) * (sampled - others))
        return (exact.sum(0) + rest.sum(0))[None]

    @staticmethod
    def _baseline(p: th.Tensor, summed: th.Tensor, sampled: th.Tensor, left: th.Tensor) -> th.Tensor:
        if len(sampled) == 1:
            return ((p * summed).sum(0) / p.sum(0))[None]
        return (p * summed).sum(0) + left * (sampled.sum(0) - sampled) / (len(sampled) - 1)
