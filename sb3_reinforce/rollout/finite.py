"""Numbers that no policy can take: found once per rollout, and named by environment and step."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.observations import by_key

LARGEST = np.finfo(np.float32).max


def check_finite(name: str, played: np.ndarray, first_row: int = 0, first_env: int = 0, where: str = "of the rollout") -> None:
    """
    :param played: shape [T, n_envs, ...]; its first row is step ``first_row``, its first column environment ``first_env``
    :raises ValueError: for a number that is NaN or infinite, or becomes so in float32, which policies compute in
    """
    if not np.issubdtype(played.dtype, np.floating) or _all_finite(played):
        return
    bad = np.argwhere(~(np.abs(played) <= LARGEST))
    if len(bad):
        number = played[tuple(bad[0])]
        rule = "must fit into float32" if np.isfinite(number) else "must be finite"
        raise ValueError(
            f"{name} {rule}, got {number} {_place(bad[0], first_row, first_env)} {where}: "
            "mend the environment (SB3's VecCheckNan finds the line that makes it)"
        )


def _all_finite(played: np.ndarray) -> bool:
    if played.dtype.itemsize > LARGEST.itemsize:
        return bool(np.all(np.abs(played) <= LARGEST))
    # A sum is finite if all terms are: one pass without temporary memory.
    return bool(np.isfinite(played.sum(dtype=np.float64)))


def check_counts(name: str, played: np.ndarray, space: spaces.Space, first_row: int = 0) -> None:
    """As :func:`check_finite`, for a number that a Discrete or MultiDiscrete space does not have."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return
    n = space.n if isinstance(space, spaces.Discrete) else space.nvec
    bad = np.argwhere((played < 0) | (played >= n))
    if len(bad):
        raise ValueError(
            f"{name} must be in {space}, got {played[tuple(bad[0])]} {_place(bad[0], first_row)} of the rollout: "
            "mend the environment or its observation_space"
        )


def _place(index: np.ndarray, first_row: int, first_env: int = 0) -> str:
    return f"from environment {int(index[1]) + first_env} at step {int(index[0]) + first_row}"


def check_observations(name: str, observations: Any, first_row: int = 0, first_env: int = 0) -> None:
    """:raises ValueError: as :func:`check_finite`, for one array or a dict of arrays; the message adds the key"""
    for key, array in by_key(observations).items():
        check_finite(name if key is None else f"{name} {key!r}", array, first_row, first_env)


def check_before_normalization(env: VecNormalize, observations: Any, rewards: np.ndarray, n_steps: int) -> None:
    """
    Find the environment that a NaN comes from in this very step: VecNormalize's statistics spread it to all environments.

    :param env: the outermost VecNormalize, which has just returned these observations and rewards
    :param n_steps: steps played in this rollout, including this one
    :raises ValueError: for a number that was NaN or infinite before it was normalised
    """
    sums = [rewards.sum()]
    sums += [array.sum() for array in by_key(observations).values() if array.dtype.kind == "f"]
    if all(map(math.isfinite, sums)):
        return
    check_finite("reward", env.get_original_reward()[None], n_steps - 1)
    original = {key: array[None] for key, array in by_key(env.get_original_obs()).items()}
    check_observations("observation", original, n_steps)
