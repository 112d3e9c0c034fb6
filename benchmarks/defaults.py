"""
How the default arguments were chosen: one argument changed at a time, on five environments.

    python benchmarks/defaults.py --jobs 2
    python benchmarks/defaults.py --table

The score is the mean return of the last 100 training episodes, which shows the speed of learning as well as its end.
Rows go to benchmarks/results/defaults.csv; those that are there are not run again. Seeds differ from those of learning.py.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from learning import read_rows, save_row, versions
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE

RESULTS = Path(__file__).parent / "results" / "defaults.csv"
# Environment: steps, seeds
ENVIRONMENTS = {
    "CartPole-v1": (50_000, 5),
    "Acrobot-v1": (100_000, 3),
    "Pendulum-v1": (200_000, 3),
    "LunarLander-v3": (200_000, 3),
    "HalfCheetah-v5": (200_000, 3),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default arguments": {},
    "learning_rate=1e-3": dict(learning_rate=1e-3),
    "learning_rate=3e-3": dict(learning_rate=3e-3),
    "n_steps=256": dict(n_steps=256),
    "n_steps=2048": dict(n_steps=2048),
    'baseline="none"': dict(baseline="none"),
    'baseline="moving_average"': dict(baseline="moving_average"),
    "n_value_epochs=20": dict(n_value_epochs=20),
    "normalize_advantage=True": dict(normalize_advantage=True),
}


def run(env_id: str, variant: str, seed: int) -> dict[str, Any]:
    """Train once on one environment: one row."""
    th.set_num_threads(1)
    start = time.time()
    model = REINFORCE("MlpPolicy", make_vec_env(env_id, 1), seed=seed, device="cpu", **VARIANTS[variant])
    model.learn(ENVIRONMENTS[env_id][0])
    score = float(np.mean([info["r"] for info in model.ep_info_buffer]))
    return {
        "env": env_id, "variant": variant, "seed": seed, "score": round(score, 2), "steps": model.num_timesteps,
        "seconds": round(time.time() - start, 1), "versions": versions(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def table() -> str:
    """Mean and standard deviation over the seeds; environments across, variants down."""
    rows = read_rows(RESULTS)
    lines = [
        "| | " + " | ".join(f"{env_id}, {steps:,} steps" for env_id, (steps, _) in ENVIRONMENTS.items()) + " |",
        "| --- |" + " --- |" * len(ENVIRONMENTS),
    ]
    for variant in VARIANTS:
        cells = []
        for env_id in ENVIRONMENTS:
            scores = [float(row["score"]) for row in rows if (row["env"], row["variant"]) == (env_id, variant)]
            cells.append(f"{np.mean(scores):.0f} ± {np.std(scores):.0f} ({len(scores)})" if scores else "not run")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="print what has been measured, and run nothing")
    args = parser.parse_args()
    if not args.table:
        done = {(row["env"], row["variant"], int(row["seed"])) for row in read_rows(RESULTS)}
        jobs = [
            (env_id, variant, 100 + seed)
            for env_id, (_, n_seeds) in ENVIRONMENTS.items()
            for variant in VARIANTS
            for seed in range(n_seeds)
        ]
        with ProcessPoolExecutor(args.jobs) as pool:
            for future in as_completed([pool.submit(run, *job) for job in jobs if job not in done]):
                row = future.result()
                save_row(RESULTS, row)
                print(f"{row['env']}, {row['variant']}, seed {row['seed']}: {row['score']}", flush=True)
    print(table())


if __name__ == "__main__":
    main()
