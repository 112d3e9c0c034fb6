"""The only module that uses private parts of wandb (0.31.0). Functions say what happens when a later version differs."""

import logging
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb


def mode_and_key() -> tuple[str, bool]:
    """
    The mode and the credentials that W&B would use, from environment variables, its settings files and netrc.

    ``wandb.login(prompt=False)`` would also rewrite the user's settings file and ask the server about the key, which takes
    seconds.

    :return: online, offline or disabled; and whether there are credentials for the configured server
    :raises Exception: if the key cannot be read, or wandb has changed
    """
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    # W&B's older names for two of the modes
    mode = {"dryrun": "offline", "run": "online"}.get(settings.mode, settings.mode)
    credentials = wbauth.authenticate_session(
        host=settings.base_url, source="WandbCallback", prompt=False, update_session=False
    )
    return mode, credentials is not None


def flush_every(settings: "wandb.Settings", seconds: float) -> None:
    """How often a run writes its file: a killed process loses the rows since. If wandb has changed, every 15 s (0.31)."""
    with suppress(Exception):
        settings.x_transaction_log_flush_interval = seconds


def quiet_debug_log() -> None:
    """Let W&B's own debug log fail without a word: where the disk is full, each line would print a traceback."""
    for handler in logging.getLogger("wandb").handlers:
        handler.handleError = lambda record: None  # type: ignore[method-assign]


def service_process() -> "subprocess.Popen[bytes] | None":
    """:return: the process that does W&B's work; None if there is none, or wandb has changed"""
    try:
        from wandb.sdk import wandb_setup

        return wandb_setup.singleton()._connection._proc._process  # type: ignore[union-attr]
    except (ImportError, AttributeError):
        return None


def end_service(patience: float = 0.0) -> None:
    """
    End W&B's process, by force after ``patience`` seconds. If wandb has changed, nothing happens.

    The interpreter would wait for it without limit when it exits, and after requests that no server answered it sometimes
    never ends by itself.
    """
    process = service_process()
    if process is None:
        return
    import wandb

    kill = threading.Timer(patience, process.kill)
    if patience > 0:
        kill.start()
    else:  # the exiting interpreter starts no more threads
        process.kill()
    try:
        with suppress(Exception, SystemExit):
            from wandb.sdk.lib import module

            # the next run of this program then starts a new process
            module.unset_globals()
            wandb.teardown()
    finally:
        kill.cancel()


def record_parser() -> Any:
    """
    :return: the function that parses the bytes of a record in a ``.wandb`` file
    :raises ImportError: if wandb is not installed, or has changed
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    return Record.FromString
