"""Save and restore the training state that is not in the networks: counters, statistics, random numbers, callbacks."""

import copy
import functools
import inspect
import random
import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.running.normalization import normalizing, set_statistics, statistics_of

# Links to other objects, and names for passing values: not a callback's own state
NOT_A_CALLBACKS_OWN = {"model", "locals", "globals", "parent"}


class NotPlainError(TypeError):
    """A value that is no number, text or array, nor a collection of them."""


def plain(value: Any) -> Any:
    """
    A copy of a value that a file can hold without code: None, a number, a text, an array, a tensor, or a list, tuple, deque
    or dict (keys: texts or whole numbers) of such.

    :raises NotPlainError: for anything else
    """
    kind = type(value)
    if kind in (float, int, bool, str, type(None)) or isinstance(value, np.generic):
        return value
    if kind is np.ndarray and value.dtype != object:
        return value.copy()
    if isinstance(value, th.Tensor):
        return value.detach().cpu().clone()
    if kind in (list, tuple):
        return kind(plain(item) for item in value)
    if kind is deque:
        return deque((plain(item) for item in value), maxlen=value.maxlen)
    if kind is dict and all(type(key) in (str, int) for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise NotPlainError(kind.__name__)


def copied(value: Any) -> Any:
    """:return: a copy of tensors in dicts and lists, at a tenth of the cost of ``copy.deepcopy``"""
    if isinstance(value, th.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [copied(item) for item in value]
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    new = copy.copy(value)  # of its class, with what PyTorch adds to a state dict
    new.update((key, copied(item)) for key, item in value.items())
    return new


def equal(a: Any, b: Any) -> bool:
    """:return: whether two plain values are of the same type and, bit for bit, the same"""
    if type(a) is not type(b):
        return False
    if isinstance(a, th.Tensor):
        a, b = a.numpy(), b.numpy()
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b) or (a != a and b != b)


def _plain_items(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(value) for key, value in mapping.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    try:
        plain(value)
    except NotPlainError:
        return False
    return True


def model_state(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """:return: copies of what its networks and optimisers do not hold: all its numbers, statistics, recorded values"""
    about_the_process = {"start_time", "verbose", *model._excluded_save_params()}
    return {
        "attributes": {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in vars(model).items()
            if isinstance(value, (int, float, bool, np.generic)) and name not in about_the_process
        },
        "frozen": [name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad],
        # Item by item, because Monitor lets an environment put anything into them
        "ep_info_buffer": [_plain_items(info) for info in model.ep_info_buffer or ()],
        "ep_success_buffer": [plain(success) for success in model.ep_success_buffer or () if _is_plain(success)],
        "vec_normalize": [plain(statistics_of(env)) for env in normalizing(model.env)],
        "logger": {
            key: (plain(value), model.logger.name_to_count.get(key, 0), model.logger.name_to_excluded.get(key, ("",)))
            for key, value in model.logger.name_to_value.items()
            if _is_plain(value)
        },
    }


def set_model_state(model: OnPolicyAlgorithm, state: Mapping[str, Any]) -> None:
    """Restore what :func:`model_state` returned, in a model made of the same arguments, with its environment."""
    for name, value in state["attributes"].items():
        if not isinstance(vars(model).get(name, ""), int | float | np.generic | None):
            raise ValueError(f"the model has no number {name}, got {value}")
        setattr(model, name, value)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name not in state["frozen"])
    model.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["ep_success_buffer"], maxlen=model._stats_window_size)
    set_all_statistics(model.env, state)


def set_all_statistics(env: VecEnv | None, state: Mapping[str, Any]) -> None:
    """Restore the statistics of ``VecNormalize`` in what :func:`model_state` returned."""
    for wrapper, statistics in zip(normalizing(env), state["vec_normalize"], strict=True):
        own, saved = (
            {name: [*map(np.shape, row)] for name, row in each.items()} for each in (statistics_of(wrapper), statistics)
        )
        if own != saved:
            raise ValueError(f"VecNormalize has statistics of the shapes {own}, got {saved}")
        set_statistics(wrapper, statistics)


def set_logger_state(model: OnPolicyAlgorithm, state: Mapping[str, Any]) -> None:
    """Record again what was not yet written: rows come every ``log_interval`` updates."""
    for key, (value, count, excluded) in state["logger"].items():
        model.logger.name_to_value[key] = value
        model.logger.name_to_count[key] = count
        model.logger.name_to_excluded[key] = excluded


def random_state(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """:return: the state of every generator that training may draw from and that no rollout seeds"""
    version, words, gauss = random.getstate()
    state = {
        "python": (version, np.array(words, dtype=np.uint32), gauss),
        "numpy": np.random.get_state(),
        "torch": th.get_rng_state(),
        "action_space": model.action_space.np_random.bit_generator.state,
    }
    if model.device.type == "cuda":
        state["cuda"] = th.cuda.get_rng_state(model.device)
    return plain(state)


def set_random_state(model: OnPolicyAlgorithm, state: Mapping[str, Any]) -> None:
    """:param state: what :func:`random_state` returned"""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    model.action_space.np_random.bit_generator.state = state["action_space"]
    if model.device.type == "cuda" and "cuda" in state:
        th.cuda.set_rng_state(state["cuda"], model.device)


def callback_state(callback: BaseCallback) -> dict[str, Any]:
    """
    What ``state_dict`` of a callback returns, or its plain attributes where it has none.

    :raises ValueError: if its ``state_dict`` returns what is not plain
    """
    if hasattr(callback, "state_dict"):
        state = callback.state_dict()
        try:
            return plain(dict(state))
        except NotPlainError as error:
            raise ValueError(
                f"{type(callback).__name__}.state_dict must return numbers, texts, arrays and collections of them, got {error}"
            ) from None
    return _plain_items({name: value for name, value in vars(callback).items() if name not in NOT_A_CALLBACKS_OWN})


def set_callback_state(callback: BaseCallback, state: Mapping[str, Any]) -> None:
    """:param state: names and plain values that :func:`callback_state` returned, or some of them"""
    if hasattr(callback, "load_state_dict"):
        callback.load_state_dict(dict(state))
    else:
        not_state = _not_state(type(callback))
        vars(callback).update({name: plain(value) for name, value in state.items() if name not in not_state})


@functools.cache
def _not_state(kind: type[BaseCallback]) -> set[str]:
    """:return: attributes of a callback that no file may set: what its constructor sets, and methods and properties"""
    constructors = [vars(each)["__init__"] for each in kind.__mro__ if "__init__" in vars(each) and each is not object]
    settings = {argument for constructor in constructors for argument in inspect.signature(constructor).parameters}
    of_the_class = {name for name in dir(kind) if callable(getattr(kind, name)) or isinstance(getattr(kind, name), property)}
    return (NOT_A_CALLBACKS_OWN | settings | of_the_class) - {"n_calls", "num_timesteps"}  # counters of every callback


def without_settings(callback: BaseCallback, changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param changes: attributes that training has changed
    :return: those that :func:`set_callback_state` restores; a warning names the others
    """
    settings = _not_state(type(callback)) & changes.keys()
    if settings:
        warnings.warn(
            f"{type(callback).__name__} changes {', '.join(sorted(settings))}, named like its constructor's arguments: a "
            "resumed run takes such settings from the new callback; state_dict() and load_state_dict() would save and restore "
            "them",
            stacklevel=2,
        )
    return {name: value for name, value in changes.items() if name not in settings}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """:return: what of a callback's state training has changed; the rest are settings, which its constructor sets again"""
    return {name: value for name, value in now.items() if name not in before or not equal(before[name], value)}


def evaluation_random_state(callback: BaseCallback) -> dict[str, Any]:
    """
    The random numbers of a callback's own environments, such as ``EvalCallback.eval_env``, which no rollout seeds.

    :return: by the attribute's name, the seeds of the next reset and the states of the generators
    """
    found = {}
    for name, env in vars(callback).items():
        if not isinstance(env, VecEnv):
            continue
        try:
            generators = env.get_attr("np_random")
            found[name] = (list(env.unwrapped._seeds), [generator.bit_generator.state for generator in generators])
        except Exception:  # no gymnasium.Env inside, or the VecEnv cannot tell: its evaluations start afresh
            continue
    return plain(found)


def set_evaluation_random_state(callback: BaseCallback, state: Mapping[str, Any]) -> None:
    """:param state: what :func:`evaluation_random_state` returned"""
    for name, (seeds, states) in state.items():
        env = getattr(callback, name, None)
        if not isinstance(env, VecEnv) or env.num_envs != len(states):
            continue
        env.unwrapped._seeds = list(seeds)
        generators = env.get_attr("np_random")
        for generator, saved in zip(generators, states, strict=True):
            generator.bit_generator.state = saved
        with suppress(NotImplementedError, AttributeError):  # needed where these are copies, from other processes
            if all(generator is generators[0] for generator in generators):  # a vector environment has one for all
                env.set_attr("np_random", generators[0])
                continue
            for index, generator in enumerate(generators):
                env.set_attr("np_random", generator, indices=index)
