"""A full disk, or a folder that is deleted, during training: what cannot be written is a warning."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_reinforce.running.files import write_atomically


def try_to_write(path: Path, data: bytes) -> None:
    """As :func:`write_atomically`, but an error is a warning."""
    try:
        write_atomically(path, data)
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
