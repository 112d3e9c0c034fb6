"""What the methods of ScoreFunctionEstimator have in common: the problem they are given, and how a gradient joins a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th
from torch.autograd import Function
from torch.distributions import Distribution, Independent

NO_GRADIENT = (
    "method={!r} needs a cost that is a torch function with a gradient in x, got one without: use 'relax' or 'disarm'"
)


@dataclass(frozen=True)
class Problem:
    """
    One call of the estimator.

    :param p: p(x; theta), batch shape [...]
    :param n_samples: K
    :param cost: f, which takes N samples at once, [N, ..., event], and returns float64 [N, ...]; with the gradient in theta
        if ``cost_gradient`` was asked for
    :param cost_in_x: the same with the gradient in x, for the methods that differentiate the cost
    :param cost_gradient: whether the gradient of f in theta is asked for
    :param uniform: numbers in (0, 1), [K, shape]; takes batch shape and event shape
    :param baseline: its name: ``"none"`` or ``"leave_one_out"``
    :param leave_one_out: b for values [K, ...]; 0 with ``baseline="none"`` or without independent samples
    """

    p: Distribution
    n_samples: int
    cost: Callable[[th.Tensor], th.Tensor]
    cost_in_x: Callable[[th.Tensor], th.Tensor]
    cost_gradient: bool
    uniform: Callable[[th.Size, th.Size], th.Tensor]
    baseline: str
    leave_one_out: Callable[[th.Tensor], th.Tensor]


class Method(ABC):
    """
    A way to estimate grad E[f]. It draws, and turns what it has drawn into terms [R, ...] whose mean is the loss.

    ``draw`` holds all that is random, so a test can put every possible draw in its place and sum.
    """

    name: ClassVar[str]
    # Whether f must be a torch function with a gradient in x
    differentiates_cost: ClassVar[bool] = False
    # Whether samples may come from stratified, antithetic or Sobol points
    takes_points: ClassVar[bool] = False

    @abstractmethod
    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        """:raises ValueError: if the estimate cannot be made for this distribution, with words on what would do"""

    @abstractmethod
    def draw(self, problem: Problem) -> Any:
        """Everything that is random."""

    @abstractmethod
    def terms(self, problem: Problem, drawn: Any) -> th.Tensor:
        """:return: [R, ...], float64; the mean over R has the value and the gradient of the estimate"""


def base_of(p: Distribution) -> Distribution:
    """The distribution inside of ``Independent``."""
    while isinstance(p, Independent):
        p = p.base_dist
    return p


class _FirstDerivative(Function):
    """The identity, which refuses a second derivative: that of a linear stand-in would be wrong."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *outputs: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():
            raise ValueError(
                "this method estimates first derivatives only, got create_graph=True: 'score', 'enumerate', 'sum_and_sample' "
                "and 'without_replacement' have higher ones"
            )
        return outputs[0]


def with_gradient(values: th.Tensor, parameter: th.Tensor, gradient: th.Tensor) -> th.Tensor:
    """
    ``values`` with one more gradient.

    :param values: [R, ...]
    :param parameter: [..., event], or of a shape that broadcasts to it
    :param gradient: with respect to it, [R, ..., event]
    :return: [R, ...], equal to ``values``
    """
    change = _FirstDerivative.apply(parameter) - parameter.detach()
    products = gradient.detach().to(values.dtype) * change.to(values.dtype)
    return values + products.reshape(*values.shape, -1).sum(-1)
