"""
The learning curve of examples/pong_from_pixels.py from its progress.csv, as a picture and a table.

    python benchmarks/pong_plot.py pong/progress.csv docs/pong.png
"""

import argparse
import csv
from pathlib import Path

import numpy as np


def curve(path: Path) -> dict[str, np.ndarray]:
    """
    :return: per update: million steps, mean return of the last 100 games, CPU seconds of one process since the run began,
        and the KL divergence of the update. Of updates that were made twice, as the run was resumed, the last counts
    """
    rows, spent, last = {}, 0.0, 0.0
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            now = float(row["time/cpu_seconds"])
            spent += now - last if now >= last else now  # a new process starts at 0
            last, steps = now, int(float(row["time/total_timesteps"]))
            rows[steps] = (steps / 1e6, float(row["rollout/ep_rew_mean"]), spent, float(row["train/approx_kl"]))
    return dict(zip(("steps", "return", "cpu", "kl"), np.array([rows[steps] for steps in sorted(rows)]).T, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("png", type=Path)
    args = parser.parse_args()
    of = curve(args.csv)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for panel, x, label in zip(
        panels, (of["steps"], of["cpu"] / 60), ("million steps (of 4 frames)", "CPU minutes per process"), strict=True
    ):
        panel.plot(x, of["return"])
        panel.set_xlabel(label)
        panel.set_ylim(-21, 21)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean return of the last 100 games")
    figure.savefig(args.png, dpi=110)

    print("| million steps | CPU seconds per process | mean return | KL per update |\n| --- | --- | --- | --- |")
    for k in np.unique(np.linspace(0, len(of["steps"]) - 1, 12).astype(int)):
        print(f"| {of['steps'][k]:.2f} | {of['cpu'][k]:,.0f} | {of['return'][k]:.1f} | {of['kl'][k]:.4f} |")


if __name__ == "__main__":
    main()
