"""
How far the first updates of a CnnPolicy move it, under default arguments but for the learning rates.

    python benchmarks/first_updates.py Breakout --rates 3e-3 1e-3 3e-4
    python benchmarks/first_updates.py CarRacing --rates 3e-3 3e-4 --updates 4
    python benchmarks/first_updates.py Breakout --rates 3e-4 --minutes 6

Games are cut after 200 steps, rides of CarRacing after 100, to have more updates; with ``--minutes``, of the processor's time,
they are whole, and there are as many updates as come. Printed are, per update, the KL divergence from the policy before it
(nats), the entropy before it, and the mean return of its episodes.
"""

import argparse
import time

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
            names = ("train/approx_kl", "train/entropy_loss", "rollout/ep_return_mean")
            kl, entropy_loss, mean_return = (key_values[name] for name in names)
            self.rows.append((kl, -entropy_loss, mean_return))

    def close(self):
        pass


class Stop(BaseCallback):
    """Stops training after some updates, or some seconds of the processor's time."""

    def __init__(self, n_updates: int, seconds: float | None):
        super().__init__()
        self.n_updates, self.seconds, self.start = n_updates, seconds, time.process_time()

    def _on_step(self) -> bool:
        if self.seconds is not None:
            return time.process_time() - self.start < self.seconds
        return self.model._n_updates < self.n_updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", help="of ale-py, such as Pong, or CarRacing")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-3, 3e-4])
    parser.add_argument("--value-rate", type=float)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--minutes", type=float, help="of training, instead of --updates, with whole games")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    seconds = None if args.minutes is None else 60 * args.minutes
    print("| learning_rate | KL of each update | entropy before it | mean return | steps |\n" + "| --- " * 5 + "|")
    for rate in args.rates:
        if args.game == "CarRacing":
            env = make_vec_env("CarRacing-v3", 4, seed=args.seed, env_kwargs={} if seconds else dict(max_episode_steps=100))
        else:
            env = make_atari_env(f"ALE/{args.game}-v5", 8, env_kwargs={} if seconds else dict(max_num_frames_per_episode=800))
        own = {} if seconds else dict(n_steps=100)
        model = REINFORCE("CnnPolicy", env, learning_rate=rate, value_learning_rate=args.value_rate, seed=args.seed, **own)
        updates = Updates()
        model.set_logger(Logger(None, [updates]))
        model.learn(10**9, callback=Stop(args.updates, seconds))
        env.close()
        columns = (", ".join(f"{value:.2g}" for value in column) for column in zip(*updates.rows, strict=True))
        print(f"| {rate:g} | {' | '.join(columns)} | {model.num_timesteps:,} |", flush=True)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
