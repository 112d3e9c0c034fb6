"""
Steps as they are played, and the Stable-Baselines3 rollout buffer of complete episodes that they become.

While playing, row t of :class:`EpisodeStorage` holds step t of every environment. Afterwards the steps that count are
laid end to end, environment by environment and episode by episode, into a rollout buffer with one row per step.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.baselines import Episodes

FIRST_ROWS = 64  # steps that there is memory for at first


@dataclass
class Episode:
    """
    One episode of a rollout, or the part of it that was played in this rollout (``unfinished="bootstrap"``).

    :param env_index: the environment that played it
    :param start: storage row of its first step
    :param end: storage row behind its last step
    :param truncated: ended by a time limit, not by the task
    :param cut: still running when the rollout ended
    :param first_step: time index t of its first step here; above 0 if the episode began in an earlier rollout
    :param last_observation: the observation behind its last step, where a value is to be added for it
    :param total_reward: the episode's undiscounted return as Monitor saw it; without a Monitor the sum of the rewards
        received, if all were received in this rollout
    """

    env_index: int
    start: int
    end: int
    truncated: bool = False
    cut: bool = False
    first_step: int = 0
    last_observation: Any = None
    total_reward: float | None = None

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.end - self.start


@dataclass
class Batch:
    """
    The episodes that one update uses, in the order in which the rollout buffer has their steps.

    :param episodes: N episodes, by environment and time
    :param played_steps: environment steps of the whole rollout, discarded ones too
    """

    episodes: list[Episode]
    played_steps: int
    lengths: th.Tensor = field(init=False)
    env_indices: th.Tensor = field(init=False)
    first_steps: th.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = th.tensor([episode.length for episode in self.episodes])
        self.env_indices = th.tensor([episode.env_index for episode in self.episodes])
        self.first_steps = th.tensor([episode.first_step for episode in self.episodes])

    @property
    def n_steps(self) -> int:
        """S, the number of steps that are used."""
        return int(self.lengths.sum())


@dataclass
class Share:
    """
    What one rank has played of a rollout; all ranks tell each other theirs. A plain run has a single one.

    :param n_envs: number of its environments
    :param planned_steps: ``n_steps * n_envs``
    :param played_steps: environment steps of the rollout, discarded ones too
    :param num_timesteps: what it has counted, from before the rollout on
    :param stopped: whether a callback has asked to stop; then the fields below are empty
    :param n_steps: number of steps that are used
    :param n_episodes: number of episodes that they belong to
    :param n_complete: of these, the episodes that have ended
    :param n_truncated: of these, those that a time limit has ended
    :param total_rewards: undiscounted returns of the complete episodes, where known
    :param infos: Monitor's word on the episodes used: the step of the rollout, and what of ``info`` is for
        ``ep_info_buffer`` and ``ep_success_buffer``
    :param statistics: count, mean and variance of each running statistic of ``VecNormalize``
    :param episodes: returns and more, where the baseline needs those of all ranks
    """

    n_envs: int
    planned_steps: int
    played_steps: int
    num_timesteps: int
    stopped: bool = False
    n_steps: int = 0
    n_episodes: int = 0
    n_complete: int = 0
    n_truncated: int = 0
    total_rewards: list[float] = field(default_factory=list)
    infos: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    statistics: dict[str, tuple[float, np.ndarray, np.ndarray]] = field(default_factory=dict)
    episodes: Episodes | None = None


class EpisodeStorage:
    """
    Observations, actions and rewards of the running rollout, shape [T, n_envs, ...], T growing by doubling.

    The memory is kept from one rollout to the next.

    :param observation_space: as the rollout buffer's
    :param action_space: as the rollout buffer's
    :param n_envs: number of environments
    :param observations: those to come first; VecNormalize makes floats of what its space still has as integers
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int, observations: Any):
        self.n_envs = n_envs
        self.n_rows = 0
        parts = by_key(observation_space.spaces if isinstance(observation_space, spaces.Dict) else observation_space)
        given = {key: observed.dtype.kind for key, observed in by_key(observations).items()}
        self.observations = {
            key: self._empty(space, np.float32 if given[key] == "f" and space.dtype.kind in "iu" else space.dtype)
            for key, space in parts.items()
        }
        self.actions = self._empty(action_space, action_space.dtype)
        self.rewards = np.empty((FIRST_ROWS, n_envs), dtype=np.float32)
        self._single_array = self.observations.get(None)  # spares the loop over keys in each step

    def _empty(self, space: spaces.Space, dtype: Any) -> np.ndarray:
        return np.empty((FIRST_ROWS, self.n_envs, *(space.shape or ())), dtype=dtype)

    def reset(self) -> None:
        """Forget all rows, keep the memory."""
        self.n_rows = 0

    def add(self, observations: Any, actions: np.ndarray, rewards: np.ndarray) -> None:
        """
        :param observations: what was seen, first axis ``n_envs``
        :param actions: what the policy drew, shape [n_envs, *action_space.shape]
        :param rewards: what came of it, shape [n_envs]
        """
        row = self.n_rows
        if row == len(self.rewards):
            self._grow()
        if self._single_array is not None:
            self._single_array[row] = observations
        else:
            for key, stored in self.observations.items():
                stored[row] = observations[key]
        self.actions[row] = actions
        self.rewards[row] = rewards
        self.n_rows = row + 1

    def _grow(self) -> None:
        self.observations = {key: _doubled(stored) for key, stored in self.observations.items()}
        self.actions, self.rewards = _doubled(self.actions), _doubled(self.rewards)
        self._single_array = self.observations.get(None)

    def check_finite(self, last_observations: Any, episodes: list[Episode]) -> None:
        """
        :param last_observations: those behind the last row, on which no action was taken yet
        :param episodes: with the observations behind their last steps, where a value is to be added for these
        :raises ValueError: if a reward or an observation is NaN or infinite; it names the environment and the step
        """
        _check_finite("reward", self.rewards[: self.n_rows], 0)
        for key, last in by_key(last_observations).items():
            name = "observation" if key is None else f"observation {key!r}"
            _check_finite(name, self.observations[key][: self.n_rows], 0)
            _check_finite(name, last[None], self.n_rows)

        for episode in episodes:
            for key, last in by_key(episode.last_observation).items():
                if last is not None:
                    name = "terminal observation" if key is None else f"terminal observation {key!r}"
                    _check_finite(name, np.asarray(last)[None, None], episode.end, episode.env_index)

    def pack(self, rollout_buffer: RolloutBuffer, episodes: list[Episode], own_rewards: bool = True) -> Batch:
        """
        Lay the steps of the episodes end to end into the rollout buffer: one row per step, ``n_envs=1``.

        What is not known yet stays NaN in the buffer: ``values`` without a value baseline, ``log_probs`` for an update
        of one step, whose log-probabilities are computed with their gradient.

        :param rollout_buffer: the buffer to fill
        :param episodes: the episodes to keep; of each environment the first ones, without gaps
        :param own_rewards: whether the rewards are the environment's own, so that their sum stands in for a missing Monitor's
        :return: the episodes in the order of the buffer
        """
        batch = Batch(sorted(episodes, key=lambda episode: (episode.env_index, episode.start)), self.n_rows * self.n_envs)
        kept_rows = np.zeros(self.n_envs, dtype=np.int64)
        for episode in batch.episodes:
            kept_rows[episode.env_index] = episode.end
        kept = np.arange(self.n_rows) < kept_rows[:, None]  # [n_envs, T]: boolean indexing goes environment by environment

        rollout_buffer.buffer_size, rollout_buffer.n_envs = batch.n_steps, 1
        rollout_buffer.reset()
        targets = by_key(rollout_buffer.observations)
        observations = {key: self._kept(self.observations[key], kept).reshape(targets[key].shape) for key in targets}
        rollout_buffer.observations = observations[None] if None in observations else observations  # type: ignore[assignment]
        rollout_buffer.actions[:] = self._kept(self.actions, kept).reshape(rollout_buffer.actions.shape)
        rollout_buffer.rewards[:, 0] = self._kept(self.rewards, kept)
        starts = (batch.lengths.cumsum(0) - batch.lengths).numpy()
        rollout_buffer.episode_starts[starts[batch.first_steps.numpy() == 0], 0] = 1.0
        rollout_buffer.values.fill(np.nan)
        rollout_buffer.log_probs.fill(np.nan)
        rollout_buffer.pos, rollout_buffer.full = batch.n_steps, True

        if own_rewards:
            sums = np.add.reduceat(rollout_buffer.rewards[:, 0], starts, dtype=np.float64)
            for episode, total in zip(batch.episodes, sums.tolist(), strict=True):
                if episode.total_reward is None and episode.first_step == 0 and not episode.cut:
                    episode.total_reward = total
        return batch

    def _kept(self, stored: np.ndarray, kept: np.ndarray) -> np.ndarray:
        return stored[: self.n_rows].swapaxes(0, 1)[kept]


def by_key(observations: Any) -> dict[Any, Any]:
    """Dict observations as they are, others under the key None, so that one loop serves both."""
    return observations if isinstance(observations, dict) else {None: observations}


def _doubled(stored: np.ndarray) -> np.ndarray:
    grown = np.empty((2 * len(stored), *stored.shape[1:]), dtype=stored.dtype)
    grown[: len(stored)] = stored
    return grown


def _check_finite(name: str, played: np.ndarray, first_row: int, first_env: int = 0) -> None:
    """:raises ValueError: if ``played``, shape [T, n_envs, ...], holds NaN or infinity"""
    # A sum is finite if all is finite: one pass without temporary memory.
    if not np.issubdtype(played.dtype, np.floating) or np.isfinite(played.sum(dtype=np.float64)):
        return
    bad = np.argwhere(~np.isfinite(played))
    if len(bad):
        step, env_index = int(bad[0][0]) + first_row, int(bad[0][1]) + first_env
        raise ValueError(
            f"{name} must be finite, got {played[tuple(bad[0])]} from environment {env_index} at step {step} of the rollout: "
            "mend the environment (SB3's VecCheckNan finds the line that makes it)"
        )


def check_before_normalization(env: VecNormalize, observations: Any, rewards: np.ndarray, n_steps: int) -> None:
    """
    Find the environment that a NaN comes from, while it is known: through its statistics VecNormalize spreads one to all.

    :param env: the outermost VecNormalize
    :param observations: what it returned in this step
    :param rewards: likewise, shape [n_envs]
    :param n_steps: steps played so far in this rollout, with this one
    :raises ValueError: if a number is NaN or infinite before its normalisation; it names the environment and the step
    """
    sums = [rewards.sum()]
    sums += [array.sum() for array in by_key(observations).values() if array.dtype.kind == "f"]
    if all(map(math.isfinite, sums)):
        return
    _check_finite("reward", env.get_original_reward()[None], n_steps - 1)
    for key, array in by_key(env.get_original_obs()).items():
        _check_finite("observation" if key is None else f"observation {key!r}", array[None], n_steps)


class EpisodeTracker:
    """
    Which environments still play for the running rollout, and the episodes they have ended.

    An environment is done when it ends an episode at or behind step ``n_steps``, or when it has played its share of
    ``n_episodes``. Never "the first n episodes to end": those would be the short ones.

    :param n_steps: steps per environment after which the episode in flight is the last one
    :param n_episodes: instead: episodes of all environments together
    :param finish: whether episodes in flight are finished; else the rollout is cut after ``n_steps``
    :param keep_truncated: whether to keep the observation behind an episode that a time limit has ended
    :param max_episode_steps: what is longer is taken for an episode without end, where they are finished
    :param steps_into_episode: steps that each environment has played of its running episode, shape [n_envs]
    """

    def __init__(
        self,
        n_steps: int,
        n_episodes: int | None,
        finish: bool,
        keep_truncated: bool,
        max_episode_steps: int,
        steps_into_episode: np.ndarray,
    ):
        n_envs = len(steps_into_episode)
        self.n_steps, self.finish, self.keep_truncated = n_steps, finish, keep_truncated
        self.max_episode_steps = max_episode_steps
        self.quota = None if n_episodes is None else n_episodes // n_envs
        self.episodes: list[Episode] = []
        self.steps_into_episode = steps_into_episode.copy()
        self._playing = np.ones(n_envs, dtype=bool)
        self._starts = np.zeros(n_envs, dtype=np.int64)
        self._counts = np.zeros(n_envs, dtype=np.int64)
        self._is_playing = True
        self._oldest_start = 0

    def goes_on(self, row: int) -> bool:
        """
        :param row: steps played so far in this rollout
        :return: whether another one is to be played
        :raises ValueError: if an episode has become longer than ``max_episode_steps``
        """
        if not self.finish:
            return row < self.n_steps
        if row - self._oldest_start > self.max_episode_steps:
            oldest = int(np.argmin(np.where(self._playing, self._starts, row)))
            raise ValueError(
                f"an episode must end within max_episode_steps={self.max_episode_steps} steps, environment {oldest} has "
                f"played {row - self._oldest_start}: wrap it in gymnasium.wrappers.TimeLimit, raise max_episode_steps, or use "
                'unfinished="bootstrap"'
            )
        return self._is_playing

    def end_episodes(self, row: int, dones: np.ndarray, infos: list[dict[str, Any]]) -> list[int]:
        """
        :param row: steps played so far in this rollout, with the one that has ended the episodes
        :param dones: which environments it has ended an episode of, shape [n_envs]
        :param infos: what they say of it
        :return: indices of those whose episode is used
        """
        ended = np.flatnonzero(dones & self._playing)
        for i in ended.tolist():
            info = infos[i]
            truncated = bool(info.get("TimeLimit.truncated", False))
            monitored = info.get("episode")
            self.episodes.append(
                Episode(
                    env_index=i,
                    start=int(self._starts[i]),
                    end=row,
                    truncated=truncated,
                    first_step=int(self.steps_into_episode[i]),
                    last_observation=info.get("terminal_observation") if truncated and self.keep_truncated else None,
                    total_reward=None if monitored is None else float(monitored["r"]),
                )
            )
        self._starts[ended] = row
        self._counts[ended] += 1
        self.steps_into_episode[dones] = 0
        if self.finish:
            done = row >= self.n_steps if self.quota is None else self._counts[ended] == self.quota
            self._playing[ended] = ~np.broadcast_to(done, ended.shape)
            self._is_playing = bool(self._playing.any())
            self._oldest_start = int(self._starts[self._playing].min(initial=row))
        return ended.tolist()

    def cut_episodes(self, row: int, last_observations: Any) -> None:
        """
        At the end of a rollout that does not finish them, keep what was played of the running episodes.

        :param row: steps played in this rollout
        :param last_observations: those behind the last step, first axis ``n_envs``
        """
        if self.finish:
            return
        for i in np.flatnonzero(self._starts < row).tolist():
            last = {key: array[i] for key, array in by_key(last_observations).items()}
            self.episodes.append(
                Episode(
                    env_index=i,
                    start=int(self._starts[i]),
                    end=row,
                    cut=True,
                    first_step=int(self.steps_into_episode[i]),
                    last_observation=last.get(None, last),
                )
            )
        self.steps_into_episode += row - self._starts


def count_rows(rows: slice | np.ndarray) -> int:
    """:return: how many rows a slice or an index array selects"""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def map_arrays(function: Any, arrays: Any) -> Any:
    """Apply a function to one array, or to each of a dict."""
    return {key: function(array) for key, array in arrays.items()} if isinstance(arrays, dict) else function(arrays)


def stack_observations(observations: list[Any], like: Any) -> Any:
    """Single observations to tensors with one row each, of the shape and type that the rows of ``like`` have."""
    if isinstance(like, dict):
        return {key: stack_observations([observation[key] for observation in observations], like[key]) for key in like}
    rows = th.as_tensor(np.stack(observations))
    return rows.to(like.dtype).reshape(len(rows), *like.shape[1:])
