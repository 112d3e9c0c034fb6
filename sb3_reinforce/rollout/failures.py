"""An error in the middle of a rollout, with what tells where it comes from."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_reinforce.rollout.recording import Recording


@contextmanager
def explained_failures(env: VecEnv, recording: Recording, now: Callable[[], tuple[Any, int]]) -> Iterator[None]:
    """
    Errors raised inside name the environment and the step.

    :param now: returns the last observations, for which no action was recorded, and the number of steps played
    :raises ValueError: instead, where a NaN or an infinite number was recorded: that is the likely cause
    :raises RuntimeError: instead, if the process of an environment has ended
    """
    try:
        yield
    except Exception as error:
        last_observations, n_steps = now()
        recording.check_finite(last_observations)
        if dead := _dead_workers(env):
            named = ", ".join(f"environment {index} died (exit code {code})" for index, code in dead.items())
            raise RuntimeError(f"{named} in step {n_steps} of the rollout: what it printed tells why") from error
        for index in _failed_environments(error):
            error.add_note(f"raised by environment {index} in step {n_steps} of the rollout")
        raise


def _dead_workers(env: VecEnv) -> dict[int, int | None]:
    """:return: exit codes by environment, of a SubprocVecEnv's ended processes; -9: killed, perhaps for lack of memory"""
    processes = env.unwrapped.processes if isinstance(env.unwrapped, SubprocVecEnv) else []
    for process in processes:
        process.join(0.1)  # one that has just closed its pipe is about to end
    return {index: process.exitcode for index, process in enumerate(processes) if not process.is_alive()}


def _failed_environments(error: Exception) -> list[int]:
    """:return: indices of the environments of a DummyVecEnv that the error came from"""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [frame.f_locals["env_idx"] for frame in frames if frame.f_code is DummyVecEnv.step_wait.__code__]
