"""
The natural gradient: the gradient preconditioned by the inverse Fisher information of the score.

The Fisher information F = E[grad log pi grad log pi^T] measures how far a step of the parameters moves the policy: to second
order KL(pi_old, pi_new) = 1/2 d^T F d. So the step of steepest ascent per unit of KL goes along F^-1 g, however the policy
is parametrised, and its length can be chosen by the KL divergence that it costs.

Second order is not always enough: where a policy that hardly explores meets states that it knows little of, such a step
can cost a hundred times that KL, and ruin the policy. So the step's KL is measured, and a step too long is halved.

Source: Kakade (2001), "A natural policy gradient"; by conjugate gradients and with a line search for the KL as in Schulman et
al. (2015), appendix C. sb3-contrib's solver starts at random numbers, which would tie a run to torch's global random state;
this one starts at 0 and returns its residual, from which the step's KL follows without another product.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch as th
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_reinforce.arguments import NotFiniteError
from sb3_reinforce.rollout.sampling import overrides, parts_of, policy_class
from sb3_reinforce.running.exchange import sum_over_ranks
from sb3_reinforce.update.likelihood import distribution_of
from sb3_reinforce.update.rows import Rows
from sb3_reinforce.update.steps import Selection

MAX_KL_RATIO = 1.5  # of a step's KL to its target: second order is some tenths off for usual targets, which does no harm
MAX_HALVINGS = 10


def check_policy(policy: nn.Module) -> None:
    """:raises ValueError: for a policy whose log-probability may be of another distribution than ``get_distribution``'s"""
    if overrides(policy, "evaluate_actions") and not overrides(policy, "get_distribution"):
        raise ValueError(
            "natural_gradient=True needs the distribution of the actions from the policy's get_distribution(observations), "
            f"got {policy_class(policy).__name__}, which has an evaluate_actions of its own: give it a get_distribution, too, "
            "or use natural_gradient=False"
        )


class FisherProduct:
    """
    v -> F v for the Fisher information of a policy, averaged over the steps of all ranks.

    F v is the gradient of v . grad KL(pi_old, pi), at pi = pi_old: the expectation over actions is exact, that over states
    is the rollout's mean. In evaluation mode, chunk by chunk.

    :param policy: the policy, as it was when it sampled
    :param rows: the steps
    :param parameters: the policy's parameters that v and F are about
    """

    def __init__(self, policy: ActorCriticPolicy, rows: Rows, parameters: Sequence[nn.Parameter]):
        self.policy, self.rows, self.parameters = policy, rows, parameters
        self._chunks = list(rows.chunks())
        with th.no_grad():
            # copies: the policy keeps one object, whose contents the next call replaces
            self._old = [copy.copy(self._distribution(chunk)) for chunk in self._chunks]
        # In one piece, the graph is kept from one product to the next
        self._kept = self._kl_gradient(0) if len(self._chunks) == 1 else None

    def _distribution(self, rows: Selection) -> Distribution:
        return distribution_of(self.policy, self.rows.samples(rows))

    def _kl(self, chunk: int) -> th.Tensor:
        """A chunk's part of the mean KL(pi_old, pi)."""
        old, new = self._old[chunk], self._distribution(self._chunks[chunk])
        if hasattr(new, "distributions"):  # several masked ones, which SB3 does not know
            parts = zip(parts_of(old), parts_of(new), strict=True)
            return th.stack([th.distributions.kl_divergence(p, q).sum() for p, q in parts]).sum() / self.rows.n_total
        return kl_divergence(old, new).sum() / self.rows.n_total

    def _kl_gradient(self, chunk: int) -> th.Tensor:
        """Gradient of a chunk's part of the mean KL, flat and itself differentiable; its value is 0."""
        gradients = th.autograd.grad(self._kl(chunk), self.parameters, create_graph=True, materialize_grads=True)
        return flatten(gradients)

    @th.no_grad()
    def kl(self) -> float:
        """:return: KL(pi_old, pi) of the policy as it is now, in nats, the mean over the steps; infinite if it is none"""
        try:
            own = th.stack([self._kl(chunk) for chunk in range(len(self._chunks))]).sum()
        except ValueError:  # from torch: a mean that is not finite, a standard deviation of 0
            own = self.parameters[0].new_tensor(math.inf)
        return sum_over_ranks(own).item()

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        """
        :param vector: v, shape [P]
        :return: F v, shape [P]
        """
        total = th.zeros_like(vector)
        for chunk in range(len(self._chunks)):
            gradient = self._kl_gradient(chunk) if self._kept is None else self._kept
            product = th.autograd.grad(
                gradient @ vector, self.parameters, retain_graph=self._kept is not None, materialize_grads=True
            )
            total += flatten(product)
        return sum_over_ranks(total)


def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor], b: th.Tensor, max_steps: int, tolerance: float = 1e-5
) -> tuple[th.Tensor, th.Tensor]:
    """
    Solve A x = b for a symmetric positive definite A, from x = 0.

    Source: Hestenes and Stiefel (1952); Nocedal and Wright (2006), algorithm 5.2.

    :param product: x -> A x
    :param b: shape [P]
    :param max_steps: products at most
    :param tolerance: size of the residual, relative to that of b, at which to stop
    :return: x, and the residual b - A x
    """
    x, residual = th.zeros_like(b), b.clone()
    direction, square = residual, residual @ residual
    target = tolerance**2 * square
    for _ in range(max_steps):
        if square <= target:
            break
        image = product(direction)
        length = square / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        last_square, square = square, residual @ residual
        direction = residual + square / last_square * direction
    return x, residual


def natural_step(
    policy: ActorCriticPolicy,
    rows: Rows,
    parameters: Sequence[nn.Parameter],
    target_kl: float,
    cg_max_steps: int,
    cg_damping: float,
) -> None:
    """
    Move the parameters against the natural gradient of the loss, until the KL divergence from the policy before, averaged
    over the steps of the rollout, is ``target_kl`` to second order: d = sqrt(2 target_kl / (x . F x)) x, (F + damping) x = g.
    A step whose KL is more than ``MAX_KL_RATIO`` times that is halved until it is not; after ``MAX_HALVINGS``, none is taken.

    :param policy: the policy that sampled
    :param rows: the steps of the rollout
    :param parameters: those to move; their ``grad`` is the gradient of the loss
    :param target_kl: in nats
    :param cg_max_steps: steps of the conjugate gradients at most
    :param cg_damping: added to the diagonal of F
    :raises NotFiniteError: if the natural gradient has NaN or infinite numbers; nothing is moved then
    """
    gradient = flatten([parameter.grad for parameter in parameters if parameter.grad is not None])
    policy.set_training_mode(False)
    fisher = FisherProduct(policy, rows, parameters)
    x, residual = conjugate_gradient(lambda v: fisher(v) + cg_damping * v, gradient, cg_max_steps)
    curvature = x @ (gradient - residual - cg_damping * x)  # x . F x
    if not curvature.isfinite():
        raise NotFiniteError(f"the Fisher information along the natural gradient is {curvature.item()}")
    if curvature <= 0:  # the gradient is 0, or so small that its square is
        return
    start, step = flatten(parameters).detach(), math.sqrt(2 * target_kl / curvature.item()) * x
    for _ in range(MAX_HALVINGS + 1):
        set_parameters(parameters, start - step)
        if fisher.kl() <= MAX_KL_RATIO * target_kl:  # not so where it is not a number
            return
        step /= 2
    set_parameters(parameters, start)


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """:return: the tensors' numbers laid end to end, shape [P]"""
    return th.cat([tensor.flatten() for tensor in tensors])


@th.no_grad()
def set_parameters(parameters: Sequence[nn.Parameter], vector: th.Tensor) -> None:
    """
    Copy numbers laid end to end into the parameters, in place: others may hold views of their storage.

    :param vector: shape [P]
    """
    for parameter, part in zip(parameters, vector.split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))
