"""The process behind W&B's calls: how it is ended when it does not end by itself."""

import threading
from contextlib import suppress


def end_service(patience: float = 0.0) -> None:
    """
    End W&B's process, by force where it takes too long: the interpreter would wait for it at its own end, without bound.

    After requests that no server has answered, it sometimes never ends (wandb 0.31; some one in ten).
    W&B has no public way to it. Where the private one has changed nothing happens.

    :param patience: seconds after which it is killed; 0: at once
    """
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import module

    connection = getattr(wandb_setup.singleton(), "_connection", None)
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    if connection is None or process is None:
        return
    kill = threading.Timer(patience, process.kill)
    if patience > 0:
        kill.start()
    else:
        process.kill()
    try:
        with suppress(Exception, SystemExit):
            # so that the next run of this program starts a new one
            module.unset_globals()
            wandb.teardown()
    finally:
        kill.cancel()
