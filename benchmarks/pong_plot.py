"""
Learning curves of examples/pong_from_pixels.py from the progress.csv of its runs, as a picture and a table.

    python benchmarks/pong_plot.py docs/pong.png pong pong_seed1 pong_seed2
"""

import argparse
import csv
from itertools import cycle
from pathlib import Path

import numpy as np
import style


def curve(path: Path) -> np.ndarray:
    """
    :param path: a progress.csv
    :return: per update: environment steps, CPU seconds of one process since the run began, mean return of the last 100
        games. Of updates that were made twice, as the run was resumed, the last counts
    """
    rows, spent, last = {}, 0.0, 0.0
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            now, steps = float(row["time/cpu_seconds"]), int(row["time/total_timesteps"])
            spent += now - last if now >= last else now  # a new process starts at 0
            rows[steps], last = (steps, spent, float(row["rollout/ep_rew_mean"])), now
    return np.array([rows[steps] for steps in sorted(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    curves = {folder.name: curve(folder / "progress.csv") for folder in args.folders}
    figure = style.new_figure(3.0)
    panels = figure.subplots(1, 2, sharey=True)
    for (name, rows), color in zip(curves.items(), cycle((style.BLUE, style.ORANGE, style.GREEN, style.PURPLE))):
        steps, seconds, returns = rows.T
        panels[0].plot(steps, returns, color=color, label=name)
        panels[1].plot(seconds / 60, returns, color=color, label=name)
    panels[0].xaxis.set_major_formatter(style.short_number)
    for panel, label in zip(panels, ("steps, of 4 frames each", "CPU minutes of each process"), strict=True):
        panel.set_xlabel(label)
    panels[0].set(ylim=(-21.5, 21.5), ylabel="mean return of the last 100 games")
    panels[1].legend()
    style.save(figure, args.picture)

    print("| run | above -5 at steps | CPU seconds of each process | last, steps | CPU seconds | mean return |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rows in curves.items():
        above = rows[rows[:, 2] > -5]
        first = f"{above[0, 0]:,.0f} | {above[0, 1]:,.0f}" if len(above) else "not | "
        print(f"| {name} | {first} | {rows[-1, 0]:,.0f} | {rows[-1, 1]:,.0f} | {rows[-1, 2]:.1f} |")


if __name__ == "__main__":
    main()
