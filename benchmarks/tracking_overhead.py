"""
What tracking costs: CartPole-v1, 8 environments, default arguments, the same training with and without WandbCallback in turns.

    python benchmarks/tracking_overhead.py --seconds 60 --rounds 10

Each turn plays so many updates as fill ``seconds / rounds`` without tracking. It is timed from the end of the first update to
the end of the last one, so W&B's start and finish are left out; the untracked side has no callback at all. The order changes
from turn to turn, so that a drift of the machine cancels out. Printed: the overhead of each turn, and over all turns together
(seconds with tracking over seconds without, minus one) with the standard error of the turns.
"""

import argparse
import os
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from sb3_reinforce import REINFORCE
from sb3_reinforce.tracking import WandbCallback


class Timed(REINFORCE):
    """REINFORCE that notes when each update has ended."""

    def dump_logs(self, iteration: int = 0) -> None:
        super().dump_logs(iteration)
        self.ends.append((time.perf_counter(), self.num_timesteps))


def seconds_per_step(updates: int, tracked: bool) -> float:
    env = make_vec_env("CartPole-v1", n_envs=8)
    # the same seed: both sides play the same episodes
    model = Timed("MlpPolicy", env, seed=0, device="cpu")
    model.set_logger(Logger(None, []))
    model.ends = []
    callback = WandbCallback(mode="offline", verbose=0) if tracked else None
    model.learn(updates * 4096, callback=callback)
    (start, first_step), (end, last_step) = model.ends[0], model.ends[-1]
    env.close()
    return (end - start) / (last_step - first_step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training on either side, all turns together")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()

    th.set_num_threads(1)
    warnings.simplefilter("error")  # an untracked run must not pass for a cheap one
    warnings.filterwarnings("ignore", message=".*played by environments that waited")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    print(", ".join(f"{name} {version(name)}" for name in ("stable-baselines3", "wandb", "torch", "gymnasium")))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pilot = seconds_per_step(10, tracked=False)
        seconds_per_step(10, tracked=True)  # imports, W&B's process
        updates = max(int(options.seconds / options.rounds / pilot / 4096), 10)
        measured = np.empty((options.rounds, 2))
        for turn in range(options.rounds):
            for tracked in (False, True) if turn % 2 == 0 else (True, False):
                measured[turn, int(tracked)] = seconds_per_step(updates, tracked)
            overhead = measured[turn, 1] / measured[turn, 0] - 1
            without, with_tracking = 1 / measured[turn]
            print(f"turn {turn}: {without:.0f} steps/s without, {with_tracking:.0f} with: {overhead:+.1%}", flush=True)
        n_files = len(list(Path("wandb").glob("offline-run-*/*.wandb")))
        os.chdir("/")
    ratios = measured[:, 1] / measured[:, 0] - 1
    total = measured[:, 1].sum() / measured[:, 0].sum() - 1
    spread = ratios.std(ddof=1) / np.sqrt(len(ratios)) if len(ratios) > 1 else float("nan")
    print(f"overhead {total:+.2%} +- {spread:.2%} (standard error), median {np.median(ratios):+.2%}; {updates} updates a turn")
    assert n_files == options.rounds + 1, f"{n_files} run files were written"


if __name__ == "__main__":
    main()
