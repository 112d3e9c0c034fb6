"""Where the episodes of a rollout begin and end, and which environments still play."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_reinforce.observations import by_key
from sb3_reinforce.rollout.infos import ends_of, terminal_observation

# One row per episode, with the fields of Span; unknown: NaN as total_reward, -1 as total_length
EPISODES = np.dtype(
    [
        *((name, np.int64) for name in ("env_index", "start", "end", "first_step", "total_length")),
        *((name, np.bool_) for name in ("truncated", "cut")),
        ("total_reward", np.float64),
    ]
)


@dataclass
class Span:
    """
    One episode of a rollout, or the part of it that was played in this rollout (``unfinished="bootstrap"``).

    :param env_index: the environment that played it
    :param start: row of its first step in the recording
    :param end: row behind its last step
    :param truncated: ended by a time limit, not by the task
    :param cut: still running when the rollout ended
    :param first_step: time index t of its first step here; above 0 if the episode began in an earlier rollout
    :param last_observation: the observation behind its last step, where a value is to be added for it
    :param total_reward: the episode's undiscounted return as Monitor saw it, of the whole game where this is its last life;
        without a Monitor the sum of the rewards received, if all were received in this rollout
    :param total_length: number of steps of the episode that ``total_reward`` is of
    """

    env_index: int
    start: int
    end: int
    truncated: bool = False
    cut: bool = False
    first_step: int = 0
    last_observation: Any = None
    total_reward: float | None = None
    total_length: int | None = None

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.end - self.start


class Spans:
    """
    The episodes of the running rollout: ended ones, and which environments still play.

    An environment is done when it ends an episode at or behind step ``n_steps``, or when it has played its share of
    ``n_episodes``. Never "the first n episodes to end": those would be the short ones.

    :param n_steps: steps per environment after which the episode in flight is the last one
    :param n_episodes: instead: episodes of all environments together
    :param finish: whether episodes in flight are finished; else the rollout is cut after ``n_steps``
    :param keep_truncated: whether to keep the observation behind an episode that a time limit has ended
    :param max_episode_steps: an episode longer than this is an error, where episodes are finished
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
        self._ended = [np.zeros(0, EPISODES)]
        #: where a value is to be added for the observation behind an episode: that, by (env_index, end)
        self.last_observations: dict[tuple[int, int], Any] = {}
        self.steps_into_episode = steps_into_episode.copy()
        self._playing = np.ones(n_envs, dtype=bool)
        self._starts = np.zeros(n_envs, dtype=np.int64)
        self._counts = np.zeros(n_envs, dtype=np.int64)
        self._is_playing = True
        self._oldest_start = 0

    def continues(self, row: int) -> bool:
        """
        Whether another step is to be played after the first ``row`` steps of this rollout.

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
        :param row: steps played so far in this rollout, including the one that ended the episodes
        :return: indices of the environments whose episode is used
        """
        ended = (dones & self._playing).nonzero()[0]
        truncated, total_rewards, total_lengths = ends_of(infos, ended, row)
        episodes = self._add(ended, row)
        episodes["truncated"], episodes["total_reward"], episodes["total_length"] = truncated, total_rewards, total_lengths
        if self.keep_truncated:
            for i in ended[truncated].tolist():
                self.last_observations[i, row] = terminal_observation(infos[i], i, row)
        self._starts[ended] = row
        self.steps_into_episode[dones] = 0
        if self.finish:
            if self.quota is not None:
                self._counts[ended] += 1
                self._playing[ended] = self._counts[ended] != self.quota
            elif row >= self.n_steps:
                self._playing[ended] = False
            self._is_playing = bool(self._playing.any())
            self._oldest_start = int(self._starts.min(initial=row, where=self._playing))
        return ended.tolist()

    def cut_episodes(self, row: int, last_observations: Any) -> None:
        """Keep what was played of the running episodes, at the end of a rollout that does not finish them."""
        if self.finish:
            return
        running = (self._starts < row).nonzero()[0]
        self._add(running, row)["cut"] = True
        for i in running.tolist():
            last = {key: np.array(array[i]) for key, array in by_key(last_observations).items()}
            self.last_observations[i, row] = last.get(None, last)
        self.steps_into_episode += row - self._starts

    def _add(self, env_indices: np.ndarray, row: int) -> np.ndarray:
        """:return: new rows of ``ended`` for the running episodes of these environments, which end here"""
        episodes = np.zeros(len(env_indices), EPISODES)
        episodes["env_index"], episodes["start"], episodes["end"] = env_indices, self._starts[env_indices], row
        episodes["first_step"] = self.steps_into_episode[env_indices]
        episodes["total_reward"], episodes["total_length"] = np.nan, -1
        self._ended.append(episodes)
        return episodes

    @property
    def ended(self) -> np.ndarray:
        """The episodes so far, rows of :data:`EPISODES` in the order of their ends."""
        return np.concatenate(self._ended)
