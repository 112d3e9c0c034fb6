"""Samples from the inverse distribution function: stratified, antithetic or Sobol points in place of independent ones."""

import math
from functools import lru_cache
from typing import Literal, get_args

import torch as th
from torch.distributions import Bernoulli, Categorical, Distribution, MultivariateNormal, OneHotCategorical

from sb3_reinforce.estimators.method import base_of

Sampling = Literal["iid", "antithetic", "stratified", "sobol"]
SAMPLINGS = get_args(Sampling)


def set_sizes(sampling: Sampling, n_samples: int, leave_one_out: bool) -> list[int]:
    """
    How many samples belong together. Sets are independent of each other; samples within a set are not.

    A baseline made of other samples leaves out a sample's whole set. So Sobol and stratified points come in two sets then,
    and in one otherwise; antithetic ones come in pairs.
    """
    if sampling == "iid":
        return [1] * n_samples
    if sampling == "antithetic":
        return [2] * (n_samples // 2)
    return [n_samples - n_samples // 2, n_samples // 2] if leave_one_out and n_samples > 1 else [n_samples]


def uniform(sampling: Sampling, sizes: list[int], batch: th.Size, event: th.Size, like: th.Tensor) -> th.Tensor:
    """
    Numbers in (0, 1), each uniformly distributed, shape [K, batch, event]; so the mean of any function is unbiased.

    ``"antithetic"``: u and 1 - u. ``"stratified"``: in each coordinate one number per interval ((k - 1)/n, k/n), in random
    order (a Latin hypercube, McKay et al. 1979). ``"sobol"``: Sobol's sequence plus a random shift, modulo 1 (Cranley and
    Patterson 1976), a shift of its own for each element of the batch.
    """
    return (
        th.cat([_points(sampling, n, batch, event, like) for n in sizes])
        if sampling != "iid"
        else _points("iid", len(sizes), batch, event, like)
    )


def _points(sampling: Sampling, n: int, batch: th.Size, event: th.Size, like: th.Tensor) -> th.Tensor:
    shape = (*batch, *event)

    def random(*first: int) -> th.Tensor:
        return th.rand(*first, *shape, dtype=like.dtype, device=like.device)

    if sampling == "iid":
        points = random(n)
    elif sampling == "antithetic":
        half = random(1)
        points = th.cat([half, 1 - half])
    elif sampling == "stratified":
        points = (random(n).argsort(0) + random(n)) / n
    else:
        sequence = _sobol(n, max(1, math.prod(event))).to(like)
        points = (sequence.view(n, *[1] * len(batch), *event) + random(1)) % 1.0
    tiny = th.finfo(like.dtype).eps / 2
    return points.clamp(tiny, 1 - tiny)


@lru_cache(maxsize=16)
def _sobol(n: int, n_dimensions: int) -> th.Tensor:
    most = th.quasirandom.SobolEngine.MAXDIM
    if n_dimensions > most:
        raise ValueError(f"sampling='sobol' has at most {most:,} dimensions, got {n_dimensions:,}: use 'stratified'")
    return th.quasirandom.SobolEngine(n_dimensions).draw(n)


def leave_set_out(values: th.Tensor, sizes: list[int]) -> th.Tensor:
    """Mean over the samples of the other sets, [K, ...]; with sets of one sample this is leave_one_out."""
    n = th.tensor(sizes, device=values.device)
    set_of = th.arange(len(sizes), device=values.device).repeat_interleave(n)
    sums = values.new_zeros(len(sizes), *values.shape[1:]).index_add(0, set_of, values)
    others = (len(values) - n[set_of]).to(values.dtype)
    return (values.sum(0) - sums[set_of]) / others.view(-1, *[1] * (values.ndim - 1))


def has_inverse(p: Distribution) -> bool:
    """Whether :func:`inverse` can sample from p."""
    base = base_of(p)
    if isinstance(base, (Bernoulli, Categorical, OneHotCategorical, MultivariateNormal)):
        return True
    try:
        with th.no_grad():
            base.icdf(th.full(base.batch_shape, 0.5))
    except NotImplementedError:
        return False
    return not base.event_shape


def noise_shape(p: Distribution) -> th.Size:
    """The event shape of the uniform numbers: one for each variable, also where a sample is a one-hot vector."""
    return p.event_shape[:-1] if isinstance(base_of(p), OneHotCategorical) else p.event_shape


def inverse(p: Distribution, u: th.Tensor) -> th.Tensor:
    """x with P(x <= t) = p's distribution function, for uniform u [K, batch, event]; without gradient."""
    base = base_of(p)
    with th.no_grad():
        if isinstance(base, Bernoulli):
            return (u > 1 - base.probs).to(base.probs.dtype)
        if isinstance(base, (Categorical, OneHotCategorical)):
            below = base.probs.cumsum(-1)[..., :-1]
            index = (u[..., None] > below).sum(-1)
            if isinstance(base, Categorical):
                return index
            return th.nn.functional.one_hot(index, base.probs.shape[-1]).to(base.probs.dtype)
        if isinstance(base, MultivariateNormal):
            standard = th.distributions.Normal(th.zeros_like(u), th.ones_like(u)).icdf(u)
            return base.loc + (base.scale_tril @ standard[..., None])[..., 0]
        return base.icdf(u)


def sample(p: Distribution, sampling: Sampling, sizes: list[int]) -> th.Tensor:
    """
    Samples of p at points that are not independent, [K, batch, event].

    :raises ValueError: if torch knows no inverse of p's distribution function
    """
    if not has_inverse(p):
        raise ValueError(
            f"sampling={sampling!r} needs the inverse of the distribution function, which torch does not have for {p}: use "
            "'iid', or a distribution such as Normal, Exponential, Bernoulli or Categorical"
        )
    return inverse(p, uniform(sampling, sizes, p.batch_shape, noise_shape(p), parameter_of(p)))


def parameters_of(p: Distribution) -> list[th.Tensor]:
    """The tensors that p was made of."""
    base = base_of(p)
    base = getattr(base, "_categorical", base)  # where OneHotCategorical keeps its own
    names = [name for name in base.arg_constraints if name in vars(base)]
    return [v for name in names if isinstance(v := getattr(base, name), th.Tensor) and v.is_floating_point()]


def parameter_of(p: Distribution) -> th.Tensor:
    """One of them, for its dtype and device."""
    return next(iter(parameters_of(p)), th.empty(0))
