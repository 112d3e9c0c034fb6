"""
Steps as they are played, and the Stable-Baselines3 rollout buffer of whole episodes that they become.

While playing, row t of :class:`Recording` holds step t of every environment. Afterwards the steps that count are
laid end to end, environment by environment and episode by episode, into a rollout buffer with one row per step.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import maybe_transpose

from sb3_reinforce.action_masks import check_choices, choices_of
from sb3_reinforce.observations import by_key
from sb3_reinforce.rollout.finite import check_counts, check_finite
from sb3_reinforce.rollout.frames import FrameBuffer, RecordedFrames, frame_channels
from sb3_reinforce.rollout.spans import EPISODES, Span, Spans

FIRST_ROWS = 64  # steps that there is memory for at first


@dataclass(frozen=True)
class Rollout:
    """
    What one process has played for one update.

    :param episodes: its N episodes, by environment and time: rows of :data:`~sb3_reinforce.rollout.spans.EPISODES`
    :param last_observations: of those whose last value counts: the observation behind the last step, by (env_index, end)
    :param buffer: their S steps in this order: observations, actions, rewards and episode starts, one row per step
    :param n_rows: steps that each environment has played, including discarded ones
    :param n_envs: number of environments
    :param first_observations: those of the first step, by key (None for a space without keys), first axis ``n_envs``;
        valid until the next rollout
    """

    episodes: np.ndarray
    last_observations: dict[tuple[int, int], Any]
    buffer: RolloutBuffer
    n_rows: int
    n_envs: int
    first_observations: dict[Any, np.ndarray]

    @cached_property
    def spans(self) -> list[Span]:
        """The N episodes as objects."""
        rows: list[dict[str, Any]] = [dict(zip(EPISODES.names or (), row, strict=True)) for row in self.episodes.tolist()]
        for row in rows:
            if math.isnan(row["total_reward"]):
                row["total_reward"] = None
            if row["total_length"] < 0:
                row["total_length"] = None
        return [Span(**row, last_observation=self.last_observations.get((row["env_index"], row["end"]))) for row in rows]

    @cached_property
    def lengths(self) -> th.Tensor:
        """Steps of each episode, shape [N]."""
        return th.from_numpy(self.episodes["end"] - self.episodes["start"])

    @cached_property
    def env_indices(self) -> th.Tensor:
        """Environment that played each episode, shape [N]."""
        return th.from_numpy(self.episodes["env_index"].copy())

    @cached_property
    def first_steps(self) -> th.Tensor:
        """Time index t of each episode's first step here, shape [N]."""
        return th.from_numpy(self.episodes["first_step"].copy())

    @cached_property
    def n_steps(self) -> int:
        """S, the number of steps that are used."""
        return int(self.lengths.sum())

    def laid_out(self, per_step: Sequence[np.ndarray]) -> np.ndarray:
        """:return: what was kept at each step of all environments, shape [n_envs, ...], in the rows of the buffer, [S, ...]"""
        stacked = np.stack(per_step, axis=1)
        # The last end of each environment, as episodes are ordered by environment and time
        ends = dict(self.episodes[["env_index", "end"]].tolist())
        return np.concatenate([stacked[env_index, :end] for env_index, end in ends.items()])

    @property
    def played_steps(self) -> int:
        """Steps of all environments, including discarded ones."""
        return self.n_rows * self.n_envs


class Recording:
    """
    Observations, actions, rewards and action masks of the running rollout, shape [T, n_envs, ...], T growing by doubling.

    The memory is kept from one rollout to the next. Stacked frames, recognised when it first has to grow, are from then on
    stored once; see :mod:`sb3_reinforce.rollout.frames`.

    :param observations: the first ones; VecNormalize makes floats of what its space still has as integers
    :param masks: of the environments, if they are to be recorded
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int, observations: Any, masks: Any = None
    ):
        self.n_envs, self.action_space = n_envs, action_space
        self.n_rows = self._n_masks = 0
        parts = by_key(observation_space.spaces if isinstance(observation_space, spaces.Dict) else observation_space)
        self._parts = parts
        given = {key: observed.dtype.kind for key, observed in by_key(observations).items()}
        self.observations: dict[Any, np.ndarray | RecordedFrames] = {
            key: self._empty(space, np.float32 if given[key] == "f" and space.dtype.kind in "iu" else space.dtype)
            for key, space in parts.items()
        }
        self.actions = self._empty(action_space, action_space.dtype)
        self.rewards = np.empty((FIRST_ROWS, n_envs), dtype=np.float32)
        self.masks = np.empty((FIRST_ROWS, n_envs, sum(choices_of(action_space))), dtype=bool) if masks else None
        self._single_array = self.observations.get(None)  # spares the loop over keys in each step

    def _empty(self, space: spaces.Space, dtype: Any) -> np.ndarray:
        return np.empty((FIRST_ROWS, self.n_envs, *(space.shape or ())), dtype=dtype)

    def reset(self) -> None:
        """Forget all rows, keep the memory."""
        self.n_rows = self._n_masks = 0

    def begin_step(self, observations: Any, actions: np.ndarray, masks: np.ndarray | None = None) -> None:
        """
        Copy what a step begins with, before the environments may write into these arrays: observations [n_envs, ...] and
        the actions as drawn for them [n_envs, *action_space.shape], out of those that the masks [n_envs, width] allow.

        :raises ValueError: in the first step, for observations of another shape than the space's, which NumPy would repeat
        """
        row = self.n_rows
        if row == len(self.rewards):
            self._grow()
        if row == 0:
            for key, observed in by_key(observations).items():
                self._check_shape("observation" if key is None else f"observation {key!r}", observed, self._parts[key].shape)
        if self._single_array is not None:
            self._single_array[row] = observations
        else:
            for key, stored in self.observations.items():
                stored[row] = observations[key]
        self.actions[row] = actions
        if self.masks is not None:
            self.masks[row], self._n_masks = masks, row + 1

    def end_step(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """
        Add the rewards of the step, [n_envs], which complete its row.

        :raises ValueError: in the first step, for rewards or dones of another shape than [n_envs]
        """
        if self.n_rows == 0:
            for name, array in (("reward", rewards), ("done", dones)):
                self._check_shape(name, array, ())
        self.rewards[self.n_rows] = rewards
        self.n_rows += 1

    def _check_shape(self, name: str, array: Any, row_shape: tuple[int, ...]) -> None:
        if np.shape(array) != (expected := (self.n_envs, *row_shape)):
            raise ValueError(
                f"{name} of {self.n_envs} environments must have the shape {expected}, got {np.shape(array)} at step "
                f"{self.n_rows} of the rollout: mend step() and reset() of the environments or of the VecEnv"
            )

    def _grow(self) -> None:
        stored = self.observations.get(None)
        if self.n_rows == FIRST_ROWS and isinstance(stored, np.ndarray) and (n_new := frame_channels(stored)):
            self.observations[None] = RecordedFrames(stored, n_new, len(stored))
        self.observations = {key: _doubled(stored) for key, stored in self.observations.items()}
        self.actions, self.rewards = _doubled(self.actions), _doubled(self.rewards)
        self.masks = None if self.masks is None else _doubled(self.masks)
        self._single_array = self.observations.get(None)

    def check(self, last_observations: Any) -> None:
        """
        :param last_observations: those behind the last row, for which no action was drawn yet
        :raises ValueError: for a reward, an observation or an action mask that no policy can take; it names the environment
            and the step
        """
        if self.masks is not None:
            check_choices(self.masks[: self._n_masks], self.action_space)
        check_finite("reward", self.rewards[: self.n_rows])
        for key, space in self._parts.items():
            name = "observation" if key is None else f"observation {key!r}"
            last = by_key(last_observations)[key]
            self._check_shape(name, last, space.shape)
            stored = self.observations[key]
            before = last[None][:0] if isinstance(stored, RecordedFrames) else stored[: self.n_rows]  # frames are bytes
            for played, row in ((before, 0), (last[None], self.n_rows)):
                check_finite(name, played, row)
                check_counts(name, played, space, row)

    def pack(self, buffer: RolloutBuffer, spans: Spans, sum_rewards: bool = True) -> Rollout:
        """
        Lay the steps of the episodes end to end into the rollout buffer: one row per step, ``n_envs=1``.

        What is not known yet stays NaN in the buffer: ``values`` without a value baseline, ``log_probs`` for an update
        of one step, whose log-probabilities are computed with their gradient.

        :param spans: with the episodes to keep; of each environment the first ones, without gaps
        :param sum_rewards: whether an episode's return is the sum of its rewards
        :raises ValueError: for a terminal observation of another shape, or with a NaN or infinite number
        """
        last = {key: self._terminal_row(*key, observation) for key, observation in spans.last_observations.items()}
        self._warn_of_reused_arrays(last)
        episodes = spans.ended
        episodes = episodes[np.lexsort((episodes["start"], episodes["env_index"]))]
        first_observations = {key: stored[0] for key, stored in self.observations.items()}
        rollout = Rollout(episodes, last, buffer, self.n_rows, self.n_envs, first_observations)
        kept_rows = np.zeros(self.n_envs, dtype=np.int64)
        np.maximum.at(kept_rows, episodes["env_index"], episodes["end"])
        kept = np.arange(self.n_rows) < kept_rows[:, None]  # [n_envs, T]: boolean indexing goes environment by environment

        buffer.buffer_size, buffer.n_envs = rollout.n_steps, 1
        buffer.reset()
        observations = {key: self._kept(stored, kept) for key, stored in self.observations.items()}
        if not FrameBuffer.fill(buffer, observations.get(None)):
            targets = by_key(buffer.observations)
            observations = {key: array[:].reshape(targets[key].shape) for key, array in observations.items()}
            buffer.observations = observations[None] if None in observations else observations  # type: ignore[assignment]
        buffer.actions[:] = self._kept(self.actions, kept).reshape(buffer.actions.shape)
        buffer.rewards[:, 0] = self._kept(self.rewards, kept)
        if self.masks is not None:
            vars(buffer)["action_masks"][:, 0] = self._kept(self.masks, kept)
        starts = (rollout.lengths.cumsum(0) - rollout.lengths).numpy()
        buffer.episode_starts[starts[rollout.first_steps.numpy() == 0], 0] = 1.0
        buffer.values.fill(np.nan)
        buffer.log_probs.fill(np.nan)
        buffer.pos, buffer.full = rollout.n_steps, True

        if sum_rewards:
            unknown = np.isnan(episodes["total_reward"]) & (episodes["first_step"] == 0) & ~episodes["cut"]
            sums = np.add.reduceat(buffer.rewards[:, 0], starts, dtype=np.float64)
            episodes["total_reward"][unknown] = sums[unknown]
            episodes["total_length"][unknown] = rollout.lengths.numpy()[unknown]
        return rollout

    def _terminal_row(self, env_index: int, end: int, observation: Any) -> Any:
        """
        :return: the observation behind an episode in the shape of all others, an image with its channels first as SB3 does it
        :raises ValueError: if it has another shape, or a number that no policy can take
        """
        given, row = by_key(observation), {}
        for key, space in self._parts.items():
            name, found = f"terminal observation{'' if key is None else f' {key!r}'}", np.asarray(given.get(key))
            row[key] = maybe_transpose(found, space) if found.ndim == 3 else found
            if row[key].shape not in (space.shape, (1, *space.shape)):
                raise ValueError(
                    f"{name} must have the shape {space.shape} of the other observations, got {found.shape} from environment "
                    f'{env_index} at step {end} of the rollout: mend info["terminal_observation"] of the VecEnv'
                )
            row[key] = row[key].reshape(space.shape)
            check_finite(name, row[key][None, None], end, env_index)
        return row.get(None, row)

    def _warn_of_reused_arrays(self, last_observations: dict[tuple[int, int], Any]) -> None:
        """
        Warn if all terminal observations are those of the resets. In a ``SubprocVecEnv`` an environment that reuses its
        array has then overwritten them, and nothing in this process can tell what they were.
        """
        followed = {key: last for key, last in last_observations.items() if key[1] < self.n_rows}
        if followed and all(self._equals_row(last, end, i) for (i, end), last in followed.items()):
            # not: observations never change
            if not all(self._equals_row(last, end - 1, i) for (i, end), last in followed.items()):
                warnings.warn(
                    "the observation at each time limit equals that of the reset behind it, and so does its value: an "
                    "environment that writes into the array that it has returned must return a copy of it",
                    stacklevel=4,
                )

    def _equals_row(self, observation: Any, row: int, env_index: int) -> bool:
        last = by_key(observation)
        return all(np.array_equal(stored[row, env_index], last[key]) for key, stored in self.observations.items())

    def _kept(self, stored: Any, kept: np.ndarray) -> Any:
        if isinstance(stored, RecordedFrames):
            return stored.pack(kept.sum(axis=1))
        return stored[: self.n_rows].swapaxes(0, 1)[kept]


def _doubled(stored: Any) -> Any:
    if isinstance(stored, RecordedFrames):
        return stored.doubled()
    grown = np.empty((2 * len(stored), *stored.shape[1:]), dtype=stored.dtype)
    grown[: len(stored)] = stored
    return grown
