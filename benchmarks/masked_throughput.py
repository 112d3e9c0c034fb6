"""
Steps per second of CPU time while training with action masks: REINFORCE and MaskablePPO of sb3-contrib, in turns.

CartPole-v1 in ``ActionMasker``, and the job shop of job_shop.py; Monitor around each, updates included, networks 64x64.
MaskablePPO has its defaults (10 epochs) and, beside it, one epoch. REINFORCE has its defaults.

    python benchmarks/masked_throughput.py --seconds 4 --turns 5

Process time, so that other work on the machine counts little; the median of the turns, and the least and greatest quotient
of one turn.
"""

import argparse
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch as th
from job_shop import MaskedJobShop
from sb3_contrib import MaskablePPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE

BOTH = np.ones(2, dtype=bool)


def cartpole() -> gym.Env:
    return ActionMasker(gym.make("CartPole-v1"), lambda _: BOTH)


ENVS = {"CartPole-v1": cartpole, "job shop ft10": MaskedJobShop}


def make(contestant: str, env_name: str, n_envs: int) -> Any:
    env = make_vec_env(ENVS[env_name], n_envs, seed=0)
    if contestant == "REINFORCE":
        return REINFORCE("MaskableMlpPolicy", env, seed=0, device="cpu")
    return MaskablePPO("MlpPolicy", env, n_epochs=1 if "one epoch" in contestant else 10, seed=0, device="cpu")


def measure(contestant: str, env_name: str, n_envs: int, seconds: float) -> float:
    """:return: steps per second of process time of ``learn``, over so many seconds at least"""
    model = make(contestant, env_name, n_envs)
    model.learn(1)  # one update: what is made at first use is there
    n_steps, start = model.num_timesteps, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        model.learn(1, reset_num_timesteps=False)
    return float((model.num_timesteps - n_steps) / spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    th.set_num_threads(1)
    contestants = ("REINFORCE", "MaskablePPO", "MaskablePPO, one epoch")
    print("| environment | number | " + " | ".join(contestants) + " | times MaskablePPO | times one epoch |")
    print("| --- " * 7 + "|")
    for env_name in ENVS:
        for n_envs in args.envs:
            turns = [[measure(each, env_name, n_envs, args.seconds) for each in contestants] for _ in range(args.turns)]
            speeds = np.array(turns)
            cells = [f"{median:,.0f}" for median in np.median(speeds, axis=0)]
            for other in (1, 2):
                ratios = speeds[:, 0] / speeds[:, other]
                cells.append(f"{np.median(ratios):.1f} ({ratios.min():.1f} - {ratios.max():.1f})")
            print(f"| {env_name} | {n_envs} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
