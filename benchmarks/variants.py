"""
What does each setting bring? One at a time is changed, everything else stays.

    python benchmarks/variants.py defaults --jobs 2
    python benchmarks/variants.py continuous --seeds 2 --jobs 2
    python benchmarks/variants.py ablation --jobs 2
    python benchmarks/variants.py ablation --table

``defaults``: the default arguments, on the five environments by which they are chosen: a single environment, no
VecNormalize, as ``REINFORCE("MlpPolicy", env)`` has it. ``continuous``: whether they should be the natural gradient's where
actions are continuous, on two of these environments and two for which nothing was ever tuned. ``ablation``: the settings of
zoo_configs/reinforce.yml on three MuJoCo tasks. Runs are short; score: mean return of deterministic episodes after training.
Rows go to benchmarks/results/{defaults,continuous,ablation}.csv as soon as they are there; those that are there are not run
again. Seeds begin at 100, as in explore.py.
"""

import argparse
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from learning import ROOT, in_parallel, read_rows, save_rows, settings_of, train_and_evaluate, versions


@dataclass(frozen=True)
class Study:
    """
    :param steps: training steps by environment
    :param variants: by name, what is changed: keyword arguments, and ``n_envs``, ``normalize``
    :param from_config: whether the unchanged settings are those of the config, but for ``freeze_normalization_after``; else
        the default arguments
    :param n_episodes: of the evaluation
    """

    steps: dict[str, int]
    variants: dict[str, dict[str, Any]]
    from_config: bool
    n_episodes: int


ADAM = {"natural_gradient": False, "learning_rate": "lin_3e-3"}
NATURAL = {"natural_gradient": True, "cg_damping": 0.5}
STUDIES = {
    "defaults": Study(
        steps={
            "CartPole-v1": 50_000, "Acrobot-v1": 100_000, "LunarLander-v3": 100_000, "Pendulum-v1": 200_000,
            "HalfCheetah-v5": 200_000,
        },
        variants={
            "defaults": {},
            "`learning_rate=1e-3`": {"learning_rate": 1e-3},
            "`learning_rate=1e-2`": {"learning_rate": 1e-2},
            "`n_steps=256`": {"n_steps": 256},
            "`n_steps=1024`": {"n_steps": 1024},
            "`value_learning_rate=3e-3`": {"value_learning_rate": 3e-3},
            "`n_value_epochs=10`": {"n_value_epochs": 10},
            "`max_grad_norm=None`": {"max_grad_norm": None},
            "`normalize_advantage=True`": {"normalize_advantage": True},
            '`truncation="terminal"`': {"truncation": "terminal"},
            "`natural_gradient=True, target_kl=0.01`": {"natural_gradient": True, "target_kl": 0.01},
            "`natural_gradient=True, target_kl=0.03`": {"natural_gradient": True, "target_kl": 0.03},
        },
        from_config=False,
        n_episodes=50,
    ),
    "continuous": Study(
        steps={
            "Pendulum-v1": 200_000, "HalfCheetah-v5": 200_000, "Pusher-v5": 100_000, "HumanoidStandup-v5": 50_000,
        },
        variants={
            "defaults": {},
            "`natural_gradient=True, cg_damping=0.5, n_steps=1024`": {**NATURAL, "n_steps": 1024},
            "the same, `n_steps=2048, target_kl=0.02`, V in minibatches of 128 by 10 epochs at 1e-3": {
                **NATURAL, "n_steps": 2048, "target_kl": 0.02, "n_value_epochs": 10, "value_batch_size": 128,
                "value_learning_rate": 1e-3,
            },
        },
        from_config=False,
        n_episodes=10,
    ),
    "ablation": Study(
        steps={"HalfCheetah-v5": 300_000, "Hopper-v5": 300_000, "InvertedDoublePendulum-v5": 300_000},
        variants={
            "the config's settings, statistics of `VecNormalize` not frozen": {},
            "`freeze_normalization_after=50000`": {"freeze_normalization_after": 50_000},
            "Adam instead of the natural gradient": ADAM,
            "Adam, each batch used ten times (clipped ratio)": {
                **ADAM, "learning_rate": "lin_3e-4", "n_epochs": 10, "batch_size": 64,
            },
            '`baseline="leave_one_out"`': {"baseline": "leave_one_out"},
            '`baseline="none"`': {"baseline": "none"},
            "rewards not normalised": {"normalize": {"norm_reward": False}},
            "observations not normalised": {"normalize": {"norm_obs": False}},
            "`log_std_init=0`": {"policy_kwargs": {"log_std_init": 0.0}},
            "`ortho_init=False` (the last layer not scaled by 0.01)": {"policy_kwargs": {"ortho_init": False}},
            '`ent_coef="lin_0.01"`': {"ent_coef": "lin_0.01"},
            "V by four steps on the whole batch": {
                "n_value_epochs": 4, "value_batch_size": None, "value_learning_rate": 1e-2,
            },
            "2 environments": {"n_envs": 2},
            "`target_kl=0.03` to the end": {"target_kl": 0.03},
        },
        from_config=True,
        n_episodes=20,
    ),
}  # fmt: skip


def path_of(study: str) -> Path:
    return ROOT / "benchmarks" / "results" / f"{study}.csv"


def run(name: str, env_id: str, variant: str, seed: int) -> dict[str, Any]:
    study = STUDIES[name]
    settings = settings_of(env_id) if study.from_config else {"policy": "MlpPolicy"}
    changed = dict(study.variants[variant])
    if "policy_kwargs" in changed:
        changed["policy_kwargs"] = settings.get("policy_kwargs", {}) | changed["policy_kwargs"]
    settings.pop("freeze_normalization_after", None)
    settings |= {"n_timesteps": study.steps[env_id], **changed}
    scores, steps, seconds, _ = train_and_evaluate(env_id, settings, seed, study.n_episodes)
    return {
        "env": env_id, "variant": variant, "seed": seed, "mean": round(float(np.mean(scores)), 2), "steps": steps,
        "seconds": round(seconds, 1), "versions": versions(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def table(name: str) -> str:
    """One line per variant; in each environment's column the mean over seeds and, in brackets, the lowest of them."""
    rows, steps = read_rows(path_of(name)), STUDIES[name].steps
    lines = [f"| changed | {' | '.join(f'{env_id}, {n:,} steps' for env_id, n in steps.items())} |"]
    lines.append("| --- " * (1 + len(steps)) + "|")
    for variant in STUDIES[name].variants:
        cells = []
        for env_id in steps:
            scores = [float(row["mean"]) for row in rows if (row["env"], row["variant"]) == (env_id, variant)]
            cells.append(f"{np.mean(scores):.0f} ({min(scores):.0f})" if scores else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 100 to 99 + SEEDS")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="run only these; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="print what has been measured, and run nothing")
    args = parser.parse_args()
    if not args.table:
        study, path = STUDIES[args.study], path_of(args.study)
        names = args.variants or list(study.variants)
        if unknown := set(names) - set(study.variants):
            parser.error(f"--variants must be of {list(study.variants)}, got {sorted(unknown)}")
        done = {(row["env"], row["variant"], int(row["seed"])) for row in read_rows(path)}
        jobs = [(env_id, name, 100 + seed) for seed in range(args.seeds) for name in names for env_id in study.steps]
        jobs = [job for job in jobs if job not in done]
        for number, row in enumerate(in_parallel(partial(run, args.study), jobs, args.jobs), start=1):
            save_rows(path, row)
            print(f"{number}/{len(jobs)} {row['env']}, {row['variant']}, seed {row['seed']}: {row['mean']}, "
                  f"{row['seconds']} s", flush=True)  # fmt: skip
    print(table(args.study))


if __name__ == "__main__":
    main()
