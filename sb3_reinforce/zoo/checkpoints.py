"""Training runs that can be resumed: the saved command line, checkpoints, Monitor's files, and signals that stop a run."""

import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from sb3_reinforce.running import ranks
from sb3_reinforce.running.checkpoint import TrainingCheckpoint
from sb3_reinforce.running.checkpoint_file import checkpoints_in
from sb3_reinforce.running.files import write_atomically
from sb3_reinforce.tracking.settings import masked_command

FOLDER = "checkpoints"
RUN_FILE = "run.json"


class SavedRun(NamedTuple):
    """A training run that can be resumed from its folder."""

    folder: Path  # such as logs/reinforce/CartPole-v1_1
    arguments: list[str]  # the command line that started it, after the verb, with its seed
    hyperparams: dict[str, Any] | None  # the config that it started with; None if that holds more than plain values
    launch: str | None = None  # the launch of torchrun that started it, see ranks.launch_id
    first_step: int = 0  # steps that an agent given by -i had played before

    @property
    def checkpoints(self) -> Path:
        return self.folder / FOLDER


def read_run(path: str | Path) -> SavedRun:
    """:raises ValueError: if ``path``, the folder of a run or of its checkpoints, has nothing to resume from"""
    folder = Path(path)
    if folder.name == FOLDER:
        folder = folder.parent
    file = folder / FOLDER / RUN_FILE
    if not file.is_file():
        raise ValueError(f"must be the folder of a run of `sb3-reinforce train`, got {path}, which has no {FOLDER}/{RUN_FILE}")
    try:
        saved = json.loads(file.read_text())
        run = SavedRun(folder, list(saved["arguments"]), saved["hyperparams"], saved.get("launch"), saved.get("first_step", 0))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
    if not checkpoints_in(run.checkpoints):
        again = " ".join(masked_command(run.arguments))
        raise ValueError(f"{path} has no checkpoint yet: start the run anew, sb3-reinforce train {again}")
    return run


def run_of_launch(log_folder: str | Path, launch: str | None) -> SavedRun | None:
    """:return: the newest run below RL Zoo's log folder that a launch of torchrun has started, if it has a checkpoint yet"""
    files = Path(log_folder).glob(f"*/*/{FOLDER}/{RUN_FILE}")
    for file in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(ValueError):  # an unreadable file of another run
            if launch is not None and json.loads(file.read_text()).get("launch") == launch:
                return read_run(file.parent) if checkpoints_in(file.parent) else None
    return None


def write_run(run: SavedRun) -> None:
    """Save a run's command line and config beside its checkpoints, unmasked and so readable by its owner alone."""
    values = {name: value for name, value in run._asdict().items() if name != "folder"}
    write_atomically(run.checkpoints / RUN_FILE, json.dumps(values, indent=1).encode(), mode=0o600)


def plain_hyperparams(hyperparams: Mapping[str, Any]) -> dict[str, Any] | None:
    """:return: a copy of a config that JSON preserves; None if JSON would change it"""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(hyperparams)))
    except (TypeError, ValueError):
        return None
    return copied if copied == dict(hyperparams) else None


def without_resume(arguments: Sequence[str]) -> list[str]:
    """:return: a command line without ``--resume FOLDER``, ``--other-ranks``, and ``--trust``, which no file may say"""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--resume":
            next(left, None)
        elif not argument.startswith("--resume=") and argument not in ("--other-ranks", "--trust"):
            kept.append(argument)
    return kept


class RunCheckpoint(TrainingCheckpoint):
    """
    A checkpoint that also cuts Monitor's files back to their size at the checkpoint: later rows will be written again.

    Each rank cuts its own files, and rank 0 those of ranks that are no more.
    """

    def __init__(self, run_folder: Path, every_n_updates: int):
        super().__init__(run_folder / FOLDER, every_n_updates)
        self.run_folder = run_folder

    def state_dict(self) -> dict[str, Any]:
        """:return: when the next checkpoint is due, and the sizes of Monitor's files"""
        sizes = {file.name: file.stat().st_size for file in monitor_files(self.run_folder)}
        return {**super().state_dict(), "monitor_sizes": sizes}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for file in monitor_files(self.run_folder):
            owner = int(file.name.split(".")[0]) // self.model.n_envs
            size = state_dict["monitor_sizes"].get(file.name, math.inf)
            if ranks.rank() == (owner if owner < ranks.world_size() else 0) and file.stat().st_size > size:
                os.truncate(file, size)


def monitor_files(run_folder: Path) -> list[Path]:
    """:return: Monitor's files in the folder of a run, by environment"""
    return sorted(run_folder.glob("*.monitor.csv"), key=lambda path: int(path.name.split(".")[0]))


def started_at(monitor_file: Path) -> float:
    """:return: the time from which a Monitor's file counts, seconds since the epoch"""
    with monitor_file.open() as file:
        return float(json.loads(file.readline()[1:])["t_start"])


@contextmanager
def _handled_by(handler: Any, *numbers: int) -> Iterator[None]:
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, previous in zip(numbers, before, strict=True):
            signal.signal(number, previous)


def interrupts_ignored() -> AbstractContextManager[None]:
    """Let processes started inside ignore Ctrl-C: a terminal sends it to all, and the update is to be finished."""
    return _handled_by(signal.SIG_IGN, signal.SIGINT)


@contextmanager
def stopped_by_signals(checkpoint: TrainingCheckpoint) -> Iterator[list[int]]:
    """Stop after the current update on the first Ctrl-C or SIGTERM, at once on the second; yields the signals received."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h")  # the progress bar has hidden the cursor
            os._exit(128 + number)
        received.append(number)
        checkpoint.stop()
        # not print: the signal may have come in the middle of one
        if ranks.rank() == 0:
            os.write(2, b"\nFinishing this update, then saving and leaving; once more to leave at once.\n")

    with _handled_by(handle, signal.SIGINT, signal.SIGTERM):
        yield received
