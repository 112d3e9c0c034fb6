"""Where the episodes of a rollout begin and end, and which environments still play."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_reinforce.observations import by_key
from sb3_reinforce.rollout.infos import monitored, terminal_observation


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
        self.ended: list[Span] = []
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
        ended = np.flatnonzero(dones & self._playing)
        for i in ended.tolist():
            info = infos[i]
            truncated = bool(info.get("TimeLimit.truncated", False))
            total_reward, total_length = monitored(info, i, row) or (None, None)
            self.ended.append(
                Span(
                    env_index=i,
                    start=int(self._starts[i]),
                    end=row,
                    truncated=truncated,
                    first_step=int(self.steps_into_episode[i]),
                    last_observation=terminal_observation(info, i, row) if truncated and self.keep_truncated else None,
                    total_reward=total_reward,
                    total_length=total_length,
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
        """Keep what was played of the running episodes, at the end of a rollout that does not finish them."""
        if self.finish:
            return
        for i in np.flatnonzero(self._starts < row).tolist():
            last = {key: np.array(array[i]) for key, array in by_key(last_observations).items()}
            self.ended.append(
                Span(
                    env_index=i,
                    start=int(self._starts[i]),
                    end=row,
                    cut=True,
                    first_step=int(self.steps_into_episode[i]),
                    last_observation=last.get(None, last),
                )
            )
        self.steps_into_episode += row - self._starts
