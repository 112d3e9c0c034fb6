"""
A task that needs memory: CartPole whose observations have no velocities. An LSTM finds them out from what it has seen; an MLP
with the same settings cannot. ``python examples/recurrent.py`` needs sb3-contrib: ``pip install "sb3-reinforce[contrib]"``
"""

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE


class NoVelocities(gym.ObservationWrapper):
    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def main(n_steps: int = 96_000) -> dict[str, float]:
    scores = {}
    settings = dict(n_steps=128, n_epochs=10, batch_size=256, learning_rate="lin_1e-3", gamma=0.98)
    for policy, policy_kwargs in (("MlpLstmPolicy", dict(lstm_hidden_size=64, net_arch=[64])), ("MlpPolicy", {})):
        env = VecNormalize(make_vec_env("CartPole-v1", 8, wrapper_class=NoVelocities))
        model = REINFORCE(policy, env, policy_kwargs=policy_kwargs, seed=0, **settings).learn(n_steps)
        env.training = False
        scores[policy] = float(evaluate_policy(model, env, n_eval_episodes=40)[0])
        print(f"{policy} after {model.num_timesteps:,} steps: {scores[policy]:.0f} of 500")
        # One step by hand: the state of the memory goes in and out, as in RecurrentPPO; an MLP has none
        _, state = model.predict(env.reset(), state=None, episode_start=np.ones(8, dtype=bool), deterministic=True)
        print("state:", "none" if state is None else [part.shape for part in state])
    return scores


if __name__ == "__main__":
    main()
