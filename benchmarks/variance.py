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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import style
from learning import ROOT, described, read_rows, save_rows, settings_of, versions
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_reinforce import REINFORCE, compare_baselines
from sb3_reinforce.compare import ROUNDING

RESULTS = ROOT / "benchmarks" / "results" / "variance.csv"
PICTURE = ROOT / "docs" / "variance.png"
# steps of training, episodes measured at each stage
RUNS = {"CartPole-v1": (100_000, 96), "HalfCheetah-v5": (300_000, 24), "LunarLander-v3": (200_000, 32)}
STAGES = ("start", "middle", "end")
MARKS = {"start": (style.SKY, "o"), "middle": (style.ORANGE, "s"), "end": (style.BLUE, "D")}
ZERO, LOWEST = 2e-4, 6e-4  # where 0 is drawn, left of the lowest number on the axis


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


def other_settings() -> list[str]:
    """:return: environments whose rows were measured with other settings than those of now"""
    return sorted({row["env"] for row in read_rows(RESULTS) if row["settings"] != described(settings_of(row["env"]))})


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
    return "0" if value < ROUNDING else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def draw_comparison(axes: Any, env_id: str, rows: list[dict[str, str]], names: list[str], stages: Sequence[str]) -> None:
    """
    One panel: a line of the axis per baseline, a point with its interval per stage. What is 0 but for rounding stands on a
    line of its own, left of the logarithmic axis.
    """
    spacing = 0.24 if len(stages) > 1 else 0.0
    for number, stage in enumerate(stages):
        color, marker = MARKS[stage]
        for place, name in enumerate(names):
            y = place + spacing * (number - (len(stages) - 1) / 2)
            for row in rows:
                if (row["env"], row["stage"], row["baseline"]) == (env_id, stage, name):
                    none = next(float(r["variance"]) for r in rows if (r["env"], r["stage"]) == (env_id, stage))
                    x, low, high = float(row["variance"]) / none, float(row["low"]), float(row["high"])
                    if x < ROUNDING:
                        axes.plot(ZERO, y, marker, color=color, markersize=5, markerfacecolor="white")
                    else:
                        axes.plot([max(low, LOWEST), high], [y, y], color=color, linewidth=1.2)
                        axes.plot(x, y, marker, color=color, markersize=4.5)
        axes.plot([], [], marker, color=color, label=stage)
    axes.axvline(1.0, color=style.GRAY, linestyle="--", linewidth=1)
    axes.axvline(ZERO * 2, color=style.GRAY, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(ZERO / 2, 2000)
    ticks = {ZERO: "0", 0.01: "0.01", 1.0: "1", 100.0: "100"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(env_id)


def draw() -> Path:
    """:return: the picture: a panel per environment"""
    rows = read_rows(RESULTS)
    env_ids = [env_id for env_id in RUNS if any(row["env"] == env_id for row in rows)]
    names = list(dict.fromkeys(row["baseline"] for row in rows))[1:]
    figure = style.new_figure(0.42 * len(names) + 1.1)
    panels = figure.subplots(1, len(env_ids), sharey=True, squeeze=False)[0]
    for axes, env_id in zip(panels, env_ids, strict=True):
        draw_comparison(axes, env_id, rows, names, STAGES)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, [f"{label} of training" for label in labels], loc="outside upper center", ncols=3)
    figure.supxlabel("variance of the gradient, relative to no baseline (95 % interval)", fontsize="medium")
    return style.save(figure, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--table", action="store_true", help="print and draw what has been measured, and run nothing")
    args = parser.parse_args()
    others = other_settings()
    if not args.table and set(args.env) & set(others):
        parser.error(f"{RESULTS} has rows of other settings than those of now: remove those of {', '.join(others)}")
    for env_id in [] if args.table else args.env:
        if {row["stage"] for row in read_rows(RESULTS) if row["env"] == env_id} < set(STAGES):
            run(env_id)
    print(table())
    if others:
        print(f"Measured with other settings than those of now: {', '.join(others)}")
    print(f"Picture: {draw().relative_to(ROOT)}")


if __name__ == "__main__":
    main()
