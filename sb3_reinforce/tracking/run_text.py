"""A logged run as text for people, and as plain values for JSON."""

import json
from typing import Any

import numpy as np

from sb3_reinforce.tracking.metrics import STEP_KEY
from sb3_reinforce.tracking.runs import LoggedRun


def as_dict(run: LoggedRun) -> dict[str, Any]:
    """:return: state, config, summary and last values of a run, as plain values"""
    last = {key: {"step": float(steps[-1]), "value": values[-1].tolist()} for key, (steps, values) in run.metrics.items()}
    return {
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


def as_text(run: LoggedRun) -> str:
    """:return: the same as lines"""
    state = f", {run.state}" if run.state else ""
    lines = [f"{run.name} ({run.source}{state})", f"  {run.path}"]
    if run.group and run.source == "wandb":
        lines.append(f"  group {run.group}")
    lines += _table("config", {key: _short(value) for key, value in sorted(run.config.items())})
    lines += _table("summary", {key: _short(value) for key, value in sorted(_summary(run).items())})
    lines += _table(
        "last values",
        {key: f"{_last(values[-1])}  at step {int(steps[-1])}" for key, (steps, values) in sorted(run.metrics.items())},
    )
    lines += _table("artifacts", {name: ", ".join(files) for name, files in run.artifacts.items()})
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
