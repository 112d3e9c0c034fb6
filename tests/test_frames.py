"""Stacked frames are stored once, and what is built from them is what was seen."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_reinforce import REINFORCE, Baseline, GradientDiagnostics
from sb3_reinforce.rollout.frames import FrameBuffer, RecordedFrames, frame_channels
from sb3_reinforce.rollout.recording import FIRST_ROWS
from tests.envs import parameters

LSTM = dict(lstm_hidden_size=4)
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
    own = dict(
        n_steps=80, baseline="none", seed=0, device="cpu", policy_kwargs=dict(features_extractor_class=FlattenExtractor)
    )
    return REINFORCE(kwargs.pop("policy", "CnnPolicy"), env, **{**own, **kwargs})


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


@pytest.mark.parametrize(
    "arguments",
    [
        dict(),
        dict(baseline="value", n_epochs=2, batch_size=64),
        dict(baseline="optimal"),
        dict(chunk_size=50),
        dict(policy="CnnLstmPolicy", baseline="value", policy_kwargs=dict(features_extractor_class=FlattenExtractor, **LSTM)),
    ],
    ids=["one step", "minibatches", "scores", "chunks", "memory"],
)
def test_training_is_the_same_to_the_bit(arguments, monkeypatch):
    def learned(buffer_class: type) -> th.Tensor:
        model = made(stacked_env(), **arguments.copy())
        model.learn(300, callback=GradientDiagnostics(1))
        assert type(model.rollout_buffer) is buffer_class
        return parameters(model)

    new = learned(FrameBuffer)
    monkeypatch.setattr("sb3_reinforce.rollout.recording.frame_channels", lambda played: None)
    assert th.equal(new, learned(RolloutBuffer))


def test_any_break_is_stored_whole():
    """Three environments; a break of the order at random, also twice in a row, and one of a constant screen."""
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (200, 3, 4, 5), dtype=np.uint8)
    film[:, 2] = 7
    at = np.cumsum(1 + (rng.random((150, 3)) < 0.1), axis=0).clip(0, 190)  # a jump of 2 leaves a frame out
    played = np.array([[film[at[t, i] : at[t, i] + 4, i] for i in range(3)] for t in range(150)])
    played[80, 2, 1] = 9  # a single frame that was never seen, and is gone in the next step
    assert frame_channels(played) == 1
    recorded = RecordedFrames(played[:100], 1, 100).doubled()
    reused = np.empty_like(played[0])  # by an environment that writes into one array
    for row in range(100, 150):
        reused[:] = played[row]
        recorded[row] = reused
    n_rows = np.array([150, 90, 81])
    packed = recorded.pack(n_rows)
    np.testing.assert_array_equal(packed[:], np.concatenate([played[:n, i] for i, n in enumerate(n_rows)]))
    np.testing.assert_array_equal(packed[th.tensor([3, 1, 3])], played[[3, 1, 3], 0])
    cpu = th.device("cpu")
    for rows in (slice(0, 321), slice(7, 8), slice(140, 200), np.array([320, 0, 150])):
        np.testing.assert_array_equal(packed.on(cpu, rows), packed[rows])
    np.testing.assert_array_equal(recorded[0], played[0])
    np.testing.assert_array_equal(recorded[81, 2], played[81, 2])
    jumps = [(np.diff(at[:n, i]) > 1).sum() for i, n in enumerate(n_rows)]
    # a constant screen has no break but the first row and the strange frame's; one frame per row, three more at each break
    n_breaks = 1 + jumps[0] + 1 + jumps[1] + 2
    assert len(packed.frames) == n_rows.sum() + 3 * n_breaks


@pytest.mark.parametrize(
    "played",
    [
        np.random.default_rng(0).integers(0, 256, (20, 2, 4, 5, 5), dtype=np.uint8),  # no stack
        np.zeros((20, 2, 1, 5, 5), np.uint8),  # one channel
        np.zeros((20, 2, 4, 5, 5), np.float32),  # as VecNormalize makes them
        np.zeros((20, 2, 4), np.uint8),  # no image
    ],
)
def test_what_is_no_stack_is_stored_as_before(played):
    assert frame_channels(played) is None


def test_rollout_buffer_is_sb3s():
    """``get``, ``observations`` before and behind it, writing into them, and a user's class."""
    model, seen = made(stacked_env()), Seen()
    model.learn(100, callback=seen)
    buffer, (_, kept, _) = model.rollout_buffer, seen.rollouts[-1]
    assert isinstance(buffer, RolloutBuffer)
    np.random.seed(3)
    samples = list(buffer.get(40))
    order = np.random.RandomState(3).permutation(len(kept))
    np.testing.assert_array_equal(np.concatenate([part.observations for part in samples]), kept[order])
    np.testing.assert_array_equal(np.concatenate([part.actions for part in samples]), buffer.actions[order])
    assert "observations" not in vars(buffer)
    np.testing.assert_array_equal(buffer.observations, kept)
    buffer.observations[:] = 1
    assert all((part.observations == 1).all() for part in buffer.get(40))
    buffer.reset()
    assert not buffer.observations.any()
    assert "frames" not in vars(buffer)


def test_own_buffer_class_and_own_baseline_get_arrays():
    class OwnBuffer(RolloutBuffer):
        pass

    class Brightness(Baseline):
        def predict(self, episodes):
            assert isinstance(episodes.observations, th.Tensor)
            return episodes.observations.double().flatten(1).mean(1)

    model, seen = made(stacked_env(), rollout_buffer_class=OwnBuffer, baseline=Brightness()), Seen()
    seen._on_rollout_end = lambda: None
    model.learn(100, callback=seen)
    assert type(model.rollout_buffer) is OwnBuffer
    kept = np.array([seen.steps[t][span.env_index] for span in model.rollout.spans for t in range(span.start, span.end)])
    np.testing.assert_array_equal(vars(model.rollout_buffer)["observations"], kept)
    np.testing.assert_allclose(model.batch.baseline, kept.reshape(len(kept), -1).mean(1), rtol=1e-6)


def test_rollouts_shorter_than_the_first_memory_stay_as_they_were():
    model = made(stacked_env(), n_steps=2, unfinished="bootstrap", baseline="value")
    model.learn(8)
    assert model._recording.n_rows == 2 < FIRST_ROWS
    assert type(model.rollout_buffer) is RolloutBuffer


def test_bytes_per_step():
    """36 x 36 x 4 bytes per step before; now a quarter, but for the older frames of each of the few resets."""
    model = made(stacked_env())
    model.learn(100)
    frames = model.rollout_buffer.frames
    n_steps, n_episodes = model.rollout.n_steps, len(model.rollout.spans)
    assert frames.nbytes == (n_steps + 3 * n_episodes) * SIZE**2 + 8 * n_steps  # 8: where each stack begins
