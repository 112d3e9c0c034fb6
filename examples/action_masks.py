"""
Action masks: a travelling salesman who may not visit a city twice. ``python examples/action_masks.py`` needs sb3-contrib:
``pip install "sb3-reinforce[contrib]"``
"""

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

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.city, self.visited = 0, np.arange(len(CITIES)) == 0
        return self.observe(), {}

    def step(self, action):
        length, self.city, self.visited[action] = DISTANCES[self.city, action], action, True
        ended = bool(self.visited.all())
        return self.observe(), -float(length + ended * DISTANCES[action, 0]), ended, False, {}

    def observe(self):
        return np.concatenate([np.arange(len(CITIES)) == self.city, self.visited]).astype(np.float32)

    def action_masks(self):  # found by its name, in training and in evaluate_policy
        return ~self.visited


def main(n_steps: int = 20_000) -> float:
    model = REINFORCE("MaskableMlpPolicy", make_vec_env(Tour, 8), n_episodes=16, gamma=1.0, seed=0).learn(n_steps)
    return -float(evaluate_policy(model, make_vec_env(Tour), n_eval_episodes=1)[0])


if __name__ == "__main__":
    print(f"a tour of length {main():.3f}; the shortest one has 2.579")
