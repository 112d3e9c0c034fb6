"""
Reads runs back from their files, without a network: W&B's own files, TensorBoard's, and SB3's: the ``progress.csv`` of its
logger, else the episodes and evaluations that its Monitor and its EvalCallback keep.

A damaged file is read as far as possible, and a line says so.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor, load_results

from sb3_reinforce.tracking.metrics import STEP_KEY
from sb3_reinforce.tracking.settings import as_setting
from sb3_reinforce.tracking.wandb_internals import record_parser

# The x-axis of a row: the first of these that it has
STEP_KEYS = (STEP_KEY, "time/total_timesteps")
QUANTILES = (0.1, 0.5, 0.9)
EVALUATIONS = "evaluations.npz"  # of SB3's EvalCallback
# Larger ones are no counts of steps
MAX_STEP = 2**63
BLOCK = 32768  # bytes of a block in a .wandb file
# Levels of lists and dicts in a setting: more would exceed Python's recursion limit when they are written
MAX_DEPTH = 50
# Steps and values of a metric, shape [n] each; values of histograms have shape [n, 3], their quantiles
Series = tuple[np.ndarray, np.ndarray]


@dataclass
class LoggedRun:
    """One training run, read from its files."""

    name: str  # unique within its folder
    path: Path
    source: str  # "wandb", "tensorboard", "csv" or "monitor"
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = ""  # "finished", "failed", "killed", "killed or running"; "": the file does not say
    group: str | None = None  # shared by the runs of one study
    metrics: dict[str, Series] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)  # files by name and aliases
    problems: list[str] = field(default_factory=list)  # what could not be read, one line each


class NoRunsError(ValueError):
    """There is no run that can be read."""


def find_runs(paths: list[Path]) -> list[LoggedRun]:
    """
    All runs below some folders: W&B's in the order of their starts, then the others in the order of their paths.

    :return: the runs; the parts of a W&B run that was stopped and resumed are one run
    :raises NoRunsError: if a path does not exist, or no run is below any of them
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise NoRunsError(f"no such file or folder: {', '.join(missing)}")
    runs, parts = [], []
    monitored: dict[Path, Path] = {}  # folder and the path that it was found below
    for path in paths:
        # rglob does not enter W&B's link to the newest run, which is beside the runs
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if not file.is_symlink())
        parts += [file for file in files if file.suffix == ".wandb"]
        events = {file.parent for file in files if file.name.startswith("events.out.tfevents.")}
        runs += [_read_tensorboard(folder, path) for folder in sorted(events)]
        tables = [file for file in files if file.name == "progress.csv"]
        runs += [_read_csv(file, path) for file in tables]
        logged = events | {file.parent for file in tables}
        monitored |= {file.parent: path for file in files if file.name.endswith(Monitor.EXT) and file.parent not in logged}
    tracked = _read_wandb(list(dict.fromkeys(parts))) if parts else []
    runs = [*tracked, *runs, *(_read_monitor(f, top) for f, top in monitored.items() if _is_untracked(f, tracked))]
    if not runs:
        where = ", ".join(str(path) for path in paths)
        raise NoRunsError(
            f"no run below {where}: looked for *.wandb (W&B), events.out.tfevents.* (TensorBoard), progress.csv and "
            "*monitor.csv (SB3); `sb3-reinforce train` leaves the last in logs, the first with --track in wandb"
        )
    return runs


def _read_wandb(files: list[Path]) -> list[LoggedRun]:
    """Files with the same run id are parts of one run, in the order of their folders' times."""
    try:
        parse = record_parser()
    except ImportError:
        raise NoRunsError('W&B runs need wandb: pip install "sb3-reinforce[wandb]"') from None
    found: dict[str, LoggedRun] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    starts: dict[str, tuple[str, int]] = {}
    for file in sorted(files, key=lambda file: (file.parent.name.removeprefix("offline-"), file.name)):
        try:
            records, problem = read_records(file)
        except OSError as error:
            records, problem = [], f"cannot be read ({error.strerror})"
        parsed = []
        for data in records:
            try:
                parsed.append(parse(data))
            except Exception:
                problem = problem or "a record that cannot be read"
        started = [record.run for record in parsed if record.WhichOneof("record_type") == "run"]
        run_id = started[0].run_id if started else file.stem.removeprefix("run-")
        # the folder's name, run-20260101_123456-id, has the second of the start, the record its fraction
        second = file.parent.name.removeprefix("offline-").removesuffix(f"-{run_id}")
        starts.setdefault(run_id, (second, started[0].start_time.ToNanoseconds() if started else 0))
        run = found.setdefault(run_id, LoggedRun(run_id, file.parent, "wandb"))
        run.path, run.state = file.parent, "killed or running"
        with _noted(run, file):
            for record in parsed:
                _add_record(record, run, rows.setdefault(run_id, []))
        if problem is not None:
            run.problems.append(f"{file}: {problem}, read {len(parsed)} records before it")
    for run_id, run in found.items():
        with _noted(run, run.path):
            run.metrics = _columns(rows.get(run_id, []))
        if not run.metrics:
            run.problems.append(f"{run.path}: no metric was logged")
    return [found[run_id] for run_id in sorted(found, key=lambda run_id: starts[run_id])]


@contextmanager
def _noted(run: LoggedRun, path: Path) -> Iterator[None]:
    """Note an error among the run's problems: one run that cannot be read must not cost the report of the others."""
    try:
        yield
    except Exception as error:
        run.problems.append(f"{path}: cannot be read ({type(error).__name__}: {error})")


def has_exit_record(folder: Path) -> bool:
    """:return: whether the file of a W&B run says how the run ended; only its last blocks are read"""
    parse = record_parser()
    for file in folder.glob("*.wandb"):
        last = max(file.stat().st_size // BLOCK - 1, 0) * BLOCK
        for data in read_records(file, last)[0]:
            with suppress(Exception):  # the rest of a record that began before
                if parse(data).WhichOneof("record_type") == "exit":
                    return True
    return False


def read_records(file: Path, start: int = 0) -> tuple[list[bytes], str | None]:
    """
    Read the records of a ``.wandb`` file.

    It is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB (the header is part of the first) of chunks with checksum,
    length and type; type 1 is a whole record, 2, 3 and 4 are a record's first, middle and last part.

    :param start: the byte to start at, a multiple of ``BLOCK``
    :return: the records before the first damaged one, and what is wrong with that one, if there is one
    """
    with file.open("rb") as stream:
        stream.seek(start)
        data = stream.read()
    if start == 0 and (len(data) < 7 or data[:4] != b":W&B"):
        return [], "not a W&B run file, or cut at its beginning"
    records: list[bytes] = []
    parts, position = b"", 7 if start == 0 else 0
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < 7:  # too little room for a chunk's head: the block's end is padding
            position += left
            continue
        if position + 7 > len(data):
            return records, "cut in the middle of a record"
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        position += 7
        if kind not in (1, 2, 3, 4) or length > left - 7:
            return records, f"damaged at byte {start + position - 7}"
        if position + length > len(data):
            return records, "cut in the middle of a record"
        parts = (b"" if kind in (1, 2) else parts) + data[position : position + length]
        position += length
        if kind in (1, 4):
            records.append(parts)
    return records, None


def _add_record(record: Any, run: LoggedRun, rows: list[dict[str, Any]]) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "history":
        rows.append(_nested(record.history.item))
    elif kind == "summary":
        run.summary |= as_setting({k: v for k, v in _nested(record.summary.update).items() if not k.startswith("_")})
    elif kind in ("run", "config"):
        update = record.run.config.update if kind == "run" else record.config.update
        # masked: other programs may have logged secrets, and a report is for showing
        run.config |= as_setting({item.key: _value(item) for item in update if item.key and item.key != "_wandb"})
        if kind == "run":
            run.group = record.run.run_group or run.group
            run.name = record.run.display_name or record.run.run_id or run.name
    elif kind == "exit":
        code = record.exit.exit_code
        run.state = "finished" if code == 0 else "killed" if code in (255, 130, 143) else "failed"
    elif kind == "artifact":
        name = f"{record.artifact.name} ({', '.join(record.artifact.aliases)})"
        run.artifacts[name] = [entry.path for entry in record.artifact.manifest.contents]


def _value(item: Any) -> Any:
    """:return: what a record's item says; None if that is no JSON, or deeper than ``MAX_DEPTH``"""
    try:
        value = json.loads(item.value_json)
    except (ValueError, RecursionError):
        return None
    return value if _is_shallow(value, MAX_DEPTH) else None


def _is_shallow(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inner if isinstance(each, dict | list))


def _nested(items: Any) -> dict[str, Any]:
    """The values by name; those with a path of names as dicts."""
    values: dict[str, Any] = {}
    for item in items:
        path = list(item.nested_key) or [item.key]
        target = values
        for part in path[:-1]:
            target = target.setdefault(part, {}) if isinstance(target.get(part, {}), dict) else {}
        target[path[-1]] = _value(item)
    return values


def _columns(rows: list[dict[str, Any]]) -> dict[str, Series]:
    """Of two rows with the same step the last one counts: a resumed run repeats the rows logged after its checkpoint."""
    points: dict[str, dict[float, Any]] = {}
    for row in rows:
        step = next((row[key] for key in STEP_KEYS if _is_number(row.get(key))), None)
        if step is None or not 0 <= step < MAX_STEP:
            continue
        for key, value in row.items():
            if key.startswith("_") or key == STEP_KEY:
                continue
            if _is_number(value):
                points.setdefault(key, {})[step] = _as_float(value)
            elif isinstance(value, dict) and value.get("_type") == "histogram":
                quantiles = _quantiles(value)
                if quantiles is not None:
                    points.setdefault(key, {})[step] = quantiles
    return {key: _series(at) for key, at in points.items()}


def _series(points: dict[float, Any]) -> Series:
    """Sort by step. Keep numbers or histograms, whichever are more: an array of one number was logged as a number."""
    histograms = {step: value for step, value in points.items() if isinstance(value, list)}
    numbers = {step: value for step, value in points.items() if step not in histograms}
    chosen = max(numbers, histograms, key=len)
    steps = sorted(chosen)
    return np.array(steps), np.array([chosen[step] for step in steps], dtype=np.float64)


def _is_number(value: Any) -> bool:
    # W&B writes NaN and infinity as texts
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: float) -> float:
    """:return: the number; infinity for one of more digits than a float can have"""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _quantiles(histogram: dict[str, Any]) -> list[float] | None:
    """The 10 %, 50 % and 90 % points of W&B's histogram, linear within its bins; None if it is empty or cannot be read."""
    try:
        counts = np.array(histogram["values"], dtype=np.float64)
        packed = histogram.get("packedBins")
        if packed:
            edges = packed["min"] + packed["size"] * np.arange(len(counts) + 1)
        else:
            edges = np.array(histogram["bins"], dtype=np.float64)
        total = counts.sum()
        if total <= 0 or len(edges) != len(counts) + 1:
            return None
        return np.interp(QUANTILES, np.concatenate([[0.0], counts.cumsum() / total]), edges).tolist()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _run_of(folder: Path, top: Path, source: str) -> LoggedRun:
    top = top if top.is_dir() else top.parent
    name = str(folder.relative_to(top)) if folder != top else folder.resolve().name
    # a2c/CartPole-v1_3 -> a2c/CartPole-v1: SB3 and the zoo number the runs of one setting; --uuid adds more
    return LoggedRun(name, folder, source, group=re.sub(r"_\d+(_[0-9a-f-]{36})?$", "", name))


def _read_tensorboard(folder: Path, top: Path) -> LoggedRun:
    run = _run_of(folder, top, "tensorboard")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        run.problems.append(f"{folder}: TensorBoard's files need tensorboard: pip install tensorboard")
        return run
    with _noted(run, folder):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 1, "images": 1, "tensors": 1})
        events.Reload()
        for key in events.Tags()["scalars"]:
            run.metrics[key] = _series({event.step: event.value for event in events.Scalars(key)})
    if not run.metrics and not run.problems:
        run.problems.append(f"{folder}: no metric was logged")
    return run


def _read_csv(file: Path, top: Path) -> LoggedRun:
    import pandas as pd  # comes with the extra `zoo`

    run = _run_of(file.parent, top, "csv")
    with _noted(run, file):
        table = pd.read_csv(file, on_bad_lines="skip").apply(pd.to_numeric, errors="coerce")
        run.metrics = _columns([{k: v for k, v in row.items() if v == v} for row in table.to_dict("records")])
    if not run.metrics and not run.problems:
        run.problems.append(f"{file}: no metric with a column {' or '.join(STEP_KEYS)} was logged")
    return run


def _is_untracked(folder: Path, tracked: list[LoggedRun]) -> bool:
    """:return: whether a folder with Monitor's files is a training that no W&B run is about, and not what benchmark played"""
    named = [str(run.config["run_folder"]).lstrip("/") for run in tracked if run.config.get("run_folder")]
    is_named = any(folder.resolve().as_posix().endswith(f"/{name}") for name in named)
    return not is_named and not (folder.parent / "benchmark.md").is_file()


def evaluations_of(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """:return: steps, mean returns and mean lengths of EvalCallback's evaluations, shape [n] each; None: there were none"""
    file = folder / EVALUATIONS
    if not file.is_file():
        return None
    with np.load(file) as saved:
        return saved["timesteps"], saved["results"].mean(axis=1), saved["ep_lengths"].mean(axis=1)


def _read_monitor(folder: Path, top: Path) -> LoggedRun:
    import pandas as pd  # comes with the extra `zoo`

    run = _run_of(folder, top, "monitor")
    rows: list[dict[Any, Any]] = []
    with _noted(run, folder):
        episodes = load_results(str(folder))[["r", "l", "t"]].apply(pd.to_numeric, errors="coerce").dropna()
        names = {"r": "episode/return", "l": "episode/length", "t": "time/time_elapsed"}
        rows += episodes.rename(columns=names).assign(**{STEP_KEY: episodes["l"].cumsum()}).to_dict("records")
    with _noted(run, folder / EVALUATIONS):
        evaluations = evaluations_of(folder)
        if evaluations is not None:
            keys = (STEP_KEY, "eval/mean_reward", "eval/mean_ep_length")
            rows += pd.DataFrame(dict(zip(keys, evaluations, strict=True))).to_dict("records")
    run.metrics = _columns(rows)
    if not run.metrics and not run.problems:
        run.problems.append(f"{folder}: no episode has ended")
    return run
