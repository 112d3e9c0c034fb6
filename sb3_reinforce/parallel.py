"""
Costs in parallel: a slow simulator, called in processes, one sample per call.

Each process is a ``concurrent.futures`` executor of its own: when it dies or takes too long, it is known which sample it had.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import cloudpickle
import numpy as np
import threadpoolctl
import torch as th

START_SECONDS = 120.0
"""A process that has not started by then, with all that the cost function imports, is an error."""
END_SECONDS = 5.0
"""What an idle process may take to end; then it is killed."""
GUARD = 'in a script, everything that starts processes must stand below `if __name__ == "__main__":`, because they import it'


class ParallelCost:
    """
    A cost function for :class:`~sb3_reinforce.ScoreFunctionEstimator` that is called in processes, K samples at a time::

        with ParallelCost(simulate, n_jobs=8, timeout=60) as cost:
            loss = estimator(distribution, cost)

    Costs come back in the order of the samples. After any error (in the function, a process that died, a timeout, Ctrl-C) all
    processes are killed, and the next call starts new ones. They end with the ``with`` block, :meth:`close`, or Python itself.

    Each process is a fresh Python that imports this package and the script, which takes seconds, once (forkserver; on Windows
    spawn). The function travels by cloudpickle, so lambdas, closures and functions of a notebook will do; what they refer to
    must be picklable: no open files, locks or connections, which the function can open itself. Each process computes with one
    thread, and has random numbers of its own: a cost with noise is not reproducible unless the function seeds it.

    :param function: f, called with one sample, as NumPy, without the axis K; returns its cost: a number or bool, or an array
        of the batch shape
    :param n_jobs: number of processes; -1: one per core that this process may use
    :param timeout: seconds that one call may take; None: no limit
    :param cache: True keeps the cost of every sample, and does not compute it again for an equal one: for discrete samples
        and a function without noise. ``cost.cache.clear()`` forgets them
    :raises ValueError: for numbers out of range, or a function that cannot be pickled
    """

    def __init__(self, function: Callable[..., Any], n_jobs: int = -1, timeout: float | None = None, cache: bool = False):
        if not callable(function):
            raise ValueError(f"function must be callable, got {function!r}")
        if isinstance(n_jobs, bool) or not isinstance(n_jobs, (int, np.integer)) or (n_jobs < 1 and n_jobs != -1):
            raise ValueError(f"n_jobs must be a whole number >= 1, or -1 for all cores, got {n_jobs!r}")
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise ValueError(f"timeout must be a number of seconds > 0, or None, got {timeout!r}")
        try:
            self._pickled = cloudpickle.dumps(function)
        except Exception as error:  # whatever an object's own __reduce__ raises
            raise ValueError(
                f"function must be picklable, with all that it refers to, got {function!r}: {error}. Open files, locks and "
                "connections are not: open them inside the function"
            ) from error
        self.n_jobs = _n_cores() if n_jobs == -1 else int(n_jobs)
        self.timeout = timeout
        self.cache: dict[Any, np.ndarray] | None = {} if cache else None
        self._executors: list[ProcessPoolExecutor] = []

    def __call__(self, *samples: Any) -> np.ndarray:
        """
        :param samples: the K samples of one or more random variables, tensors or arrays, each of shape [K, ...]
        :return: their costs, float64, shape [K, ...]
        :raises ValueError: if the samples are not [K, ...] with one K, or the costs differ in shape
        :raises RuntimeError: if the function raised an error, or a process died; the message names the sample
        :raises TimeoutError: if a call took longer than ``timeout``; the message names the sample
        """
        arrays = [_as_array(x) for x in samples]
        if not arrays or any(x.ndim == 0 or len(x) != len(arrays[0]) for x in arrays) or len(arrays[0]) == 0:
            shapes = [x.shape for x in arrays]
            raise ValueError(
                f'a ParallelCost takes all samples at once, shape [K, ...], got {shapes}: use cost_input="torch" or "numpy"'
            )
        calls = [tuple(each) for each in zip(*arrays, strict=True)]
        if self.cache is None:
            costs = self._computed(dict(enumerate(calls)))
        else:
            keys = [tuple((np.asarray(x).dtype.str, np.shape(x), np.asarray(x).tobytes()) for x in call) for call in calls]
            first: dict[Any, int] = {}
            for k, key in enumerate(keys):
                if key not in self.cache:
                    first.setdefault(key, k)
            computed = self._computed({k: calls[k] for k in first.values()})
            self.cache.update({key: computed[k] for key, k in first.items()})
            costs = {k: self.cache[key] for k, key in enumerate(keys)}
        for k, cost in costs.items():
            if cost.shape != costs[0].shape:
                raise ValueError(f"costs must have one shape, got {costs[0].shape} for sample 0, {cost.shape} for sample {k}")
        return np.stack([costs[k] for k in range(len(calls))])

    def close(self) -> None:
        """End the processes. The next call starts new ones."""
        self._end(END_SECONDS)

    def __enter__(self) -> "ParallelCost":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _computed(self, calls: dict[int, tuple[Any, ...]]) -> dict[int, np.ndarray]:
        """The costs of the samples with these numbers; on any error no process is left."""
        try:
            self._start(min(self.n_jobs, len(calls)))
            return self._run(calls)
        except BaseException as error:
            self._end(0.0)
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError("a process has died since the last call: another call starts new ones") from error
            raise

    def _start(self, n_processes: int) -> None:
        """Processes start one beside the other, and load the function before the clock of the first sample runs."""
        # not fork: a child of a process with threads, which torch has, may hang
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        loading = []
        while len(self._executors) < n_processes:
            self._executors.append(ProcessPoolExecutor(1, mp_context=context))
            loading.append(self._executors[-1].submit(_load, self._pickled))
        _, slow = wait(loading, START_SECONDS)
        if slow:
            raise TimeoutError(f"{len(slow)} processes have not started within {START_SECONDS:.0f} seconds: {GUARD}")
        for future in loading:
            try:
                failure = future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(f"a process ended while it started; its own message is above. Note: {GUARD}") from error
            if failure:
                raise _failure("the cost function cannot be loaded in a new process", *failure)

    def _run(self, calls: dict[int, tuple[Any, ...]]) -> dict[int, np.ndarray]:
        costs: dict[int, np.ndarray] = {}
        idle, waiting = list(self._executors), deque(calls)
        running: dict[Future[Any], tuple[ProcessPoolExecutor, int, float]] = {}
        while waiting or running:
            while idle and waiting:
                executor, k = idle.pop(), waiting.popleft()
                running[executor.submit(_call, calls[k])] = (executor, k, time.monotonic())
            oldest = min(started for _, _, started in running.values())
            left = None if self.timeout is None else max(0.0, oldest + self.timeout - time.monotonic())
            done, _ = wait(running, left, return_when=FIRST_COMPLETED)
            for future in done:
                executor, k, _ = running.pop(future)
                costs[k] = _result(future, k, calls[k])
                idle.append(executor)
            for _, k, started in running.values():
                if self.timeout is not None and time.monotonic() > started + self.timeout:
                    raise TimeoutError(f"the cost of sample {k} took more than {self.timeout} seconds; {_described(calls[k])}")
        return costs

    def _end(self, patience: float) -> None:
        executors, self._executors = self._executors, []
        for executor in executors:
            processes = list((executor._processes or {}).values())  # kill_workers() does this from Python 3.14 on
            killer = threading.Timer(patience, lambda processes=processes: [process.kill() for process in processes])
            killer.start()
            executor.shutdown(wait=True, cancel_futures=True)
            killer.cancel()


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_array(x: Any) -> np.ndarray:
    if isinstance(x, th.Tensor):
        return (x.float() if x.dtype == th.bfloat16 else x).numpy(force=True)
    return np.asarray(x)


def _described(call: tuple[Any, ...]) -> str:
    """The sample, short enough for a message."""
    return "x = " + ", ".join(np.array2string(np.asarray(x), threshold=8, edgeitems=2) for x in call)


def _failure(message: str, error: str, where: str) -> RuntimeError:
    failure = RuntimeError(f"{message}: {error}")
    failure.add_note(f"In the process:\n{where}")
    return failure


def _result(future: Future[Any], k: int, call: tuple[Any, ...]) -> np.ndarray:
    try:
        cost, failure = future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"the process that computed the cost of sample {k} died (killed, out of memory, or a crash in native code); "
            f"{_described(call)}"
        ) from error
    if failure:
        raise _failure(f"the cost of sample {k} failed, {_described(call)}", *failure)
    return cost


# --- in the processes -------------------------------------------------------------------------------------------------

_function: Callable[..., Any] | None = None


def _load(pickled: bytes) -> tuple[str, str] | None:
    """:return: None, or what went wrong, as text: an exception itself may not be picklable"""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one kills the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _function = pickle.loads(pickled)
    except BaseException as error:
        return f"{type(error).__name__}: {error}", traceback.format_exc()
    threadpoolctl.threadpool_limits(1)
    np.random.seed()  # forked processes would share one stream
    return None


def _end_with_parent() -> None:
    """A process that waits for work would outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child"
    parent.join()
    os._exit(1)


def _call(sample: tuple[Any, ...]) -> tuple[np.ndarray | None, tuple[str, str] | None]:
    """:return: the cost, or what went wrong"""
    assert _function is not None, "_load comes first"
    try:
        cost = _function(*sample)
        if cost is None:
            raise ValueError("the function returned None, not a number")
        return np.asarray(cost, dtype=np.float64), None
    except BaseException as error:
        return None, (f"{type(error).__name__}: {error}", traceback.format_exc())
