"""``Steps``: what a policy needs of some steps to give their log-probabilities or values."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_reinforce.episodes import Episodes
from sb3_reinforce.observations import map_arrays
from sb3_reinforce.policies import is_recurrent
from sb3_reinforce.rollout.squashed import before_tanh

Selection = slice | np.ndarray
"""Some rows: a range of them, or their indices."""


def count_rows(rows: Selection) -> int:
    """:return: how many rows a slice or an index array selects"""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


@dataclass(frozen=True)
class Sequences:
    """
    The whole episodes that some steps are, laid end to end: a policy with memory reads each from its beginning.

    :param lengths: steps of each of the N episodes, shape [N]
    :param bptt_steps: steps after which the gradient through the memory is cut; None: never
    """

    lengths: np.ndarray
    bptt_steps: int | None = None

    def at(self, rows: Selection) -> "Sequences":
        """:return: those of the given rows, which are whole episodes in any order"""
        episode = np.repeat(np.arange(len(self.lengths)), self.lengths)[rows]
        ends = np.flatnonzero(np.diff(episode, append=-1)) + 1
        return replace(self, lengths=np.diff(ends, prepend=0))

    def rows_of(self, episodes: np.ndarray) -> np.ndarray:
        """:return: the rows of the given episodes, in this order"""
        starts = np.cumsum(self.lengths) - self.lengths
        rows = [np.arange(starts[i], starts[i] + self.lengths[i]) for i in episodes]
        return np.concatenate([np.empty(0, dtype=np.int64), *rows])


def sequences_of(policy: Any, lengths: np.ndarray | th.Tensor, bptt_steps: int | None = None) -> Sequences | None:
    """:return: episodes of these lengths as a policy with memory reads them; None for all others, which need single steps"""
    return Sequences(np.asarray(lengths), bptt_steps) if is_recurrent(policy) else None


@dataclass(frozen=True, kw_only=True)
class Steps:
    """
    :param observations: as the policy gets them, first axis n; a dict of tensors for Dict spaces
    :param actions: as drawn, those that are squashed before tanh; float, shape [n, action dimensions]. None: not needed
    :param action_masks: which actions were allowed, shape [n, width of the mask]; None: all
    :param sequences: the episodes that the n steps are, for a policy with memory; None for all others
    """

    observations: Any
    actions: Any = None
    action_masks: th.Tensor | None = None
    sequences: Sequences | None = None

    def at(self, rows: Selection | th.Tensor, device: th.device) -> "Steps":
        """:return: the given rows, of a policy with memory whole episodes, on this device"""

        def taken(array: Any) -> Any:
            return array if array is None else map_arrays(lambda part: th.as_tensor(part[rows]).to(device), array)

        sequences = self.sequences and self.sequences.at(np.asarray(rows) if isinstance(rows, th.Tensor) else rows)
        return replace(
            self,
            observations=taken(self.observations),
            actions=taken(self.actions),
            action_masks=taken(self.action_masks),
            sequences=sequences,
        )


@dataclass(frozen=True, kw_only=True)
class Samples(Steps):
    """
    Steps of the rollout buffer with what an update needs, all of shape [n].

    :param old_log_prob: log-probability when sampled, where it is needed
    :param advantages: gamma^(c t) (R - b)
    :param returns: R
    """

    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


def steps_of(buffer: RolloutBuffer, episodes: Episodes, sequences: Sequences | None = None) -> Steps:
    """:return: all steps of a rollout buffer, which are the given episodes, on the CPU"""
    drawn = before_tanh(buffer)
    actions = th.as_tensor(buffer.actions.reshape(len(buffer.rewards), -1) if drawn is None else drawn, dtype=th.float32)
    masks = getattr(buffer, "action_masks", None)
    action_masks = None if masks is None else th.as_tensor(masks.reshape(len(actions), -1))
    return Steps(observations=episodes.observations, actions=actions, action_masks=action_masks, sequences=sequences)


def join_steps(parts: list[Steps], episodes: Episodes) -> Steps:
    """:return: the steps of several rollouts laid end to end, which are the given episodes, copied"""
    sequences = parts[0].sequences and replace(parts[0].sequences, lengths=np.asarray(episodes.lengths))
    actions = th.cat([part.actions for part in parts])
    masks = [part.action_masks for part in parts if part.action_masks is not None]
    action_masks = th.cat(masks) if masks else None
    return Steps(observations=episodes.observations, actions=actions, action_masks=action_masks, sequences=sequences)


def chunks(rows: Selection, chunk_size: int | None, sequences: Sequences | None = None) -> Iterator[Selection]:
    """
    :param sequences: the episodes that the rows are, if these must not be cut: then a longer one is a chunk of its own
    :return: the same rows in as few equal parts as ``chunk_size`` allows, the last may be shorter; None: all at once
    """
    n_rows = count_rows(rows)
    n_chunks = max(-(-n_rows // chunk_size), 1) if chunk_size else 1
    size = -(-n_rows // n_chunks)
    ends = None if sequences is None else np.cumsum(sequences.lengths)
    start = 0
    while start < n_rows:
        stop = min(start + size, n_rows)
        if ends is not None:
            first, last = np.searchsorted(ends, [start, stop], side="right")
            stop = int(ends[max(first, last - 1)])
        yield slice(rows.start + start, rows.start + stop) if isinstance(rows, slice) else rows[start:stop]
        start = stop
