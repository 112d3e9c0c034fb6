"""A full disk, or a folder that is deleted, during training: what cannot be written is a warning."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_reinforce.running.files import write_atomically


def write_whole(path: Path, data: bytes) -> None:
    """
    Write a file whole or not at all, in a folder that is made anew if it was deleted.

    :raises OSError: if it cannot be written; what was there before is then still there
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def try_to_write(path: Path, data: bytes) -> None:
    """As :func:`write_whole`, but an error is a warning."""
    try:
        write_whole(path, data)
    except OSError as error:
        warnings.warn(f"{path} could not be written, training goes on without it: {error.strerror or error}", stacklevel=3)


class Forgiving:
    """
    A method that writes rows to a file, and of a full disk warns, once, instead of raising::

        output.write = Forgiving(output.write, "progress.csv")

    What could not be written waits in the file's buffer of some kilobytes, and is written if there is room again.

    :param method: writes
    :param name: of the file, for the warning
    """

    def __init__(self, method: Callable[..., Any], name: str):
        self.method, self.name, self.warned = method, name, False

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        try:
            self.method(*args, **kwargs)
        except OSError as error:
            if not self.warned:
                self.warned = True
                warnings.warn(f"rows for {self.name} could not be written, training goes on: {error}", stacklevel=2)
