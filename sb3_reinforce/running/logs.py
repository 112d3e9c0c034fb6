"""Loggers for resumed runs: as Stable-Baselines3's, but rows are appended to the files that are there."""

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    Logger,
    make_output_format,
)

from sb3_reinforce.running.disk import Forgiving
from sb3_reinforce.running.files import write_atomically


def appending_logger(folder: str | Path, format_strings: Sequence[str] = ("stdout", "csv")) -> Logger:
    """
    A logger as SB3's ``configure`` makes, except that it appends to the files in the folder instead of emptying them::

        model.set_logger(appending_logger("run", ["csv", "tensorboard"]))

    A row that a crash has torn is removed. After :meth:`REINFORCE.resume` the rows after the checkpoint are written again:
    of rows with equal ``time/total_timesteps`` the last counts. Rows that cannot be written, as the disk is full, are warned
    about, and training continues.

    :param folder: where the files are, made if it is not there
    :param format_strings: ``"stdout"``, ``"csv"`` (progress.csv), ``"json"`` (progress.json), ``"log"`` (log.txt),
        ``"tensorboard"``
    :return: the logger, for ``model.set_logger``
    :raises ValueError: for an unknown format
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Logger(folder=str(folder), output_formats=[forgiving(_output_format(name, folder)) for name in format_strings])


def forgiving(output: KVWriter) -> KVWriter:
    """:return: the same output, which warns where it cannot write to its file; errors of the terminal stay"""
    if not isinstance(output, HumanOutputFormat) or output.own_file:
        name = type(output).__name__
        output.write = Forgiving(output.write, name)  # type: ignore[method-assign]
        output.close = Forgiving(output.close, name)  # type: ignore[method-assign]
    return output


def _output_format(name: str, folder: Path) -> KVWriter:
    if name == "csv":
        return AppendingCSV(folder / "progress.csv")
    if name == "json":
        return AppendingJSON(folder / "progress.json")
    if name == "log":
        log = HumanOutputFormat(open(folder / "log.txt", "a"))
        log.own_file = True
        return log
    return make_output_format(name, str(folder))


class AppendingCSV(CSVOutputFormat):
    """Appends to ``progress.csv``: new columns are added at the right, as SB3 does, but the file is whole at any moment."""

    def __init__(self, path: Path):
        _remove_torn_row(path)
        self.path = path
        self.separator, self.quotechar = ",", '"'
        self._open()
        self.keys: list[str] = next(csv.reader(self.file), [])
        self.file.seek(0, os.SEEK_END)

    def _open(self) -> None:
        self.path.touch()
        self.file = self.path.open("r+", newline="\n")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one row, as SB3's ``CSVOutputFormat`` does."""
        written = {key for key in key_values if "csv" not in (key_excluded.get(key) or ())}
        if new := sorted(written - set(self.keys)):
            keys = [*self.keys, *new]
            rows = self.path.read_text().splitlines()[1:]
            lines = [",".join(keys), *(row + self.separator * len(new) for row in rows)]
            write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())
            with suppress(OSError):  # of rows that did not fit on the disk
                self.file.close()
            self._open()
            self.keys = keys
            self.file.seek(0, os.SEEK_END)
        super().write(key_values, key_excluded, step)


class AppendingJSON(JSONOutputFormat):
    """Appends to ``progress.json``."""

    def __init__(self, path: Path):
        _remove_torn_row(path)
        self.file = path.open("a")


def _remove_torn_row(path: Path) -> None:
    """Remove what a file has after its last newline."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            write_atomically(path, data[: data.rfind(b"\n") + 1])
