"""What a training run carries from one update to the next, besides its networks: read off, and put back."""

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_reinforce import distributed

if TYPE_CHECKING:
    from sb3_reinforce.reinforce import REINFORCE

# Settings of VecNormalize: the same numbers come out of the same statistics only if these are the same, too.
VEC_NORMALIZE_SETTINGS = (
    "training",
    "norm_obs",
    "norm_reward",
    "clip_obs",
    "clip_reward",
    "gamma",
    "epsilon",
    "norm_obs_keys",
)
# Links to other objects, and names for what passes by: no state of a callback's own.
NOT_A_CALLBACKS_OWN = {"model", "locals", "globals", "parent"}


class NotPlainError(TypeError):
    """A value that is no number, text or array, nor a collection of them."""


def plain(value: Any) -> Any:
    """
    A copy of a value, if it is plain.

    :param value: None, a number, a text, an array, a tensor, or a list, tuple, deque or dict (keys: texts or whole
        numbers) of such
    :return: the copy
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


def equal(a: Any, b: Any) -> bool:
    """
    :param a: a plain value
    :param b: another one
    :return: whether they are of the same type and, bit for bit, the same
    """
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


def to_json(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """
    A plain value as JSON has it, arrays set apart. JSON alone keeps neither their types nor tuples and deques.

    :param value: a plain value
    :param arrays: where its arrays go, under new names
    :return: what :func:`from_json` makes the value of again
    """
    if isinstance(value, (np.ndarray, np.generic, th.Tensor)):
        name = str(len(arrays))
        arrays[name] = value.numpy() if isinstance(value, th.Tensor) else np.asarray(value)
        return {"is": "tensor" if isinstance(value, th.Tensor) else "array", "name": name}
    if isinstance(value, dict):
        return {"is": "dict", "items": [[key, to_json(item, arrays)] for key, item in value.items()]}
    if isinstance(value, (list, tuple, deque)):
        items = [to_json(item, arrays) for item in value]
        if isinstance(value, list):
            return items
        return (
            {"is": "deque", "maxlen": value.maxlen, "items": items}
            if isinstance(value, deque)
            else {"is": "tuple", "items": items}
        )
    return value


def from_json(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """
    :param value: what :func:`to_json` returned
    :param arrays: and the arrays it set apart
    :return: the plain value
    """
    if isinstance(value, list):
        return [from_json(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if value["is"] == "tensor":
        return th.as_tensor(arrays[value["name"]])
    if value["is"] == "array":
        return arrays[value["name"]][()]  # of no axis: the scalar
    if value["is"] == "dict":
        return {key: from_json(item, arrays) for key, item in value["items"]}
    items = [from_json(item, arrays) for item in value["items"]]
    return deque(items, maxlen=value["maxlen"]) if value["is"] == "deque" else tuple(items)


# ------------------------------------------------------------------------------------------------------- the model


def model_state(model: "REINFORCE") -> dict[str, Any]:
    """
    :param model: a model between two updates
    :return: what its networks and optimisers do not hold of its run, copied
    """
    about_the_process = {"start_time", "verbose", *model._excluded_save_params()}
    # One by one, because Monitor lets an environment put anything into them.
    infos = [_plain_items(info) for info in model.ep_info_buffer or ()]
    successes = [plain(success) for success in model.ep_success_buffer or () if _is_plain(success)]
    return {
        "attributes": {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in vars(model).items()
            if isinstance(value, (int, float, bool, np.generic)) and name not in about_the_process
        },
        "frozen": [name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad],
        "ep_info_buffer": infos,
        "ep_success_buffer": successes,
        "vec_normalize": [plain(distributed.statistics_of(env)) for env in normalizing(model.env)],
        "logger": {
            key: (plain(value), model.logger.name_to_count.get(key, 0), model.logger.name_to_excluded.get(key, ("",)))
            for key, value in model.logger.name_to_value.items()
            if _is_plain(value)
        },
    }


def set_model_state(model: "REINFORCE", state: Mapping[str, Any]) -> None:
    """
    :param model: a model made of the same arguments, with its environment
    :param state: what :func:`model_state` returned
    """
    vars(model).update(state["attributes"])
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name not in state["frozen"])
    model.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["ep_success_buffer"], maxlen=model._stats_window_size)
    set_statistics(model.env, state)


def set_statistics(env: VecEnv | None, state: Mapping[str, Any]) -> None:
    """
    :param env: the environment, with as many VecNormalize around it as when the state was taken
    :param state: what :func:`model_state` returned
    """
    for wrapper, statistics in zip(normalizing(env), state["vec_normalize"], strict=True):
        distributed.set_statistics(wrapper, statistics)


def set_logger_state(model: "REINFORCE", state: Mapping[str, Any]) -> None:
    """Record again what was not written yet: rows come every ``log_interval`` updates."""
    for key, (value, count, excluded) in state["logger"].items():
        model.logger.name_to_value[key] = value
        model.logger.name_to_count[key] = count
        model.logger.name_to_excluded[key] = excluded


def wrappers(env: VecEnv | None) -> Iterator[VecEnvWrapper]:
    """The wrappers around a vectorised environment, the outermost first."""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def normalizing(env: VecEnv | None) -> list[VecNormalize]:
    """
    The VecNormalize among the wrappers. Of these, statistics are all that a run carries: what else they have (discounted
    returns, last observations) is made anew by the reset of the next rollout.
    """
    return [wrapper for wrapper in wrappers(env) if isinstance(wrapper, VecNormalize)]


@contextmanager
def frozen_statistics(env: VecEnv | None) -> Iterator[None]:
    """Whatever ``VecNormalize`` is around the environments learns nothing inside."""
    frozen = [wrapper for wrapper in normalizing(env) if wrapper.training]
    for wrapper in frozen:
        wrapper.training = False
    try:
        yield
    finally:
        for wrapper in frozen:
            wrapper.training = True


def _is_plain(value: Any) -> bool:
    try:
        plain(value)
    except NotPlainError:
        return False
    return True


def _plain_items(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(value) for key, value in mapping.items() if _is_plain(value)}


# ------------------------------------------------------------------------------------------------- random numbers


def random_state(model: "REINFORCE") -> dict[str, Any]:
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


def set_random_state(model: "REINFORCE", state: Mapping[str, Any]) -> None:
    """:param state: what :func:`random_state` returned"""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    model.action_space.np_random.bit_generator.state = state["action_space"]
    if model.device.type == "cuda" and "cuda" in state:
        th.cuda.set_rng_state(state["cuda"], model.device)


# ------------------------------------------------------------------------------------------------------- callbacks


def callbacks_by_name(callback: BaseCallback) -> dict[str, BaseCallback]:
    """
    A callback and those inside it, each under a name that it has in every run.

    The name is made of its class, and its number among the equal ones at the same place; lists leave no trace in it:
    ``EvalCallback0``, ``EvalCallback0/StopTrainingOnNoModelImprovement0``.

    :param callback: the callback that ``learn`` calls
    :return: all of them, a callback before those inside it
    """
    found: dict[str, BaseCallback] = {}
    seen: set[int] = set()

    def visit(each: BaseCallback, place: str) -> None:
        if id(each) in seen:
            return
        seen.add(id(each))
        inside = place
        if not isinstance(each, CallbackList):
            number = 0
            while (name := f"{place}{type(each).__name__}{number}") in found:
                number += 1
            found[name], inside = each, f"{name}/"
        for name, value in vars(each).items():
            for child in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(child, BaseCallback) and name != "parent":
                    visit(child, inside)

    visit(callback, "")
    return found


def callback_state(callback: BaseCallback) -> dict[str, Any]:
    """
    What a callback carries: what its ``state_dict`` returns, or its plain attributes where it has none.

    :return: names and plain values
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
        vars(callback).update({name: plain(value) for name, value in state.items()})


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """
    What training has changed. The rest are settings, which a resumed run has from its own constructor.

    :param before: a callback's state when training started
    :param now: its state now
    """
    return {name: value for name, value in now.items() if name not in before or not equal(before[name], value)}


def evaluation_random_state(callback: BaseCallback) -> dict[str, Any]:
    """
    The random numbers of a callback's own environments, such as ``EvalCallback.eval_env``: nothing seeds those anew.

    :return: under the attribute's name, the seeds that wait for the next reset, and the states of the generators
    """
    found = {}
    for name, env in vars(callback).items():
        if not isinstance(env, VecEnv):
            continue
        try:
            generators = env.get_attr("np_random")
            found[name] = (list(env.unwrapped._seeds), [generator.bit_generator.state for generator in generators])
        except (AttributeError, NotImplementedError):  # no gymnasium.Env inside: its evaluations begin anew
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
        if all(generator is generators[0] for generator in generators):  # a vector environment's, without single ones inside
            env.set_attr("np_random", generators[0])
            continue
        for index, generator in enumerate(generators):
            env.set_attr("np_random", generator, indices=index)
