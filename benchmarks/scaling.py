"""
What several processes ("ranks") under torchrun bring, and what they tell each other.

    python benchmarks/scaling.py                 # steps per second with 1 and with 2 ranks, and their ratio
    python benchmarks/scaling.py --apart         # and of as many plain processes side by side: what the machine gives
    python benchmarks/scaling.py --exchanges     # exchanges and bytes of one update, by baseline; times of an exchange

The numbers of ranks take turns, round by round, because machines are shared and drift: a ratio is one of the same round,
and what is printed is the median of the rounds with the lowest and the highest. One rank is a plain `python` process. Each
rank is one process with torch on one thread, 64x64 networks and REINFORCE's default arguments; start-up and the first
updates are left out. On a machine with fewer free cores than ranks the ratio says nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE
from sb3_reinforce.running import ranks

th.set_num_threads(1)
warnings.simplefilter("ignore")

# environments and steps per environment of each rank
SIZES = {"CartPole-v1": dict(n_envs=8, n_steps=512), "HalfCheetah-v5": dict(n_envs=4, n_steps=1000)}
N_PARAMETERS = (1, 10_000, 100_000, 1_000_000, 10_000_000)


class Clock(BaseCallback):
    """Steps per second over whole updates, the first ones left out."""

    def __init__(self, seconds: float, first_updates: int = 3):
        super().__init__()
        self.seconds, self.first_updates = seconds, first_updates
        self.marks: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.marks.append((time.perf_counter(), self.model.num_timesteps))

    def _on_step(self) -> bool:
        # what is dropped by a stop in mid-rollout was not measured either
        measured = self.marks[self.first_updates :]
        return len(measured) < 3 or measured[-1][0] - measured[0][0] < self.seconds

    @property
    def steps_per_second(self) -> float:
        (start, steps_before), *_, (end, steps) = self.marks[self.first_updates :]
        return (steps - steps_before) / (end - start)


def train(env_id: str, n_envs: int, n_steps: int, seconds: float, **kwargs: Any) -> float:
    model = REINFORCE("MlpPolicy", make_vec_env(env_id, n_envs), n_steps=n_steps, seed=0, device="cpu", **kwargs)
    clock = Clock(seconds)
    model.learn(10**9, callback=clock)
    return clock.steps_per_second


class Counter:
    """Counts calls and bytes of torch.distributed's exchanges, as this rank gives them in."""

    def __init__(self) -> None:
        self.calls, self.bytes = 0, 0
        for name, position in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
            setattr(dist, name, self._counted(getattr(dist, name), position))

    def _counted(self, exchange: Any, position: int) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self.bytes += args[position].numel() * args[position].element_size()
            return exchange(*args, **kwargs)

        return counted


def exchanges() -> None:
    """Run by each rank: what one update of CartPole-v1 exchanges, and how long an all-reduce takes."""
    counter = Counter()
    if ranks.launched():
        ranks.start("cpu")
    rows = {}
    for baseline in ("none", "mean", "value"):
        model = REINFORCE(
            "MlpPolicy", make_vec_env("CartPole-v1", 8), n_steps=512, seed=0, device="cpu", baseline=baseline,
            learning_rate=0.0, value_learning_rate=0.0,
        )  # fmt: skip
        model.learn(1)  # start-up
        counter.calls = counter.bytes = 0
        model.learn(6 * 8 * 512 * ranks.world_size(), reset_num_timesteps=False)
        n_updates = model._n_updates - 1
        n_parameters = sum(parameter.numel() for parameter in model.policy.parameters())
        # learn() itself begins with a broadcast of the parameters and an exchange of the arguments
        rows[baseline] = [counter.calls / n_updates, counter.bytes / n_updates, n_parameters, model.batch.n_steps]
    times = {}
    for n in N_PARAMETERS:
        values = th.ones(n)
        took = []
        for _ in range(5 if n >= 1_000_000 else 200):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            took.append(time.perf_counter() - start)
        times[n] = [float(np.percentile(took, q)) for q in (50, 10, 90)]
    if ranks.rank() == 0:
        print(json.dumps({"rows": rows, "times": times}))


def launch(n_ranks: int, *arguments: str) -> Any:
    """Run this file in so many processes; what rank 0 prints last."""
    command = [sys.executable]
    if n_ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(n_ranks)]
    done = subprocess.run([*command, str(Path(__file__).resolve()), *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def side_by_side(n_processes: int, *arguments: str) -> float:
    """Run this file in so many plain processes that know nothing of each other; the sum of what they print."""
    with ThreadPoolExecutor() as threads:
        return sum(threads.map(lambda _: launch(1, *arguments), range(n_processes)))


def spread(values: list[float], digits: str) -> str:
    return f"{np.median(values):{digits}} ({min(values):{digits}}-{max(values):{digits}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--apart", action="store_true", help="also as many processes that do not train together")
    parser.add_argument("--exchanges", action="store_true", help="count and time the exchanges instead")
    parser.add_argument("--worker", choices=["train", "exchanges"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "exchanges":
        exchanges()
    elif options.worker == "train":
        [env_id] = options.env
        measured = train(env_id, seconds=options.seconds, **SIZES[env_id])
        if ranks.rank() == 0:
            print(json.dumps(measured))
    elif options.exchanges:
        for n_ranks in options.ranks[1:]:
            found = launch(n_ranks, "--worker", "exchanges")
            print(f"\n| {n_ranks} ranks, baseline | exchanges per update | bytes per update, rank | parameters | steps |")
            print("| --- | --- | --- | --- | --- |")
            for baseline, (calls, n_bytes, n_parameters, n_steps) in found["rows"].items():
                print(f"| {baseline} | {calls:.1f} | {n_bytes:,.0f} | {n_parameters:,} | {n_steps:,} |")
            print(f"\n| {n_ranks} ranks, float32 numbers | all-reduce, milliseconds, median (10 % - 90 %) |\n| --- | --- |")
            for n, quantiles in found["times"].items():
                middle, low, high = (1000 * value for value in quantiles)
                print(f"| {int(n):,} | {middle:.2f} ({low:.2f}-{high:.2f}) |")
    else:
        ways = [(n, apart) for n in options.ranks for apart in (False, True)[: 1 + (options.apart and n > 1)]]
        titles = [f"{n} {'plain processes' if apart else 'ranks'}, steps per second | ratio" for n, apart in ways]
        print("| | " + " | ".join(titles) + " |")
        print("| --- " * (1 + 2 * len(ways)) + "|")
        for env_id in options.env:
            speeds = defaultdict(list)
            arguments = ["--worker", "train", "--env", env_id, "--seconds", str(options.seconds)]
            for _ in range(options.rounds):
                for n, apart in ways:
                    speeds[n, apart].append((side_by_side if apart else launch)(n, *arguments))
            ratios = {way: [a / b for a, b in zip(speeds[way], speeds[ways[0]], strict=True)] for way in ways}
            cells = [f"{spread(speeds[way], ',.0f')} | {spread(ratios[way], '.2f')}" for way in ways]
            print(f"| {env_id} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
