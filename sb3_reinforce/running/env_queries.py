"""
What can be asked of the environments inside a VecEnv.

Many home-made VecEnvs raise where they cannot tell, or return the same for every question: that is no answer. What is
really broken, such as a dead worker, shows in the next reset or step.
"""

from contextlib import suppress
from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv


def is_envpool(env: Any) -> bool:
    """:return: whether this is an EnvPool, judged by its methods: it makes its classes at run time, one per game"""
    return all(hasattr(env, name) for name in ("send", "recv", "async_reset", "config"))


def monitored_envs(env: VecEnv) -> list[int]:
    """:return: indices of the environments in a Monitor"""
    with suppress(Exception):
        return [index for index, is_monitor in enumerate(env.env_is_wrapped(Monitor)) if is_monitor]
    return []


def forbids_early_resets(env: VecEnv) -> bool:
    """:return: whether a Monitor inside refuses to be reset within an episode"""
    with suppress(Exception):
        monitored = monitored_envs(env)
        answers = env.get_attr("allow_early_resets", indices=monitored) if monitored else []
        return any(not allowed for allowed in answers if allowed is not None)
    return False


def offers_action_masks(env: VecEnv) -> bool:
    """:return: whether all environments have a method ``action_masks``, by which sb3-contrib recognises masks"""
    with suppress(Exception):
        if env.has_attr("action_masks"):
            # SubprocVecEnv asks in its workers, which a method need not leave. VecEnv's own takes any answer for a yes.
            asks_itself = type(env.unwrapped).has_attr is not VecEnv.has_attr
            return asks_itself or all(map(callable, env.get_attr("action_masks")))
    return False


def env_name(env: VecEnv) -> str:
    """:return: the id of the first environment, or the class of the VecEnv where it has none"""
    with suppress(Exception):
        if env.has_attr("spec"):
            return str(env.get_attr("spec", 0)[0].id)
    return type(env.unwrapped).__name__
