"""CartPole's own vector environment and EnvPool against single environments."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce.vec_env import VectorEnvAdapter
from tests.vector_envs import N_ENVS, cartpole


def test_cartpole_alone_equals_dummy_vec_env() -> None:
    # One environment and one generator each: the same starts, also of later episodes
    ours, theirs = cartpole(1), DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))])
    ours.seed(5)
    theirs.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    n_ended = 0
    for step in range(400):
        actions = rng.integers(0, 2, size=1)
        obs, rewards, dones, infos = ours.step(actions)
        expected = theirs.step(actions)
        np.testing.assert_allclose(obs, expected[0], rtol=1e-6, err_msg=f"step {step}")
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        if dones[0]:
            n_ended += 1
            assert infos[0]["episode"]["r"] == expected[3][0]["episode"]["r"]
            assert infos[0]["episode"]["l"] == expected[3][0]["episode"]["l"]
            np.testing.assert_allclose(infos[0]["terminal_observation"], expected[3][0]["terminal_observation"], rtol=1e-6)
    assert n_ended > 10


def test_cartpole_512_follows_single_cartpoles() -> None:
    # One generator for all draws other starts than single environments do, so these copy each start
    n_envs = 512
    ours = cartpole(n_envs)
    ours.seed(0)
    ours.reset()
    singles = [gym.make("CartPole-v1").unwrapped for _ in range(n_envs)]
    for i, single in enumerate(singles):
        single.reset(seed=0)
        single.state = ours.env.state[:, i].copy()
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    steps_of = np.zeros(n_envs, dtype=int)
    for _ in range(60):
        actions = rng.integers(0, 2, size=n_envs)
        obs, rewards, dones, infos = ours.step(actions)
        steps_of += 1
        np.testing.assert_array_equal(rewards, np.ones(n_envs))
        for i, single in enumerate(singles):
            expected, _, terminated, _, _ = single.step(int(actions[i]))
            assert dones[i] == terminated
            np.testing.assert_allclose(infos[i]["terminal_observation"] if dones[i] else obs[i], expected, rtol=1e-5)
            if terminated:
                assert infos[i]["episode"]["r"] == infos[i]["episode"]["l"] == steps_of[i]
                lengths.append(int(steps_of[i]))
                steps_of[i] = 0
                assert np.all(np.abs(obs[i]) <= 0.05)
                single.reset()
                single.state = ours.env.state[:, i].copy()
            else:
                assert infos[i] == {"TimeLimit.truncated": False}
    # A random policy balances for some 22 steps; few reach 60
    assert len(lengths) > 900
    assert 18 < np.mean(lengths) < 25
    # All starts differ
    assert len(np.unique(ours.reset()[:, 0])) == n_envs


def test_cartpole_time_limit_is_truncation() -> None:
    ours = cartpole(4, max_episode_steps=5)
    ours.reset()
    for step in range(10):
        dones, infos = ours.step(np.array([0, 1, 0, 1]))[2:]
        assert dones.all() == ((step + 1) % 5 == 0)
    assert [info["episode"]["l"] for info in infos] == [5] * 4
    assert all(info["TimeLimit.truncated"] for info in infos)


def test_cartpole_attributes_and_pictures() -> None:
    ours = cartpole(3, render_mode="rgb_array")
    ours.reset()
    assert ours.get_attr("length") == [0.5] * 3
    ours.set_attr("length", 0.7)
    assert ours.env.length == 0.7
    assert not ours.has_attr("no_such_thing")
    assert [image.shape for image in ours.get_images()] == [(400, 600, 3)] * 3
    assert len(ours.env_method("render")) == 3
    with pytest.raises(ValueError, match=r"set_attr\('length'\) with indices=\[1\] needs single environments"):
        ours.set_attr("length", 0.7, indices=1)
    with pytest.raises(ValueError, match=r"env_method\('render'\) with indices=\[0\] needs single environments"):
        ours.env_method("render", indices=[0])
    assert ours.spec.id == "CartPole-v1"
    ours.close()


def test_envpool_equals_its_own_steps() -> None:
    envpool = pytest.importorskip("envpool")
    kwargs = {"env_type": "gymnasium", "num_envs": N_ENVS, "seed": 4, "num_threads": 1, "max_episode_steps": 25}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, raw = VectorEnvAdapter(envpool.make("CartPole-v1", **kwargs)), envpool.make("CartPole-v1", **kwargs)
    # Environment i plays action (k // 4) % 2 in its transition k, in both; each has its own generator for its starts
    n_steps = 150
    ours_steps: list[list[Any]] = [[] for _ in range(N_ENVS)]
    raw_steps: list[list[Any]] = [[] for _ in range(N_ENVS)]
    first = ours.reset()
    obs, _ = raw.reset()
    np.testing.assert_array_equal(first, obs)
    kept = []
    for k in range(n_steps):
        obs, rewards, dones, infos = ours.step(np.full(N_ENVS, (k // 4) % 2))
        kept.append((obs, obs.copy()))
        for i in range(N_ENVS):
            last = infos[i]["terminal_observation"] if dones[i] else obs[i]
            ours_steps[i].append((*last, rewards[i], dones[i], infos[i]["TimeLimit.truncated"], infos[i]["elapsed_step"]))
    over = np.zeros(N_ENVS, dtype=bool)
    for _ in range(2 * n_steps):
        actions = np.array([(len(steps) // 4) % 2 for steps in raw_steps], dtype=np.int32)
        obs, rewards, terminations, truncations, infos = raw.step(actions)
        for i in np.flatnonzero(~over):
            dones = terminations | truncations
            raw_steps[i].append(
                (*obs[i], rewards[i], dones[i], truncations[i] and not terminations[i], infos["elapsed_step"][i])
            )
        over = terminations | truncations
    for i in range(N_ENVS):
        np.testing.assert_array_equal(ours_steps[i], raw_steps[i][:n_steps], err_msg=f"environment {i}")
        assert sum(step[5] for step in ours_steps[i]) > 5
    assert all(np.array_equal(obs, at_the_time) for obs, at_the_time in kept)
    assert ours.spec is None
    ours.close()
