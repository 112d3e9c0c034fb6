"""What ``manifest.json`` and ``training.json`` must hold, before anything of them is used: a checkpoint may be forged."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th

# Libraries whose numbers a run depends on
LIBRARIES = ("stable-baselines3", "gymnasium", "torch", "numpy")

Check = Callable[[Any, str], None]
"""Raises a ValueError that names the place if a value does not fit."""


def _fails(where: str, rule: str, value: Any) -> ValueError:
    return ValueError(f"{where} must be {rule}, got {str(value)[:100]!r}")


def must(rule: str, fits: Callable[[Any], Any]) -> Check:
    """:return: the check that a value fits, in words for its error"""

    def check(value: Any, where: str) -> None:
        if not fits(value):
            raise _fails(where, rule, value)

    return check


def each(check_item: Check) -> Check:
    """:return: the check that a value is a list, and of each of its items"""

    def check(value: Any, where: str) -> None:
        if type(value) is not list:
            raise _fails(where, "a list", value)
        for number, item in enumerate(value):
            check_item(item, f"{where}[{number}]")

    return check


def row(*checks: Check) -> Check:
    """:return: the check that a value is a tuple of so many items, and of each"""

    def check(value: Any, where: str) -> None:
        if type(value) is not tuple or len(value) != len(checks):
            raise _fails(where, f"{len(checks)} values", value)
        for number, (check_item, item) in enumerate(zip(checks, value, strict=True)):
            check_item(item, f"{where}[{number}]")

    return check


def table(check_item: Check, optional: Mapping[str, Check] = {}, **required: Check) -> Check:
    """:return: the check that a value is a dict with text keys, those required among them, and of its values"""

    def check(value: Any, where: str) -> None:
        if type(value) is not dict or not all(type(key) is str for key in value):
            raise _fails(where, "a dict", value)
        for name, check_named in required.items():
            if name not in value:
                raise ValueError(f"{where} must have {name}, which is missing")
            check_named(value[name], f"{where}: {name}")
        for name, item in value.items():
            if name in optional:
                optional[name](item, f"{where}: {name}")
            check_item(item, f"{where}: {name}")

    return check


anything = must("anything", lambda value: True)
text = must("a text", lambda value: type(value) is str)
count = must("a whole number >= 0", lambda value: type(value) is int and value >= 0)
number = must("a number", lambda value: isinstance(value, int | float | np.number | np.bool_))
positive = must("a number > 0", lambda value: isinstance(value, int | float | np.number) and 0 < value < math.inf)
statistic = must(
    "of finite numbers", lambda value: isinstance(value, float | np.number | np.ndarray) and np.isfinite(value).all()
)
_word = must("a 32-bit number", lambda value: isinstance(value, np.ndarray) and value.dtype == np.uint32 and value.ndim == 1)


def _mersenne(value: Any, where: str) -> None:
    """NumPy takes any position within its 624 words, and would read beyond them."""
    row(text, _word, count, count, number)(value, where)
    if len(value[1]) != 624 or value[2] > 624:
        raise _fails(where, "a state of MT19937", value)


MANIFEST: Check = table(
    anything,
    algorithm=text,
    sb3_reinforce=text,
    libraries=table(text, {}, **dict.fromkeys(LIBRARIES, text)),
    policy=must("a text or null", lambda value: isinstance(value, str | None)),
    rollout_buffer=must("a text or null", lambda value: isinstance(value, str | None)),
    device=must(
        "a device such as cpu or cuda:0", lambda value: re.fullmatch(r"(?!meta)[a-z]+(:\d+)?", str(value)) is not None
    ),
    env=table(anything),
    sha256=table(text),
)
TRAINING: Check = table(
    anything,
    optional={"ranks": each(table(must("a number or null", lambda value: isinstance(value, int | None)), n_envs=count))},
    iteration=count,
    model=table(
        anything,
        attributes=table(number, num_timesteps=count, _n_updates=count, _n_rollouts=count),
        frozen=each(text),
        ep_info_buffer=each(table(anything, r=number, l=number)),
        ep_success_buffer=each(number),
        vec_normalize=each(table(row(positive, statistic, statistic))),
        logger=table(row(anything, count, anything)),
    ),
    random=table(
        anything,
        python=row(count, _word, anything),
        numpy=_mersenne,
        torch=must("a tensor", lambda value: isinstance(value, th.Tensor)),
        action_space=table(anything),
    ),
    callbacks=table(table(anything)),
    evaluation=table(table(row(each(anything), each(table(anything))))),
)
