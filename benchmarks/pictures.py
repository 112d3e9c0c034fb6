"""
docs/hero.png, the picture of README, from the CSV files of the benchmarks; with --all every picture that is drawn from them.

    python benchmarks/pictures.py
    python benchmarks/pictures.py --all

Learning curves of two MuJoCo tasks and a classic one, and the variance of the gradient under every baseline.
"""

import argparse
from dataclasses import replace
from typing import Any

import classic
import mujoco_tasks
import profiles
import style
import suite
import variance
from learning import read_rows
from matplotlib.ticker import MaxNLocator

PANELS = ((mujoco_tasks.MUJOCO, "HalfCheetah-v5"), (mujoco_tasks.MUJOCO, "Hopper-v5"), (classic.CLASSIC, "CartPole-v1"))
VARIANCE = ("HalfCheetah-v5", "middle")
INTERVAL = ("low", "high")
LONGEST = 1.25  # a bar beyond it is cut and has its number


def draw_variance(axes: Any) -> None:
    """A bar per baseline, from 0: what is left of the variance."""
    rows = [row for row in read_rows(variance.RESULTS) if (row["env"], row["stage"]) == VARIANCE]
    names, left = [row["baseline"] for row in rows], [float(row["relative"]) for row in rows]
    colors = [{"none": style.GRAY, "value": style.BLUE}.get(name, style.SKY) for name in names]
    ends = [[abs(x - float(row[end])) if x <= LONGEST else 0.0 for row, x in zip(rows, left, strict=True)] for end in INTERVAL]
    axes.barh(names, left, color=colors, xerr=ends, error_kw=dict(linewidth=1))
    for place, share in enumerate(left):
        if share > LONGEST:
            axes.text(LONGEST, place, f"{100 * share:.0f} % ", color="white", fontsize="small", ha="right", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, LONGEST)
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.grid(axis="y", alpha=0)
    axes.set_title("gradient variance")
    axes.set_xlabel(f"{VARIANCE[0]}, {style.short_number(round(int(rows[0]['steps']), -3))} steps", fontsize="small")


def draw() -> str:
    """:return: the file"""
    figure = style.new_figure(2.9)
    panels = figure.subplots(1, len(PANELS) + 1, width_ratios=[1] * len(PANELS) + [1.25])
    for axes, (of, task) in zip(panels, PANELS, strict=False):
        published = {
            f"{agent}, published": scores for agent in ("A2C", "PPO") for name, scores in of.published.items() if agent in name
        }
        runs = {key: own for key, own in suite.measured(of).items() if key[1] != suite.REUSE}
        suite.draw_task(axes, replace(of, published=published), task, runs)
        axes.xaxis.set_major_locator(MaxNLocator(2, steps=suite.NICE))
        axes.set_xlabel("environment steps", fontsize="small")
    panels[0].set_ylabel("return: mean of seeds and std", fontsize="small")
    draw_variance(panels[-1])
    suite.one_legend(figure, panels[:-1], n_columns=5)
    return str(style.save(figure, mujoco_tasks.MUJOCO.pictures / "hero.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also mujoco.png, classic.png, profiles.png and variance.png")
    args = parser.parse_args()
    print(draw())
    if args.all:
        for of in (mujoco_tasks.MUJOCO, classic.CLASSIC):
            print(suite.plot(of))
        print(profiles.draw(mujoco_tasks.MUJOCO))
        print(variance.draw())


if __name__ == "__main__":
    main()
