"""The finite support of a distribution: every value that x can take."""

import torch as th
from torch.distributions import Distribution

from sb3_reinforce.estimators.method import base_of

MAX_SUPPORT = 2**14


def check_support(p: Distribution, name: str) -> None:
    """:raises ValueError: if the support is infinite, unknown or too large to list"""
    size = support_size(p)
    if size is None or size > MAX_SUPPORT:
        got = "which has no finite support that torch can list" if size is None else "which has more"
        raise ValueError(
            f"method={name!r} lists all values of x, at most {MAX_SUPPORT:,} of them, got {p}, {got}: use 'score', or "
            "'disarm' for a vector of Bernoulli or categorical variables"
        )


def _values(p: Distribution) -> th.Tensor | None:
    """Values of one variable, [S, 1, ..., event of the base]."""
    base = base_of(p)
    try:
        return base.enumerate_support(expand=False)
    except NotImplementedError:
        return None


def support_size(p: Distribution) -> int | None:
    """The number of values of x; None if it is infinite or unknown."""
    values = _values(p)
    if values is None:
        return None
    n_variables = base_of(p).batch_shape.numel() // p.batch_shape.numel()
    return int(len(values) ** n_variables)


def support(p: Distribution) -> th.Tensor:
    """All S values of x, [S, batch, event]: every combination, where x is a vector of independent variables."""
    values, base = _values(p), base_of(p)
    assert values is not None, "check_support comes first"
    values = values.view(len(values), *base.event_shape)
    variables = base.batch_shape[len(p.batch_shape) :]
    indices = th.arange(len(values), device=values.device)
    grid = th.cartesian_prod(*[indices] * max(1, variables.numel()))
    listed = values[grid].reshape(-1, *[1] * len(p.batch_shape), *p.event_shape)
    return listed.expand(-1, *p.batch_shape, *p.event_shape)


def take(values: th.Tensor, index: th.Tensor) -> th.Tensor:
    """``values`` [S, batch, event] at ``index`` [K, batch]: a choice of its own for each element of the batch."""
    index = index.view(*index.shape, *[1] * (values.ndim - index.ndim))
    return values.gather(0, index.expand(-1, *values.shape[1:]))
