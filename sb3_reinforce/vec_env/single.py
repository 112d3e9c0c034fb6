"""The single environments inside a vector environment: their attributes, methods, wrappers and errors."""

import re
import traceback
from itertools import pairwise
from typing import Any

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.env_util import is_wrapped


class SingleEnvs:
    """
    A vector environment without single environments inside (an EnvPool, ``CartPoleVectorEnv``): one value for all.

    :param env: the innermost vector environment, as vector wrappers do not pass get_attr and call on
    :param n_envs: number of environments
    """

    def __init__(self, env: Any, n_envs: int) -> None:
        self.env = env
        self.n_envs = n_envs

    def get(self, name: str, ids: list[int]) -> list[Any]:
        """
        :param name: an attribute
        :param ids: environments
        :return: one value per environment
        :raises AttributeError: if there is no such attribute
        """
        return [getattr(self.env, name)] * len(ids)

    def set(self, name: str, value: Any, ids: list[int]) -> None:
        """
        :param name: an attribute
        :param value: its new value
        :param ids: environments
        :raises ValueError: if these are not all and there are no single ones
        """
        self._check_all(ids, f"set_attr({name!r})")
        setattr(self.env, name, value)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], ids: list[int]) -> list[Any]:
        """
        :param name: a method
        :param args: its arguments
        :param kwargs: its keyword arguments
        :param ids: environments
        :return: one result per environment
        :raises ValueError: if these are not all and there are no single ones
        """
        self._check_all(ids, f"env_method({name!r})")
        result = getattr(self.env, name)(*args, **kwargs)
        # A result each, or one for everyone
        return list(result) if isinstance(result, list | tuple) and len(result) == self.n_envs else [result] * self.n_envs

    def are_wrapped(self, wrapper_class: type) -> list[bool]:
        """
        :param wrapper_class: class of a wrapper of single environments
        :return: one answer per environment
        """
        return [False] * self.n_envs

    def culprits(self, error: Exception) -> list[int]:
        """
        :param error: raised in a step or reset
        :return: the environments that raised it, empty if that cannot be known
        """
        return []

    def _check_all(self, ids: list[int], call: str) -> None:
        if len(set(ids)) != self.n_envs:
            raise ValueError(
                f"{call} with indices={ids} needs single environments, but {self.env!r} has none inside: leave indices "
                "out, or use gymnasium.make_vec(id, vectorization_mode='sync')"
            )


class SyncEnvs(SingleEnvs):
    """Those of a ``SyncVectorEnv``, a list."""

    def get(self, name: str, ids: list[int]) -> list[Any]:
        return [self.env.envs[i].get_wrapper_attr(name) for i in ids]

    def set(self, name: str, value: Any, ids: list[int]) -> None:
        for i in ids:
            self.env.envs[i].set_wrapper_attr(name, value)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], ids: list[int]) -> list[Any]:
        return [method(*args, **kwargs) for method in self.get(name, ids)]

    def are_wrapped(self, wrapper_class: type) -> list[bool]:
        return [is_wrapped(env, wrapper_class) for env in self.env.envs]

    def culprits(self, error: Exception) -> list[int]:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        # Its loops count environments with i; after them `called` is the function that stacks observations
        found = [
            frame.f_locals.get("i")
            for frame, called in pairwise(frames)
            if frame.f_locals.get("self") is self.env and called.f_code.co_name in ("step", "reset", "_add_info")
        ]
        return [i for i in found[-1:] if isinstance(i, int)]


class AsyncEnvs(SingleEnvs):
    """Those of an ``AsyncVectorEnv``, each in a process of its own."""

    def get(self, name: str, ids: list[int]) -> list[Any]:
        self._check_attr(name)
        values = self.env.get_attr(name)
        return [values[i] for i in ids]

    def set(self, name: str, value: Any, ids: list[int]) -> None:
        if len(set(ids)) == self.n_envs:
            values = [value] * self.n_envs
        else:
            # It sets all or none: the others get what they have
            values = self.get(name, list(range(self.n_envs)))
            for i in ids:
                values[i] = value
        self.env.set_attr(name, values)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], ids: list[int]) -> list[Any]:
        self._check_attr(name)
        if ids == list(range(self.n_envs)):
            return list(self.env.call(name, *args, **kwargs))
        return [self._call_one(i, name, args, kwargs) for i in ids]

    def are_wrapped(self, wrapper_class: type) -> list[bool]:
        # Workers answer with what can be pickled: their names, each as `<Outer<Inner<...>>>`
        pattern = re.compile(rf"<{re.escape(wrapper_class.__name__)}<")
        return [pattern.search(text) is not None for text in self.env.call("__str__")]

    def culprits(self, error: Exception) -> list[int]:
        # It drops the pipes of workers that failed
        return [i for i, pipe in enumerate(self.env.parent_pipes) if pipe is None]

    def _check_attr(self, name: str) -> None:
        # Asking for what is not there would end the workers
        if not all(self.env.call("has_wrapper_attr", name)):
            raise AttributeError(f"the environments of {self.env!r} have no attribute {name!r}")

    def _call_one(self, i: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Its own `call` always calls all
        self.env._assert_is_running()
        self.env.parent_pipes[i].send(("_call", (name, args, kwargs)))
        result, success = self.env.parent_pipes[i].recv()
        self.env._raise_if_errors([success if j == i else True for j in range(self.n_envs)])
        return result


def single_envs(env: Any, n_envs: int) -> SingleEnvs:
    """
    :param env: the innermost vector environment
    :param n_envs: number of environments
    :return: the way to those inside
    """
    kind = SyncEnvs if isinstance(env, SyncVectorEnv) else AsyncEnvs if isinstance(env, AsyncVectorEnv) else SingleEnvs
    return kind(env, n_envs)
