"""The calls of a W&B run in a thread of their own: training never waits for W&B."""

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb

# Rows that wait while W&B does not answer: at 20 rows a second some minutes
MAX_WAITING = 5000


class BackgroundRun:
    """
    Hands calls to a run and returns at once.

    W&B's own calls return quickly as long as the process behind them does; with a hung disk or a stopped process they would
    wait for ever, and training with them.

    :param run: the run; nobody else should log to it in the meantime
    :param first_step: W&B's number of the first row, above 0 if an earlier process wrote rows of the same run
    """

    def __init__(self, run: "wandb.Run", first_step: int = 0) -> None:
        self._run = run
        self._first_step: int | None = first_step or None
        self._calls: queue.Queue[Callable[[], Any] | None] = queue.Queue(MAX_WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="wandb-calls", daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """
        :param row: values by their names; what is callable is called by the thread, and its result logged
        :raises Exception: what an earlier call has failed with
        :raises TimeoutError: if W&B has not taken the last ``MAX_WAITING`` calls
        """
        self.submit(lambda: self._log(row))

    def _log(self, row: dict[str, Any]) -> None:
        # The number counts on from the first one. A run that was resumed online knows it itself.
        step, self._first_step = self._first_step, None
        made = {key: value() if callable(value) else value for key, value in row.items()}
        self._run.log(made, step=None if step is None else max(step, self._run.step))

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        """As the run's own, see there; raises as :meth:`log` does."""
        self.submit(lambda: self._run.define_metric(*args, **kwargs))

    def submit(self, call: Callable[[], Any]) -> None:
        """
        :param call: to be made after all that were submitted before it
        :raises Exception: see :meth:`log`
        """
        if self._error is not None:
            raise self._error
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._error = TimeoutError(f"W&B has not taken the last {MAX_WAITING} rows")
            raise self._error from None

    def close(self, timeout: float) -> bool:
        """
        Make the calls that wait, then end the thread.

        :param timeout: seconds to wait for that
        :return: whether all were made in time
        :raises Exception: what one of the calls has failed with
        """
        try:
            self._calls.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(timeout)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                # The rest is tried, too: a row that fails must not keep the run from being finished.
                self._error = self._error or error
