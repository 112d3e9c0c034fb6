"""Single environments replaced by one vector environment."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_reinforce.vec_env.adapter import VectorEnvAdapter


def vectorize(
    venv: VecEnv, vectorization_mode: str | None = None, vector_kwargs: dict[str, Any] | None = None
) -> VectorEnvAdapter:
    """
    Replace the environments by as many of the same kind from ``gymnasium.make_vec``: for RL Zoo's ``vec_env_wrapper``::

        CartPole-v1:
          n_envs: 512
          n_steps: 500
          vec_env_wrapper: sb3_reinforce.vec_env.vectorize

    ``n_steps`` should be about the length of an episode: with 128 half of the steps are not used, docs/vector_envs.md. The old
    environments are closed. If they wrote Monitor files, all episodes go to the first of these.

    :param venv: the ``DummyVecEnv`` that RL Zoo made
    :param vectorization_mode: "vector_entry_point", "sync" or "async"; None: the environment's own vector class if it has
        one, else "sync"
    :param vector_kwargs: arguments for "sync" and "async", such as ``{"autoreset_mode": "SameStep"}``
    :return: the new environments, with the old seed
    :raises ValueError: if venv is no ``DummyVecEnv`` (``vec_env_class: subproc``), or its environments have wrappers or
        ``info_keywords``, which would be lost, or no specification
    """
    if not isinstance(venv, DummyVecEnv):
        raise ValueError(f"vectorize needs a DummyVecEnv around single environments, got {type(venv).__name__}")
    env = venv.envs[0]
    file = None
    limits: list[int] = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Monitor):
            if env.info_keywords:
                raise ValueError(f"vectorize would lose Monitor's info_keywords={env.info_keywords}: leave them out")
            file = None if env.results_writer is None else env.results_writer.file_handler.name
        elif isinstance(env, gym.wrappers.TimeLimit):
            # A time limit passed to gymnasium.make is only in the wrapper
            limits.append(env._max_episode_steps)
        elif not isinstance(env, gym.wrappers.OrderEnforcing | gym.wrappers.PassiveEnvChecker):
            raise ValueError(
                f"vectorize would lose the wrapper {type(env).__name__}, as it makes new environments: leave env_wrapper out, "
                "or use a wrapper of VecEnvs after it"
            )
        env = env.env
    # The innermost environment's specification has its arguments; an outer one's would make the Monitor again
    spec = env.spec
    if spec is None:
        raise ValueError(f"vectorize needs environments made by gymnasium.make, got {env!r} without a specification")
    kwargs: dict[str, Any] = {"max_episode_steps": min(limits)} if limits else {}
    seed = venv._seeds[0]
    venv.close()
    vector_env = gym.make_vec(
        spec, num_envs=venv.num_envs, vectorization_mode=vectorization_mode, vector_kwargs=vector_kwargs, **kwargs
    )
    adapter = VectorEnvAdapter(vector_env, monitor_file=file)
    if seed is not None:
        adapter.seed(seed)
    return adapter
