"""``EpisodicAlgorithm`` as a base class for algorithms of others."""

from collections import deque
from enum import IntEnum
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE, EpisodicAlgorithm, TrainingCheckpoint
from tests.envs import RewardListEnv


class Level(IntEnum):
    LOW = 3


class Counting(EpisodicAlgorithm):
    """Learns nothing; remembers how many episodes it has seen, in state of its own."""

    def __init__(self, *args: Any, bonus: Any = None, **kwargs: Any):
        self.memory: list[int] = []
        self.level, self.bonus_schedule = Level.LOW, bonus
        super().__init__(*args, **kwargs)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.n_steps == 13:
            raise ValueError("n_steps must not be 13")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "memory"]

    def _extra_state(self) -> dict[str, Any]:
        return {"memory": list(self.memory)}

    def _set_extra_state(self, state: dict[str, Any]) -> None:
        self.memory = list(state["memory"])

    def train(self) -> None:
        self.memory.append(len(self.rollout.spans))
        self._n_updates += 1


def double(progress: float) -> float:
    return 2 * progress


def env() -> DummyVecEnv:
    return DummyVecEnv([lambda: RewardListEnv([1.0] * 3)] * 2)


class Recent(BaseCallback):
    """Keeps its last steps in nested containers, and a number too large for a float."""

    def __init__(self) -> None:
        super().__init__()
        self.recent: dict[str, Any] = {"steps": deque(maxlen=2)}
        self.large = 0

    def _on_step(self) -> bool:
        self.recent["steps"].append(self.num_timesteps)
        self.large = 10**700 + self.n_calls
        return True


def test_a_subclass_checks_its_arguments():
    with pytest.raises(ValueError, match="must not be 13"):
        Counting("MlpPolicy", env(), n_steps=13)


def test_extra_state_is_saved_and_resumed(tmp_path):
    """Two environments, episodes of 3 steps, n_steps=6: 4 episodes in each of two updates."""
    model = Counting("MlpPolicy", env(), n_steps=6, seed=0, device="cpu", bonus=double)
    callback = Recent()
    model.learn(24, callback=[TrainingCheckpoint(tmp_path / "run", every_n_updates=1), callback])
    assert model.memory == [4, 4]
    assert list(callback.recent["steps"]) == [22, 24]

    model.save(tmp_path / "model")
    assert Counting.load(tmp_path / "model", device="cpu", trust=True).memory == [4, 4]

    resumed = Counting.resume(tmp_path / "run", env(), trust=True)
    assert resumed.memory == [4, 4]
    assert resumed.level == 3
    assert resumed.bonus_schedule(2.0) == 4.0  # a user's own attribute, whatever its name
    again = Recent()
    resumed.learn(0, reset_num_timesteps=False, callback=[TrainingCheckpoint(tmp_path / "run"), again])
    assert again.recent == callback.recent
    assert again.recent["steps"].maxlen == 2
    assert again.large == callback.large == 10**700 + 12


def test_an_optimiser_of_the_users_fits_the_values():
    """``model.value_optimizer`` may be replaced, as ``policy.optimizer`` may."""
    model = REINFORCE("MlpPolicy", env(), n_steps=6, seed=0, device="cpu", policy_kwargs=dict(net_arch=[]), n_value_epochs=1)
    steps = []

    class Watched(th.optim.SGD):
        def step(self, closure: Any = None) -> None:
            steps.append(1)
            super().step(closure)

    model.value_optimizer = Watched(model.value_optimizer.param_groups[0]["params"], lr=0.1)
    model.learn(12)
    assert len(steps) == 1


def test_a_failed_greedy_episode_counts_its_steps():
    """3 steps are drawn, then the greedy episode fails in its second step: 4 steps were played."""

    class Fails(RewardListEnv):
        n_steps = 0

        def step(self, action):
            self.n_steps += 1
            if self.n_steps == 5:
                raise OSError("gone")
            return super().step(action)

    model = REINFORCE("MlpPolicy", DummyVecEnv([lambda: Fails([1.0] * 3)]), n_episodes=1, baseline="greedy", device="cpu")
    with pytest.raises(OSError, match="gone"):
        model.learn(100)
    assert model.num_timesteps == 4
