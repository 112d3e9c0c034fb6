"""Vectors of independent Bernoulli or categorical variables, whatever torch calls them."""

from dataclasses import dataclass

import torch as th
from torch.distributions import Bernoulli, Categorical, Distribution, OneHotCategorical

from sb3_reinforce.estimators.method import base_of


@dataclass(frozen=True)
class Factors:
    """
    D independent variables with one cost: p is a Bernoulli, Categorical or OneHotCategorical, alone or in ``Independent``.

    A value is an indicator: the bit itself [..., D] for Bernoulli, a one-hot vector [..., D, C] for categories. The score of
    the logits is the indicator minus its mean, for both.

    :param logits: phi, with gradient, of the indicator's shape; of categories log p
    :param mean: the indicator's mean, without gradient
    :param categories: whether there are categories
    :param integers: whether the cost takes the number of the category
    """

    logits: th.Tensor
    mean: th.Tensor
    categories: bool
    integers: bool

    def sample_of(self, indicator: th.Tensor) -> th.Tensor:
        """An indicator as the cost takes it."""
        return indicator.argmax(-1) if self.integers else indicator

    def over_event(self, values: th.Tensor, batch_ndim: int) -> th.Tensor:
        """Costs [K, ...] with axes for the event, so that they multiply indicators."""
        return values.view(*values.shape, *[1] * (self.logits.ndim - batch_ndim))


def factors(p: Distribution, name: str, bernoulli_only: bool = False) -> Factors:
    """:raises ValueError: if p is no vector of such variables"""
    base = base_of(p)
    if isinstance(base, Bernoulli):
        return Factors(base.logits, base.probs.detach(), False, False)
    if bernoulli_only or not isinstance(base, (Categorical, OneHotCategorical)):
        kinds = "Bernoulli variables" if bernoulli_only else "Bernoulli, Categorical or OneHotCategorical variables"
        raise ValueError(
            f"method={name!r} needs {kinds}, alone or in Independent, got {p}: use 'score', 'disarm' for categories, or "
            "'measure_valued' for Normal, Poisson, Gamma or Exponential"
        )
    return Factors(base.logits, base.probs.detach(), True, isinstance(base, Categorical))


def one_hot(index: th.Tensor, like: th.Tensor) -> th.Tensor:
    """Indicators [..., C] of categories [...], in the dtype of ``like`` [..., C]."""
    return th.nn.functional.one_hot(index, like.shape[-1]).to(like.dtype)
