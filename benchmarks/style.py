"""
How all benchmark pictures look: as wide as GitHub shows a README, at sizes that can be read there.

Colours are those of Okabe and Ito, which all people tell apart; lines or markers differ as well.
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

WIDTH = 8.3  # inches: at 100 pixels each, the 830 that a README is wide
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#666666"
# By agent. A published result has the colour of its algorithm
COLOURS = {
    "REINFORCE": BLUE, "REINFORCE, reuse": SKY, "REINFORCE, MLP": GRAY, "A2C": ORANGE, "PPO": RED, "RecurrentPPO": RED,
}  # fmt: skip

matplotlib.rcParams.update(
    {
        "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "legend.fontsize": 8.5, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 1.6,
    }
)  # fmt: skip


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """:return: a figure of so many inches, without pyplot: no display is needed"""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG at twice the pixels that a README shows, for sharp screens."""
    figure.savefig(path, dpi=200)
    return path


def short_number(value: float, _: object = None) -> str:
    """:return: ``"500"``, ``"250k"``, ``"1M"``"""
    for divisor, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= divisor:
            return f"{value / divisor:g}{unit}"
    return f"{value:g}"
