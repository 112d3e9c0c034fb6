"""Files: written at once or not at all; whether a model file is whole, and what of another algorithm's can be taken over."""

import io
import os
import pathlib
import zipfile
from contextlib import suppress
from typing import Any

MODEL_PARTS = {"data", "policy.pth", "policy.optimizer.pth"}


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """:raises ValueError: if there is a file and it is torn or no saved model"""
    file: Any = path
    if isinstance(path, (str, pathlib.Path)):
        file = pathlib.Path(path)
        file = file if file.exists() else file.with_name(file.name + ".zip")
        if not file.exists():
            return  # SB3's own FileNotFoundError
    try:
        with zipfile.ZipFile(file) as archive:
            torn, missing = archive.testzip(), MODEL_PARTS - set(archive.namelist())
        reason = f"its part {torn} is damaged" if torn else f"it has no {min(missing)}" if missing else None
    except Exception as error:  # zipfile raises what the damaged byte leads to, NotImplementedError among others
        reason = str(error)
    if not isinstance(file, pathlib.Path):
        file.seek(0)
    if reason:
        raise ValueError(f"{path} must be a whole model file made by save(): {reason}; take another copy of it")


def same_optimizer_kind(saved: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether two optimiser state dicts have the same hyperparameters, and so come from the same class."""
    if "param_groups" not in saved:
        return True  # a damaged state: torch says so when it is loaded
    mine, theirs = own["param_groups"][0], saved["param_groups"][0]
    decoupled = "decoupled_weight_decay"  # all that tells AdamW's from Adam's
    return set(theirs) == set(mine) and theirs.get(decoupled) == mine.get(decoupled)


def write_atomically(path: pathlib.Path, data: bytes, mode: int = 0o666) -> None:
    """
    Write a file so that it is there whole or not at all, whenever the process is killed.

    Its bytes are on the disk before its name is there, so that after a power cut, too, the file or the one before is whole.

    :param path: the file, replaced if it is there
    :param data: its bytes
    :param mode: its permissions, of which the umask is taken away
    :raises OSError: if it cannot be written; what was there before is then still there
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
