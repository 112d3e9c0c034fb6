"""Double control variates: leave-one-out with a Taylor expansion of the cost, whose mean is known."""

import torch as th
from torch.distributions import Distribution

from sb3_reinforce.estimators.factors import factors
from sb3_reinforce.estimators.method import NO_GRADIENT, Method, Problem, with_gradient


class DoubleCV(Method):
    """
    Bernoulli vectors with mean mu, K >= 2 samples; a bar with -k is the mean over the other samples::

        c_k = a (x_k - mu) . bar(grad f)_{-k}                          mean 0 given the others
        g   = 1/K sum_k (f_k - c_k - bar(f - c)_{-k}) (x_k - mu)  +  a bar(grad f) mu (1 - mu)

    grad f is the cost's gradient in x, at x_k; the last term is what c_k takes from the gradient's mean. So the cost must be
    a torch function with a gradient in x, but is evaluated at 0 and 1 only. One evaluation per sample. a is 1 at the start,
    and then the factor of least variance over past calls: g is linear in a.

    Source: Titsias and Shi (2022), "Double control variates for gradient estimation in discrete latent variable models".

    :param memory: weight of the past in the averages that a is made of
    """

    name = "double_cv"
    differentiates_cost = True

    def __init__(self, memory: float = 0.99):
        self.memory = memory
        # a = E[g_0 . g_1] / E[g_1 . g_1], where g = g_0 - a g_1, averaged from an a of 1
        self.product, self.square, self.n_calls = 0.0, 0.0, 0

    @property
    def factor(self) -> float:
        """a"""
        return self.product / self.square if self.square > 0 else 1.0

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        factors(p, self.name, bernoulli_only=True)
        if n_samples < 2:
            raise ValueError(f"method={self.name!r} is made of the other samples: n_samples must be >= 2, got {n_samples}")
        if baseline != "leave_one_out":
            raise ValueError(f'method={self.name!r} contains baseline="leave_one_out", got {baseline!r}')

    def draw(self, problem: Problem) -> th.Tensor:
        mean = factors(problem.p, self.name).mean
        return th.bernoulli(mean.expand(problem.n_samples, *mean.shape))

    def terms(self, problem: Problem, drawn: th.Tensor) -> th.Tensor:
        found = factors(problem.p, self.name)
        mu, n_batch = found.mean, len(problem.p.batch_shape)
        x = drawn.clone().requires_grad_()
        costs = problem.cost_in_x(x)
        (slope,) = th.autograd.grad(costs.sum(), x, retain_graph=problem.cost_gradient, allow_unused=True)
        if slope is None:
            raise ValueError(NO_GRADIENT.format(self.name))
        f = costs.detach()
        slope_of_others = problem.leave_one_out(slope.to(f.dtype))
        centred = (drawn - mu).to(f.dtype)
        c = (centred * slope_of_others).reshape(*f.shape, -1).sum(-1)
        plain, control = ((v - problem.leave_one_out(v)) for v in (f, c))
        g_0 = found.over_event(plain, n_batch) * centred
        g_1 = found.over_event(control, n_batch) * centred - slope_of_others * (mu * (1 - mu))
        gradient = g_0 - self.factor * g_1
        self._remember(g_0.mean(0), g_1.mean(0))
        return with_gradient(costs if problem.cost_gradient else f, found.logits, gradient)

    def _remember(self, g_0: th.Tensor, g_1: th.Tensor) -> None:
        product, square = (g_0 * g_1).sum().item(), g_1.square().sum().item()
        if self.n_calls == 0:
            self.product = self.square = square  # an a of 1, which counts as one call
        self.n_calls += 1
        # a plain mean at first, so that the guess is soon forgotten
        new = max(1 / (self.n_calls + 1), 1 - self.memory)
        self.product += new * (product - self.product)
        self.square += new * (square - self.square)
