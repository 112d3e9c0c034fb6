"""``sb3-reinforce report``: runs as one HTML page, which opens without a network, as text or as JSON."""

import argparse
import html
import json
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sb3_reinforce.tracking.curves import Curve, curves_of, panel_data
from sb3_reinforce.tracking.metrics import SECTIONS, Metric, Section, all_metrics
from sb3_reinforce.tracking.run_text import as_dict, as_text, printable
from sb3_reinforce.tracking.runs import LoggedRun, NoRunsError, find_runs


def report(arguments: Sequence[str]) -> int:
    """
    Write the page, or print the runs as text or JSON.

    :param arguments: the command line after the verb
    :return: the exit code: 0, or 1 if nothing could be read or the page not be written
    """
    parser = argparse.ArgumentParser(
        prog="sb3-reinforce report",
        description="One HTML page from W&B's offline runs, TensorBoard logs or SB3's progress.csv. Runs that differ in "
        "nothing but the seed become one curve, the mean with a 95 % confidence band.",
        epilog="examples: sb3-reinforce report wandb; sb3-reinforce report wandb/latest-run --text",
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
        return _print(runs, options.form)
    _warn(problems(runs))
    page = make_page(runs, options.title)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page, encoding="utf-8")
    except OSError as error:
        print(f"sb3-reinforce: error: {options.out} cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(page) / 1e6:.1f} MB")
    return 0


def _print(runs: list[LoggedRun], form: str) -> int:
    for number, run in enumerate(runs):
        _warn(run.problems)
        print(json.dumps(as_dict(run)) if form == "json" else ("\n" if number else "") + as_text(run))
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
    parts = {
        "uplot.css": (static / "uPlot.min.css").read_text(encoding="utf-8"),
        "uplot.js": (static / "uPlot.iife.min.js").read_text(encoding="utf-8"),
        "title": html.escape(title),
        "notes": "".join(f"<p class=note>{html.escape(problem)}</p>" for problem in problems(runs)),
        "runs": _runs_table(curves),
        "details": _details(runs),
        # no text can end the script element that it is in
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    template = (static / "report.html").read_text(encoding="utf-8")
    # in one pass: a user's text may look like a place to fill
    return re.sub(r"{{([a-z.]+)}}", lambda place: parts[place[1]], template)


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


def _last_of(run: LoggedRun, *keys: str) -> float | None:
    return next((float(run.metrics[key][1][-1]) for key in keys if key in run.metrics), None)


def _best_evaluation(run: LoggedRun) -> float | None:
    return float(np.nanmax(run.metrics["eval/mean_reward"][1])) if "eval/mean_reward" in run.metrics else None


def _details(runs: list[LoggedRun]) -> str:
    return "".join(
        f"<details><summary>{html.escape(run.name)}</summary><pre>{html.escape(as_text(run))}</pre></details>" for run in runs
    )
