"""Single environments replaced by one vector environment."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_reinforce.vec_env.adapter import VectorEnvAdapter
from sb3_reinforce.vec_env.atari import PARTS_OF_ATARI_WRAPPER, is_atari, make_atari_env, read_atari_wrapper

# Wrappers that gymnasium.make_vec makes again
_KEPT = (gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)


def vectorize(venv: VecEnv, vectorization_mode: str | None = None, vector_kwargs: dict[str, Any] | None = None) -> VecEnv:
    """
    Replace the environments by as many of the same kind from ``gymnasium.make_vec``: for RL Zoo's ``vec_env_wrapper``::

        CartPole-v1:
          n_envs: 512
          n_steps: 500
          vec_env_wrapper: sb3_reinforce.vec_env.vectorize

    ``n_steps`` should be about the length of an episode: with 128 half of the steps are not used, docs/vector_envs.md. The old
    environments are closed. If they wrote Monitor files, all episodes go to the first of these.

    Atari games in an ``AtariWrapper`` become an ``AtariVectorEnv`` with its arguments (:func:`make_atari_env`). It draws no
    pictures, so with a render mode they stay as they are; processes (``SubprocVecEnv``) stay, too, with a warning.

    :param venv: the ``DummyVecEnv`` that RL Zoo made
    :param vectorization_mode: "vector_entry_point", "sync" or "async"; None: the environment's own vector class if it has
        one, else "sync"
    :param vector_kwargs: arguments for "sync" and "async"; ``autoreset_mode`` is ``"SameStep"`` if they do not say it
    :return: the new environments, with the old seed
    :raises ValueError: if the environments have wrappers or ``info_keywords``, which would be lost, or no specification
    """
    if isinstance(venv, SubprocVecEnv):
        warnings.warn(f"vectorize leaves the {venv.num_envs} processes of SubprocVecEnv as they are", stacklevel=2)
        return venv
    if not isinstance(venv, DummyVecEnv):
        raise ValueError(f"vectorize needs a DummyVecEnv around single environments, got {type(venv).__name__}")
    if _draws_pictures_alone(venv.envs[0]):
        warnings.warn(
            f"vectorize leaves games with render_mode={venv.envs[0].render_mode!r} as they are, because AtariVectorEnv draws "
            "no pictures; make_atari_env(id, n_envs) makes one that plays",
            stacklevel=2,
        )
        return venv
    adapter = _vector_env_like(venv.envs[0], venv.num_envs, vectorization_mode, vector_kwargs)
    venv.close()
    if venv._seeds[0] is not None:
        adapter.seed(venv._seeds[0])
    return adapter


def vectorized(
    env_fns: Sequence[Callable[[], gym.Env]],
    vectorization_mode: str | None = None,
    vector_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """As :func:`vectorize`, for functions that make environments: only the first is made, to see what they make."""
    env = env_fns[0]()
    if _draws_pictures_alone(env):
        return DummyVecEnv([lambda: env, *env_fns[1:]])
    return _vector_env_like(env, len(env_fns), vectorization_mode, vector_kwargs)


def _draws_pictures_alone(env: gym.Env) -> bool:
    """:return: whether it was made with a render mode that its vector environment does not have"""
    return env.render_mode is not None and is_atari(env.unwrapped.spec)


def _vector_env_like(
    env: gym.Env, n_envs: int, vectorization_mode: str | None, vector_kwargs: dict[str, Any] | None
) -> VectorEnvAdapter:
    """Close the environment, and make a vector environment of its kind."""
    # The innermost environment's specification has its arguments; an outer one's would make the Monitor again
    spec = env.unwrapped.spec
    becomes_atari = is_atari(spec) and vectorization_mode in (None, "vector_entry_point")
    monitor: Monitor | None = None
    limits: list[int] = []
    inner = env
    while isinstance(inner, gym.Wrapper):
        if isinstance(inner, Monitor):
            monitor = inner
            if inner.info_keywords:
                raise ValueError(f"vectorize would lose Monitor's info_keywords={inner.info_keywords}: leave them out")
        elif isinstance(inner, gym.wrappers.TimeLimit):
            # A time limit passed to gymnasium.make is only in the wrapper
            limits.append(inner._max_episode_steps)
        elif not isinstance(inner, (*_KEPT, *(PARTS_OF_ATARI_WRAPPER if becomes_atari else ()))):
            raise ValueError(
                f"vectorize would lose the wrapper {type(inner).__name__}, as it makes new environments: leave env_wrapper "
                "out, or use a wrapper of VecEnvs after it"
            )
        inner = inner.env
    if spec is None:
        raise ValueError(f"vectorize needs environments made by gymnasium.make, got {inner!r} without a specification")
    atari = read_atari_wrapper(env) if becomes_atari else None
    writer = None
    if monitor is not None:  # its file stays open
        writer, monitor.results_writer = monitor.results_writer, None
    env.close()
    if atari is not None:
        # RL Zoo stacks the frames
        wrapper_kwargs, env_kwargs = atari
        return make_atari_env(spec, n_envs, None, 1, wrapper_kwargs, env_kwargs, monitor_file=writer)
    kwargs: dict[str, Any] = {"max_episode_steps": min(limits)} if limits else {}
    own_class: Any = spec.vector_entry_point if vectorization_mode in (None, "vector_entry_point") else None
    # Episodes that end are reset in the same call, where the class can do so
    if own_class is None and vectorization_mode != "vector_entry_point":
        vector_kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP, **(vector_kwargs or {})}
    elif own_class is not None:
        make = own_class if callable(own_class) else load_env_creator(own_class)
        if "autoreset_mode" in inspect.signature(make).parameters:
            kwargs["autoreset_mode"] = AutoresetMode.SAME_STEP
    vector_env = gym.make_vec(
        spec, num_envs=n_envs, vectorization_mode=vectorization_mode, vector_kwargs=vector_kwargs, **kwargs
    )
    return VectorEnvAdapter(vector_env, monitor_file=writer)
