"""Runs of the same settings as one curve: the mean over its runs, with a confidence band, or each run beside it."""

import json
import math
from typing import Any

import numpy as np

from sb3_reinforce.tracking.metrics import Metric, all_metrics
from sb3_reinforce.tracking.runs import LoggedRun, Series

# Points of a curve: a panel has hardly more pixels
GRID = 240
# What runs of one setting may differ in
NOT_A_SETTING = {"seed", "command", "git_commit", "versions", "device", "run_name", "run_folder"}
# Fewer runs are drawn one by one
MANY_RUNS = 5
CLOCK = "time/time_elapsed"
# 97.5 % points of Student's t for 4 to 30 degrees of freedom: half the width of a 95 % interval, in standard errors
STUDENT = (
    2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
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


def differences(curves: dict[str, list[LoggedRun]]) -> list[tuple[str, list[str]]]:
    """:return: each setting in which curves differ, and its value of each curve; "" where a curve does not have it"""
    firsts = [members[0].config for members in curves.values()]
    names = sorted({key for config in firsts for key in config} - NOT_A_SETTING)
    values = {name: [json.dumps(config[name], default=str) if name in config else "" for config in firsts] for name in names}
    return [(name, [text.strip('"') for text in texts]) for name, texts in values.items() if len(set(texts)) > 1]


def possible_values(metric: Metric, runs: list[LoggedRun]) -> tuple[float, float]:
    """:return: the lowest and highest value that the metric can have; for returns the range of those seen in the runs"""
    if metric.values == "return":
        seen = [run.metrics[key][1] for run in runs for key, each in all_metrics().items() if _is_return(each, key, run)]
        finite = np.concatenate([values[np.isfinite(values)] for values in seen]) if seen else np.empty(0)
        return (float(finite.min()), float(finite.max())) if len(finite) else (-math.inf, math.inf)
    return {"positive": (0.0, math.inf), "share": (0.0, 1.0), "any": (-math.inf, math.inf)}[metric.values]


def _is_return(metric: Metric, key: str, run: LoggedRun) -> bool:
    return metric.values == "return" and key in run.metrics and run.metrics[key][1].ndim == 1


def panel_data(metric: Metric, curves: dict[str, list[LoggedRun]]) -> dict[str, Any] | None:
    """
    The data of one panel: for each curve with values its steps, its line, and a band or the lines of its runs.

    A line is the mean over a curve's runs. From ``MANY_RUNS`` runs on its band is the 95 % confidence interval of that mean
    (Student's t), cut to the values that the metric can have; of fewer, that interval says little: each run is a thin line.
    For a histogram the line is the median and the band the range from 10 % to 90 %, both averaged over runs.

    :return: None if no run has the metric; ``seconds`` is None where the runs do not say how long they took
    """
    logged = {label: [run for run in runs if metric.key in run.metrics] for label, runs in curves.items()}
    ndim = next((run.metrics[metric.key][1].ndim for runs in logged.values() for run in runs), None)
    if ndim is None:
        return None
    lowest, highest = possible_values(metric, [run for runs in curves.values() for run in runs])
    shown = []
    for label, runs in logged.items():
        runs = [run for run in runs if run.metrics[metric.key][1].ndim == ndim]  # numbers or histograms: not both
        series = [run.metrics[metric.key] for run in runs]
        steps = _steps_of(series)
        if not len(steps):
            continue
        single: list[np.ndarray] = []
        if ndim == 2:
            low, mean, high = (_mean_and_band([(x, y[:, q]) for x, y in series], steps)[0] for q in range(3))
        else:
            mean, low, high = _mean_and_band(series, steps)
            low, high = (np.clip(end, lowest, highest) for end in (low, high))
            single = [_at(x, y, steps) for x, y in series] if 1 < len(series) < MANY_RUNS else []
        shown.append(
            {
                "curve": label,
                "n": len(series),
                "x": steps.tolist(),
                "seconds": _seconds(runs, steps),
                "mean": _numbers(mean),
                "low": _numbers(low) if np.isfinite(low).any() else [],
                "high": _numbers(high) if np.isfinite(high).any() else [],
                "runs": [_numbers(values) for values in single],
            }
        )
    return {"key": metric.key, "title": metric.title, "kind": metric.kind, "curves": shown} if shown else None


def _steps_of(series: list[Series]) -> np.ndarray:
    """
    The steps at which a curve is drawn: where its runs have values, at most ``GRID`` of them.

    Runs of one setting begin and end at slightly different steps, and the mean would jump where one of them ends: where their
    ends lie close together, the curve ends with the first of them. It never goes beyond the last step of its runs.
    """
    steps = [x[np.isfinite(y if y.ndim == 1 else y[:, 1])] for x, y in series]
    steps = [x for x in steps if len(x)]
    if not steps:
        return np.empty(0)
    first, last = min(x[0] for x in steps), max(x[-1] for x in steps)
    near = 0.05 * (last - first)
    first = max(x[0] for x in steps if x[0] <= first + near)
    last = min(x[-1] for x in steps if x[-1] >= last - near)
    every = np.unique(np.concatenate(steps))
    inside = every[(every >= first) & (every <= last)]
    return np.linspace(first, last, GRID) if len(inside) > GRID else inside


def _seconds(runs: list[LoggedRun], steps: np.ndarray) -> list[float | None] | None:
    """:return: seconds of training up to each step, the mean over the runs; None if no run says it"""
    clocks = [run.metrics[CLOCK] for run in runs if CLOCK in run.metrics and run.metrics[CLOCK][1].ndim == 1]
    if not clocks:
        return None
    # Rows of other metrics may come a little before the first, or after the last reading of the clock.
    return _numbers(np.mean([np.interp(steps, x, y) for x, y in clocks], axis=0))


def _mean_and_band(series: list[Series], steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At each step the mean over the runs with a value there, and both ends of its 95 % interval; NaN where there is none."""
    rows = np.ma.masked_invalid([_at(x, y, steps) for x, y in series])
    count = rows.count(axis=0)
    student = np.array([np.nan] * MANY_RUNS + [*STUDENT])[np.clip(count, 0, MANY_RUNS - 1 + len(STUDENT))]
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
    inside = (steps >= x[0]) & (steps <= x[-1])
    if len(x) > len(steps) > 1:
        cells = np.searchsorted((steps[1:] + steps[:-1]) / 2, x)
        sums, counts = np.bincount(cells, y, len(steps)), np.bincount(cells, minlength=len(steps))
        filled = counts > 0
        x, y = steps[filled], sums[filled] / counts[filled]
    return np.where(inside, np.interp(steps, x, y), np.nan)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
