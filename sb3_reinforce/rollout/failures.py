"""An error in the middle of a rollout, with what tells where it comes from."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_reinforce.rollout.recording import Recording
from sb3_reinforce.vec_env import VectorEnvAdapter, dummy

_DUMMY_STEPS = (dummy.step_wait.__code__, DummyVecEnv.step_wait.__code__)


@contextmanager
def explained_failures(model: OnPolicyAlgorithm, recording: Recording) -> Iterator[None]:
    """
    Errors raised inside name the environment and the step.

    :param model: its environments play; ``_last_obs``: the observations for which no action was recorded yet
    :raises ValueError: instead, where an observation or reward was recorded that cannot be: that is the likely cause
    :raises RuntimeError: instead, if the process of an environment has ended
    """
    try:
        yield
    except Exception as error:
        recording.check(model._last_obs)
        step = f"in step {recording.n_rows} of the rollout"
        assert model.env is not None, "it plays"
        if dead := _dead_workers(model.env):
            named = ", ".join(f"environment {index} died (exit code {code})" for index, code in dead.items())
            raise RuntimeError(f"{named} {step}: what it printed tells why") from error
        by = "".join(f" by environment {index}" for index in _failed_environments(error))
        error.add_note(f"raised{by} {step}")
        raise


def _dead_workers(env: VecEnv) -> dict[int, int | None]:
    """
    :return: exit codes by environment, of ended processes of a SubprocVecEnv or AsyncVectorEnv; -9: killed, perhaps for
        lack of memory
    """
    inner: Any = env.unwrapped
    inner = inner.env.unwrapped if isinstance(inner, VectorEnvAdapter) else inner
    processes = inner.processes if isinstance(inner, SubprocVecEnv | AsyncVectorEnv) else []
    for process in processes:
        process.join(0.1)  # one that has just closed its pipe is about to end
    return {index: process.exitcode for index, process in enumerate(processes) if not process.is_alive()}


def _failed_environments(error: Exception) -> list[int]:
    """:return: indices of the environments of a DummyVecEnv that the error came from"""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [frame.f_locals["env_idx"] for frame in frames if frame.f_code in _DUMMY_STEPS]
