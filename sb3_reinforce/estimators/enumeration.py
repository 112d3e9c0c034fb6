"""The exact gradient, by a sum over all values of x."""

import torch as th
from torch.distributions import Distribution

from sb3_reinforce.estimators.method import Method, Problem
from sb3_reinforce.estimators.support import check_support, support


class Enumerate(Method):
    """
    E[f] = sum_x p(x; theta) f(x). No variance, and derivatives of all orders; as many evaluations as x has values.

    ``n_samples`` and the baseline play no part.
    """

    name = "enumerate"

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        check_support(p, self.name)

    def draw(self, problem: Problem) -> None:
        return None

    def terms(self, problem: Problem, drawn: None) -> th.Tensor:
        x = support(problem.p)
        costs = problem.cost(x)
        return (problem.p.log_prob(x).exp().to(costs.dtype) * costs).sum(0, keepdim=True)
