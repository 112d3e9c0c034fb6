"""What the infos of an ended episode say, read once and checked."""

from collections import deque
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped, unwrap_vec_normalize

from sb3_reinforce.observations import map_arrays
from sb3_reinforce.running.env_queries import monitored_envs
from sb3_reinforce.vec_env import EndedEpisodes, StepInfos

# What SB3 takes the mean of
_NUMBERS = (Real, np.bool_, np.ndarray, type(None))


def returns_are_sums(env: VecEnv) -> bool:
    """Whether an episode's return is the sum of its rewards: no Monitor counts whole games, no VecNormalize scales rewards."""
    normalize = unwrap_vec_normalize(env)
    scaled = normalize is not None and normalize.norm_reward
    return not (scaled or is_vecenv_wrapped(env, VecMonitor) or monitored_envs(env))


class UsedInfos:
    """
    The infos of the episodes of a rollout that are used: to log, and for the other ranks.

    Those that :class:`VectorEnvAdapter` has not made yet wait for the end of the rollout, and only the last ones are made.

    :param log: called with one info in a list, and True in an array, as SB3's ``_update_info_buffer``
    :param window: how many episodes are logged, ``stats_window_size``
    :param wait: whether nobody looks at what is logged before the end of the rollout
    """

    def __init__(self, log: Callable[[list[dict[str, Any]], np.ndarray], None], window: int, wait: bool):
        self.log, self.window, self.wait = log, window, wait
        #: of the last episodes: the row behind the episode, and what SB3 logs of the info
        self.logged: deque[tuple[int, dict[str, Any]]] = deque(maxlen=window)
        self._waiting: deque[tuple[int, list[dict[str, Any]], list[int]]] = deque()
        self._n_waiting = 0

    def add(self, row: int, infos: list[dict[str, Any]], env_indices: list[int]) -> None:
        """:param env_indices: the environments whose episodes ended after ``row`` steps of the rollout"""
        self._waiting.append((row, infos, env_indices))
        self._n_waiting += len(env_indices)
        if not self.wait or _not_made(infos) is None:
            self.log_waiting()
        while self._waiting and self._n_waiting - len(self._waiting[0][2]) >= self.window:
            self._n_waiting -= len(self._waiting.popleft()[2])

    def log_waiting(self) -> None:
        """Log all that wait."""
        for row, infos, env_indices in self._waiting:
            for i in env_indices:
                self.log([infos[i]], np.ones(1, dtype=bool))
                self.logged.append((row, {key: infos[i][key] for key in ("episode", "is_success") if key in infos[i]}))
        self._waiting.clear()
        self._n_waiting = 0


def _not_made(infos: list[dict[str, Any]]) -> EndedEpisodes | None:
    """The episodes that a ``VectorEnvAdapter`` has ended, where their dicts tell no more and nobody has read them."""
    return infos.not_made if isinstance(infos, StepInfos) else None


def ends_of(infos: list[dict[str, Any]], env_indices: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    What the infos of episodes' last steps say.

    :param infos: of a step of all environments, after ``row`` steps of the rollout
    :param env_indices: the n environments whose episode ended, ascending
    :return: three arrays of shape [n]: whether a time limit ended the episode, and the task did not; its undiscounted return
        as a Monitor counted it, and its number of steps, or NaN and -1 if no Monitor has ended an episode here: there is none,
        or this was one life of several
    :raises ValueError: for an ``info["episode"]`` or ``info["is_success"]`` that SB3 cannot log
    """
    if (ended := _not_made(infos)) is not None:
        rows = np.searchsorted(ended.ids, env_indices)
        if np.array_equal(ended.ids.take(rows, mode="clip"), env_indices):  # a wrapper may end episodes of its own
            assert ended.returns is not None, "see StepInfos.not_made"
            assert ended.lengths is not None, "given with the returns"
            return ended.truncated[rows], ended.returns[rows].round(6), ended.lengths[rows]  # rounded as by Monitor
    indices = env_indices.tolist()
    monitored = [_monitored(infos[i], i, row) for i in indices]
    truncated = np.array([bool(infos[i].get("TimeLimit.truncated", False)) for i in indices], dtype=bool)
    return truncated, np.array([reward for reward, _ in monitored]), np.array([length for _, length in monitored])


def _monitored(info: dict[str, Any], env_index: int, row: int) -> tuple[float, int]:
    success, episode = info.get("is_success"), info.get("episode")
    if not isinstance(success, _NUMBERS):
        raise ValueError(
            f'info["is_success"] must be True, False or a number, got {success!r} {_place(env_index, row)}: '
            "mend the environment"
        )
    if episode is None:
        return np.nan, -1
    try:
        length = episode.get("l")
        return float(episode["r"]), -1 if length is None else int(length)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f'info["episode"] must be a dict with the return "r" and the length "l" of the episode, as of SB3\'s Monitor, got '
            f"{episode!r} {_place(env_index, row)}: mend the environment, or use another key"
        ) from None


def terminal_observation(info: dict[str, Any], env_index: int, row: int) -> Any:
    """
    :return: a copy of the observation behind an episode's last step: the environment may write into its own again
    :raises ValueError: if there is none
    """
    observation = info.get("terminal_observation")
    if observation is None:
        raise ValueError(
            'info["terminal_observation"] must be given where info["TimeLimit.truncated"] is True, got none '
            f'{_place(env_index, row)}: add it to the VecEnv, or use truncation="terminal"'
        )
    return map_arrays(np.array, observation)


def _place(env_index: int, row: int) -> str:
    return f"from environment {env_index} at step {row} of the rollout"
