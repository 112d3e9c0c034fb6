"""Running statistics of VecNormalize: read, replaced, frozen, and merged over ranks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.running import normalization


def moments_of(*samples: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    values = np.concatenate(samples)
    return len(values), values.mean(axis=0), values.var(axis=0)


def test_merged_statistics():
    # start: 0, 2 (mean 1, variance 1); rank 0 adds 4, rank 1 adds 6 and 8: all are 0, 2, 4, 6, 8
    start, own, others = np.array([0.0, 2.0]), np.array([4.0]), np.array([6.0, 8.0])
    count, mean, variance = normalization.merged_statistics(
        moments_of(start), [moments_of(start, own), moments_of(start, others)]
    )
    assert count == 5
    np.testing.assert_allclose([mean, variance], [4.0, 8.0], rtol=1e-12)


def test_merged_statistics_far_from_zero():
    """Many values near 10^6: sums of squares about 0 would lose the variance."""
    rng = np.random.default_rng(0)
    start, *parts = (1e6 + rng.normal(size=(n, 3)) for n in (100_000, 50, 70, 20))
    count, mean, variance = normalization.merged_statistics(moments_of(start), [moments_of(start, part) for part in parts])
    expected = moments_of(start, *parts)
    assert count == expected[0]
    np.testing.assert_allclose(mean, expected[1], rtol=1e-15)
    np.testing.assert_allclose(variance, expected[2], rtol=1e-7)


def test_frozen_statistics_stay_equal_to_the_bit():
    start = (0.1 + 0.2, np.array([0.1]), np.array([0.7]))
    assert normalization.merged_statistics(start, [start, start, start]) is start


def test_merged_statistics_are_those_of_sb3():
    """They begin with SB3's count of 1e-4 and end as in one process that sees the parts one after the other."""
    parts = [np.array([[1.0], [2.0]]), np.array([[5.0]])]
    one, ranks = RunningMeanStd(shape=(1,)), [RunningMeanStd(shape=(1,)) for _ in parts]
    start = (one.count, one.mean, one.var)
    for rms, part in zip(ranks, parts, strict=True):
        one.update(part)
        rms.update(part)
    count, mean, variance = normalization.merged_statistics(start, [(rms.count, rms.mean, rms.var) for rms in ranks])
    np.testing.assert_allclose(count, one.count)
    np.testing.assert_allclose([mean, variance], [one.mean, one.var], rtol=1e-9)


def test_statistics_of_dict_observations():
    pixels, returns = RunningMeanStd(shape=(2,)), RunningMeanStd()
    env: Any = SimpleNamespace(obs_rms={"pixels": pixels}, ret_rms=returns)
    statistics = normalization.statistics_of(env)
    assert list(statistics) == ["returns", "observations/pixels"]
    normalization.set_statistics(env, statistics | {"observations/pixels": (7.0, np.ones(2), np.full(2, 3.0))})
    assert (pixels.count, pixels.mean.tolist(), pixels.var.tolist()) == (7.0, [1.0, 1.0], [3.0, 3.0])
    assert list(normalization.statistics_of(SimpleNamespace(ret_rms=returns))) == ["returns"]  # type: ignore[arg-type]
    assert normalization.statistics_of(None) == {}


def test_freeze_normalization_after():
    """Rollouts that begin later, and their resets, leave the statistics alone; ``VecNormalize.training`` stays True."""
    env, other = (VecNormalize(make_vec_env("Pendulum-v1", 2, env_kwargs={"max_episode_steps": 10})) for _ in range(2))
    model = REINFORCE("MlpPolicy", env, n_steps=10, freeze_normalization_after=30, seed=0, device="cpu")
    # Rollouts of 20 steps: those that begin at steps 0 and 20 count, with the two observations of each reset.
    model.learn(40)
    assert env.obs_rms.count == pytest.approx(2 * (2 + 20) + 1e-4)
    before = [value.copy() for value in (env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var)]
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 80
    assert env.obs_rms.count == pytest.approx(2 * (2 + 20) + 1e-4)
    for then, now in zip(before, (env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var), strict=True):
        np.testing.assert_array_equal(then, now)
    assert env.training
    # a new environment is reset before its first rollout
    model.set_env(other)
    model.learn(20, reset_num_timesteps=False)
    assert other.obs_rms.count == pytest.approx(1e-4)
    # learn() counts from 0 again
    model.learn(20)
    assert other.obs_rms.count > 20
