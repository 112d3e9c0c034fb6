"""What the score function refuses: costs, log-probs, baselines and distributions that would give a wrong gradient."""

from typing import Any

import numpy as np
import torch as th
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution, constraints
from torch.distributions.constraints import Constraint

from sb3_reinforce.baselines import Baseline


def check_estimator(n_samples: Any, cost_input: Any, cost_gradient: Any, control_variate: Any) -> None:
    """:raises ValueError: for arguments of ``ScoreFunctionEstimator`` that cannot be right, whatever the distribution"""
    if isinstance(n_samples, bool) or not isinstance(n_samples, (int, np.integer)) or n_samples < 1:
        raise ValueError(f"n_samples must be a whole number >= 1, got {n_samples!r}")
    if cost_input not in ("torch", "numpy", "sample"):
        raise ValueError(f"cost_input must be one of 'torch', 'numpy', 'sample', got {cost_input!r}")
    if cost_gradient and cost_input != "torch":
        raise ValueError(f'cost_gradient=True needs cost_input="torch": NumPy has no gradients, got cost_input={cost_input!r}')
    if control_variate is not None and (
        not isinstance(control_variate, tuple) or len(control_variate) != 2 or not all(map(callable, control_variate))
    ):
        raise ValueError(f"control_variate must be a tuple of two functions, (h, expectation), got {control_variate!r}")


def check_baseline(baseline: Any, n_samples: int) -> None:
    """:raises ValueError: if ``baseline`` is unknown, needs more than the costs, or needs other samples and K is 1"""
    needs_others = getattr(baseline, "needs_others", False)
    if isinstance(baseline, str):
        if baseline == "moving_average":
            raise ValueError(
                'baseline="moving_average" must remember past calls, which a function cannot: pass one '
                "MovingAverageBaseline() object to all calls, or use ScoreFunctionEstimator"
            )
        if baseline not in ("none", "mean", "leave_one_out", "optimal"):
            raise ValueError(
                "baseline must be one of 'none', 'mean', 'leave_one_out', 'optimal' (ScoreFunctionEstimator: "
                f"'moving_average' too), values, a function or a Baseline object, got {baseline!r}"
            )
        needs_others = baseline in ("leave_one_out", "optimal")
    elif isinstance(baseline, type) or baseline is None:
        raise ValueError(f"baseline must be a name, values, a function or a Baseline object, got {baseline!r}")
    elif isinstance(baseline, Baseline) and baseline.needs:
        raise ValueError(
            f"a Baseline object can only be given costs here, got {baseline!r}, which needs {sorted(baseline.needs)}: "
            "pass a name, or your own values of b"
        )
    if needs_others and n_samples < 2:
        raise ValueError(f"baseline={baseline!r} is made of the other samples: K must be >= 2, got {n_samples}")


def check_log_prob(log_prob: Any) -> None:
    """:raises ValueError: if ``log_prob`` is no finite tensor of shape [K, ...] with gradient"""
    if not isinstance(log_prob, th.Tensor) or not log_prob.requires_grad:
        got = "a tensor without" if isinstance(log_prob, th.Tensor) else type(log_prob).__name__
        raise ValueError(
            f"log_prob must be a tensor with gradient, got {got}: compute it as distribution.log_prob(x), outside of "
            "torch.no_grad(), with parameters that require gradient; log_prob comes first, cost second"
        )
    if log_prob.ndim == 0 or log_prob.numel() == 0:
        raise ValueError(f"log_prob must have the shape [K, ...] with K >= 1 samples, got shape {tuple(log_prob.shape)}")
    _check_finite("log_prob", log_prob, ": the distribution cannot have drawn it")


def checked_cost(log_prob: th.Tensor, cost: Any, cost_gradient: bool) -> th.Tensor:
    """The costs on the device of ``log_prob``, in float64, so that subtracting b cancels a large offset exactly."""
    cost = as_tensor(cost, "cost")
    if cost.shape != log_prob.shape:
        shapes = f"got log_prob of shape {tuple(log_prob.shape)} and cost of shape {tuple(cost.shape)}"
        extra = log_prob.ndim - cost.ndim
        if extra > 0 and log_prob.shape[: cost.ndim] == cost.shape:
            raise ValueError(
                f"log_prob must have one element per cost, {shapes}: make the last {extra} dimension(s) part of one event "
                f"with torch.distributions.Independent(distribution, {extra}), or sum log_prob over them (padded tokens: pass "
                "mask)"
            )
        raise ValueError(f"log_prob and cost must have equal shapes [K, ...], {shapes}: one cost for each log_prob")
    if cost_gradient and not cost.requires_grad:
        raise ValueError("cost_gradient=True needs a cost with gradient, got one without: leave it out, or do not detach cost")
    _check_finite("cost", cost)
    cost = cost.to(precise_dtype(log_prob)).to(log_prob.device)
    return cost if cost_gradient else cost.detach()


def checked_values(values: Any, cost: th.Tensor, name: str) -> th.Tensor:
    """A user's values of b, in the shape, dtype and device of ``cost``."""
    b = as_tensor(values, name)
    if b.requires_grad:
        raise ValueError(f"{name} must be without gradient, got a tensor that requires it: detach() it")
    if b.ndim > 0 and b.shape != cost.shape:
        raise ValueError(f"{name} must be a number or have the shape of the costs, {tuple(cost.shape)}, got {tuple(b.shape)}")
    if not b.isfinite().all():
        raise ValueError(f"{name} must be finite, got {b[~b.isfinite()].flatten()[0]}")
    return b.to(cost.dtype).to(cost.device).expand_as(cost)


def check_control_variate(h: Any, expectation: Any, log_prob: th.Tensor) -> None:
    """:raises ValueError: if h(x), shape [K, ...], or its expectation, shape [...], would make the estimate wrong"""
    for name, value, shape in (("h", h, log_prob.shape), ("expectation", expectation, log_prob.shape[1:])):
        if not isinstance(value, th.Tensor) or value.shape != shape or not value.isfinite().all():
            got = f"shape {tuple(value.shape)}: {value}" if isinstance(value, th.Tensor) else repr(value)
            raise ValueError(f"control_variate: {name} must return a finite tensor of shape {tuple(shape)}, got {got}")
    if h.requires_grad:
        raise ValueError("control_variate: h must be a fixed function, got values with gradient: detach its parameters")
    if not expectation.requires_grad:
        raise ValueError(
            "control_variate: expectation must carry the gradient of E[h(x)] with respect to the distribution's "
            "parameters, got a tensor without: without it the estimate is biased"
        )


def _check_finite(name: str, values: th.Tensor, hint: str = "") -> None:
    if not values.isfinite().all():
        sample, *element = (~values.isfinite()).nonzero()[0].tolist()
        place = f"sample {sample}" + (f", element {element}" if element else "")
        raise ValueError(f"{name} must be finite, got {values[(sample, *element)].item()} for {place}{hint}")


def as_tensor(values: Any, name: str) -> th.Tensor:
    """A real tensor from a tensor, an array, or a list of numbers, bools or tensors."""
    if values is None:
        raise ValueError(f"{name} must be numbers, got None: does the function return them?")
    if not isinstance(values, th.Tensor):
        try:
            if isinstance(values, (list, tuple)) and values and all(isinstance(value, th.Tensor) for value in values):
                values = th.stack(list(values))
            else:
                values = th.as_tensor(np.asarray(values, dtype=np.float64))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be numbers of one shape per sample, got {values!r}") from error
    if values.is_complex():
        raise ValueError(f"{name} must be real, got {values.dtype}")
    return values


def precise_dtype(tensor: th.Tensor) -> th.dtype:
    """float64 where the tensor's device has it."""
    return th.float32 if tensor.device.type == "mps" else th.float64


def checked_distribution(distribution: Any) -> Distribution:
    """The formula holds only if the support, the set of possible x, does not depend on the parameters."""
    if not isinstance(distribution, Distribution):
        raise ValueError(f"distribution must be a torch Distribution, or a list of them or of functions, got {distribution!r}")
    if any(_has_gradient(end) for end in _ends(distribution)):
        raise ValueError(
            f"the support of a distribution must not depend on parameters that are learnt, got {distribution}: there the "
            "score function gives a wrong gradient. Use rsample() and differentiate the cost, or a distribution such as Beta"
        )
    return distribution


def _ends(distribution: Distribution) -> list[th.Tensor]:
    """The bounds of the support, empty if it has none or they are unknown."""
    if isinstance(distribution, Independent):
        return _ends(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return _ends(distribution.component_distribution)
    if type(distribution).support is TransformedDistribution.support:  # torch's looks at the last transform only
        transformed: Any = distribution
        if any(transform.domain.event_dim or not transform.bijective for transform in transformed.transforms):
            return []
        ends = _ends(transformed.base_dist)
        for transform in transformed.transforms:
            ends = [_image(transform, end) for end in ends]
        return ends
    try:
        return _bounds(distribution.support)
    except NotImplementedError:
        return []


def _image(transform: Any, end: th.Tensor) -> th.Tensor:
    """The transformed end; infinity where a logit diverges, for which torch returns a finite number."""
    image = transform(end)
    for edge in _bounds(transform.domain) if transform.codomain is constraints.real else ():
        image = image.where(end != edge, th.inf)
    return image


def _bounds(bound: Any) -> list[th.Tensor]:
    """All numbers in a constraint, also in the constraints that it is made of."""
    if isinstance(bound, Constraint):
        return [number for part in vars(bound).values() for number in _bounds(part)]
    return [th.as_tensor(bound)] if isinstance(bound, th.Tensor) or type(bound) is float else []


def _has_gradient(end: th.Tensor) -> bool:
    """Whether a finite end changes with a parameter: one computed as 0 * scale does not."""
    finite = end[end.isfinite()]
    if not end.requires_grad or not len(finite):
        return False
    gradients = th.autograd.grad(finite.sum(), leaves(end), retain_graph=True, allow_unused=True, materialize_grads=True)
    return any(bool(gradient.count_nonzero()) for gradient in gradients)


def leaves(tensor: th.Tensor) -> list[th.Tensor]:
    """All parameters that a tensor was computed from, as autograd knows them."""
    if tensor.grad_fn is None:
        return [tensor]
    found: list[th.Tensor] = []
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):  # AccumulateGrad: where backward() writes the .grad of a parameter
                found.append(node.variable)
            stack.extend(function for function, _ in node.next_functions)
    return found
