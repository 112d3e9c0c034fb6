"""Observations are one array, or a dict of arrays for Dict spaces: one way to treat both."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th


def by_key(observations: Any) -> dict[Any, Any]:
    """:return: Dict observations as they are, others under the key None, so that one loop serves both"""
    return observations if isinstance(observations, dict) else {None: observations}


def map_arrays(function: Callable[[Any], Any], arrays: Any) -> Any:
    """:return: the function of one array, or of each array of a dict"""
    return {key: function(array) for key, array in arrays.items()} if isinstance(arrays, dict) else function(arrays)


def map_pairs(function: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    """:return: the function of two arrays, or of the arrays of two dicts under each key"""
    return {key: function(first[key], second[key]) for key in first} if isinstance(first, dict) else function(first, second)


def stack_observations(observations: list[Any], like: Any) -> Any:
    """:return: single observations as one tensor (or a dict of tensors), with the row shape and type of ``like``"""
    if isinstance(like, dict):
        return {key: stack_observations([observation[key] for observation in observations], like[key]) for key in like}
    rows = th.as_tensor(np.stack(observations))
    return rows.to(th.as_tensor(like[:1]).dtype).reshape(len(rows), *like.shape[1:])
