"""
How far the first updates of a CnnPolicy move it, under default arguments but for the learning rates.

    python benchmarks/first_updates.py Breakout --rates 3e-3 1e-3 3e-4
    python benchmarks/first_updates.py CarRacing --rates 3e-3 3e-4 --updates 4

Games are cut after 200 steps, rides of CarRacing after 100, to have more updates. Printed are, per update, the KL divergence
from the policy before it (nats), and the entropy before it.
"""

import argparse

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_reinforce import REINFORCE
from sb3_reinforce.vec_env import make_atari_env


class Updates(KVWriter):
    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        if "train/approx_kl" in key_values:
            self.rows.append((key_values["train/approx_kl"], -key_values["train/entropy_loss"]))

    def close(self):
        pass


class Stop(BaseCallback):
    """Stops training after some updates."""

    def __init__(self, n_updates: int):
        super().__init__()
        self.n_updates = n_updates

    def _on_step(self) -> bool:
        return self.model._n_updates < self.n_updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", help="of ale-py, such as Pong, or CarRacing")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-3, 3e-4])
    parser.add_argument("--value-rate", type=float)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| learning_rate | KL of each update | entropy before it |\n| --- | --- | --- |")
    for rate in args.rates:
        if args.game == "CarRacing":
            env = make_vec_env("CarRacing-v3", 4, seed=args.seed, env_kwargs=dict(max_episode_steps=100))
        else:
            env = make_atari_env(f"ALE/{args.game}-v5", 8, env_kwargs=dict(max_num_frames_per_episode=800))
        model = REINFORCE(
            "CnnPolicy", env, learning_rate=rate, value_learning_rate=args.value_rate, n_steps=100, seed=args.seed
        )
        updates = Updates()
        model.set_logger(Logger(None, [updates]))
        model.learn(10**9, callback=Stop(args.updates))
        env.close()
        columns = (", ".join(f"{value:.2g}" for value in column) for column in zip(*updates.rows, strict=True))
        print(f"| {rate:g} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
