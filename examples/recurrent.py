"""
A task that needs memory: CartPole whose observations have no velocities. An LSTM learns them from what it has seen; an MLP
with the same settings cannot. ``python examples/recurrent.py`` needs sb3-contrib: ``pip install "sb3-reinforce[contrib]"``
"""

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import REINFORCE


class NoVelocities(gym.ObservationWrapper):
    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(env.observation_space.low[[0, 2]], env.observation_space.high[[0, 2]])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]] * [1.0, 10.0]  # the angle is small


def main(n_steps: int = 100_000) -> dict[str, float]:
    scores = {}
    for policy in ("MlpLstmPolicy", "MlpPolicy"):
        env = make_vec_env("CartPole-v1", 4, wrapper_class=NoVelocities)
        policy_kwargs = dict(lstm_hidden_size=32) if policy == "MlpLstmPolicy" else {}
        model = REINFORCE(
            policy, env, natural_gradient=True, target_kl=0.03, policy_kwargs=policy_kwargs, seed=0, device="cpu"
        )
        model.learn(n_steps)
        scores[policy] = float(evaluate_policy(model, env, n_eval_episodes=40)[0])
        print(f"{policy} after {model.num_timesteps:,} steps: {scores[policy]:.0f} of 500")

    # One step at a time, in an environment of your own: the state goes in and out, as in RecurrentPPO
    observation, state, start = env.reset(), None, np.ones(4, dtype=bool)
    for _ in range(3):
        action, state = model.predict(observation, state, episode_start=start, deterministic=True)
        observation, _, start, _ = env.step(action)
    return scores


if __name__ == "__main__":
    main()
