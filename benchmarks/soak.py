"""
Long training with everything switched on: does memory, or the number of open files, grow?

    python benchmarks/soak.py --steps 2000000

trains CartPole-v1 with tracking (W&B, offline), checkpoints, evaluation and gradient diagnostics, and prints resident memory,
open files and warnings over time. It fails if, from the first quarter's end to the run's end, memory has grown by more than
10 % or a file stays open.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

import sb3_reinforce
from sb3_reinforce import REINFORCE, GradientDiagnostics, TrainingCheckpoint
from sb3_reinforce.running.logs import appending_logger
from sb3_reinforce.tracking import WandbCallback


def resident_mib() -> float:
    """Memory that this process has in use now, MiB."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def open_files() -> int:
    """Number of this process's open files, sockets and pipes included."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


class Watch(BaseCallback):
    """Notes memory and open files ``n_rows`` times over the run."""

    def __init__(self, total: int, n_rows: int = 20):
        super().__init__()
        self.every, self.rows, self.started = total // n_rows, [], time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.every * len(self.rows):
            row = (self.num_timesteps, time.perf_counter() - self.started, resident_mib(), open_files())
            self.rows.append(row)
            print("{:>10,} steps {:>7.0f} s {:>8.1f} MiB {:>5} open files".format(*row), flush=True)


def main() -> int:
    """:return: 0 if nothing grew"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=2_000_000)
    parser.add_argument("--n-envs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    th.set_num_threads(1)
    os.environ["WANDB_MODE"] = "offline"
    print(
        f"sb3-reinforce {sb3_reinforce.__version__}, stable-baselines3 {stable_baselines3.__version__}, "
        f"torch {th.__version__}, gymnasium {version('gymnasium')}, wandb {version('wandb')}; {vars(options)}"
    )

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # a warning said again and again shows
        os.chdir(folder)
        watch = Watch(options.steps)
        model = REINFORCE("MlpPolicy", make_vec_env(options.env, options.n_envs, seed=options.seed), seed=options.seed)
        model.set_logger(appending_logger("logs", ["csv"]))
        callbacks: list[BaseCallback] = [
            WandbCallback(mode="offline", verbose=0),
            TrainingCheckpoint("checkpoints", every_n_updates=10),
            EvalCallback(make_vec_env(options.env, 1), eval_freq=10_000, log_path="logs", verbose=0),
            GradientDiagnostics(),
            watch,
        ]
        model.learn(options.steps, callback=callbacks)
        seconds = time.perf_counter() - watch.started
        logged = set(Path("logs/progress.csv").read_text().splitlines()[0].split(","))
        sizes = Counter(path.parts[0] for path in Path().rglob("*") if path.is_file())
        written = sum(path.stat().st_size for path in Path().rglob("*") if path.is_file()) / 2**20
        os.chdir("/")

    said = Counter(str(warning.message)[:100] for warning in caught)
    settled = watch.rows[len(watch.rows) // 4 :]
    growth = settled[-1][2] / settled[0][2] - 1
    more_files = settled[-1][3] - settled[0][3]
    print(f"{model.num_timesteps:,} steps, {model._n_updates:,} updates in {seconds:.0f} s")
    print(f"{written:.1f} MiB in {dict(sizes)} files")
    print(f"from the first quarter's end: memory {100 * growth:+.1f} %, open files {more_files:+d}")
    print(f"{sum(said.values())} warnings, {len(said)} different: {dict(said.most_common(5))}")
    assert {"gradient/variance", "eval/mean_reward"} <= logged, f"not everything was on: {sorted(logged)}"
    assert sizes["wandb"] > 0 < sizes["checkpoints"], f"not everything was on: {dict(sizes)}"
    return int(growth > 0.1 or more_files > 0)


if __name__ == "__main__":
    sys.exit(main())
