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

from sb3_reinforce.tracking.curves import curves_of, differences, panel_data
from sb3_reinforce.tracking.metrics import SECTIONS, STEP_KEY, Metric, Section, all_metrics
from sb3_reinforce.tracking.runs import LoggedRun, NoRunsError, Series, find_runs

# What is drawn first: the first of these that the runs have, evaluations, and how noisy the gradient is
RETURNS = ("rollout/ep_return_mean", "rollout/ep_rew_mean", "episode/return")
EVALUATION, VARIANCE = "eval/mean_reward", "gradient/variance"


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
    parser.add_argument(
        "dir",
        nargs="*",
        type=Path,
        help="a run's folder, or one with runs below it (default: logs and wandb, where they exist)",
    )
    default = Path("logs/report.html")
    parser.add_argument("--out", type=Path, default=default, metavar="FILE", help=f"default: {default}")
    parser.add_argument("--title", default="Training report", help="default: Training report")
    # of several the last counts: inspect-run puts --text in front of what the user wrote
    for form, shown in (("text", "state, config, summary and last values"), ("json", "the same as JSON, one run per line")):
        what = f"print {shown}, no page"
        parser.add_argument(f"--{form}", dest="form", action="store_const", const=form, default="page", help=what)
    options = parser.parse_args(arguments)
    try:
        folders = options.dir or [folder for folder in (Path("logs"), Path("wandb")) if folder.is_dir()]
        if not folders:
            raise NoRunsError("there is no folder logs or wandb here: name the folder that holds the runs")
        runs = find_runs(folders)
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
    hero = _hero(curves)
    data = {"curves": list(curves), "hero": hero, "sections": _sections(runs, curves, {panel["key"] for panel in hero})}
    details = [f"<summary>{html.escape(run.name)}</summary><pre>{html.escape(as_text(run))}</pre>" for run in runs]
    static = files("sb3_reinforce.tracking") / "static"
    parts = {
        "uplot.css": (static / "uPlot.min.css").read_text(encoding="utf-8"),
        "uplot.js": (static / "uPlot.iife.min.js").read_text(encoding="utf-8"),
        "report.css": (static / "report.css").read_text(encoding="utf-8"),
        "report.js": (static / "report.js").read_text(encoding="utf-8"),
        "title": html.escape(title),
        "notes": "".join(f"<p class=note>{html.escape(problem)}</p>" for problem in problems(runs)),
        "runs": _runs_table(curves),
        "differences": _differences_table(curves),
        "details": "".join(f"<details>{each}</details>" for each in details),
        # no text can end the script element that it is in
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    template = (static / "report.html").read_text(encoding="utf-8")
    # in one pass: a user's text may look like a place to fill
    return re.sub(r"{{([a-z.]+)}}", lambda place: parts[place[1]], template)


def _hero(curves: dict[str, list[LoggedRun]]) -> list[dict[str, Any]]:
    """The panels that come first: training returns with the evaluations, and the variance of the gradient."""
    metrics = all_metrics()
    evaluations = panel_data(metrics[EVALUATION], curves)
    returns = next((data for key in RETURNS if (data := panel_data(metrics[key], curves)) is not None), None)
    if returns is not None and evaluations is not None:
        returns["title"] += "; dashed: evaluations, the best one marked"
        returns["evaluations"] = [{**curve, "best": _best(curves[curve["curve"]])} for curve in evaluations["curves"]]
    first = returns or evaluations
    variance = panel_data(metrics[VARIANCE], curves)
    return [panel for panel in (first, variance) if panel is not None]


def _best(runs: list[LoggedRun]) -> list[float] | None:
    """Step and mean return of the best evaluation of some runs."""
    found = [
        (float(value), float(step))
        for run in runs
        if EVALUATION in run.metrics
        for step, value in zip(run.metrics[EVALUATION][0], _numbers(run.metrics[EVALUATION]), strict=True)
        if math.isfinite(value)
    ]
    return [max(found)[1], max(found)[0]] if found else None


def _sections(runs: list[LoggedRun], curves: dict[str, list[LoggedRun]], first: set[str]) -> list[dict[str, Any]]:
    """All panels but the first ones by section, and apart from them the metrics that never change."""
    others = sorted({key for run in runs for key in run.metrics} - set(all_metrics()))
    sections = [*SECTIONS, Section("Other metrics", "Logged, but of no section above.", tuple(Metric(k, k) for k in others))]
    shown = []
    for section in sections:
        panels = [panel_data(metric, curves) for metric in section.metrics if metric.key not in {*first, EVALUATION}]
        found = [panel for panel in panels if panel is not None]
        values = {panel["key"]: _constant(panel) for panel in found}
        constant = [
            [panel["title"], panel["key"], values[panel["key"]]] for panel in found if values[panel["key"]] is not None
        ]
        if found:
            shown.append(
                {
                    "title": section.title,
                    "question": section.question,
                    "panels": [panel for panel in found if values[panel["key"]] is None],
                    "constant": constant,
                }
            )
    return shown


def _constant(panel: dict[str, Any]) -> float | None:
    """:return: the value that all lines of a panel have at all of two or more steps; None if there are others"""
    lines = [line for curve in panel["curves"] for line in (curve["mean"], *curve["runs"])]
    values = {value for line in lines for value in line}
    several = any(len(line) > 1 for line in lines)
    return values.pop() if several and len(values) == 1 and panel["kind"] == "line" else None


def _differences_table(curves: dict[str, list[LoggedRun]]) -> str:
    rows = differences(curves)
    if not rows:
        return ""
    head = "".join(f'<th><i class="dot c{number % 8}"></i>{html.escape(label)}' for number, label in enumerate(curves))
    body = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td>{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
        for name, texts in rows
    )
    return (
        "<details class=differences><summary>Settings in which the curves differ</summary><div class=scroll>"
        f"<table><thead><tr><th>setting{head}</thead><tbody>{body}</tbody></table></div></details>"
    )


def _runs_table(curves: dict[str, list[LoggedRun]]) -> str:
    rows = []
    for number, (label, runs) in enumerate(curves.items()):
        for run in runs:
            steps = max((int(x[-1]) for x, _ in run.metrics.values()), default=None)
            returns = next((run.metrics[key] for key in RETURNS if key in run.metrics), None)
            evaluations = run.metrics.get(EVALUATION)
            state = html.escape(run.state.split(" ")[0])
            cells = [
                f'<td><i class="dot c{number % 8}"></i>{html.escape(label)}</td>',
                f'<td data-name="run">{html.escape(run.name)}</td>',
                f'<td data-name="state" class="{state}">{html.escape(run.state or run.source)}</td>',
                _cell("seed", run.config.get("seed")),
                _cell("steps", None if steps is None else f"{steps:,}"),
                _cell("last return", None if returns is None else float(_numbers(returns)[-1])),
                _cell("best evaluation", None if evaluations is None else float(np.fmax.reduce(_numbers(evaluations)))),
            ]
            rows.append(f'<tr data-curve="{number}">{"".join(cells)}</tr>')
    return "".join(rows)


def _numbers(series: Series) -> np.ndarray:
    """:return: the values of a metric, shape [n]; of histograms their medians"""
    return series[1] if series[1].ndim == 1 else series[1][:, 1]


def _cell(name: str, value: Any) -> str:
    text = "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
    return f'<td class=number data-name="{name}">{html.escape(text)}</td>'


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
