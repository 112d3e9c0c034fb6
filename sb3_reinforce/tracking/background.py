"""The calls of a W&B run in threads of their own: training never waits for W&B."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb

# Calls that wait while W&B does not answer: at 20 rows a second some minutes
MAX_WAITING = 5000
# Seconds between two bursts of calls. A call by itself finds cold caches and sleeping threads, and costs five times as much.
PAUSE = 1.0


class _Worker:
    """A thread that makes calls in the order in which they come."""

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
        """
        :param last: one more call, made even if an earlier one has failed
        :param deadline: on the monotonic clock
        :return: whether all calls were made in time
        """
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
                # The rest is tried, too: a row that fails must not keep the run from being finished.
                self.error = self.error or error
            if self._calls.empty():
                self._closing.wait(PAUSE)


class BackgroundRun:
    """
    Hands calls to a run and returns at once.

    W&B's own calls return quickly as long as the process behind them does; with a hung disk or a stopped process they would
    wait for ever, and training with them. Artifacts ask the server while they are logged: they have a thread of their own, so
    that rows do not wait for a server that has died.

    :param run: the run; nobody else should log to it in the meantime
    :param first_step: W&B's number of the first row, above 0 if an earlier process wrote rows of the same run
    """

    def __init__(self, run: "wandb.Run", first_step: int = 0) -> None:
        self._run = run
        self._first_step: int | None = first_step or None
        self._rows, self._uploads = _Worker("wandb-rows"), _Worker("wandb-uploads")

    def log(self, row: dict[str, Any]) -> None:
        """
        :param row: values by their names; what is callable is called by the thread, and its result logged unless it is None
        :raises Exception: what an earlier call has failed with
        :raises TimeoutError: if W&B has not taken the last ``MAX_WAITING`` calls
        """
        self._rows.submit(lambda: self._log(row))

    def _log(self, row: dict[str, Any]) -> None:
        # The number counts on from the first one. A run that was resumed online knows it itself.
        step, self._first_step = self._first_step, None
        made = {key: value() if callable(value) else value for key, value in row.items()}
        made = {key: value for key, value in made.items() if value is not None}
        self._run.log(made, step=None if step is None else max(step, self._run.step))

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        """As the run's own, see there; raises as :meth:`log` does."""
        self._rows.submit(lambda: self._run.define_metric(*args, **kwargs))

    def submit(self, call: Callable[[], Any], upload: bool = False) -> None:
        """
        :param call: to be made after all that were submitted before it
        :param upload: whether it may wait for the server
        :raises Exception: see :meth:`log`
        """
        (self._uploads if upload else self._rows).submit(call)

    def close(self, last: Callable[[], Any] | None, timeout: float) -> bool:
        """
        Make the calls that wait, then end the threads.

        :param last: the last call of all
        :param timeout: seconds to wait
        :return: whether all were made in time
        :raises Exception: what a call has failed with
        """
        now = time.monotonic()
        # half of the time at most: the run is to be finished, whatever an upload does
        uploaded = self._uploads.close(None, now + timeout / 2)
        in_time = self._rows.close(last, now + timeout)
        for worker in (self._rows, self._uploads):
            if worker.error is not None:
                raise worker.error
        return in_time and uploaded
