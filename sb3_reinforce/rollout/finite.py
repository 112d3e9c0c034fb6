"""NaN and infinite numbers: found once per rollout, and named by environment and step."""

import math
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.observations import by_key


def check_finite(name: str, played: np.ndarray, first_row: int = 0, first_env: int = 0, where: str = "of the rollout") -> None:
    """
    :param played: shape [T, n_envs, ...]; its first row is step ``first_row``, its first column environment ``first_env``
    :raises ValueError: for a number that is NaN or infinite
    """
    # A sum is finite if all terms are: one pass without temporary memory.
    if not np.issubdtype(played.dtype, np.floating) or np.isfinite(played.sum(dtype=np.float64)):
        return
    bad = np.argwhere(~np.isfinite(played))
    if len(bad):
        step, env_index = int(bad[0][0]) + first_row, int(bad[0][1]) + first_env
        raise ValueError(
            f"{name} must be finite, got {played[tuple(bad[0])]} from environment {env_index} at step {step} {where}: "
            "mend the environment (SB3's VecCheckNan finds the line that makes it)"
        )


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
