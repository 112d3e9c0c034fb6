"""``sb3-reinforce inspect-run``: what is in a run's folder, without W&B's website."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_reinforce.tracking.runs import NoRunsError, Run, find_runs


def inspect_run(arguments: Sequence[str]) -> int:
    """
    Print state, config, summary and last values of the runs below some folders.

    :param arguments: the command line after the verb
    :return: the exit code: 0, or 1 if nothing could be read
    """
    parser = argparse.ArgumentParser(
        prog="sb3-reinforce inspect-run",
        description="State, config, summary and last values of the runs below some folders.",
        epilog="example: sb3-reinforce inspect-run wandb",
    )
    parser.add_argument("dir", nargs="+", type=Path, help="a run's folder, or one with runs below it: wandb, logs, ...")
    parser.add_argument("--json", action="store_true", help="as JSON, one object per run and line")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.dir)
    except NoRunsError as error:
        print(f"sb3-reinforce: error: {error}", file=sys.stderr)
        return 1
    for number, run in enumerate(runs):
        for problem in run.problems:
            print(f"sb3-reinforce: warning: {printable(problem)}", file=sys.stderr)
        print(json.dumps(as_dict(run)) if options.json else ("\n" if number else "") + as_text(run))
    return 0


def as_dict(run: Run) -> dict[str, Any]:
    """:return: what is printed, as plain values"""
    return {
        "name": run.name,
        "path": str(run.path),
        "source": run.source,
        "state": run.state,
        "group": run.group,
        "config": run.config,
        "summary": _single_numbers(run),
        "last": {key: {"step": float(steps[-1]), "value": _last(values)} for key, (steps, values) in run.metrics.items()},
        "artifacts": run.artifacts,
    }


def _single_numbers(run: Run) -> dict[str, Any]:
    # W&B's summary repeats the last value of each metric: those are printed with their step
    found = {}
    for key, value in run.summary.items():
        if key not in run.metrics and isinstance(value, int | float | str) and key != "global_step":
            found[key] = value
    return found


def _last(values: np.ndarray) -> Any:
    return values[-1].tolist()


def as_text(run: Run) -> str:
    """:return: what is printed, for people"""
    state = f", {run.state}" if run.state else ""
    lines = [f"{run.name} ({run.source}{state})", f"  {run.path}"]
    if run.group and run.source == "wandb":
        lines.append(f"  group {run.group}")
    lines += _table("config", {key: _short(value) for key, value in sorted(run.config.items())})
    lines += _table("summary", {key: _short(value) for key, value in sorted(_single_numbers(run).items())})
    lines += _table(
        "last values",
        {
            key: f"{_number(values[-1] if values.ndim == 1 else values[-1, 1])}"
            f"{'' if values.ndim == 1 else f' (median; 10 %: {_number(values[-1, 0])}, 90 %: {_number(values[-1, 2])})'}"
            f"  at step {int(steps[-1])}"
            for key, (steps, values) in sorted(run.metrics.items())
        },
    )
    lines += _table("artifacts", {name: ", ".join(files) for name, files in run.artifacts.items()})
    return "\n".join(printable(line) for line in lines)


def printable(text: str) -> str:
    """:return: the text without characters that a terminal would obey"""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _table(title: str, rows: dict[str, str]) -> list[str]:
    if not rows:
        return []
    width = max(len(name) for name in rows)
    return [f"  {title}", *(f"    {name:<{width}}  {text}" for name, text in rows.items())]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float) -> str:
    return f"{value:.6g}"
