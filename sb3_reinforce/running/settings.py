"""
What must be equal on all ranks, so that they make the same updates.

Everything is compared, except what is known to be each rank's own: so an argument that is added later is not forgotten.
"""

import hashlib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.running.checkpoint_file import describe_space
from sb3_reinforce.running.normalization import VEC_NORMALIZE_SETTINGS, normalizing
from sb3_reinforce.version import __version__

# Arguments that no update depends on, and the policy, which is compared part by part
NOT_COMPARED = {"policy", "env", "device", "verbose", "tensorboard_log"}
PROGRESS = (1.0, 0.75, 0.5, 0.25, 0.0)
# Objects inside objects are described down to this depth.
DEPTH = 3


def shared_settings(model: OnPolicyAlgorithm, own: Collection[str], schedules: Mapping[str, str]) -> dict[str, str]:
    """
    :param own: the arguments that may differ
    :param schedules: arguments that may be schedules, and the attributes that hold them
    :return: all arguments of the constructor, the policy's parts, optimisers and ``VecNormalize``, described by name
    """
    found = {"algorithm": described(type(model)), "version": __version__}
    for name in _constructor_arguments(type(model)):
        value = vars(model).get(name)
        if name in schedules:
            values = [getattr(model, schedules[name])(progress) for progress in PROGRESS]
            found[name] = described(values[0] if len(set(values)) == 1 else values)
        elif name not in NOT_COMPARED and name not in own:
            found[name] = described(value)
    for number, wrapper in enumerate(normalizing(model.env)):
        kind = type(wrapper).__name__ + (f" {number + 1}" if number > 0 else "")
        found |= {f"{kind}.{name}": described(getattr(wrapper, name, None)) for name in VEC_NORMALIZE_SETTINGS}
    found |= {f"policy{name}": text for name, text in _parts_of(model.policy)}
    for name in model._get_torch_save_params()[0]:
        optimizer = recursive_getattr(model, name)
        if isinstance(optimizer, th.optim.Optimizer):
            found[name] = described(type(optimizer))
            for number, group in enumerate(optimizer.param_groups):
                # the learning rate is a schedule's
                options = {key: described(value) for key, value in group.items() if key not in ("params", "lr")}
                found |= {f"{name}.param_groups[{number}][{key!r}]": text for key, text in options.items()}
    return found


def settings_of(name: str, value: Any, state: Collection[str]) -> dict[str, str]:
    """
    :param state: attributes that are no settings
    :return: the class and the attributes of an object, described by name
    """
    attributes = getattr(value, "__dict__", {})
    settings = {f"{name}.{key}": described(each) for key, each in attributes.items() if key not in state}
    return {name: described(type(value)), **settings}


def _constructor_arguments(cls: type) -> list[str]:
    """Those of the class and of its bases, in this order."""
    constructors = [vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)]
    return list(dict.fromkeys(name for each in constructors for name in inspect.signature(each).parameters))


def _parts_of(policy: BasePolicy) -> Iterator[tuple[str, str]]:
    """The modules and parameters of a policy and its distribution, and the settings among their attributes."""
    modules = {f".{name}" if name else "": module for name, module in policy.named_modules()}
    yield from ((name, f"{type(module).__qualname__}({module.extra_repr()})") for name, module in modules.items())
    distribution = getattr(policy, "action_dist", None)
    yield ".action_dist", described(type(distribution))
    for name, part in {**modules, ".action_dist": distribution}.items():
        # Not whole numbers, which may count calls
        for attribute, value in getattr(part, "__dict__", {}).items():
            if isinstance(value, (bool, float, str, type)) and attribute not in ("training", "device"):
                yield f"{name}.{attribute}", described(value)
    for name, parameter in policy.named_parameters():
        yield f".{name}", f"{str(parameter.dtype).removeprefix('torch.')} of shape {tuple(parameter.shape)}"
        yield f".{name}.requires_grad", str(parameter.requires_grad)


def described(value: Any, depth: int = DEPTH) -> str:
    """:return: a text that is the same in all processes for values that are alike, unlike ``repr``, which may be an address"""
    if isinstance(value, spaces.Space):
        return describe_space(value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(item, depth)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(described(item, depth) for item in value) + "]"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(described(item, depth) for item in value)) + "}"
    if isinstance(value, (np.ndarray, th.Tensor)):
        array = value.detach().cpu().numpy() if isinstance(value, th.Tensor) else value
        return f"{array.dtype} of shape {array.shape} with checksum {hashlib.sha256(array.tobytes()).hexdigest()[:8]}"
    if type(value).__repr__ is not object.__repr__:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    opaque = depth == 0 or not hasattr(value, "__dict__") or isinstance(value, (BaseAlgorithm, VecEnv, gym.Env))
    return described(type(value)) + ("" if opaque else f"({described(vars(value), depth - 1)})")
