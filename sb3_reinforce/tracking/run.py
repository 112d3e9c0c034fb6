"""One W&B run: how it starts, online or offline, and how it ends, with training or with the process."""

import atexit
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from sb3_reinforce.tracking.background import BackgroundRun
from sb3_reinforce.tracking.runs import has_exit_record
from sb3_reinforce.tracking.settings import masked_command, masked_text
from sb3_reinforce.tracking.wandb_internals import end_service, flush_every, mode_and_key, quiet_debug_log

if TYPE_CHECKING:
    import wandb

Mode = Literal["auto", "online", "offline", "disabled"]

# Exit codes as W&B sets them itself: 0 finished, 255 Ctrl-C; 143 is the shell's for SIGTERM. With any other the run failed.
FINISHED, FAILED, INTERRUPTED, TERMINATED = 0, 1, 255, 143
# Seconds for W&B's process to write the last record, which takes milliseconds unless the disk is full
EXIT_TIMEOUT = 10.0


def exit_code_of(error: BaseException | None) -> int:
    """:return: the exit code of a run whose training ended with this error, or without one"""
    if error is None:
        return FINISHED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        code = error.code
        return code if isinstance(code, int) else FINISHED if code is None else FAILED
    return FAILED


class Warner:
    """Warns once about each subject, because one failure usually brings others."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, consequence: str, error: Exception | None = None, about: str = "run") -> None:
        """Warn of what is lost and why, unless there was a warning about the same subject."""
        if about not in self._warned:
            self._warned.add(about)
            reason = "" if error is None else f" ({type(error).__name__}: {masked_text(str(error))})"
            warnings.warn(f"W&B: {consequence}, training goes on{reason}", stacklevel=3)


def resolve_mode(mode: Mode, warn: Warner) -> str:
    """:return: online (there is a key), offline or disabled, found without asking the user or the network"""
    if mode in ("offline", "disabled"):
        return mode
    try:
        configured, has_key = mode_and_key()
    except Exception as error:
        warn("the API key cannot be read, the run is kept offline", error, about="key")
        return "offline"
    if mode == "auto" and configured in ("offline", "disabled"):
        return configured
    if has_key:
        return "online"
    if mode == "online":
        # wandb.init(mode="online") would wait for an answer at the terminal
        warnings.warn("W&B: no API key is configured (`wandb login`), the run is kept offline", stacklevel=2)
    return "offline"


def start_run(
    mode: Mode, warn: Warner, init_timeout: float, finish_timeout: float, verbose: int, arguments: dict[str, Any]
) -> "wandb.Run | None":
    """
    Start a W&B run; if that fails online, start it offline.

    :param arguments: of ``wandb.init``; an ``id`` is that of a run to resume. For the others see :class:`WandbCallback`
    :return: the run; None if none could be started
    """
    import wandb

    original_argv = sys.argv
    # W&B's crash reports look up a host even offline, and the first run of a process starts them. This must be set before W&B
    # reads its variables, which it does to find the key.
    reports = os.environ.get("WANDB_ERROR_REPORTING")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    chosen = resolve_mode(mode, warn)
    if chosen == "online" and reports is None:
        del os.environ["WANDB_ERROR_REPORTING"]
    for attempt in ("online", "offline") if chosen == "online" else (chosen,):
        # offline, W&B does not look for the earlier rows, and would warn about that
        resume: Any = "allow" if arguments["id"] is not None and attempt == "online" else None
        try:
            # made for each attempt, because wandb.init changes the Settings that it is given
            settings = wandb.Settings(
                # the defaults are 90 s for the start and no limit for the end
                init_timeout=init_timeout,
                # the other half is for models that are still being uploaded
                finish_timeout=finish_timeout / 2,
                # the program's output and uncommitted changes may hold secrets
                console=os.environ.get("WANDB_CONSOLE", "off"),  # type: ignore[arg-type]
                disable_git=True,
                save_code=False,
                silent=verbose < 1,
                quiet=verbose < 2,
            )
            flush_every(settings, seconds=2.0)
            sys.argv = masked_command(original_argv)  # W&B records the command line when a run starts
            run = wandb.init(mode=attempt, resume=resume, settings=settings, **arguments)  # type: ignore[arg-type]
            quiet_debug_log()
            return run
        except Exception as error:
            next_step = "the run is kept offline" if attempt == "online" else "this training is not tracked"
            warn(f"could not start {attempt}, {next_step}", error, about=f"start {attempt}")
        finally:
            sys.argv = original_argv
    return None


class ProcessEnd:
    """
    Calls ``finish`` with the exit code (None: not known) if the process ends, before W&B's own handler, which waits without
    limit. SIGTERM, which clusters send before they kill, becomes a ``SystemExit``, unless the program handles it already.
    """

    def __init__(self, finish: Callable[[int | None], None]) -> None:
        self._finish = finish
        self._terminated = False
        atexit.register(self._at_exit)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)

    def forget(self) -> None:
        atexit.unregister(self._at_exit)
        # `==`, because each look-up of a method makes another object
        if signal.getsignal(signal.SIGTERM) == self._terminate and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _at_exit(self) -> None:
        # the error that ends the interpreter; a SystemExit is not kept
        error = getattr(sys, "last_value", None)
        self._finish(TERMINATED if self._terminated else None if error is None else exit_code_of(error))

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = True
        sys.exit(TERMINATED)


class OpenRun:
    """
    A run that training logs to. Only ``end`` waits for W&B, and nothing here raises.

    :param owned: whether ``end`` finishes it; a run that the user started is left open
    :param first_row: see :class:`BackgroundRun`
    :param finish: see :class:`ProcessEnd`, for an owned run
    """

    def __init__(
        self, run: "wandb.Run", owned: bool, first_row: int, warn: Warner, finish: Callable[[int | None], None]
    ) -> None:
        self.run, self.owned, self.warn = run, owned, warn
        self.background = BackgroundRun(run, first_row)
        self.training_ended = False
        self.thread = threading.get_ident()  # that trains
        self.folder: Path | None = None
        self.url: str | None = None  # of the run's page
        try:
            if not run.disabled:
                # `dir` is the folder's subfolder for files
                self.folder = Path(run.dir).parent
                self.url = None if run.offline else run.url
        except Exception as error:
            warn("the run's folder is not known", error)
        self._given_up = threading.Event()
        self._process_end = ProcessEnd(finish) if owned else None

    def submit(self, call: Callable[[], Any], consequence: str, upload: bool = False) -> None:
        """Make a call in the background; if it fails, warn of the consequence. An upload may wait for the server."""

        def guarded() -> None:
            try:
                call()
            except Exception as error:
                if not self._given_up.is_set():
                    self.warn(consequence, error)

        try:
            self.background.submit(guarded, upload)
        except Exception as error:  # of an earlier row
            self.warn("logging stops", error)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """:param values: numbers by name, for W&B's table of runs"""
        kept = dict(values)
        self.submit(lambda: self.run.summary.update(kept), "the summary was not recorded")

    def _finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        if self.folder is None or not any(self.folder.glob("*.wandb")):
            return
        # W&B's process closes the file after that: until then the run would read as killed or still running
        deadline = time.monotonic() + EXIT_TIMEOUT
        with suppress(Exception):  # W&B's file has changed
            while not has_exit_record(self.folder) and time.monotonic() < deadline:
                time.sleep(0.01)

    def end(self, exit_code: int, timeout: float) -> None:
        """Make the waiting calls, and finish the run if it is owned; a few seconds after the timeout this gives up."""
        if self._process_end is not None:
            self._process_end.forget()
        last = (lambda: self._finish(exit_code)) if self.owned else None
        in_time = False
        try:
            in_time = self.background.close(last, timeout + 5)
        except Exception as error:
            self.warn("something was not logged", error)
        finally:
            if not in_time:
                self._given_up.set()
                self.warn(f"did not end within {timeout:g} s, what was logged is in {self.folder}")
                if self.owned:
                    end_service()
