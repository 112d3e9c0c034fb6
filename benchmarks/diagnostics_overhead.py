"""
What GradientDiagnostics costs at its default rate: seconds of training with it over seconds without, in turns.

    python benchmarks/diagnostics_overhead.py

Processor time, not wall time, so that other processes on the machine do not count. The same seed with and without: both
play the same steps.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE, GradientDiagnostics

RUNS = {"CartPole-v1": (1, 30_000), "HalfCheetah-v5": (4, 120_000)}


def seconds(env_id: str, seed: int, diagnostics: bool) -> float:
    n_envs, n_timesteps = RUNS[env_id]
    env = make_vec_env(env_id, n_envs)
    model = REINFORCE("MlpPolicy", env, seed=seed, device="cpu")
    start = time.process_time()
    model.learn(n_timesteps, GradientDiagnostics() if diagnostics else None)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--env", nargs="+", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    th.set_num_threads(1)
    print("| environment | environments | steps | ratio, median | lowest | highest |\n| --- | --- | --- | --- | --- | --- |")
    for env_id in args.env:
        seconds(env_id, 0, True)  # warms up
        ratios = [seconds(env_id, seed, True) / seconds(env_id, seed, False) for seed in range(args.rounds)]
        n_envs, n_timesteps = RUNS[env_id]
        print(
            f"| {env_id} | {n_envs} | {n_timesteps:,} | {np.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
