"""One thread for NumPy's BLAS and for torch while ``learn`` plays and updates, whatever the environment variables say."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch as th
from threadpoolctl import LibController, ThreadpoolController

_lock = threading.Lock()
_inside = 0  # runs in one_thread() at the moment: Optuna's trials may be in Python threads of this process
_before: tuple[int, dict[str, int]] = (1, {})  # torch's threads, and those of each BLAS, when the first of them came


@cache
def _blas_libraries() -> list[LibController]:
    """Found once: the search through all libraries of the process takes milliseconds."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Inside, NumPy's BLAS and torch compute on one thread; behind it, also after errors, the numbers are as before.

    A batch of a policy gradient is a few thousand rows of small layers. There the threads of OpenMP wait for each other more
    than they compute, and spin while they wait: beside one busy process that costs more than half of the speed.

    torch's number is kept if it was changed inside, by a callback for example.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = th.get_num_threads(), {library.filepath: library.num_threads for library in _blas_libraries()}
        _inside += 1
        _set_blas(dict.fromkeys(_before[1], 1))
    th.set_num_threads(1)  # OpenMP keeps it for each Python thread
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if th.get_num_threads() == 1:
                th.set_num_threads(_before[0])
            if _inside == 0:
                _set_blas(_before[1])


def _set_blas(numbers: dict[str, int]) -> None:
    for library in _blas_libraries():
        library.set_num_threads(numbers[library.filepath])
