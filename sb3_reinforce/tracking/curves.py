"""Runs of the same settings as one curve: the mean over its runs, with a confidence band."""

import json
import math
from typing import Any

import numpy as np

from sb3_reinforce.tracking.metrics import Metric
from sb3_reinforce.tracking.runs import LoggedRun, Series

# Points of a curve: a panel has no more pixels
GRID = 240
# What runs of one setting may differ in
NOT_A_SETTING = {"seed", "command", "git_commit", "versions", "device", "run_name", "run_folder"}
# 97.5 % points of Student's t for 1 to 30 degrees of freedom: half the width of a 95 % interval, in standard errors
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def curves_of(runs: list[LoggedRun]) -> dict[str, list[LoggedRun]]:
    """
    Group runs that differ in nothing but the seed; without settings, those of the same name up to its last number.

    :return: the runs of each curve by its label, which names the settings that differ
    """
    together: dict[str, list[LoggedRun]] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in NOT_A_SETTING}
        identity = json.dumps(settings, sort_keys=True, default=str) if run.config else f"{run.source} {run.group or run.name}"
        together.setdefault(identity, []).append(run)
    firsts = [members[0] for members in together.values()]
    names = sorted({key for run in firsts for key in run.config} - NOT_A_SETTING - {"algo", "env_id"})
    differing = [key for key in names if len({json.dumps(run.config.get(key), default=str) for run in firsts}) > 1]
    curves: dict[str, list[LoggedRun]] = {}
    for members in together.values():
        label = _label(members[0], differing)
        while label in curves:
            label += "'"
        curves[label] = members
    return curves


def _label(run: LoggedRun, differing: list[str]) -> str:
    if not run.config:
        return run.group or run.name
    parts = [str(run.config[key]) for key in ("algo", "env_id") if run.config.get(key)] or [run.name]
    settings = [f"{key}={run.config[key]}" for key in differing if key in run.config]
    return " ".join(parts) + (" · " + ", ".join(settings[:3]) if settings else "")


def panel_data(metric: Metric, curves: dict[str, list[LoggedRun]]) -> dict[str, Any] | None:
    """
    The data of one panel: its steps, and the line and band of each curve that has values; None if none has.

    A line is the mean over a curve's runs, its band the 95 % confidence interval of that mean (Student's t) where at least
    two runs have values. For a histogram the line is the median and the band the range from 10 % to 90 %, both averaged over
    runs.
    """
    logged = {label: [run.metrics[metric.key] for run in runs if metric.key in run.metrics] for label, runs in curves.items()}
    everything = [series for each in logged.values() for series in each]
    if not everything:
        return None
    ndim = everything[0][1].ndim  # numbers, or histograms: not both in one panel
    steps = np.unique(np.concatenate([x for x, y in everything if y.ndim == ndim]))
    if len(steps) > GRID:
        steps = np.linspace(steps[0], steps[-1], GRID)
    shown = []
    for label, each in logged.items():
        series = [(x, y) for x, y in each if y.ndim == ndim]
        if not series:
            continue
        if ndim == 2:
            low, mean, high = (_mean_and_band([(x, y[:, q]) for x, y in series], steps)[0] for q in range(3))
        else:
            mean, low, high = _mean_and_band(series, steps)
        shown.append({"curve": label, "n": len(series), "mean": _numbers(mean), "low": _numbers(low), "high": _numbers(high)})
    return {"key": metric.key, "title": metric.title, "kind": metric.kind, "x": steps.tolist(), "curves": shown}


def _mean_and_band(series: list[Series], steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each step the mean over the runs with a value there, and both ends of its 95 % interval; NaN where there is none."""
    rows = np.ma.masked_invalid([_at(x, y, steps) for x, y in series])
    count = rows.count(axis=0)
    student = np.array([np.nan, *STUDENT])[np.clip(count - 1, 0, len(STUDENT))]
    with np.errstate(over="ignore", invalid="ignore"):  # of values near the largest float
        mean = rows.mean(axis=0).filled(np.nan)
        width = student * rows.std(axis=0, ddof=1).filled(np.nan) / np.sqrt(np.maximum(count, 1))
        return mean, mean - width, mean + width


def _at(x: np.ndarray, y: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Values at other steps: means of neighbours where there are many, else linear between two; NaN outside the run."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(x):
        return np.full(len(steps), np.nan)
    # Runs of one setting begin and end at slightly different steps: without a margin the mean would jump where one ends.
    margin = 0.05 * (steps[-1] - steps[0])
    inside = (steps >= x[0] - margin) & (steps <= x[-1] + margin)
    if len(x) > len(steps) > 1:
        cells = np.searchsorted((steps[1:] + steps[:-1]) / 2, x)
        sums, counts = np.bincount(cells, y, len(steps)), np.bincount(cells, minlength=len(steps))
        filled = counts > 0
        x, y = steps[filled], sums[filled] / counts[filled]
    return np.where(inside, np.interp(steps, x, y), np.nan)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
