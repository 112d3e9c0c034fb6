"""Atari games as one vector environment: scores, lives, autoreset modes, and the same games as SB3's wrappers play."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_reinforce import REINFORCE
from sb3_reinforce.vec_env import VectorEnvAdapter, make_atari_env, vectorize
from sb3_reinforce.vec_env.atari import AtariAdapter
from sb3_reinforce.vec_env.convert import vectorized


class Games(VectorEnv):
    """
    As AtariVectorEnv in SAME_STEP mode, without reward clipping: infos after the end are those of the next game.

    Game 0 scores 3 in each step and loses a life in every second, of three; game 1 has one life and lasts 4 steps.
    Observations are filled with the number of the step in the game.
    """

    def __init__(self) -> None:
        self.num_envs, self.metadata = 2, {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, 2)
        self.action_space = batch_space(self.single_action_space, 2)

    def _lives(self) -> np.ndarray:
        return np.array([3 - self.t[0] // 2, 0])

    def _observations(self) -> np.ndarray:
        return np.broadcast_to(self.t[:, None, None, None], (2, 1, 36, 36)).astype(np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = np.zeros(2, dtype=int)
        return self._observations(), {"lives": self._lives()}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.t += 1
        over = self.t >= [6, 4]
        final = {"final_obs": self._observations()} if over.any() else {}
        self.t[over] = 0
        return self._observations(), np.array([3, -2]), over, np.zeros(2, bool), {"lives": self._lives(), **final}


def play(env: VectorEnvAdapter, n_steps: int) -> list[tuple[list[float], list[bool], list[dict[str, Any]]]]:
    env.reset()
    steps = [env.step(np.zeros(env.num_envs, dtype=int)) for _ in range(n_steps)]
    return [(rewards.tolist(), dones.tolist(), list(infos)) for _, rewards, dones, infos in steps]


@pytest.mark.parametrize("lives", [False, True])
def test_scores_are_of_whole_games_and_not_clipped(lives: bool) -> None:
    steps = play(AtariAdapter(Games(), clip_reward=True, terminal_on_life_loss=lives), 6)
    assert all(rewards == [1.0, -1.0] for rewards, _, _ in steps)
    # Game 0 ends after 6 steps of 3, game 1 after 4 of -2
    scores = [(step, i, info["episode"]["r"], info["episode"]["l"])
              for step, (_, _, infos) in enumerate(steps) for i, info in enumerate(infos) if "episode" in info]  # fmt: skip
    assert scores == [(3, 1, -8.0, 4), (5, 0, 18.0, 6)]
    # Game 0 loses a life in its steps 2 and 4 (the third ends it)
    assert [step for step, (_, dones, _) in enumerate(steps) if dones[0]] == ([1, 3, 5] if lives else [5])
    assert [step for step, (_, dones, _) in enumerate(steps) if dones[1]] == [3]


def test_a_life_ends_where_the_next_begins() -> None:
    env = AtariAdapter(Games(), clip_reward=False, terminal_on_life_loss=True)
    env.reset()
    for step in (1, 2):
        obs, rewards, dones, infos = env.step(np.zeros(2, dtype=int))
        assert rewards.tolist() == [3.0, -2.0]
        assert obs[0].max() == step
    assert dones.tolist() == [True, False]
    assert infos[0]["terminal_observation"].min() == 2
    assert infos[0]["TimeLimit.truncated"] is False
    assert "terminal_observation" not in infos[1]


def test_training_logs_scores_of_whole_games() -> None:
    env = AtariAdapter(Games(), clip_reward=True, terminal_on_life_loss=True)
    model = REINFORCE("MlpPolicy", env, n_steps=6, seed=0, policy_kwargs={"net_arch": [2]}, device="cpu").learn(1)
    # Game 0: three lives of two steps. Game 1: 4 steps, and 4 more, as 6 steps are to be played
    assert sorted((span.env_index, span.end - span.start) for span in model.rollout.spans) == [(0, 2)] * 3 + [(1, 4)] * 2
    assert sorted(info["r"] for info in model.ep_info_buffer) == [-8.0, -8.0, 18.0]
    # Rewards are clipped: 2 steps of 1, undiscounted at the first, then 1
    returns = model.batch.episodes.returns[:2].tolist()
    assert returns == pytest.approx([1.99, 1.0])


# --- ale-py's own ---

ale_py = pytest.importorskip("ale_py")
gym.register_envs(ale_py)
SHORT = {"max_num_frames_per_episode": 24}  # 6 steps of 4 frames


def test_both_autoreset_modes_give_the_same_steps() -> None:
    env = VectorEnvAdapter(gym.make_vec("ALE/Skiing-v5", num_envs=2, reward_clipping=False, **SHORT))
    assert env.env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    ours = make_atari_env("ALE/Skiing-v5", 2, seed=1, wrapper_kwargs={"clip_reward": False}, env_kwargs=SHORT)
    env.seed(1)
    first = ours.reset()
    np.testing.assert_array_equal(env.reset(), first)
    env.seed(2**31 + 1)  # SB3 draws seeds of 32 bits, and AtariVectorEnv takes 31
    np.testing.assert_array_equal(env.reset(), first)
    rng = np.random.default_rng(0)
    for step in range(1, 14):
        actions = rng.integers(0, 3, size=2)
        obs, rewards, dones, infos = env.step(actions)
        expected = ours.step(actions)
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        assert dones.tolist() == expected[2].tolist() == [step % 6 == 0] * 2
        for info, other in zip(infos, expected[3], strict=True):
            assert info["TimeLimit.truncated"] is other["TimeLimit.truncated"] is (step % 6 == 0)
            assert ("episode" in info) == (step % 6 == 0)
            if step % 6 == 0:
                np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
                assert info["episode"]["l"] == other["episode"]["l"] == 6
                # In Skiing each frame costs points
                assert info["episode"]["r"] == other["episode"]["r"] < -6
    # A seed erases the past, as exact resuming needs it
    env.seed(1)
    np.testing.assert_array_equal(env.reset(), first)


def game(**kwargs: Any) -> gym.Env:
    return gym.make("SkiingNoFrameskip-v4", **{**SHORT, **kwargs})


def test_vectorize_plays_the_games_of_atari_wrapper(tmp_path: Path) -> None:
    """Without no-ops, whose number each draws in its own way, and in a game without FIRE."""
    make = partial(make_vec_env, game, seed=3, wrapper_class=partial(AtariWrapper, noop_max=0, clip_reward=False))
    theirs = VecFrameStack(make(), 4)
    ours = VecFrameStack(vectorize(make(monitor_dir=str(tmp_path))), 4)
    assert isinstance(ours.venv, AtariAdapter)
    np.testing.assert_array_equal(ours.reset(), theirs.reset().transpose(0, 3, 1, 2))
    for action in (0, 1, 2, 2, 1, 0, 0, 1):
        obs, rewards, dones, infos = ours.step(np.array([action]))
        expected = theirs.step(np.array([action]))
        np.testing.assert_array_equal(obs, expected[0].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        if dones[0]:
            score = infos[0]["episode"]["r"]
            assert score == expected[3][0]["episode"]["r"]
    ours.close()
    header, names, row = (tmp_path / "0.monitor.csv").read_text().splitlines()
    assert json.loads(header[1:])["env_id"] == "SkiingNoFrameskip-v4"
    assert (names, row.split(",")[:2]) == ("r,l,t", [str(score), "6"])


def test_only_the_first_environment_is_made() -> None:
    def never() -> gym.Env:
        raise AssertionError

    env = vectorized([lambda: AtariWrapper(Monitor(game()), clip_reward=False), never, never])
    assert (env.num_envs, env.clip_reward, env.terminal_on_life_loss) == (3, False, True)
    # It draws no pictures, so where these are wanted there are single games
    drawn = [lambda: AtariWrapper(Monitor(game(render_mode="rgb_array")))] * 2
    assert type(vectorized(drawn)) is DummyVecEnv
    with pytest.warns(UserWarning, match="vectorize leaves games with render_mode='rgb_array' as they are"):
        assert type(vectorize(DummyVecEnv(drawn))) is DummyVecEnv


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (game, "SkiingNoFrameskip-v4 as a vector environment has AtariWrapper's preprocessing inside"),
        (lambda: AtariWrapper(gym.make("ALE/Skiing-v5")), r"does so itself \(frameskip=4\): give env_kwargs {'frameskip': 1}"),
        (lambda: AtariWrapper(game(), action_repeat_probability=0.5), "{'repeat_action_probability': 0.5} instead"),
        (lambda: AtariWrapper(gym.wrappers.FlattenObservation(game())), "would lose the wrapper FlattenObservation"),
        (lambda: AtariWrapper(game(mode=0)), "env_kwargs must be some of game, .* for AtariVectorEnv, got mode"),
    ],
)
def test_what_a_vector_environment_cannot_do_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vectorized([make])


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs the id of an Atari game, such as 'ALE/Pong-v5', got 'CartPole-v1'"):
        make_atari_env("CartPole-v1")
    with pytest.raises(ValueError, match=r"wrapper_kwargs must be some of noop_max, frame_skip, .*, got lives"):
        make_atari_env("ALE/Skiing-v5", wrapper_kwargs={"lives": True})
    with pytest.raises(ValueError, match="steps all environments together, got batch_size=1 and num_envs=2"):
        VectorEnvAdapter(gym.make_vec("ALE/Skiing-v5", num_envs=2, batch_size=1))
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(DependencyNotInstalled, match=r'need ale-py: pip install "sb3-reinforce\[atari\]"'):
        make_atari_env("ALE/Skiing-v5")
