"""
Baselines: b is subtracted from the return before it weights the score.

A baseline adds no bias if b_t does not depend on the action a_t or on anything that comes after it, because the score
has mean zero: E[grad log pi(a_t|s_t) b_t] = 0. So b must not use the future of its own episode. It may use other episodes,
as long as their *number* does not depend on its own one (see :attr:`Episodes.groups`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch as th

from sb3_reinforce.episodes import Episodes
from sb3_reinforce.episodes import join_episodes as join_episodes  # its place until 0.1
from sb3_reinforce.returns import steps_in_episode


def mean(returns: th.Tensor) -> th.Tensor:
    """
    The mean over all steps, including the step itself.

    Biased by O(1/N): b depends on the step's own return. With whole-episode returns of equal length this is leave-one-out
    at (N-1)/N of the step: R_i - mean(R) = (N-1)/N (R_i - mean_{j!=i}(R_j)).

    :param returns: R_t, shape [S]
    :return: b_t, shape [S]
    """
    return returns.mean().expand_as(returns)


def leave_one_out(returns: th.Tensor, groups: th.Tensor) -> th.Tensor:
    """
    The mean over all steps of the other groups (RLOO): b_t = (sum R - sum_{own group} R) / (S - S_{own group}).

    Adds no bias: b_t does not depend on the episode of step t. Source: Kool et al. (2019), "Buy 4 REINFORCE samples, get a
    baseline for free!".

    :param returns: R_t, shape [S]
    :param groups: number of each step's group, 0 to G - 1, shape [S]
    :return: b_t, shape [S]
    :raises ValueError: if there is only one group
    """
    sums, counts = _per_group(returns, groups)
    return ((returns.sum() - sums) / (returns.shape[0] - counts))[groups]


def per_step(returns: th.Tensor, steps: th.Tensor, groups: th.Tensor) -> th.Tensor:
    """
    The mean of R_t over the other groups at the same t; where none of them lives, their mean at the last t that had one.

    Adds no bias: b_t depends on t and on other episodes. Source: the time-dependent baseline of Peters and Schaal
    (2008), section 3.2, without the step's own episode.

    :param returns: R_t, shape [S]
    :param steps: t within the episode, shape [S]
    :param groups: number of each step's group, 0 to G - 1, shape [S]
    :return: b_t, shape [S]
    :raises ValueError: if there is only one group
    """
    n_steps = int(steps.max()) + 1
    cells = groups * n_steps + steps
    n_groups = int(groups.max()) + 1
    _per_group(returns, groups)  # refuses a single group
    sums = returns.new_zeros(n_groups * n_steps).index_add_(0, cells, returns).view(n_groups, n_steps)
    counts = returns.new_zeros(n_groups * n_steps).index_add_(0, cells, th.ones_like(returns)).view(n_groups, n_steps)
    other_counts = counts.sum(0) - counts
    other_means = (sums.sum(0) - sums) / other_counts.clamp(min=1)
    # At t = 0 every other group lives, so the last living t always exists.
    last_living = th.where(other_counts > 0, th.arange(n_steps), 0).cummax(dim=1).values
    return other_means.gather(1, last_living).flatten()[cells]


def optimal(score_products: th.Tensor, score_squares: th.Tensor, groups: th.Tensor) -> th.Tensor:
    """
    The constant that would have made the other episodes' gradients smallest::

        b_i = sum_{j not in i's group} X_j . S_j / sum_{j not in i's group} abs(S_j)^2

    It minimises sum_j abs(X_j - b S_j)^2, the second moment of the gradient, whose mean does not depend on b: so also the
    variance. Adds no bias: b_i does not depend on episode i. Source: Greensmith, Bartlett and Baxter (2004), Theorem
    13 (the optimal constant baseline), here for whole episodes as in Peters and Schaal (2008), Table 1, and without
    episode i. 0 where the others' scores are all zero.

    :param score_products: X_j . S_j of each episode, reward units, shape [N]
    :param score_squares: abs(S_j)^2 of each episode, shape [N]
    :param groups: number of each episode's group, 0 to G - 1, shape [N]
    :return: b_i of each episode, reward units, shape [N]
    :raises ValueError: if there is only one group
    """
    products, _ = _per_group(score_products, groups)
    squares, _ = _per_group(score_squares, groups)
    others_squares = squares.sum() - squares
    quotients = (products.sum() - products) / others_squares
    # A policy that is certain of all its actions has no score: nothing to reduce.
    return th.where(others_squares > 0, quotients, 0.0)[groups]


def at_same_step(partner_returns: th.Tensor, partner_lengths: th.Tensor, lengths: th.Tensor) -> th.Tensor:
    """
    R_t of each episode's partner at the same t, or at the partner's last t where it was shorter.

    :param partner_returns: R_t of N partners, laid end to end, shape [S']
    :param partner_lengths: steps of each partner, shape [N]
    :param lengths: steps of each of the N episodes, in the same order, shape [N]
    :return: b_t, shape [S]
    """
    steps = th.minimum(steps_in_episode(lengths), (partner_lengths - 1).repeat_interleave(lengths))
    starts = partner_lengths.cumsum(0) - partner_lengths
    return partner_returns[starts.repeat_interleave(lengths) + steps]


def _per_group(values: th.Tensor, groups: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Sum of the values and their number in each group, both [G]; ValueError for G = 1."""
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        raise ValueError(
            "a baseline made of the other episodes needs at least 2 independent groups of them, got 1: raise n_episodes, or "
            "with n_steps the number of environments"
        )
    sums = values.new_zeros(n_groups).index_add_(0, groups, values)
    return sums, values.new_zeros(n_groups).index_add_(0, groups, th.ones_like(values))


class Baseline(ABC):
    """
    The interface of all baselines, and of your own: pass an instance as ``REINFORCE(..., baseline=MyBaseline())``.

    REINFORCE calls :meth:`predict` before the policy step and :meth:`update` after it, in this order: a baseline that
    is fitted to the returns before it predicts them explains the noise away and biases the gradient.

    ``needs`` names what REINFORCE computes for it:

    - ``"values"``: V(s) in :attr:`Episodes.values`; REINFORCE fits the value network after the policy step.
    - ``"scores"``: two numbers per episode, :attr:`Episodes.score_squares` and :attr:`Episodes.score_products`.
    - ``"greedy"``: after the rollout the greedy policy plays from the same resets, :attr:`Episodes.greedy_returns`. It
      needs ``n_episodes`` equal to the number of environments.

    ``needs_others`` says that b is computed from other episodes: REINFORCE then refuses a run that can have none.
    :func:`sb3_reinforce.check_unbiased` tells whether your baseline is unbiased.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    needs_others: ClassVar[bool] = False

    @abstractmethod
    def predict(self, episodes: Episodes) -> th.Tensor:
        """
        :param episodes: the episodes of this update
        :return: b_t, one finite value per step, reward units, shape [S], without gradient
        """

    def update(self, episodes: Episodes) -> None:
        """
        Learn from the episodes, after they were used.

        :param episodes: the same as :meth:`predict` got
        """

    def state_dict(self) -> dict[str, Any]:
        """:return: what is to be saved with the model: plain Python numbers and tensors"""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """:param state_dict: what :meth:`state_dict` returned"""


class NoBaseline(Baseline):
    """b = 0. Adds no bias."""

    def predict(self, episodes: Episodes) -> th.Tensor:
        return th.zeros_like(episodes.returns)


class MeanBaseline(Baseline):
    """The batch mean, see :func:`mean`. Biased by O(1/N)."""

    def predict(self, episodes: Episodes) -> th.Tensor:
        return mean(episodes.returns)


class LeaveOneOutBaseline(Baseline):
    """The mean of the other episodes, see :func:`leave_one_out`. Adds no bias."""

    needs_others = True

    def predict(self, episodes: Episodes) -> th.Tensor:
        return leave_one_out(episodes.returns, episodes.groups)


class PerStepBaseline(Baseline):
    """The mean of the other episodes at the same t, see :func:`per_step`. Adds no bias."""

    needs_others = True

    def predict(self, episodes: Episodes) -> th.Tensor:
        return per_step(episodes.returns, episodes.steps, episodes.groups)


class MovingAverageBaseline(Baseline):
    """
    Exponential average of the mean returns of past batches: b = m, then m <- decay * m + (1 - decay) * mean(R).

    0 in the first update, whose mean m starts from. Adds no bias: b depends on past batches only. Source: Williams
    (1992), "reinforcement comparison" (Sutton 1984).

    :param decay: share of the past kept at each update, in [0, 1)
    """

    def __init__(self, decay: float = 0.9):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay!r}")
        self.decay = decay
        self.average: float | None = None

    def predict(self, episodes: Episodes) -> th.Tensor:
        return th.full_like(episodes.returns, self.average or 0.0)

    def update(self, episodes: Episodes) -> None:
        batch_mean = episodes.returns.mean().item()
        self.average = batch_mean if self.average is None else self.decay * self.average + (1 - self.decay) * batch_mean

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.average = state_dict["average"]


class ValueBaseline(Baseline):
    """
    V(s_t) of the policy's value network, as it was before it is fitted to these returns.

    Adds no bias: V depends on the state and on past batches. Source: Williams (1992); Sutton and Barto (2018), 13.4.
    """

    needs = frozenset({"values"})

    def predict(self, episodes: Episodes) -> th.Tensor:
        assert episodes.values is not None, "REINFORCE computes the values that `needs` asks for"
        return episodes.values


class OptimalBaseline(Baseline):
    """The constant that minimises the other episodes' gradient variance, see :func:`optimal`. Adds no bias."""

    needs = frozenset({"scores"})
    needs_others = True

    def predict(self, episodes: Episodes) -> th.Tensor:
        assert episodes.score_products is not None, "REINFORCE computes the scores that `needs` asks for"
        assert episodes.score_squares is not None, "REINFORCE computes the scores that `needs` asks for"
        b = optimal(episodes.score_products, episodes.score_squares, episodes.episode_groups)
        return b.repeat_interleave(episodes.lengths)


class GreedyBaseline(Baseline):
    """
    The return of the greedy policy from the same reset; with reward-to-go at the same t, see :func:`at_same_step`.

    Adds no bias: b depends on the reset and the environment's random numbers, not on the actions drawn. Source:
    self-critical sequence training (Rennie et al. 2017); ReMax (Li et al. 2024).
    """

    needs = frozenset({"greedy"})

    def predict(self, episodes: Episodes) -> th.Tensor:
        assert episodes.greedy_returns is not None, "REINFORCE plays the greedy episodes that `needs` asks for"
        return episodes.greedy_returns


def checked_prediction(baseline: Baseline, episodes: Episodes) -> th.Tensor:
    """
    :param baseline: any baseline
    :param episodes: what it predicts from
    :return: b of each step, shape [S]
    :raises ValueError: if the baseline does not return one finite number per step, without gradient
    """
    predicted = baseline.predict(episodes)
    name = f"{type(baseline).__name__}.predict"
    if not isinstance(predicted, th.Tensor) or predicted.shape != episodes.returns.shape:
        got = tuple(predicted.shape) if isinstance(predicted, th.Tensor) else type(predicted).__name__
        raise ValueError(f"{name} must return a tensor of shape {tuple(episodes.returns.shape)}, one b per step, got {got}")
    if predicted.requires_grad:
        raise ValueError(f"{name} must return b without gradient, got a tensor that requires it: return b.detach()")
    if not predicted.isfinite().all():
        raise ValueError(f"{name} must return finite numbers, got {predicted[~predicted.isfinite()][0]}")
    return predicted


NEEDS = ("values", "scores", "greedy")
"""What :attr:`Baseline.needs` may contain."""

BaselineName = Literal["none", "mean", "leave_one_out", "per_step", "moving_average", "value", "optimal", "greedy"]

BASELINES: dict[str, type[Baseline]] = {
    "none": NoBaseline,
    "mean": MeanBaseline,
    "leave_one_out": LeaveOneOutBaseline,
    "per_step": PerStepBaseline,
    "moving_average": MovingAverageBaseline,
    "value": ValueBaseline,
    "optimal": OptimalBaseline,
    "greedy": GreedyBaseline,
}
"""The baselines that REINFORCE knows by name."""


def full_name(baseline: Baseline) -> str:
    """:return: module and class, which tell whose state was saved"""
    return f"{type(baseline).__module__}.{type(baseline).__qualname__}"


def make_baseline(baseline: "str | Baseline") -> Baseline:
    """
    :param baseline: a name of :data:`BASELINES`, or an object with the :class:`Baseline` interface
    :return: a new baseline for a name, the object itself otherwise
    :raises ValueError: if the name is unknown, the object is no Baseline, or needs what REINFORCE cannot compute
    """
    if isinstance(baseline, str) and baseline in BASELINES:
        return BASELINES[baseline]()
    if not isinstance(baseline, Baseline):
        raise ValueError(f"baseline must be one of {', '.join(map(repr, BASELINES))} or a Baseline object, got {baseline!r}")
    if unknown := set(baseline.needs) - set(NEEDS):
        raise ValueError(f"Baseline.needs may contain {', '.join(map(repr, NEEDS))}, got {sorted(unknown)} from {baseline!r}")
    return baseline
