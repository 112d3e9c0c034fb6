"""Threads of NumPy's BLAS and of torch while ``learn`` plays and updates, whatever the environment variables say."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch as th
from threadpoolctl import ThreadpoolController
from torch import nn

from sb3_reinforce.running.devices import has_convolutions

_lock = threading.Lock()
_inside = 0  # Optuna's trials may run side by side, in Python threads of this process
_before = 1  # torch's number when the first of them came


def threads_for_update(policy: nn.Module) -> int:
    """
    :return: torch's number as it is, for convolutions on the CPU: they compute long enough between two waits. Else 1: with a
        few thousand rows of small layers, OpenMP's threads wait more than they compute, and spin while they wait, so that
        one busy process beside them costs more than half of the speed
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in policy.parameters())
    return th.get_num_threads() if on_cpu and has_convolutions(policy) else 1


def threads_of_user() -> int:
    """:return: torch's number of threads outside of :func:`limited_threads`, which ``OMP_NUM_THREADS`` or the user has set"""
    return _before if _inside else th.get_num_threads()


@cache
def blas() -> ThreadpoolController:
    """:return: the BLAS of this process, found once: the search through its libraries takes milliseconds"""
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def limited_threads(n_threads: int = 1) -> Iterator[None]:
    """
    Inside, NumPy's BLAS uses one thread; behind it, also after errors, the numbers are as before.

    :param n_threads: of torch, inside; if it was changed there, by a callback for example, the new number is kept
    """
    global _inside, _before
    number = th.get_num_threads()  # always: the first call in a Python thread sets its number anew
    with _lock:
        _before = number if _inside == 0 else _before
        _inside += 1
    th.set_num_threads(n_threads)  # of this Python thread: OpenMP has a number for each
    try:
        with blas().limit(limits=1):
            yield
    finally:
        with _lock:
            _inside -= 1
            if th.get_num_threads() == n_threads:
                th.set_num_threads(_before)
