"""Rows of the rollout buffer: minibatches for optimiser steps, and chunks that fit into memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_reinforce.rollout.squashed import before_tanh

# the second names: what this module had until 0.1
from sb3_reinforce.update.steps import Samples, Sequences
from sb3_reinforce.update.steps import Selection as Selection
from sb3_reinforce.update.steps import chunks as chunks
from sb3_reinforce.update.steps import count_rows as count_rows

BatchSize = int | None | Sequence[int | None]
"""Rows per minibatch on all ranks, or on each; None: all."""


class Rows:
    """
    The steps of one update, as the rollout buffer has them.

    :param buffer: a full rollout buffer, one row per step
    :param sizes: number of rows on each rank; a plain run has one
    :param chunk_size: rows per forward and backward pass; None: all at once
    :param sequences: the episodes that the rows are, for a policy with memory
    """

    def __init__(
        self, buffer: RolloutBuffer, sizes: Sequence[int], chunk_size: int | None, sequences: Sequences | None = None
    ):
        self.buffer, self.sizes, self.chunk_size, self.sequences = buffer, sizes, chunk_size, sequences
        self.n_rows = buffer.buffer_size
        self._before_tanh = before_tanh(buffer)
        #: rows of all ranks
        self.n_total = sum(sizes)
        next(buffer.get(1))  # SB3 flattens [S, 1, ...] to [S, ...] at the first get()

    @property
    def all(self) -> slice:
        """All rows of this rank."""
        return slice(0, self.n_rows)

    def samples(self, rows: Selection) -> Samples:
        """:return: the rows as tensors on the buffer's device; squashed actions are those before tanh"""
        data = self.buffer._get_samples(rows)  # type: ignore[arg-type]
        return Samples(
            observations=data.observations,
            actions=data.actions if self._before_tanh is None else self.buffer.to_torch(self._before_tanh[rows]),
            action_masks=getattr(data, "action_masks", None),
            sequences=None if self.sequences is None else self.sequences.at(rows),
            old_log_prob=data.old_log_prob,
            advantages=data.advantages,
            returns=data.returns,
        )

    def chunks(self, rows: Selection | None = None) -> Iterator[Selection]:
        """:return: the given rows, by default all, at most ``chunk_size`` of them at a time"""
        rows = self.all if rows is None else rows
        return chunks(rows, self.chunk_size, None if self.sequences is None else self.sequences.at(rows))

    def count_minibatches(self, batch_size: BatchSize) -> int:
        """:return: the number of minibatches that a pass needs on the rank that needs most"""
        own = batch_size if isinstance(batch_size, Sequence) else [batch_size] * len(self.sizes)
        return max(1 if n is None else -(-size // n) for size, n in zip(self.sizes, own, strict=True))

    def minibatches(self, batch_size: BatchSize, rng: np.random.Generator) -> Iterator[tuple[Selection, float]]:
        """
        All rows once: in order and at once, or shuffled in minibatches, of whole episodes where a policy has memory.

        All ranks make the same number of minibatches. Several ranks split their rows evenly among them, so that no
        rank's steps weigh more than another's; of a rank with very few steps, some minibatches are then empty.

        :param batch_size: rows per minibatch, or those of each rank; None: all
        :return: the rows of each minibatch, and the number of rows that all ranks together have in theirs, for whole
            episodes on average: a divisor that depended on the episodes drawn would bias their mean
        """
        n_minibatches = self.count_minibatches(batch_size)
        if n_minibatches == 1:
            yield self.all, self.n_total
            return
        if self.sequences is not None:
            for part in self._whole_episodes(n_minibatches, rng):
                yield part, self.n_total / n_minibatches
            return
        order = rng.permutation(self.n_rows)
        if len(self.sizes) == 1:
            size = batch_size[0] if isinstance(batch_size, Sequence) else batch_size
            assert size is not None, "one minibatch otherwise"
            for start in range(0, len(order), size):
                part = order[start : start + size]
                yield part, len(part)
            return
        for position, part in enumerate(np.array_split(order, n_minibatches)):
            # np.array_split gives the first `size % n` parts one more
            yield part, sum(size // n_minibatches + (position < size % n_minibatches) for size in self.sizes)

    def _whole_episodes(self, n_parts: int, rng: np.random.Generator) -> list[np.ndarray]:
        """
        The rows of shuffled episodes in parts of about equal size, each in any part with the same probability. Where
        there are few episodes, some parts are empty.
        """
        assert self.sequences is not None, "asked for whole episodes"
        lengths = self.sequences.lengths
        order = rng.permutation(len(lengths))
        middles = np.cumsum(lengths[order]) - lengths[order] / 2
        part_of = (middles * n_parts / self.n_rows).astype(np.int64)
        return [self.sequences.rows_of(order[part_of == part]) for part in rng.permutation(n_parts)]
