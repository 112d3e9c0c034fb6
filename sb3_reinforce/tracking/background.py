"""Calls to W&B from background threads, so that training never waits."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb

# Calls that may wait while W&B does not answer: some minutes at 20 rows a second
MAX_WAITING = 5000
# Seconds between two bursts of calls. A call by itself finds cold caches and sleeping threads, which makes it slower.
PAUSE = 1.0


class _Worker:
    """A thread that makes calls in their order."""

    def __init__(self, name: str) -> None:
        self.error: Exception | None = None
        self._calls: queue.Queue[Callable[[], Any] | None] = queue.Queue(MAX_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], Any]) -> None:
        if self.error is not None:
            raise self.error
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self.error = TimeoutError(f"W&B has not taken the last {MAX_WAITING} rows")
            raise self.error from None

    def close(self, last: Callable[[], Any] | None, deadline: float) -> bool:
        """:return: whether all calls and the last one, which is made even after an error, were made before the deadline"""
        self._closing.set()
        try:
            for call in (None,) if last is None else (last, None):
                self._calls.put(call, timeout=max(deadline - time.monotonic(), 0))
        except queue.Full:
            return False
        self._thread.join(max(deadline - time.monotonic(), 0))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                # The other calls are made all the same: the run must be finished even if a row fails.
                self.error = self.error or error
            if self._calls.empty():
                self._closing.wait(PAUSE)


class BackgroundRun:
    """
    A run whose calls return at once, or raise the error of an earlier call (``TimeoutError`` if ``MAX_WAITING`` calls wait).

    W&B's own calls wait for its process, forever if that hangs. Artifacts wait for the server: they have a second thread,
    so that rows do not wait for a dead server.

    :param run: no other code should log to it
    :param first_step: W&B's number of the first row, above 0 if an earlier process wrote rows of the same run
    """

    def __init__(self, run: "wandb.Run", first_step: int = 0) -> None:
        self._run = run
        self._first_step: int | None = first_step or None
        self._rows, self._uploads = _Worker("wandb-rows"), _Worker("wandb-uploads")

    def log(self, row: dict[str, Any]) -> None:
        """Log values by name; the thread calls those that are functions and logs their results, unless they are None."""
        self._rows.submit(lambda: self._log(row))

    def _log(self, row: dict[str, Any]) -> None:
        # W&B counts from the first one on. A run that was resumed online knows it already.
        step, self._first_step = self._first_step, None
        made = {key: value() if callable(value) else value for key, value in row.items()}
        made = {key: value for key, value in made.items() if value is not None}
        self._run.log(made, step=None if step is None else max(step, self._run.step))

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        """As ``wandb.Run.define_metric``."""
        self._rows.submit(lambda: self._run.define_metric(*args, **kwargs))

    def submit(self, call: Callable[[], Any], upload: bool = False) -> None:
        """Make a call after those submitted before it; an ``upload`` may wait for the server."""
        (self._uploads if upload else self._rows).submit(call)

    def close(self, last: Callable[[], Any] | None, timeout: float) -> bool:
        """
        Make the waiting calls and then the last one, and end the threads.

        :return: whether all were made within ``timeout`` seconds
        :raises Exception: the first error of a call
        """
        now = time.monotonic()
        # half of the time at most: the run must be finished even if an upload hangs
        uploaded = self._uploads.close(None, now + timeout / 2)
        in_time = self._rows.close(last, now + timeout)
        for worker in (self._rows, self._uploads):
            if worker.error is not None:
                raise worker.error
        return in_time and uploaded
