"""``sb3-reinforce report``: runs as one HTML page, which opens without a network, as text or as JSON."""

import argparse
import html
import json
import math
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sb3_reinforce.tracking.curves import curves_of, panel_data
from sb3_reinforce.tracking.metrics import SECTIONS, STEP_KEY, Metric, Section, all_metrics
from sb3_reinforce.tracking.runs import LoggedRun, NoRunsError, Series, find_runs


def report(arguments: Sequence[str]) -> int:
    """
    Write the page, or print the runs as text or JSON.

    :return: the exit code: 0, or 1 if nothing could be read or the page not be written
    """
    parser = argparse.ArgumentParser(
        prog="sb3-reinforce report",
        description="One HTML page from W&B's offline runs, TensorBoard logs or SB3's progress.csv. Runs that differ in "
        "nothing but the seed become one curve, the mean with a 95 % confidence band.",
        epilog="example: sb3-reinforce report wandb; sb3-reinforce inspect-run wandb (the same as report wandb --text)",
    )
    parser.add_argument("dir", nargs="+", type=Path, help="a run's folder, or one with runs below it: wandb, logs, ...")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument("--title", default="Training report", help="default: Training report")
    # of several the last counts: inspect-run puts --text in front of what the user wrote
    for form, shown in (("text", "state, config, summary and last values"), ("json", "the same as JSON, one run per line")):
        what = f"print {shown}, no page"
        parser.add_argument(f"--{form}", dest="form", action="store_const", const=form, default="page", help=what)
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.dir)
    except NoRunsError as error:
        print(f"sb3-reinforce: error: {error}", file=sys.stderr)
        return 1
    if options.form != "page":
        for number, run in enumerate(runs):
            _warn(run.problems)
            print(json.dumps(as_dict(run)) if options.form == "json" else ("\n" if number else "") + as_text(run))
        return 0
    _warn(problems(runs))
    page = make_page(runs, options.title)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page, encoding="utf-8", errors="replace")  # JSON may hold half of a character
    except OSError as error:
        print(f"sb3-reinforce: error: {options.out} cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(page) / 1e6:.1f} MB")
    return 0


def _warn(lines: list[str]) -> None:
    for line in lines:
        print(f"sb3-reinforce: warning: {printable(line)}", file=sys.stderr)


def problems(runs: list[LoggedRun]) -> list[str]:
    """:return: what could not be read, and whether there is a metric that all runs share; one line each"""
    found = [problem for run in runs for problem in run.problems]
    shared = set.intersection(*(set(run.metrics) for run in runs)) if runs else set()
    if len(runs) > 1 and not shared:
        found.append(f"no metric is common to all {len(runs)} runs: each panel shows those that have its metric")
    return found


def make_page(runs: list[LoggedRun], title: str) -> str:
    """:return: the HTML page of some runs, which needs no other file"""
    curves = curves_of(runs)
    others = sorted({key for run in runs for key in run.metrics} - set(all_metrics()))
    sections = [*SECTIONS, Section("Other metrics", "Logged, but of no section above.", tuple(Metric(k, k) for k in others))]
    shown = []
    for section in sections:
        panels = [data for metric in section.metrics if (data := panel_data(metric, curves)) is not None]
        if panels:
            shown.append({"title": section.title, "question": section.question, "panels": panels})
    data = {"curves": list(curves), "sections": shown}
    details = [f"<summary>{html.escape(run.name)}</summary><pre>{html.escape(as_text(run))}</pre>" for run in runs]
    static = files("sb3_reinforce.tracking") / "static"
    parts = {
        "uplot.css": (static / "uPlot.min.css").read_text(encoding="utf-8"),
        "uplot.js": (static / "uPlot.iife.min.js").read_text(encoding="utf-8"),
        "title": html.escape(title),
        "notes": "".join(f"<p class=note>{html.escape(problem)}</p>" for problem in problems(runs)),
        "runs": _runs_table(curves),
        "details": "".join(f"<details>{each}</details>" for each in details),
        # no text can end the script element that it is in
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    template = (static / "report.html").read_text(encoding="utf-8")
    # in one pass: a user's text may look like a place to fill
    return re.sub(r"{{([a-z.]+)}}", lambda place: parts[place[1]], template)


def _runs_table(curves: dict[str, list[LoggedRun]]) -> str:
    rows = []
    for number, (label, runs) in enumerate(curves.items()):
        for run in runs:
            steps = max((int(x[-1]) for x, _ in run.metrics.values()), default=None)
            returns = run.metrics.get("rollout/ep_return_mean") or run.metrics.get("rollout/ep_rew_mean")
            evaluations = run.metrics.get("eval/mean_reward")
            cells = [
                f'<td><i class="dot c{number % 8}"></i>{html.escape(label)}</td>',
                f"<td>{html.escape(run.name)}</td>",
                f'<td class="{html.escape(run.state.split(" ")[0])}">{html.escape(run.state or run.source)}</td>',
                _cell(run.config.get("seed")),
                _cell(None if steps is None else f"{steps:,}"),
                _cell(None if returns is None else float(_numbers(returns)[-1])),
                _cell(None if evaluations is None else float(np.fmax.reduce(_numbers(evaluations)))),
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    return "".join(rows)


def _numbers(series: Series) -> np.ndarray:
    """:return: the values of a metric, shape [n]; of histograms their medians"""
    return series[1] if series[1].ndim == 1 else series[1][:, 1]


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
    return f"<td class=number>{html.escape(text)}</td>"


def as_dict(run: LoggedRun) -> dict[str, Any]:
    """:return: state, config, summary and last values of a run, as plain values; None for numbers that are not finite"""
    last = {key: {"step": float(steps[-1]), "value": values[-1].tolist()} for key, (steps, values) in run.metrics.items()}
    found = {
        "name": run.name,
        "path": str(run.path),
        "source": run.source,
        "state": run.state,
        "group": run.group,
        "config": run.config,
        "summary": _summary(run),
        "last": last,
        "artifacts": run.artifacts,
    }
    return {key: _finite(value) for key, value in found.items()}


def _finite(value: Any) -> Any:
    """A plain value as JSON allows it, which has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(run: LoggedRun) -> str:
    """:return: the same, as lines of text"""
    state = f", {run.state}" if run.state else ""
    lines = [f"{run.name} ({run.source}{state})", f"  {run.path}"]
    if run.group and run.source == "wandb":
        lines.append(f"  group {run.group}")
    for title, values in (("config", run.config), ("summary", _summary(run))):
        lines += _table(title, {key: _short(value) for key, value in sorted(values.items())})
    last = {key: f"{_last(y[-1])}  at step {int(x[-1])}" for key, (x, y) in sorted(run.metrics.items())}
    lines += _table("last values", last)
    lines += _table("artifacts", {name: ", ".join(paths) for name, paths in run.artifacts.items()})
    return "\n".join(printable(line) for line in lines)


def printable(text: str) -> str:
    """:return: the text without control characters, which a terminal would obey"""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _summary(run: LoggedRun) -> dict[str, Any]:
    # W&B's summary repeats the last value of each metric; those are shown with their steps
    hidden = {STEP_KEY, *run.metrics}
    return {key: value for key, value in run.summary.items() if key not in hidden and isinstance(value, int | float | str)}


def _table(title: str, rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {title}", *(f"    {name:<{width}}  {text}" for name, text in rows.items())] if rows else []


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _last(value: np.ndarray | float) -> str:
    if np.ndim(value) == 0:
        return f"{value:.6g}"
    low, median, high = np.asarray(value)
    return f"{median:.6g} (median; 10 %: {low:.6g}, 90 %: {high:.6g})"
