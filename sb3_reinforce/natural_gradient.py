"""
The natural gradient: the gradient preconditioned by the inverse Fisher information of the score.

The Fisher information F = E[grad log pi grad log pi^T] measures how far a step of the parameters moves the policy: to second
order KL(pi_old, pi_new) = 1/2 d^T F d. So the step of steepest ascent per unit of KL goes along F^-1 g, however the policy
is parametrised, and its length can be chosen by the KL divergence that it costs.

Source: Kakade (2001), "A natural policy gradient"; by conjugate gradients as in Schulman et al. (2015), appendix C, without
the line search. sb3-contrib's solver starts at random numbers, which would tie a run to torch's global random state; this
one starts at 0 and hands back its residual, from which the step's KL follows without another product.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.distributions import kl_divergence
from torch import nn

from sb3_reinforce import distributed
from sb3_reinforce.sampling import overrides, policy_class


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
    v -> F v for the Fisher information of a policy, averaged over the steps of a model's rollout buffer (all ranks' steps).

    F v is the gradient of v . grad KL(pi_old, pi), at pi = pi_old: the expectation over actions is exact, that over states
    is the rollout's mean. In evaluation mode, in pieces of ``chunk_size`` steps.

    :param model: a REINFORCE with a rollout
    :param parameters: the policy's parameters that v and F are about
    """

    def __init__(self, model: Any, parameters: Sequence[nn.Parameter]):
        self.model, self.parameters = model, parameters
        self._chunks = list(model._chunks(slice(0, model._batch.n_steps)))
        self._n_steps = sum(share.n_steps for share in model._shares)
        # In one piece, the graph is kept from one product to the next
        self._kept = self._kl_gradient(self._chunks[0]) if len(self._chunks) == 1 else None

    def _kl_gradient(self, rows: Any) -> th.Tensor:
        """Gradient of the mean KL(pi_old, pi) of some steps, flat and itself differentiable; its value is 0."""
        observations = self.model._samples(rows).observations
        with th.no_grad():
            # a copy: the policy keeps one object, whose contents the next call replaces
            old = copy.copy(self.model.policy.get_distribution(observations))
        kl = kl_divergence(old, self.model.policy.get_distribution(observations)).sum() / self._n_steps
        gradients = th.autograd.grad(kl, self.parameters, create_graph=True, materialize_grads=True)
        return flatten(gradients)

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        """
        :param vector: v, shape [P]
        :return: F v, shape [P]
        """
        total = th.zeros_like(vector)
        for rows in self._chunks:
            gradient = self._kl_gradient(rows) if self._kept is None else self._kept
            product = th.autograd.grad(
                gradient @ vector, self.parameters, retain_graph=self._kept is not None, materialize_grads=True
            )
            total += flatten(product)
        return distributed.sum_over_ranks(total)


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


def natural_step(model: Any, parameters: Sequence[nn.Parameter], target_kl: float) -> None:
    """
    Move the parameters against the natural gradient of the loss, as far as the KL divergence from the policy before, averaged
    over the steps of the rollout, is ``target_kl`` to second order: d = sqrt(2 target_kl / (x . F x)) x, (F + damping) x = g.

    :param model: a REINFORCE with a rollout; of its arguments ``cg_max_steps`` and ``cg_damping`` are used
    :param parameters: those to move; their ``grad`` is the gradient of the loss
    :param target_kl: in nats
    """
    gradient = flatten([parameter.grad for parameter in parameters if parameter.grad is not None])
    model.policy.set_training_mode(False)
    fisher = FisherProduct(model, parameters)
    x, residual = conjugate_gradient(lambda v: fisher(v) + model.cg_damping * v, gradient, model.cg_max_steps)
    curvature = x @ (gradient - residual - model.cg_damping * x)  # x . F x
    if curvature <= 0:  # the gradient is 0, or so small that its square is
        return
    step = math.sqrt(2 * target_kl / curvature.item()) * x
    with th.no_grad():
        for parameter, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
            parameter.sub_(part.view_as(parameter))


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """:return: the tensors' numbers laid end to end, shape [P]"""
    return th.cat([tensor.flatten() for tensor in tensors])
