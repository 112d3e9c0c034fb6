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

    Results have one element per index in ``ids``.

    :param env: the innermost vector environment, because vector wrappers do not forward ``get_attr`` and ``call``
    """

    def __init__(self, env: Any, n_envs: int) -> None:
        self.env = env
        self.n_envs = n_envs

    def has(self, name: str) -> bool:
        return hasattr(self.env, name)

    def get(self, name: str, ids: list[int]) -> list[Any]:
        return [getattr(self.env, name)] * len(ids)

    def set(self, name: str, value: Any, ids: list[int]) -> None:
        self._check_all(ids, f"set_attr({name!r})")
        setattr(self.env, name, value)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], ids: list[int]) -> list[Any]:
        self._check_all(ids, f"env_method({name!r})")
        result = getattr(self.env, name)(*args, **kwargs)
        # A list of one result per environment, or one result for all
        return list(result) if isinstance(result, list | tuple) and len(result) == self.n_envs else [result] * self.n_envs

    def are_wrapped(self, wrapper_class: type) -> list[bool]:
        return [False] * self.n_envs

    def culprits(self, error: Exception) -> list[int]:
        """The environments that raised the error of a step or reset, empty if that is unknown."""
        return []

    def _check_all(self, ids: list[int], call: str) -> None:
        if len(set(ids)) != self.n_envs:
            raise ValueError(
                f"{call} with indices={ids} needs single environments, but {self.env!r} has none inside: leave indices "
                "out, or use gymnasium.make_vec(id, vectorization_mode='sync')"
            )


class SyncEnvs(SingleEnvs):
    """The environments of a ``SyncVectorEnv``, a list."""

    def has(self, name: str) -> bool:
        return all(env.has_wrapper_attr(name) for env in self.env.envs)

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
        # SyncVectorEnv's loops call the environments with index i; after them it calls the function that stacks observations
        found = [
            frame.f_locals.get("i")
            for frame, called in pairwise(frames)
            if frame.f_locals.get("self") is self.env and called.f_code.co_name in ("step", "reset", "_add_info")
        ]
        return [i for i in found[-1:] if isinstance(i, int)]


class AsyncEnvs(SingleEnvs):
    """The environments of an ``AsyncVectorEnv``, each in its own process."""

    def has(self, name: str) -> bool:
        return all(self.env.call("has_wrapper_attr", name))

    def get(self, name: str, ids: list[int]) -> list[Any]:
        self._check_attr(name)
        values = self.env.get_attr(name)
        return [values[i] for i in ids]

    def set(self, name: str, value: Any, ids: list[int]) -> None:
        if len(set(ids)) == self.n_envs:
            values = [value] * self.n_envs
        else:
            # AsyncVectorEnv sets the attribute of all environments: the others keep their values
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
        # A worker's answer must be picklable, such as its name, `<Outer<Inner<...>>>`
        pattern = re.compile(rf"<{re.escape(wrapper_class.__name__)}<")
        return [pattern.search(text) is not None for text in self.env.call("__str__")]

    def culprits(self, error: Exception) -> list[int]:
        # AsyncVectorEnv sets the pipe of a failed worker to None
        return [i for i, pipe in enumerate(self.env.parent_pipes) if pipe is None]

    def _check_attr(self, name: str) -> None:
        # Asking for an attribute that does not exist would end the workers
        if not self.has(name):
            raise AttributeError(f"the environments of {self.env!r} have no attribute {name!r}")

    def _call_one(self, i: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # AsyncVectorEnv's `call` calls all environments
        self.env._assert_is_running()
        self.env.parent_pipes[i].send(("_call", (name, args, kwargs)))
        result, success = self.env.parent_pipes[i].recv()
        self.env._raise_if_errors([success if j == i else True for j in range(self.n_envs)])
        return result


def single_envs(env: Any, n_envs: int) -> SingleEnvs:
    kind = SyncEnvs if isinstance(env, SyncVectorEnv) else AsyncEnvs if isinstance(env, AsyncVectorEnv) else SingleEnvs
    return kind(env, n_envs)
