"""What the infos of an ended episode say, read once and checked."""

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped, unwrap_vec_normalize

from sb3_reinforce.observations import map_arrays
from sb3_reinforce.running.env_queries import monitored_envs

# What SB3 takes the mean of
_NUMBERS = (Real, np.bool_, np.ndarray, type(None))


def returns_are_sums(env: VecEnv) -> bool:
    """Whether an episode's return is the sum of its rewards: no Monitor counts whole games, no VecNormalize scales rewards."""
    normalize = unwrap_vec_normalize(env)
    scaled = normalize is not None and normalize.norm_reward
    return not (scaled or is_vecenv_wrapped(env, VecMonitor) or monitored_envs(env))


def logged(info: dict[str, Any]) -> dict[str, Any]:
    """:return: what SB3 logs of the info of an episode's last step"""
    return {key: info[key] for key in ("episode", "is_success") if key in info}


class Monitored(NamedTuple):
    """Undiscounted return and number of steps of an episode, as a Monitor counted them."""

    total_reward: float
    length: int | None


def monitored(info: dict[str, Any], env_index: int, row: int) -> Monitored | None:
    """
    :param info: of the last step of an episode, played by environment ``env_index``, after ``row`` steps of the rollout
    :return: None if no Monitor has ended an episode here: there is none, or this was one life of several
    :raises ValueError: for an ``info["episode"]`` or ``info["is_success"]`` that SB3 cannot log
    """
    success, episode = info.get("is_success"), info.get("episode")
    if not isinstance(success, _NUMBERS):
        raise ValueError(
            f'info["is_success"] must be True, False or a number, got {success!r} {_place(env_index, row)}: '
            "mend the environment"
        )
    if episode is None:
        return None
    try:
        length = episode.get("l")
        return Monitored(float(episode["r"]), None if length is None else int(length))
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
