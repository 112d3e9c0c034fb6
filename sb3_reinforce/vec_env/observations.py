"""Observations of many environments: arrays with one row per environment, or dicts and tuples of such arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

# Spaces whose elements fit into arrays, and which SB3 knows
BATCHABLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def array_spaces(space: spaces.Space, name: str) -> Any:
    """
    The space of each array, in plain dicts and tuples: to ask a gymnasium space at every step would be slow.

    :raises ValueError: for a space that SB3's VecEnvs do not know
    """
    if isinstance(space, spaces.Dict):
        return {key: array_spaces(part, f"{name}[{key!r}]") for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(array_spaces(part, f"{name}[{i}]") for i, part in enumerate(space))
    if not isinstance(space, BATCHABLE):
        raise ValueError(
            f"{name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of these, got {space}: "
            "change it with a gymnasium wrapper, such as FlattenObservation"
        )
    return space


def map_arrays(function: Callable[..., Any], obs: Any, *others: Any) -> Any:
    """Apply a function to each array or space of ``obs``, and to its counterparts in others of the same structure."""
    if isinstance(obs, dict):
        return {key: map_arrays(function, part, *[other[key] for other in others]) for key, part in obs.items()}
    if isinstance(obs, tuple):
        return tuple(map_arrays(function, *parts) for parts in zip(obs, *others, strict=True))
    return function(obs, *others)


def as_arrays(of_spaces: Any, obs: Any, make_copy: bool = False) -> Any:
    """Observations as arrays of the dtypes of :func:`array_spaces`; copied only if asked or if the dtype differs."""
    make = np.array if make_copy else np.asarray
    return map_arrays(lambda space, part: make(part, dtype=space.dtype), of_spaces, obs)


def check_rows(of_spaces: Any, obs: Any, n_rows: int) -> None:
    """:raises ValueError: if an array does not have the shape of its space, once per environment"""

    def check(space: spaces.Space, part: np.ndarray) -> None:
        assert space.shape is not None, "spaces that fit into arrays have a shape"
        shape = (n_rows, *space.shape)
        if part.shape != shape:
            raise ValueError(
                f"observations must have the shape (num_envs, *single_observation_space.shape) = {shape}, got {part.shape} "
                "from reset: correct the environment's spaces"
            )

    map_arrays(check, of_spaces, obs)


def rows(obs: Any, ids: Any) -> Any:
    """These rows of every array: copies if ``ids`` is an array of indices."""
    return map_arrays(lambda part: part[ids], obs)


def set_rows(obs: Any, ids: np.ndarray, new_obs: Any) -> None:
    """Overwrite these rows of every array."""
    map_arrays(lambda part, new_part: part.__setitem__(ids, new_part), obs, new_obs)


def equal_rows(obs: Any, other: Any, ids: np.ndarray) -> bool:
    """Whether these rows are equal in every array."""
    equal: list[bool] = []
    map_arrays(lambda a, b: equal.append(np.array_equal(a[ids], b[ids], equal_nan=a.dtype.kind == "f")), obs, other)
    return all(equal)
