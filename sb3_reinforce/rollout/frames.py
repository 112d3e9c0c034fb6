"""
Stacked frames, each stored once.

An image policy often sees the last k frames, stacked along the first axis. Then an observation is the one before it, shifted
by one frame, and only its newest frame is new. While playing, that one is stored, as long as the others are exactly those of
the observation before; where they are not, as at a reset, the whole observation is. Nothing is assumed of the environment.
"""

from bisect import bisect
from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

GPU_BYTES = 2**31  # If a rollout's frames are larger than this, they are copied to a GPU chunk by chunk, not all at once.


def frame_channels(played: np.ndarray) -> int | None:
    """
    :param played: observations, shape [T, n_envs, channels, ...]
    :return: by how many channels most observations are the one before shifted, the fewest; None if they are not, or no
        images of bytes
    """
    if played.dtype != np.uint8 or played.ndim < 5:
        return None
    n_channels, axes = played.shape[2], tuple(range(1, played.ndim - 1))
    for n in range(1, n_channels // 2 + 1):
        if n_channels % n == 0:
            same = [(one[1:, :-n] == one[:-1, n:]).all(axis=axes).mean() for one in played.swapaxes(0, 1)]
            if np.mean(same) > 0.5:
                return n
    return None


class RecordedFrames:
    """
    Observations of the running rollout, written and read like an array of shape [T, n_envs, channels, ...].

    :param played: the first rows, in an array of uint8
    :param n_new: channels of one frame
    :param capacity: number of rows that there is memory for
    """

    def __init__(self, played: np.ndarray, n_new: int, capacity: int):
        _, n_envs, n_channels, *size = played.shape
        self.n_new = n_new
        #: the newest frame of each observation
        self.frames = np.empty((capacity, n_envs, n_new, *size), np.uint8)
        #: per environment, the rows that do not continue the one before, and the older frames of those
        self.breaks: list[list[int]] = [[] for _ in range(n_envs)]
        self.older: list[list[np.ndarray]] = [[] for _ in range(n_envs)]
        # Copies of this observation and of the last: the environment may write into its arrays.
        self._pair = [np.empty((n_envs, n_channels, *size), np.uint8) for _ in range(2)]
        # Compared in words of 8 bytes where they fit, in a fifth of the time.
        word = np.uint64 if self._pair[0][0, :n_new].nbytes % 8 == 0 else np.uint8
        self._words = [array.reshape(n_envs, n_channels // n_new, -1).view(word) for array in self._pair]
        for row, observations in enumerate(played):
            self[row] = observations

    def __setitem__(self, row: int, observations: np.ndarray) -> None:
        now, before = row % 2, 1 - row % 2
        observed = self._pair[now]
        observed[...] = observations
        self.frames[row] = observed[:, -self.n_new :]
        newer, older = self._words[now][:, :-1], self._words[before][:, 1:]
        if row == 0:
            self.breaks, self.older = [[] for _ in observed], [[] for _ in observed]
        elif np.array_equal(newer, older):
            return
        for i in range(len(observed)):
            if row == 0 or not np.array_equal(newer[i], older[i]):
                self.breaks[i].append(row)
                self.older[i].append(observed[i, : -self.n_new].copy())

    def __getitem__(self, at: int | tuple[int, int]) -> np.ndarray:
        """:return: the observation of a row and an environment, or those of all environments in a row"""
        if not isinstance(at, tuple):
            return np.stack([self[at, i] for i in range(len(self.breaks))])
        row, i = at
        last, n_channels = bisect(self.breaks[i], row) - 1, self._pair[0].shape[1]
        older = self.older[i][last]
        since = self.frames[max(self.breaks[i][last], row + 1 - n_channels) : row + 1, i]
        return np.concatenate([older, since.reshape(-1, *older.shape[1:])])[-n_channels:]

    def doubled(self) -> "RecordedFrames":
        """:return: itself, with memory for twice as many rows"""
        grown = np.empty((2 * len(self.frames), *self.frames.shape[1:]), np.uint8)
        grown[: len(self.frames)] = self.frames
        self.frames = grown
        return self

    def pack(self, n_rows: np.ndarray) -> "StackedFrames":
        """
        :param n_rows: how many of its first rows to keep of each environment
        :return: a copy of them, laid end to end environment by environment
        """
        n_older = self._pair[0].shape[1] // self.n_new - 1
        n_runs = sum(bisect(breaks, n - 1) for breaks, n in zip(self.breaks, n_rows, strict=True))
        frames = np.empty((int(n_rows.sum()) + n_older * n_runs, *self.frames.shape[2:]), np.uint8)
        firsts: list[np.ndarray] = []
        position = 0
        for i, n in enumerate(n_rows.tolist()):
            runs = self.breaks[i][: bisect(self.breaks[i], n - 1)]
            for start, end, older in zip(runs, [*runs[1:], n], self.older[i], strict=False):
                frames[position : position + n_older] = older.reshape(n_older, *frames.shape[1:])
                firsts.append(np.arange(position, position + end - start))
                position += n_older + end - start
                frames[position - (end - start) : position] = self.frames[start:end, i]
        return StackedFrames(frames, np.concatenate(firsts), n_older + 1)


class StackedFrames:
    """
    S observations of k stacked frames each. Indexing builds those asked for.

    :param frames: shape [F, channels of a frame, ...]
    :param firsts: for each observation the first of its k frames, which follow each other, shape [S]
    :param n_stack: k
    """

    def __init__(self, frames: np.ndarray, firsts: np.ndarray, n_stack: int):
        self.frames, self.firsts, self.n_stack = frames, firsts, n_stack
        _, n_channels, *size = frames.shape
        self.shape = (len(firsts), n_stack * n_channels, *size)
        self.dtype, self.nbytes = frames.dtype, frames.nbytes + firsts.nbytes
        self._source: th.Tensor | None = None  # all frames, on the device where they fit
        # The observations that begin at each frame: they overlap in memory.
        all_stacks = (len(frames) - n_stack + 1, *self.shape[1:])
        self._stacks = np.lib.stride_tricks.as_strided(frames, all_stacks, frames.strides, writeable=False)

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """:return: the observations of some rows, given by a slice or by their indices, shape [n, channels, ...]"""
        return self._stacks[self.firsts[rows if isinstance(rows, slice) else np.asarray(rows)]]

    def on(self, device: th.device, rows: slice | np.ndarray) -> th.Tensor:
        """:return: the same as a tensor. All frames are copied to a GPU once, as bytes; the observations are built there"""
        if self._source is None or self._source.device.type != device.type:
            self._source = th.from_numpy(self.frames)
            if self.frames.nbytes <= GPU_BYTES:
                self._source = self._source.to(device)
        positions = (self.firsts[rows][:, None] + np.arange(self.n_stack)).ravel()
        frames = self._source.index_select(0, th.from_numpy(positions).to(self._source.device))
        return frames.reshape(-1, *self.shape[1:]).to(device)


class FrameBuffer(RolloutBuffer):
    """
    SB3's rollout buffer of stacked frames: samples are built from the frames; all observations at once only where they are
    asked for by ``observations``, and then kept.
    """

    frames: StackedFrames

    @staticmethod
    def fill(buffer: RolloutBuffer, frames: Any) -> bool:
        """
        Give stacked frames to a buffer, instead of its observations.

        :return: whether it takes them: not a user's own class, which may treat its observations in ways of its own, and
            nothing but stacked frames
        """
        if not isinstance(frames, StackedFrames) or type(buffer) not in (RolloutBuffer, FrameBuffer):
            return False
        buffer.__class__ = FrameBuffer  # it adds no more than this:
        buffer.frames = frames  # type: ignore[attr-defined]
        del vars(buffer)["observations"]
        return True

    def reset(self) -> None:
        """Empty the buffer."""
        vars(self).pop("frames", None)
        super().reset()

    @property
    def observations(self) -> np.ndarray:  # type: ignore[override]
        """All observations, shape [S, 1, channels, ...], or [S, channels, ...] once ``get`` has been called."""
        if "observations" not in vars(self):
            built = self.frames[:]
            vars(self)["observations"] = built if self.generator_ready else built[:, None]
        return vars(self)["observations"]

    @observations.setter
    def observations(self, observations: np.ndarray) -> None:
        vars(self)["observations"] = observations

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """As in SB3: all rows once, in random order."""
        if not self.generator_ready and "observations" not in vars(self):
            for name in ("actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        yield from super().get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> RolloutBufferSamples:
        if "observations" in vars(self):
            return super()._get_samples(batch_inds, env)
        actions = self.actions[batch_inds].astype(np.float32, copy=False)
        others = [getattr(self, name)[batch_inds].flatten() for name in ("values", "log_probs", "advantages", "returns")]
        return RolloutBufferSamples(self.frames.on(self.device, batch_inds), *map(self.to_torch, (actions, *others)))


def packed_frames(buffer: RolloutBuffer) -> StackedFrames | None:
    """:return: the frames of a rollout buffer that has them, and not its observations"""
    return buffer.frames if isinstance(buffer, FrameBuffer) and "observations" not in vars(buffer) else None
