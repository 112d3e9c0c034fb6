"""Stacked frames are stored once, and what is built from them is what was seen."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_reinforce import REINFORCE, Baseline, GradientDiagnostics
from sb3_reinforce.rollout.frames import FrameBuffer, RecordedFrames, StackedFrames, frame_channels
from sb3_reinforce.rollout.recording import FIRST_ROWS

SIZE = 36  # the smallest that NatureCNN takes


class CountingFrames(gym.Env):
    """Frame t of episode e is random, seeded by both; an episode has ``lengths[e]`` steps. Channels come last."""

    def __init__(self, lengths: list[int], n_channels: int = 1):
        self.lengths, self.episode, self.t = lengths, -1, 0
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, n_channels), np.uint8)
        self.action_space = spaces.Discrete(3)

    def _frame(self):
        rng = np.random.default_rng([self.episode, self.t])
        return rng.integers(0, 256, self.observation_space.shape, dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = (self.episode + 1) % len(self.lengths), 0
        return self._frame(), {}

    def step(self, action):
        self.t += 1
        return self._frame(), float(action), self.t == self.lengths[self.episode], False, {}


class Seen(BaseCallback):
    """Keeps a copy of each step's observations, and of those of each rollout's episodes, laid end to end."""

    def _on_training_start(self):
        self.rollouts = []

    def _on_rollout_start(self):
        self.steps = []

    def _on_step(self):
        self.steps.append(self.model._last_obs.copy())  # those that the actions were drawn for
        return True

    def _on_rollout_end(self):
        spans = self.model.rollout.spans
        kept = np.array([self.steps[t][span.env_index] for span in spans for t in range(span.start, span.end)])
        self.rollouts.append((self.model.rollout_buffer.frames, kept, len(spans)))


def stacked_env(n_stack: int = 4, n_channels: int = 1) -> VecFrameStack:
    def make(lengths):
        return lambda: CountingFrames(lengths, n_channels)

    return VecFrameStack(DummyVecEnv([make([45, 30]), make([2, 70, 1, 40])]), n_stack)


def made(env, **kwargs) -> REINFORCE:
    own = dict(n_steps=80, baseline="none", seed=0, device="cpu", policy_kwargs=dict(features_extractor_kwargs={"features_dim": 8}))
    return REINFORCE("CnnPolicy", env, **{**own, **kwargs})


def without_frames(monkeypatch) -> None:
    monkeypatch.setattr("sb3_reinforce.rollout.recording.frame_channels", lambda played: None)


@pytest.mark.parametrize("n_stack, n_channels", [(4, 1), (3, 3), (2, 2)])
def test_all_observations_come_back(n_stack, n_channels):
    """Of two environments, with episodes of one step, shorter and longer than the stack, ended and cut short."""
    model, seen = made(stacked_env(n_stack, n_channels)), Seen()
    model.learn(300, callback=seen)
    assert len(seen.rollouts) == 2  # the first finds out that frames are stacked, the second begins with it
    for frames, kept, n_episodes in seen.rollouts:
        assert len(frames.frames) == len(kept) + (n_stack - 1) * n_episodes  # one frame per step, the older ones of each reset
        np.testing.assert_array_equal(frames[:], kept)
    buffer = model.rollout_buffer
    assert "observations" not in vars(buffer)  # nobody has asked for them
    np.testing.assert_array_equal(buffer.observations, kept)
