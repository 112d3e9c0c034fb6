"""The episodes of one update, as baselines see them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch as th

from sb3_reinforce.returns import steps_in_episode


@dataclass(frozen=True)
class Episodes:
    """
    What a baseline may look at: S steps of N episodes, laid end to end.

    With ``unfinished="bootstrap"`` they may be parts of episodes: ``first_steps`` says where each part begins.

    :param returns: R_t of each step, reward units, shape [S], float64
    :param lengths: steps of each episode, shape [N]
    :param env_indices: environment that played each episode, shape [N]
    :param fixed_count: True if the number of episodes was fixed before the rollout (``n_episodes``); False if it is
        a random number that depends on the episodes' lengths (``n_steps``)
    :param values: V(s_t) of the value network before it is fitted to these episodes, reward units, shape [S];
        None unless the baseline's ``needs`` has ``"values"``
    :param observations: o_t as the policy gets them, first axis S; a dict of arrays for Dict spaces; for stacked frames, where
        the baseline is one of this package, a :class:`~sb3_reinforce.rollout.frames.StackedFrames`, to be indexed
    :param first_steps: t of each episode's first step here, shape [N]; None: 0
    :param score_squares: abs(S_i)^2 of each episode's weighted score S_i = sum_t gamma^(c t) grad log pi(a_t|s_t), shape
        [N], float64; None unless ``needs`` has ``"scores"``
    :param score_products: X_i . S_i with X_i = sum_t gamma^(c t) grad log pi(a_t|s_t) R_t, reward units, shape [N],
        float64; None unless ``needs`` has ``"scores"``
    :param greedy_returns: R_t of the greedy policy's episode from the same reset, at the same t, or at its last t where
        it was shorter; reward units, shape [S]; None unless ``needs`` has ``"greedy"``
    """

    returns: th.Tensor
    lengths: th.Tensor
    env_indices: th.Tensor
    fixed_count: bool
    values: th.Tensor | None = None
    observations: Any = None
    first_steps: th.Tensor | None = None
    score_squares: th.Tensor | None = None
    score_products: th.Tensor | None = None
    greedy_returns: th.Tensor | None = None

    @cached_property
    def steps(self) -> th.Tensor:
        """The time index t of each step in its episode, shape [S]."""
        steps = steps_in_episode(self.lengths)
        return steps if self.first_steps is None else steps + self.first_steps.repeat_interleave(self.lengths)

    @cached_property
    def groups(self) -> th.Tensor:
        """
        For each step the number of its group; episodes of different groups are independent. Shape [S].

        With a fixed number of episodes each is a group of its own. With ``n_steps`` an environment's later episodes
        exist only because its earlier ones were short: there a group is all that one environment has played.
        """
        return self.episode_groups.repeat_interleave(self.lengths)

    @cached_property
    def episode_groups(self) -> th.Tensor:
        """For each episode the number of its group, 0 to G - 1, see :attr:`groups`. Shape [N]."""
        groups = th.arange(len(self.lengths)) if self.fixed_count else self.env_indices
        return th.unique(groups, return_inverse=True)[1]


def join_episodes(parts: Sequence[Episodes], n_envs: Sequence[int]) -> Episodes:
    """
    The episodes of several ranks as those of one.

    :param parts: each rank's episodes
    :param n_envs: number of each rank's environments; their indices continue from rank to rank
    :return: all episodes, in the order of the parts
    """
    joined = {field.name: _joined([getattr(part, field.name) for part in parts]) for field in fields(Episodes)}
    first_envs = [sum(n_envs[:position]) for position in range(len(parts))]
    joined["env_indices"] = th.cat([part.env_indices + first for part, first in zip(parts, first_envs, strict=True)])
    return Episodes(**joined)


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], th.Tensor):
        return th.cat(values)
    if isinstance(values[0], dict):
        return {key: _joined([value[key] for value in values]) for key in values[0]}
    return values[0]
