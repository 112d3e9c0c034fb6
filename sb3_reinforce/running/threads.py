"""One thread for NumPy's BLAS and for torch while ``learn`` plays and updates, whatever the environment variables say."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch as th
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0  # Optuna's trials may run side by side, in Python threads of this process
_before = 1  # torch's number when the first of them came


@cache
def blas() -> ThreadpoolController:
    """:return: the BLAS of this process, found once: the search through its libraries takes milliseconds"""
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Inside, NumPy's BLAS and torch compute on one thread; behind it, also after errors, the numbers are as before.

    A batch of a policy gradient is a few thousand rows of small layers. There the threads of OpenMP wait for each other more
    than they compute, and spin while they wait: one busy process beside them costs more than half of the speed.

    torch's number is kept if it was changed inside, by a callback for example.
    """
    global _inside, _before
    number = th.get_num_threads()  # always: the first call in a Python thread sets its number anew
    with _lock:
        _before = number if _inside == 0 else _before
        _inside += 1
    th.set_num_threads(1)  # of this Python thread: OpenMP has a number for each
    try:
        with blas().limit(limits=1):
            yield
    finally:
        with _lock:
            _inside -= 1
            if th.get_num_threads() == 1:
                th.set_num_threads(_before)
