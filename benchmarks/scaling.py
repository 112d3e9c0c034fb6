"""
What several processes ("ranks") under torchrun bring, and what they tell each other.

    python benchmarks/scaling.py                 # steps per second with 1 and with 2 ranks, and the limit
    python benchmarks/scaling.py --exchanges     # exchanges of one update, by baseline, what ranks wait, times of a sum

The limit is what as many plain processes make that know nothing of each other: what the machine gives. The numbers of ranks
take turns, round by round, because machines are shared and drift: a ratio is one of the same round, and what is printed is
the median of the rounds with the lowest and the highest. One rank is a plain `python` process. Each rank is one process with
torch on one thread, 64x64 networks and REINFORCE's default arguments; start-up and the first updates are left out. On a
machine with fewer free cores than ranks the ratio says nothing; ``--exchanges`` goes by processor time and is robust.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
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
from sb3_reinforce.running import exchange, ranks

th.set_num_threads(1)
warnings.simplefilter("ignore")

# environments and steps per environment of each rank
TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1, 256 steps": dict(env_id="CartPole-v1", n_envs=4, n_steps=256),
    "CartPole-v1, 1024 steps": dict(env_id="CartPole-v1", n_envs=4, n_steps=1024),
    "HalfCheetah-v5, 1000 steps": dict(env_id="HalfCheetah-v5", n_envs=4, n_steps=1000),
}
N_NUMBERS = (1, 10_000, 100_000, 1_000_000, 10_000_000)


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


class Meter:
    """
    Notes each exchange of this rank: bytes given in, processor time since the one before, seconds from when all have come.

    Processor time, because other work on the machine would show up as waiting; and for the same reason the fastest tenth of
    the exchanges stands for all.
    """

    def __init__(self) -> None:
        self.clear()
        for owner, name in ((exchange, "_tensors_of_all"), (dist, "all_reduce"), (dist, "broadcast")):
            setattr(owner, name, self._measured(getattr(owner, name)))

    def clear(self) -> None:
        self.records: list[tuple[int, float, float]] = []
        self.last = time.process_time()

    def _measured(self, function: Any) -> Any:
        def measured(tensor: th.Tensor, *args: Any, **kwargs: Any) -> Any:
            worked = time.process_time() - self.last
            dist.barrier()
            start = time.perf_counter()
            result = function(tensor, *args, **kwargs)
            self.records.append((tensor.nbytes, worked, time.perf_counter() - start))
            self.last = time.process_time()
            return result

        return measured


def exchanges(n_updates: int = 20) -> None:
    """Run by each rank: what an update exchanges, what ranks wait for each other, and how long a sum of numbers takes."""
    meter = Meter()
    if ranks.launched():
        ranks.start("cpu")
    rows = {}
    for task, size in TASKS.items():
        for baseline in ("none", "mean", "value"):
            env = make_vec_env(size["env_id"], size["n_envs"])
            model = REINFORCE("MlpPolicy", env, n_steps=size["n_steps"], seed=0, device="cpu", baseline=baseline)
            model.learn(1)  # start-up
            meter.clear()
            first, n_steps = model._n_updates, size["n_envs"] * size["n_steps"] * ranks.world_size()
            model.learn(n_updates * n_steps, reset_num_timesteps=False)
            # Begins with the comparison of the arguments, rank 0's parameters and the first rollout
            measured = exchange.gather(np.array(meter.records))
            n_bytes, worked, took = np.stack(measured).transpose(2, 0, 1)[..., 6:]
            n = model._n_updates - first
            rows[f"{task}, {baseline}"] = [
                worked.shape[1] / n, n_bytes[0].sum() / n, 1000 * worked.mean(0).sum() / n, 1000 * worked.max(0).sum() / n,
                1000 * np.percentile(took.min(0), 10) * took.shape[1] / n,
            ]  # fmt: skip
    times = {}
    for n_numbers in N_NUMBERS:
        seconds = []
        for _ in range(5 if n_numbers >= 1_000_000 else 200):
            dist.barrier()
            start = time.perf_counter()
            exchange.sum_over_ranks(th.ones(n_numbers))
            seconds.append(time.perf_counter() - start)
        times[n_numbers] = [1000 * float(np.percentile(seconds, q)) for q in (50, 10, 90)]
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


def spread(values: np.ndarray, digits: str) -> str:
    return f"{np.median(values):{digits}} ({values.min():{digits}}-{values.max():{digits}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2], help="numbers of them, each above 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--exchanges", action="store_true", help="count and time the exchanges instead")
    parser.add_argument("--worker", choices=["train", "exchanges"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "exchanges":
        exchanges()
    elif options.worker == "train":
        [task] = options.tasks
        measured = train(**TASKS[task], seconds=options.seconds)
        if ranks.rank() == 0:
            print(json.dumps(measured))
    elif options.exchanges:
        for n_ranks in options.ranks:
            found = launch(n_ranks, "--worker", "exchanges")
            print(
                f"\n| {n_ranks} ranks | exchanges per update | bytes per rank | ms of work | slowest between exchanges | "
                "ms of exchanges | work, share |\n| --- | --- | --- | --- | --- | --- | --- |"
            )
            for name, (calls, n_bytes, work, slowest, took) in found["rows"].items():
                share = work / (slowest + took)
                print(f"| {name} | {calls:.1f} | {n_bytes:,.0f} | {work:.1f} | {slowest:.1f} | {took:.2f} | {share:.2f} |")
            print(f"\n| {n_ranks} ranks, float32 numbers | sum, milliseconds, median (10 % - 90 %) |\n| --- | --- |")
            for n, (middle, low, high) in found["times"].items():
                print(f"| {int(n):,} | {middle:.2f} ({low:.2f}-{high:.2f}) |")
    else:
        for n in options.ranks:
            print(
                f"\n| | 1 rank, steps per second | {n} ranks | ratio | {n} processes apart: the limit | ranks, of the limit |"
            )
            print("| --- " * 6 + "|")
            for task in options.tasks:
                arguments = ["--worker", "train", "--tasks", task, "--seconds", str(options.seconds)]
                one, together, apart = (
                    np.array(speeds)
                    for speeds in zip(
                        *(
                            (launch(1, *arguments), launch(n, *arguments), side_by_side(n, *arguments))
                            for _ in range(options.rounds)
                        ),
                        strict=True,
                    )
                )
                cells = [spread(one, ",.0f"), spread(together, ",.0f"), spread(together / one, ".2f")]
                cells += [spread(apart / one, ".2f"), spread(together / apart, ".2f")]
                print(f"| {task} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
