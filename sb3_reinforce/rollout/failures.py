"""An error in the middle of a rollout, with what tells where it comes from."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_reinforce.rollout.recording import Recording
from sb3_reinforce.vec_env import VectorEnvAdapter, dummy

_DUMMY_STEPS = (dummy.step_wait.__code__, DummyVecEnv.step_wait.__code__)  # whose env_idx is the environment
_TAKE_REWARDS = (*_DUMMY_STEPS, Monitor.step.__code__)  # whose reward is what an environment returned


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
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        by = "".join(f" by environment {frame.f_locals['env_idx']}" for frame in frames if frame.f_code in _DUMMY_STEPS)
        if frames[-1].f_code in _TAKE_REWARDS and not _is_number(reward := frames[-1].f_locals.get("reward")):
            raise ValueError(
                f"reward must be one number, got {reward!r}, returned{by} {step}: mend step() of the environment"
            ) from error
        error.add_note(f"raised{by} {step}")
        raise


def _is_number(reward: Any) -> bool:
    try:
        np.empty(1)[0] = reward
    except (TypeError, ValueError, OverflowError):
        return False
    return reward is not None


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
