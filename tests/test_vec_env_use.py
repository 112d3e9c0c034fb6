"""VectorEnvAdapter as SB3 and RL Zoo use it: algorithms, wrappers, attributes, pictures, files."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.vec_env import VectorEnvAdapter, vectorize
from tests.envs import RewardListEnv
from tests.vector_envs import N_ENVS, assert_same_run, cartpole, env_fns, reference


@pytest.mark.parametrize("algorithm", [A2C, PPO])
@pytest.mark.parametrize("wrapper", [lambda env: env, VecNormalize, VecMonitor, partial(VecFrameStack, n_stack=2)])
@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_sb3_algorithms_and_wrappers(algorithm: Any, wrapper: Any) -> None:
    kwargs = {"n_steps": 16, "seed": 0, "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    if algorithm is PPO:
        kwargs.update(batch_size=32, n_epochs=1)
    env = wrapper(cartpole(8, max_episode_steps=12))
    model = algorithm("MlpPolicy", env, **kwargs).learn(512)
    assert model.num_timesteps == 512
    # An episode ends at least every 12 steps
    assert len(model.ep_info_buffer) >= 32
    assert max(info["l"] for info in model.ep_info_buffer) <= 12
    assert all(info["r"] == info["l"] for info in model.ep_info_buffer)


def test_wrappers_see_what_dummy_vec_env_gives() -> None:
    ours = VecFrameStack(VecNormalize(VectorEnvAdapter(SyncVectorEnv(env_fns()))), n_stack=2)
    theirs = VecFrameStack(VecNormalize(reference()), n_stack=2)
    assert assert_same_run(ours, theirs) > 20


def test_a2c_learns_the_same_as_with_dummy_vec_env() -> None:
    parameters = []
    for env in (VectorEnvAdapter(SyncVectorEnv(env_fns())), reference()):
        model = A2C("MlpPolicy", env, n_steps=8, seed=1, policy_kwargs={"net_arch": [4]}, device="cpu").learn(240)
        parameters.append(model.policy.state_dict())
    for name, value in parameters[0].items():
        np.testing.assert_array_equal(value, parameters[1][name], err_msg=name)


def test_reinforce_learns_the_same_as_with_dummy_vec_env() -> None:
    parameters = []
    for env in (VectorEnvAdapter(SyncVectorEnv(env_fns())), reference()):
        model = REINFORCE("MlpPolicy", env, n_steps=8, seed=1, policy_kwargs={"net_arch": [4]}, device="cpu").learn(240)
        parameters.append(model.policy.state_dict())
    for name, value in parameters[0].items():
        np.testing.assert_array_equal(value, parameters[1][name], err_msg=name)


def test_evaluate_policy() -> None:
    env = cartpole(4, max_episode_steps=7)
    model = A2C("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [4]}, device="cpu")
    with warnings.catch_warnings():
        # evaluate_policy would warn of an environment without a Monitor
        warnings.simplefilter("error")
        returns, lengths = evaluate_policy(model, env, n_eval_episodes=8, return_episode_rewards=True)
    # 7 steps are too few to fall
    assert returns == [7.0] * 8
    assert lengths == [7] * 8


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_attributes_and_methods(kind: Any) -> None:
    ours = VectorEnvAdapter(kind(env_fns(wrap=lambda env: gym.wrappers.TimeLimit(env, 50), render_mode="rgb_array")))
    ours.reset()
    assert ours.render_mode == "rgb_array"
    assert ours.metadata["render_fps"] == 7
    assert "rgb_array" in ours.metadata["render_modes"]
    assert ours.get_attr("index") == [0, 1, 2]
    assert ours.get_attr("index", indices=[-1, 0]) == [2, 0]
    ours.set_attr("difficulty", [1, 2])
    assert ours.get_attr("difficulty") == [[1, 2]] * 3
    ours.set_attr("difficulty", 5, indices=1)
    assert ours.get_attr("difficulty") == [[1, 2], 5, [1, 2]]
    assert ours.env_method("greet", "hello") == ["hello from 0", "hello from 1", "hello from 2"]
    assert ours.env_method("greet", word="bye", indices=[2]) == ["bye from 2"]
    with pytest.raises(ValueError, match=r"indices must be of the 3 environments, got \[3\]"):
        ours.get_attr("index", indices=3)
    # Asking for a missing attribute ends no worker
    assert not ours.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        ours.env_method("no_such_thing")
    assert ours.env_is_wrapped(Monitor) == [True] * 3
    assert ours.get_attr("allow_early_resets") == [True] * 3
    assert ours.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3
    assert ours.env_is_wrapped(gym.wrappers.ClipAction, indices=1) == [False]
    assert [int(image[0, 0, 0]) for image in ours.get_images()] == [0, 1, 2]
    assert ours.render().shape == (8, 8, 3)
    ours.step(np.zeros(N_ENVS, dtype=int))
    ours.close()
    ours.close()
    assert ours.env.closed


def test_no_pictures_without_render_mode() -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns()))
    with pytest.warns(UserWarning, match="images need render_mode='rgb_array', got None"):
        assert ours.get_images() == [None] * 3


def test_monitor_file(tmp_path: Path) -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(lengths=(2, 3))), monitor_file=str(tmp_path / "log"))
    ours.seed(0)
    ours.reset()
    episodes = []
    for _ in range(10):
        episodes += [info["episode"] for info in ours.step(np.zeros(N_ENVS, dtype=int))[3] if "episode" in info]
    ours.close()
    lines = (tmp_path / "log.monitor.csv").read_text().splitlines()
    assert json.loads(lines[0][1:])["env_id"] == "None"
    assert lines[1] == "r,l,t"
    # 10 steps are 2 times the lengths 3 and 2, in 3 environments
    assert [line.split(",")[:2] for line in lines[2:]] == [[str(e["r"]), str(e["l"])] for e in episodes]
    assert [e["l"] for e in episodes] == [3] * 3 + [2] * 3 + [3] * 3 + [2] * 3
    with pytest.raises(ValueError, match="monitor_file='x' is for environments without a Monitor"):
        VectorEnvAdapter(SyncVectorEnv(env_fns(wrap=Monitor)), monitor_file="x")


def test_vectorize_as_rl_zoo_calls_it(tmp_path: Path) -> None:
    utils = pytest.importorskip("rl_zoo3.utils")
    wrap = utils.get_wrapper_class({"vec_env_wrapper": "sb3_reinforce.vec_env.vectorize"}, "vec_env_wrapper")
    env = wrap(make_vec_env("CartPole-v1", n_envs=4, seed=3, monitor_dir=str(tmp_path)))
    assert type(env.env) is CartPoleVectorEnv
    assert env.num_envs == 4
    # The zoo's seed and the environments' time limit are kept
    same = cartpole(4)
    same.seed(3)
    np.testing.assert_array_equal(env.reset(), same.reset())
    assert env.env.max_episode_steps == 500
    PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, device="cpu", policy_kwargs={"net_arch": [4]}).learn(512)
    env.close()
    results = load_results(str(tmp_path))
    assert len(results) > 5
    assert (results["r"] == results["l"]).all()


def test_vectorize_leaves_processes_as_they_are() -> None:
    processes = object.__new__(SubprocVecEnv)
    processes.num_envs = 2
    with pytest.warns(UserWarning, match="leaves the 2 processes of SubprocVecEnv as they are"):
        assert vectorize(processes) is processes


def test_vectorize_goes_on_in_the_monitor_file(tmp_path: Path) -> None:
    """As ``train --resume`` opens it."""
    for kwargs in ({}, {"override_existing": False}):
        env = vectorize(make_vec_env("CartPole-v1", n_envs=2, seed=0, monitor_dir=str(tmp_path), monitor_kwargs=kwargs))
        env.reset()
        for _ in range(40):
            env.step(np.zeros(2, dtype=int))
        env.close()
    header, names, *rows = (tmp_path / "0.monitor.csv").read_text().splitlines()
    assert header.startswith("#{")
    assert names == "r,l,t"
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert len(first) > 4
    # The same seed, the same actions; time goes on
    assert [row.split(",")[:2] for row in first] == [row.split(",")[:2] for row in second]
    assert float(first[-1].split(",")[2]) < float(second[0].split(",")[2])


def test_vectorize_keeps_arguments() -> None:
    old = make_vec_env("CartPole-v1", n_envs=2, env_kwargs={"render_mode": "rgb_array", "sutton_barto_reward": True})
    env = vectorize(old, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "SameStep"})
    assert env.render_mode == "rgb_array"
    assert env.env.envs[0].unwrapped._sutton_barto_reward
    assert env.env.autoreset_mode is AutoresetMode.SAME_STEP
    env.close()
    env = vectorize(make_vec_env("CartPole-v1", n_envs=2, env_kwargs={"max_episode_steps": 20}))
    assert env.env.max_episode_steps == 20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cartpole(2), "needs a DummyVecEnv around single environments, got VectorEnvAdapter"),
        (lambda: make_vec_env("CartPole-v1", wrapper_class=gym.wrappers.FlattenObservation), "lose the wrapper Flatten"),
        (lambda: make_vec_env("CartPole-v1", monitor_kwargs={"info_keywords": ("a",)}), r"lose Monitor's info_keywords=\('a'"),
        (reference, "made by gymnasium.make, got .*CountingEnv.* without a specification"),
    ],
)
def test_vectorize_loses_nothing_silently(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vectorize(make())


class EndsAll(VecEnvWrapper):
    """Ends the episodes of all environments every third step, without a word in the infos."""

    def reset(self):
        self.n_steps = 0
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        self.n_steps += 1
        return observations, rewards, dones | (self.n_steps % 3 == 0), infos


@pytest.mark.parametrize("wrapper", [lambda env: env, EndsAll])
def test_returns_and_infos_of_many_episodes(wrapper):
    """Environments 0 and 1 end after 2 and 4 steps: returns 2 and 4; of eight episodes the last three are in the window."""
    envs = SyncVectorEnv([lambda: RewardListEnv([1.0] * 2), lambda: RewardListEnv([1.0] * 4)])
    model = REINFORCE("MlpPolicy", wrapper(VectorEnvAdapter(envs)), n_steps=9, seed=0, stats_window_size=3).learn(1)
    totals = [(span.env_index, span.end, span.total_reward) for span in model.rollout.spans]
    if wrapper is EndsAll:
        # In step 6 the episode of environment 0 has ended inside, too; that of environment 1 has no return there.
        assert {(0, 6, 2.0), (1, 6, None)} <= set(totals)
        return
    assert totals == [*((0, end, 2.0) for end in (2, 4, 6, 8, 10)), *((1, end, 4.0) for end in (4, 8, 12))]
    assert [info["r"] for info in model.ep_info_buffer] == [4.0, 2.0, 4.0]
