"""
Action masks on a job shop of real size: with masks, without them, and MaskablePPO of sb3-contrib.

Ten jobs of ten operations each on ten machines: the instance ft10 of Fisher and Thompson (1963), whose shortest schedule takes
930. An action dispatches the next operation of a job; the return is minus the schedule's length. The mask leaves the jobs that
may come next in an active schedule (Giffler and Thompson, 1960), among which an optimal one always is: two or three of ten.
Without masks every unfinished job may be dispatched, and a finished one costs a step and ten units of time.

    python benchmarks/job_shop.py --seeds 10 --jobs 2
    python benchmarks/job_shop.py --table

Each run's row goes to benchmarks/results/job_shop.csv as soon as it is there; runs that have one are not repeated.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from learning import in_parallel, read_rows, save_rows, versions
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

RESULTS = Path(__file__).parent / "results" / "job_shop.csv"
# Per job, machine and duration of its operations, in their order
FT10 = """
0 29 1 78 2  9 3 36 4 49 5 11 6 62 7 56 8 44 9 21
0 43 2 90 4 75 9 11 3 69 1 28 6 46 5 46 7 72 8 30
1 91 0 85 3 39 2 74 8 90 5 10 7 12 6 89 9 45 4 33
1 81 2 95 0 71 4 99 6  9 8 52 7 85 3 98 9 22 5 43
2 14 0  6 1 22 5 61 3 26 4 69 8 21 7 49 9 72 6 53
2 84 1  2 5 52 3 95 8 48 9 72 0 47 6 65 4  6 7 25
1 46 0 37 3 61 2 13 6 32 5 21 9 32 8 89 7 30 4 55
2 31 0 86 1 46 5 74 4 32 6 88 8 19 9 48 7 36 3 79
0 76 1 69 3 76 5 51 2 85 9 11 6 40 7 89 4 26 8 74
1 85 0 13 2 61 6  7 8 64 9 76 5 47 3 52 4 90 7 45
"""
N_ENVS, N_STEPS = 8, 100_000
# Per contestant of ours, policy and arguments beside n_episodes and gamma
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "REINFORCE, natural gradient": ("MaskableMlpPolicy", dict(natural_gradient=True)),
    "REINFORCE, natural gradient, without masks": ("MlpPolicy", dict(natural_gradient=True)),
    "REINFORCE, default arguments": ("MaskableMlpPolicy", {}),
}
CONTESTANTS = (*OURS, "MaskablePPO")


class JobShop(gym.Env):
    """
    Dispatches one operation per step.

    :param instance: per job, machine and duration in turn
    """

    def __init__(self, instance: str = FT10):
        rows = [list(map(int, line.split())) for line in instance.strip().splitlines()]
        self.machines, self.durations = [row[::2] for row in rows], [row[1::2] for row in rows]
        self.n_jobs, self.n_machines = len(rows), len(rows[0]) // 2
        self.action_space = spaces.Discrete(self.n_jobs)
        self.observation_space = spaces.Box(-np.inf, np.inf, (6 * self.n_jobs,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.done_operations, self.job_ready = [0] * self.n_jobs, [0] * self.n_jobs
        self.machine_ready = [0] * self.n_machines
        self.makespan, self.left = 0, self.n_jobs * self.n_machines
        self.remaining = [sum(durations) for durations in self.durations]
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        """
        Per job, relative to the earliest start of any operation: earliest start of its next one, its machine's free time, its
        duration; work left, share done, and whether the mask allows it.
        """
        starts, ends = [0] * self.n_jobs, [10**9] * self.n_jobs
        for job, operation in enumerate(self.done_operations):
            if operation < self.n_machines:
                starts[job] = max(self.job_ready[job], self.machine_ready[self.machines[job][operation]])
                ends[job] = starts[job] + self.durations[job][operation]
        unfinished = [job for job, end in enumerate(ends) if end < 10**9]
        self.mask = np.zeros(self.n_jobs, dtype=bool)
        if unfinished:
            # The machine on which an operation can end first: of those that could begin before that, one must come next.
            first = min(unfinished, key=ends.__getitem__)
            machine, earliest = self.machines[first][self.done_operations[first]], min(starts[job] for job in unfinished)
            for job in unfinished:
                if self.machines[job][self.done_operations[job]] == machine and starts[job] < ends[first]:
                    self.mask[job] = True
        features = np.zeros((self.n_jobs, 6), dtype=np.float32)
        for job in unfinished:
            operation = self.done_operations[job]
            free = self.machine_ready[self.machines[job][operation]]
            features[job] = (
                (starts[job] - earliest) / 100, (free - earliest) / 100, self.durations[job][operation] / 100,
                self.remaining[job] / 500, operation / self.n_machines, self.mask[job],
            )  # fmt: skip
        return features.reshape(-1)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        operation = self.done_operations[action]
        if operation == self.n_machines:
            return self._observe(), -0.1, False, False, {}
        machine, duration = self.machines[action][operation], self.durations[action][operation]
        end = max(self.job_ready[action], self.machine_ready[machine]) + duration
        self.job_ready[action] = self.machine_ready[machine] = end
        self.done_operations[action] += 1
        self.remaining[action] -= duration
        self.left -= 1
        longer = max(end - self.makespan, 0)
        self.makespan += longer
        return self._observe(), -longer / 100, self.left == 0, False, {"makespan": self.makespan}


class MaskedJobShop(JobShop):
    def action_masks(self) -> np.ndarray:
        return self.mask


class Lengths(BaseCallback):
    """Notes how long each finished schedule is."""

    def _on_training_start(self) -> None:
        self.lengths: list[int] = []

    def _on_step(self) -> bool:
        self.lengths += [info["makespan"] for info in self.locals["infos"] if "episode" in info and "makespan" in info]
        return True


def make_model(contestant: str, seed: int) -> Any:
    policy, arguments = OURS.get(contestant, ("MlpPolicy", {}))
    env = make_vec_env(limited if contestant in OURS and policy == "MlpPolicy" else MaskedJobShop, N_ENVS, seed=seed)
    if contestant == "MaskablePPO":
        from sb3_contrib import MaskablePPO

        # 2048 steps per update, as with one environment; the rest are its defaults
        return MaskablePPO("MlpPolicy", env, n_steps=2048 // N_ENVS, gamma=1.0, seed=seed, device="cpu")
    from sb3_reinforce import REINFORCE

    return REINFORCE(policy, env, n_episodes=N_ENVS, gamma=1.0, seed=seed, device="cpu", **arguments)


def limited() -> gym.Env:
    return gym.wrappers.TimeLimit(JobShop(), 1000)


def run(contestant: str, seed: int) -> dict[str, Any]:
    """Train once: one row, of all schedules made in training and of the last hundred."""
    th.set_num_threads(1)
    model, callback = make_model(contestant, seed), Lengths()
    start = time.process_time()
    model.learn(N_STEPS, callback=callback)
    lengths = callback.lengths
    return {
        "contestant": contestant, "seed": seed, "first_100": round(float(np.mean(lengths[:100])), 1),
        "last_100": round(float(np.mean(lengths[-100:])), 1), "shortest": min(lengths), "schedules": len(lengths),
        "steps": model.num_timesteps, "cpu_seconds": round(time.process_time() - start, 1), "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def table() -> str:
    """One line per contestant, over its seeds."""
    lines = [
        "| | seeds | first 100 schedules | last 100: mean of the seeds | std | best seed | worst seed | shortest of all | "
        "schedules per run | CPU seconds |",
        "| --- " * 10 + "|",
    ]
    rows = read_rows(RESULTS)
    for contestant in CONTESTANTS:
        own = [row for row in rows if row["contestant"] == contestant]
        if own:
            numbers = ("first_100", "last_100", "shortest", "schedules", "cpu_seconds")
            of = {key: np.array([float(row[key]) for row in own]) for key in numbers}
            last = of["last_100"]
            lines.append(
                f"| {contestant} | {len(own)} | {of['first_100'].mean():.0f} | {last.mean():.0f} | {last.std():.0f} | "
                f"{last.min():.0f} | {last.max():.0f} | {of['shortest'].min():.0f} | {of['schedules'].mean():.0f} | "
                f"{np.median(of['cpu_seconds']):.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="print what has been measured, and run nothing")
    args = parser.parse_args()
    if not args.table:
        done = {(row["contestant"], int(row["seed"])) for row in read_rows(RESULTS)}
        jobs = [(name, seed) for name in args.contestants for seed in range(args.seeds) if (name, seed) not in done]
        for row in in_parallel(run, jobs, args.jobs):
            save_rows(RESULTS, row)
            print({key: value for key, value in row.items() if key not in ("versions", "date")}, flush=True)
    print(table())


if __name__ == "__main__":
    main()
