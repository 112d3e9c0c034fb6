"""The kinds of vector environments, and which of them can be adapted."""

from collections.abc import Iterator
from typing import Any

from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from sb3_reinforce.running.env_queries import is_envpool
from sb3_reinforce.vec_env.observations import BATCHABLE


def vector_wrappers(env: Any) -> Iterator[VectorWrapper]:
    """The vector wrappers of an environment, outermost first."""
    while isinstance(env, VectorWrapper):
        yield env
        env = env.env


def is_atari_vector_env(env: Any) -> bool:
    """Whether it is ale-py's own ``AtariVectorEnv``; ale-py is optional, so it is known by its name."""
    return (type(env).__module__, type(env).__qualname__) == ("ale_py.vector_env", "AtariVectorEnv")


def check_kind(env: Any) -> None:
    """:raises ValueError: if ``env`` is no open vector environment, or an EnvPool that SB3's interface cannot drive"""
    if not isinstance(env, VectorEnv) and not is_envpool(env):
        raise ValueError(
            f"VectorEnvAdapter needs a gymnasium.vector.VectorEnv or an EnvPool, got {type(env).__name__} ({env!r}): make "
            "one with gymnasium.make_vec(id, num_envs=...), or give functions that make single environments to SB3's "
            "DummyVecEnv"
        )
    if getattr(env, "closed", False):
        raise ValueError(f"VectorEnvAdapter needs an open environment, got {env!r}, which is closed: make a new one")
    if not is_envpool(env):
        if is_envpool(env.unwrapped):
            raise ValueError(
                f"VectorEnvAdapter needs an EnvPool without wrappers of gymnasium, which take its spaces for those of all "
                f"environments, got {type(env).__name__}: put SB3's VecEnvWrapper around the adapter instead"
            )
        if is_atari_vector_env(env.unwrapped) and env.unwrapped.batch_size != env.num_envs:
            raise ValueError(
                "VectorEnvAdapter needs an AtariVectorEnv that steps all environments together, got "
                f"batch_size={env.unwrapped.batch_size} and num_envs={env.num_envs}: leave batch_size out"
            )
        return
    config = env.config
    if not hasattr(env, "action_space"):
        raise ValueError(
            f"VectorEnvAdapter needs an EnvPool with the gymnasium interface, got {type(env).__name__}: make it with "
            'envpool.make(id, env_type="gymnasium", num_envs=...)'
        )
    if config["batch_size"] not in (0, config["num_envs"]):
        raise ValueError(
            "VectorEnvAdapter needs an EnvPool that steps all environments together, got "
            f"batch_size={config['batch_size']} and num_envs={config['num_envs']}: leave batch_size out of envpool.make"
        )
    if config.get("max_num_players", 1) != 1:
        raise ValueError(
            f"VectorEnvAdapter needs environments with one player, got max_num_players={config['max_num_players']}"
        )


def single_spaces(env: Any) -> tuple[int, spaces.Space, spaces.Space]:
    """
    :return: number of environments, observation space and action space of one of them
    :raises ValueError: if the spaces differ between environments, or SB3 has no policies for the actions
    """
    if is_envpool(env):
        # EnvPool's spaces are those of one environment; old versions have no single_observation_space
        n_envs, observation_space, action_space = int(env.config["num_envs"]), env.observation_space, env.action_space
    else:
        n_envs, observation_space, action_space = env.num_envs, env.single_observation_space, env.single_action_space
        for name, single in (("observation_space", observation_space), ("action_space", action_space)):
            batched = getattr(env, name)
            if batch_space(single, n_envs) != batched:
                raise ValueError(
                    f"all environments must have the same {name}, as SB3 knows only one, but {name}={batched} is not "
                    f"{n_envs} times single_{name}={single}: give all environments the same, for SyncVectorEnv and "
                    "AsyncVectorEnv with observation_mode='same'"
                )
    if not isinstance(action_space, BATCHABLE):
        raise ValueError(
            "single_action_space must be a Box, Discrete, MultiDiscrete or MultiBinary space, got "
            f"{action_space}: SB3 has no policies for others"
        )
    return n_envs, observation_space, action_space


def arrays_are_fresh(env: Any) -> bool:
    """Whether the environment never writes to an array again after it has returned it."""
    # Exact types, because a wrapper or subclass may reuse its arrays
    if type(env) in (SyncVectorEnv, AsyncVectorEnv):
        return bool(env.copy)
    return type(env) is CartPoleVectorEnv or is_envpool(env) or is_atari_vector_env(env)
