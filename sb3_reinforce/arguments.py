"""What users pass, refused at once where it cannot be right: argument, rule, value received, cure."""

import math
from numbers import Integral, Real
from typing import Any


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """:raises ValueError: if ``value`` is none of ``choices``"""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """:raises ValueError: if ``value`` is neither True nor False"""
    check_choice(name, value, (True, False))


def check_count(name: str, value: Any, optional: bool = False) -> None:
    """:raises ValueError: if ``value`` is no whole number of at least 1 (or None, where that is allowed)"""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1{' or None' if optional else ''}, got {value!r}")


def check_fraction(name: str, value: Any) -> None:
    """:raises ValueError: if ``value`` is no number in [0, 1]"""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """:raises ValueError: if ``value`` is neither a finite number above 0 nor None"""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < value < math.inf):
        raise ValueError(f"{name} must be a finite number > 0, or None to switch it off, got {value!r}")
