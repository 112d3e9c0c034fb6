"""``sb3-reinforce report``: one HTML page with the sections of ``metrics.py`` as plots, which opens without a network."""

import argparse
import html
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sb3_reinforce.tracking.inspect_run import as_text, printable
from sb3_reinforce.tracking.metrics import SECTIONS, Metric, Section, all_metrics
from sb3_reinforce.tracking.runs import NoRunsError, Run, find_runs

# Points of a curve: more than a panel has pixels nobody can see
GRID = 240
# What runs of one setting may differ in
NOT_A_SETTING = {"seed", "command", "git_commit", "versions", "device", "run_name"}
# 97.5 % points of Student's t for 1 to 30 degrees of freedom: half the width of a 95 % interval, in standard errors
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass
class Curve:
    """The runs that one curve stands for: same settings, other seeds."""

    label: str
    runs: list[Run] = field(default_factory=list)


def report(arguments: Sequence[str]) -> int:
    """
    Write the page.

    :param arguments: the command line after the verb
    :return: the exit code: 0, or 1 if nothing could be read or the page not be written
    """
    parser = argparse.ArgumentParser(
        prog="sb3-reinforce report",
        description="One HTML page from W&B's offline runs, TensorBoard logs or SB3's progress.csv. Runs that differ in "
        "nothing but the seed become one curve, the mean with a 95 % confidence band.",
        epilog="example: sb3-reinforce report wandb",
    )
    parser.add_argument("dir", nargs="+", type=Path, help="a run's folder, or one with runs below it: wandb, logs, ...")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument("--title", default="Training report", help="default: Training report")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.dir)
    except NoRunsError as error:
        print(f"sb3-reinforce: error: {error}", file=sys.stderr)
        return 1
    for problem in problems(runs):
        print(f"sb3-reinforce: warning: {printable(problem)}", file=sys.stderr)
    page = make_page(runs, options.title)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page, encoding="utf-8")
    except OSError as error:
        print(f"sb3-reinforce: error: {options.out} cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(page) / 1e6:.1f} MB")
    return 0


def problems(runs: list[Run]) -> list[str]:
    """:return: what could not be read, and whether there is a metric that all runs share; one line each"""
    found = [problem for run in runs for problem in run.problems]
    shared = set.intersection(*(set(run.metrics) for run in runs)) if runs else set()
    if len(runs) > 1 and not shared:
        found.append(f"no metric is common to all {len(runs)} runs: each panel shows those that have its metric")
    return found


def curves_of(runs: list[Run]) -> list[Curve]:
    """
    Runs of the same settings together.

    :param runs: any runs; without settings those that are called alike but for their number are together
    :return: one curve each, labelled with what sets them apart
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(_identity(run), []).append(run)
    firsts = [members[0] for members in together.values()]
    names = sorted({key for run in firsts for key in run.config} - NOT_A_SETTING - {"algo", "env_id"})
    differing = [key for key in names if len({json.dumps(run.config.get(key), default=str) for run in firsts}) > 1]
    curves: dict[str, Curve] = {}
    for members in together.values():
        label = _label(members[0], differing)
        while label in curves:
            label += "'"
        curves[label] = Curve(label, members)
    return list(curves.values())


def _identity(run: Run) -> str:
    if not run.config:
        return f"{run.source} {run.group or run.name}"
    return json.dumps({k: v for k, v in run.config.items() if k not in NOT_A_SETTING}, sort_keys=True, default=str)


def _label(run: Run, differing: list[str]) -> str:
    if not run.config:
        return run.group or run.name
    parts = [str(run.config[key]) for key in ("algo", "env_id") if run.config.get(key)] or [run.name]
    settings = [f"{key}={run.config[key]}" for key in differing if key in run.config]
    return " ".join(parts) + (" · " + ", ".join(settings[:3]) if settings else "")


def panel_data(metric: Metric, curves: list[Curve]) -> dict[str, Any] | None:
    """
    What a panel shows.

    A line is the mean over a curve's runs, its band the 95 % confidence interval of that mean (Student's t), where at least
    two runs have values. Of a histogram the line is the median and the band the range from 10 % to 90 %, both averaged over
    runs.

    :param metric: what to show
    :param curves: the runs
    :return: steps, and for each curve with values its line and band; None if there is none
    """
    found = [run.metrics[metric.key] for curve in curves for run in curve.runs if metric.key in run.metrics]
    ndim = found[0][1].ndim if found else 1  # numbers, or histograms: not both in one panel
    chosen = [
        (curve, [s for s in (run.metrics.get(metric.key) for run in curve.runs) if s is not None and s[1].ndim == ndim])
        for curve in curves
    ]
    chosen = [(curve, series) for curve, series in chosen if series]
    if not chosen:
        return None
    everything = [steps for _, series in chosen for steps, _ in series]
    steps = np.unique(np.concatenate(everything))
    if len(steps) > GRID:
        steps = np.linspace(steps[0], steps[-1], GRID)
    shown = []
    for curve, series in chosen:
        if series[0][1].ndim == 2:
            low, mean, high = (_mean_and_band([(x, y[:, q]) for x, y in series], steps)[0] for q in range(3))
        else:
            mean, low, high = _mean_and_band(series, steps)
        shown.append(
            {"curve": curve.label, "n": len(series), "mean": _numbers(mean), "low": _numbers(low), "high": _numbers(high)}
        )
    return {"key": metric.key, "title": metric.title, "kind": metric.kind, "x": steps.tolist(), "curves": shown}


def _mean_and_band(
    series: list[tuple[np.ndarray, np.ndarray]], steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    :param series: steps and values of each run
    :param steps: where to take them, shape [n]
    :return: mean over the runs that have come so far, and both ends of its 95 % interval; NaN where there is none
    """
    rows = np.array([_at(x, y, steps) for x, y in series])
    count = np.isfinite(rows).sum(axis=0)
    mean = np.where(count > 0, np.nansum(rows, axis=0) / np.maximum(count, 1), np.nan)
    variance = np.nansum((rows - mean) ** 2, axis=0) / np.maximum(count - 1, 1)
    student = np.array([np.nan, *STUDENT])[np.clip(count - 1, 0, len(STUDENT))]
    width = student * np.sqrt(variance / np.maximum(count, 1))
    return mean, mean - width, mean + width


def _at(x: np.ndarray, y: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """
    Values at other steps: means over neighbours where there are many, else linear between two.

    Runs of one setting begin and end at slightly different steps: the first and the last value hold a little further, so that
    the mean does not jump where a run ends. NaN beyond.
    """
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(x):
        return np.full(len(steps), np.nan)
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


def make_page(runs: list[Run], title: str) -> str:
    """
    :param runs: what to show
    :param title: of the page
    :return: the page, with everything in it that it needs
    """
    curves = curves_of(runs)
    known = all_metrics()
    others = sorted({key for run in runs for key in run.metrics} - set(known))
    sections = [*SECTIONS, Section("Other metrics", "Logged, but of no section above.", tuple(Metric(k, k) for k in others))]
    shown = []
    for section in sections:
        panels = [data for metric in section.metrics if (data := panel_data(metric, curves)) is not None]
        if panels:
            shown.append({"title": section.title, "question": section.question, "panels": panels})
    data = {"curves": [curve.label for curve in curves], "sections": shown}
    static = files("sb3_reinforce.tracking") / "static"
    page = (static / "report.html").read_text(encoding="utf-8")
    # the data last: what a user has written must not be taken for a place to fill
    for place, text in (
        ("{{uplot.css}}", (static / "uPlot.min.css").read_text(encoding="utf-8")),
        ("{{uplot.js}}", (static / "uPlot.iife.min.js").read_text(encoding="utf-8")),
    ):
        page = page.replace(place, text)
    parts = {
        "title": html.escape(title),
        "notes": "".join(f"<p class=note>{html.escape(problem)}</p>" for problem in problems(runs)),
        "runs": _runs_table(curves),
        "details": _details(runs),
        # no text can end the script element that it is in
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    pieces = page.split("{{")
    return pieces[0] + "".join(
        parts.get(name, "{{" + name) + rest if end else "{{" + piece
        for piece in pieces[1:]
        for name, end, rest in [piece.partition("}}")]
    )


def _runs_table(curves: list[Curve]) -> str:
    rows = []
    for number, curve in enumerate(curves):
        for run in curve.runs:
            steps = max((x[-1] for x, _ in run.metrics.values()), default=None)
            cells = [
                f'<td><i class="dot c{number % 8}"></i>{html.escape(curve.label)}</td>',
                f"<td>{html.escape(run.name)}</td>",
                f'<td class="{html.escape(run.state.split(" ")[0])}">{html.escape(run.state or run.source)}</td>',
                _cell(run.config.get("seed")),
                _cell(None if steps is None else f"{int(steps):,}"),
                _cell(_last_of(run, "rollout/ep_return_mean", "rollout/ep_rew_mean")),
                _cell(_best_evaluation(run)),
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    return "".join(rows)


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
    return f"<td class=number>{html.escape(text)}</td>"


def _last_of(run: Run, *keys: str) -> float | None:
    return next((float(run.metrics[key][1][-1]) for key in keys if key in run.metrics), None)


def _best_evaluation(run: Run) -> float | None:
    return float(np.nanmax(run.metrics["eval/mean_reward"][1])) if "eval/mean_reward" in run.metrics else None


def _details(runs: list[Run]) -> str:
    return "".join(
        f"<details><summary>{html.escape(run.name)}</summary><pre>{html.escape(as_text(run))}</pre></details>" for run in runs
    )
