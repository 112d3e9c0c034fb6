"""What a training run of RL Zoo writes, so that a full disk or a deleted folder does not end it."""

import errno
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common import utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.running import ranks
from sb3_reinforce.running.disk import Forgiving
from sb3_reinforce.running.logs import forgiving
from sb3_reinforce.zoo.patches import replaced
from sb3_reinforce.zoo.usage import UsageError

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)


class DiskError(UsageError):
    """What a command is to leave cannot be written."""

    exit_code = 1


@contextmanager
def no_room_in_one_line() -> Iterator[None]:
    """:raises DiskError: for an error inside that says, or came from one that says, that there is no room on the disk"""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno in NO_ROOM):
            cause = cause.__cause__ or cause.__context__  # Optuna's is an AssertionError
        if cause is None:
            raise
        raise DiskError(f"no room on the disk: {cause}") from error


@contextmanager
def written_by(write: Callable[[Path, bytes], None], algorithm: type[BaseAlgorithm]) -> Iterator[None]:
    """
    Let ``write`` write the models, the statistics of VecNormalize and the evaluations that are saved inside: the zoo's
    callbacks, and its own final save, would raise at once, and leave a torn file in place of the last whole one. A full disk
    does not stop the rows of log files either.
    """

    def save(model: BaseAlgorithm, path: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(path, str | Path):
            save_model(model, path, *args, **kwargs)
        elif ranks.rank() == 0:
            file = io.BytesIO()
            save_model(model, file, *args, **kwargs)
            write(Path(path) if Path(path).suffix else Path(f"{path}.zip"), file.getvalue())

    def savez(path: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(path, str | Path):
            return save_arrays(path, *args, **kwargs)
        file = io.BytesIO()
        save_arrays(file, *args, **kwargs)
        write(Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz"), file.getvalue())

    def configure_logger(*args: Any, **kwargs: Any) -> Logger:
        logger = configure(*args, **kwargs)
        for output in logger.output_formats:
            forgiving(output)
        return logger

    save_model, save_arrays, configure = algorithm.save, np.savez, utils.configure_logger
    with (
        replaced(algorithm, "save", save),
        replaced(np, "savez", savez),
        replaced(VecNormalize, "save", lambda env, path: write(Path(path), pickle.dumps(env))),
        replaced(utils, "configure_logger", configure_logger),
    ):
        yield


def with_forgiving_monitor(monitor: Monitor, wrapper: Callable[[gym.Env], gym.Env] | None = None) -> gym.Env:
    """:return: the environment in its further wrapper; its Monitor's rows do not end training where the disk is full"""
    rows = monitor.results_writer
    if rows is not None:
        name = rows.file_handler.name
        rows.write_row = Forgiving(rows.write_row, name)  # type: ignore[method-assign]
        rows.close = Forgiving(rows.close, name)  # type: ignore[method-assign]
    return monitor if wrapper is None else wrapper(monitor)
