"""All that touches ``VecNormalize``: finding it, holding its statistics still, and merging those of several ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

# Settings of VecNormalize: the same statistics give the same numbers only if these are the same, too.
VEC_NORMALIZE_SETTINGS = (
    "training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys",
)  # fmt: skip

Statistics = tuple[float, np.ndarray, np.ndarray]
"""Count, mean and variance of one running statistic."""


def wrappers(env: VecEnv | None) -> Iterator[VecEnvWrapper]:
    """:return: the wrappers around a vectorised environment, the outermost first"""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def normalizing(env: VecEnv | None) -> list[VecNormalize]:
    """
    :return: the VecNormalize among the wrappers. Only their statistics outlive a rollout: the rest (discounted returns,
        last observations) is renewed by the reset that the next one begins with.
    """
    return [wrapper for wrapper in wrappers(env) if isinstance(wrapper, VecNormalize)]


@contextmanager
def frozen_statistics(env: VecEnv | None) -> Iterator[None]:
    """Inside, no ``VecNormalize`` around the environments changes its statistics."""
    frozen = [wrapper for wrapper in normalizing(env) if wrapper.training]
    for wrapper in frozen:
        wrapper.training = False
    try:
        yield
    finally:
        for wrapper in frozen:
            wrapper.training = True


def statistics_of(env: VecNormalize | None) -> dict[str, Statistics]:
    """:return: the running statistics by name; none without an environment"""
    return {name: (rms.count, rms.mean, rms.var) for name, rms in _running(env).items()}


def set_statistics(env: VecNormalize | None, statistics: dict[str, Statistics]) -> None:
    """Replace the running statistics by what :func:`statistics_of` has returned."""
    for name, rms in _running(env).items():
        rms.count, rms.mean, rms.var = statistics[name]


def _running(env: VecNormalize | None) -> dict[str, RunningMeanStd]:
    if env is None:
        return {}
    observations = getattr(env, "obs_rms", None)  # not there with norm_obs=False
    if not isinstance(observations, dict):
        observations = {} if observations is None else {"": observations}
    return {"returns": env.ret_rms} | {f"observations/{key}": rms for key, rms in observations.items()}


def merged_statistics(before: Statistics, parts: Sequence[Statistics]) -> Statistics:
    """
    Merge running statistics that several ranks have updated from a common start.

    A rank's contribution is what its statistics have beyond the start, in terms of counts, sums and sums of squares
    about the mean of the start. Source: Chan, Golub and LeVeque (1983).

    :param parts: what each rank has now, including the start
    """
    count, mean, variance = before
    if all(part[0] == count for part in parts):
        return before  # frozen: not even rounded
    n, total, squares = count, np.zeros_like(mean), count * variance
    for part_count, part_mean, part_variance in parts:
        shift = part_mean - mean
        n = n + part_count - count
        total = total + part_count * shift
        squares = squares + part_count * (part_variance + shift**2) - count * variance
    shift = total / n
    return n, mean + shift, np.maximum(squares / n - shift**2, 0.0)
