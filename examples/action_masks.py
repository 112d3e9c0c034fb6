"""
Action masks: a travelling salesman who may not visit a city twice.

    python examples/action_masks.py
"""

from itertools import permutations
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import REINFORCE

CITIES = np.random.default_rng(3).random((8, 2))
DISTANCES = np.linalg.norm(CITIES[:, None] - CITIES[None], axis=2)


class Tour(gym.Env):
    action_space = spaces.Discrete(len(CITIES))
    observation_space = spaces.Box(0, 1, (2 * len(CITIES),), np.float32)  # the present city, and those that were visited

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.city, self.visited = 0, np.arange(len(CITIES)) == 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        length, self.city = DISTANCES[self.city, action], action
        self.visited[action] = True
        ended = bool(self.visited.all())
        return self.observe(), -float(length + ended * DISTANCES[action, 0]), ended, False, {}

    def observe(self) -> np.ndarray:
        return np.concatenate([np.arange(len(CITIES)) == self.city, self.visited]).astype(np.float32)

    def action_masks(self) -> np.ndarray:
        return ~self.visited


def main(total_timesteps: int = 40_000) -> tuple[float, float]:
    """:return: length of the tour that was learned, and of the shortest one"""
    model = REINFORCE("MaskableMlpPolicy", make_vec_env(Tour, 8), n_episodes=16, gamma=1.0, seed=0).learn(total_timesteps)
    learned = -evaluate_policy(model, make_vec_env(Tour), n_eval_episodes=1)[0]  # type: ignore[operator]
    tours = [(0, *tour, 0) for tour in permutations(range(1, len(CITIES)))]
    return learned, min(float(DISTANCES[tour[:-1], tour[1:]].sum()) for tour in tours)


if __name__ == "__main__":
    print("learned {:.3f}, shortest {:.3f}".format(*main()))
