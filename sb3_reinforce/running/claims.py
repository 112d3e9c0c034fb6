"""A folder belongs to one process at a time: a lock on a file in it, which the operating system drops with the process."""

import errno
import os
import socket
import sys
import warnings
import weakref
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"


class FolderInUseError(ValueError):
    """Another process uses the folder."""


class Claim:
    """Holds a folder for as long as something refers to it. Made by :func:`claim`."""

    def __init__(self, folder: Path):
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, file)
        try:
            if sys.platform == "win32":
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise
            holder = ""
            with suppress(OSError):  # Windows lets nobody else read it
                holder = os.read(file, 200).decode(errors="replace")
            raise FolderInUseError(
                f"must be a folder that no other run uses, got {folder}, which {holder or 'another process'} is using: wait "
                "for its end, or choose another folder"
            ) from None
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


_claims: weakref.WeakValueDictionary[Path, Claim] = weakref.WeakValueDictionary()


def claim(folder: Path) -> Claim | None:
    """
    Claim a folder, which is made if it is not there, for this process; parts of one process share it.

    :return: keep it for as long as the folder is used; None, with a warning, where files cannot be locked or written
    :raises FolderInUseError: if another process uses the folder
    """
    key = folder.resolve()
    found = _claims.get(key)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claims[key] = made = Claim(folder)
    except OSError as error:
        warnings.warn(f"{folder} cannot be locked ({error}): see to it that no other run uses it", stacklevel=3)
        return None
    return made
