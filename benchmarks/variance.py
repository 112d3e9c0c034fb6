"""
Variance of the gradient under every baseline, relative to none, at the start, in the middle and at the end of training.

    python benchmarks/variance.py
    python benchmarks/variance.py --table

Trains with the settings of zoo_configs/reinforce.yml (`default` where an environment has none), seed 0, for the steps below,
and calls ``compare_baselines`` with the policy frozen. Rows go to benchmarks/results/variance.csv; an environment that has
all of its rows is not run again. The picture is docs/variance.png.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from learning import ROOT, described, read_rows, save_rows, settings_of, versions
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_reinforce import REINFORCE, compare_baselines

RESULTS = ROOT / "benchmarks" / "results" / "variance.csv"
PICTURE = ROOT / "docs" / "variance.png"
# steps of training, episodes measured at each stage
RUNS = {"CartPole-v1": (100_000, 96), "HalfCheetah-v5": (300_000, 24), "LunarLander-v3": (200_000, 32)}
STAGES = ("start", "middle", "end")


class Snapshots(BaseCallback):
    """Calls a function at the first rollout behind half of the steps."""

    needs_steps = False

    def __init__(self, at: int, function: Any):
        super().__init__()
        self.at, self.function = at, function

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.function is not None and self.model.num_timesteps >= self.at:
            self.function("middle")
            self.function = None


def run(env_id: str, seed: int = 0) -> None:
    n_timesteps, n_episodes = RUNS[env_id]
    settings = settings_of(env_id)
    text = described(settings)
    n_envs, policy, normalize = settings.pop("n_envs", 1), settings.pop("policy"), settings.pop("normalize", None)
    settings.pop("n_timesteps")
    kwargs = normalize if isinstance(normalize, dict) else {}
    env: VecEnv = make_vec_env(env_id, n_envs)
    if normalize:
        env = VecNormalize(env, gamma=settings.get("gamma", 0.99), **kwargs)
    model = REINFORCE(policy, env, seed=seed, device="cpu", **settings)
    done = {row["stage"] for row in read_rows(RESULTS) if row["env"] == env_id}

    def measure(stage: str) -> None:
        if stage in done:
            return
        measured: VecEnv = make_vec_env(env_id, 8)
        if isinstance(env, VecNormalize):
            measured = VecNormalize(measured, gamma=settings.get("gamma", 0.99), **kwargs)
            sync_envs_normalization(env, measured)
        start = time.time()
        comparison = compare_baselines(measured, model, n_episodes=n_episodes, seed=seed + 1000)
        measured.close()
        for row in comparison.rows:
            save_rows(RESULTS, {
                "env": env_id, "stage": stage, "steps": model.num_timesteps, "episodes": n_episodes, "baseline": row.name,
                "variance": f"{row.variance:.5g}", "relative": f"{row.relative:.4g}", "low": f"{row.low:.4g}",
                "high": f"{row.high:.4g}", "seed": seed, "seconds": f"{time.time() - start:.0f}", "settings": text,
                "versions": versions(), "date": time.strftime("%Y-%m-%d"),
            })  # fmt: skip
        print(f"{stage}, {model.num_timesteps} steps\n{comparison}\n", flush=True)

    measure("start")
    model.learn(n_timesteps, Snapshots(n_timesteps // 2, measure))
    measure("end")


def check_settings() -> None:
    """:raises ValueError: if what has been measured was measured with other settings than those of now"""
    now = {env_id: described(settings_of(env_id)) for env_id in RUNS}
    for row in read_rows(RESULTS):
        if row["settings"] != now[row["env"]]:
            raise ValueError(
                f"{RESULTS} must be of the settings as they are now, got {row['env']} with {row['settings']} instead of "
                f"{now[row['env']]}: remove its rows"
            )


def table() -> str:
    """One line per environment and stage."""
    rows = read_rows(RESULTS)
    names = list(dict.fromkeys(row["baseline"] for row in rows))[1:]
    lines = [f"| environment | after steps | {' | '.join(names)} |", "| --- | --- |" + " --- |" * len(names)]
    for env_id in RUNS:
        for stage in STAGES:
            own = {row["baseline"]: row for row in rows if (row["env"], row["stage"]) == (env_id, stage)}
            if own:
                for n in names:
                    own[n]["relative"] = str(float(own[n]["variance"]) / float(own["none"]["variance"]))
                cells = ["{} ({}-{})".format(*(_short(own[n][key]) for key in ("relative", "low", "high"))) for n in names]
                lines.append(f"| {env_id} | {int(own['none']['steps']):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(number: str) -> str:
    """Two digits; what is 0 but for rounding as 0."""
    value = float(number)
    return "0" if value < 1e-9 else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def draw() -> None:
    from matplotlib.figure import Figure

    rows = read_rows(RESULTS)
    none = {(row["env"], row["stage"]): float(row["variance"]) for row in rows if row["baseline"] == "none"}
    for row in rows:
        row["relative"] = str(float(row["variance"]) / none[row["env"], row["stage"]])
    env_ids = [env_id for env_id in RUNS if any(row["env"] == env_id for row in rows)]
    names = list(dict.fromkeys(row["baseline"] for row in rows))[1:]
    figure = Figure(figsize=(4 * len(env_ids), 3.6), layout="constrained")
    for axes, env_id in zip(figure.subplots(1, len(env_ids), sharey=True, squeeze=False)[0], env_ids, strict=True):
        for number, name in enumerate(names):
            own = [row for row in rows if (row["env"], row["baseline"]) == (env_id, name)]
            own.sort(key=lambda row: STAGES.index(row["stage"]))
            y, low, high = ([max(float(row[key]), 1e-5) for row in own] for key in ("relative", "low", "high"))
            x = [STAGES.index(row["stage"]) + 0.05 * (number - len(names) / 2) for row in own]
            errors = [[max(a - b, 0.0) for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            axes.errorbar(x, y, errors, marker="o", markersize=4, linewidth=1, capsize=2, label=name)
        axes.axhline(1.0, color="gray", linestyle="--", linewidth=1)
        axes.set_yscale("log")
        axes.set_xticks(range(len(STAGES)), STAGES)
        axes.set_xlim(-0.4, len(STAGES) - 0.6)
        axes.set_title(env_id)
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].set_ylabel("gradient variance relative to none")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), fontsize="small")
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--table", action="store_true", help="print and draw what has been measured, and run nothing")
    args = parser.parse_args()
    try:
        check_settings()
    except ValueError as error:
        parser.error(str(error))
    for env_id in [] if args.table else args.env:
        if {row["stage"] for row in read_rows(RESULTS) if row["env"] == env_id} < set(STAGES):
            run(env_id)
    print(table())
    draw()
    print(f"Picture: {Path(PICTURE).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
