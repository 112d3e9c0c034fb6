"""Environments with action masks: small enough to enumerate, or strict about forbidden actions."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_reinforce.action_masks import choices_of
from sb3_reinforce.bias import MDP
from tests.envs import MDPEnv, ScriptedEnv

ACTION_SPACES = {
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
THREE = spaces.Discrete(3)
# Two states and three actions, of which two are allowed in each: ten possible trajectories of one or two steps. The forbidden
# actions would pay best.
MASKED = MDP(
    transitions=[[[0.2, 0.3], [0.1, 0.6], [0.0, 0.9]], [[0.3, 0.3], [0.5, 0.4], [0.0, 0.5]]],
    rewards=[[1.0, -0.5, 3.0], [2.0, 4.0, 0.3]],
    start=[1.0, 0.0],
    horizon=2,
)
MASKS = np.array([[True, True, False], [True, False, True]])


def allowed_logits(logits: th.Tensor) -> th.Tensor:
    """Logits [S, A] of the softmax over the allowed actions alone: the forbidden ones have probability 0."""
    return logits.double().masked_fill(~th.as_tensor(MASKS), -1e8)


class MaskedScriptedEnv(ScriptedEnv):
    """Plays scripts of :data:`MASKED`; the mask is that of the state."""

    def __init__(self) -> None:
        super().__init__(MASKED)

    def action_masks(self) -> np.ndarray:
        return MASKS[self.trajectory.states[self.t]]


class ScriptedMasks(ScriptedEnv):
    """Allows every action in even steps, and only that of the script in odd ones."""

    def action_masks(self) -> np.ndarray:
        return (np.arange(self.action_space.n) == self.scripted_action) | (self.t % 2 == 0)


class MaskedMDPEnv(MDPEnv):
    """In odd steps action 0 is forbidden."""

    def action_masks(self) -> np.ndarray:
        return np.array([self.t % 2 == 0, True])


class Strict(gym.Env):
    """
    A random mask in each step; an action that it forbids is an error. Episodes end by chance, after four steps on average.

    :param source: where the masks are: "method", "key" of a Dict observation, or "info"
    :param action_space: of any kind that can be masked
    """

    def __init__(self, source: str = "method", action_space: spaces.Space = ACTION_SPACES["Discrete"]):
        self.source, self.action_space = source, action_space
        self.choices = choices_of(action_space)
        box = spaces.Box(-1, 1, (3,), np.float32)
        self.observation_space = box
        if source == "key":
            self.observation_space = spaces.Dict(x=box, action_mask=spaces.MultiBinary(sum(self.choices)))
        elif source == "method":
            self.action_masks = lambda: self.mask

    def _begin_step(self) -> tuple[Any, dict[str, Any]]:
        parts = [self.np_random.random(n) < 0.5 for n in self.choices]
        for part in parts:
            part[self.np_random.integers(len(part))] = True
        self.mask = np.concatenate(parts)
        x = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        observation = dict(x=x, action_mask=self.mask.astype(np.int8)) if self.source == "key" else x
        return observation, dict(action_mask=self.mask) if self.source == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self._begin_step()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        starts = np.cumsum([0, *self.choices[:-1]])
        assert self.mask[starts + action].all(), f"{action} is forbidden by {self.mask}"
        observation, info = self._begin_step()
        return observation, float(self.np_random.normal()), bool(self.np_random.random() < 0.25), False, info


def strict(source: str = "method", n_envs: int = 1, kind: str = "Discrete") -> VecEnv:
    """Strict environments as a VecEnv."""
    return DummyVecEnv([lambda: Strict(source, ACTION_SPACES[kind])] * n_envs)


class GivenMasks(gym.Env):
    """The masks come in turn, one per step; the last one stays. Action a pays a. An episode has ``length`` steps."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, masks: Sequence[Any], action_space: spaces.Space = THREE, length: int = 4):
        self.masks, self.action_space, self.length, self.k = masks, action_space, length, 0

    def action_masks(self) -> Any:
        return self.masks[min(self.k, len(self.masks) - 1)]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t, self.k = self.t + 1, self.k + 1
        return np.ones(1, np.float32), float(np.sum(action)), self.t == self.length, False, {}
