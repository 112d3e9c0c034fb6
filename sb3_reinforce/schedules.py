"""Numbers and strings to Stable-Baselines3 schedules: functions of the progress that remains, from 1 down to 0."""

import math
from numbers import Real
from typing import Any

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule


def plain_schedule(value: Any) -> Any:
    """
    RL Zoo's own linear schedule as Stable-Baselines3's, so that a saved model loads where rl_zoo3 is not installed.

    :param value: an argument of REINFORCE as a user or RL Zoo gives it
    :return: the same, but for rl_zoo3's ``SimpleLinearSchedule``
    """
    if type(value).__name__ == "SimpleLinearSchedule" and type(value).__module__.startswith("rl_zoo3"):
        return LinearSchedule(float(value.initial_value), 0.0, 1.0)
    return value


def make_schedule(name: str, value: float | str | Schedule) -> Schedule:
    """
    :param name: the argument's name, for the message
    :param value: a constant, a function of the remaining progress, or a string such as ``"lin_3e-4"``: linearly from
        3e-4 at the start of training to 0 at its end (RL Zoo's notation)
    :return: the schedule
    :raises ValueError: if it cannot be read, or if it is negative or not finite at the start
    """
    cure = f'{name} must be a number >= 0, a schedule (a function of the remaining progress) or a string such as "lin_3e-4"'
    if isinstance(value, str):
        try:
            start = float(value.removeprefix("lin_")) if value.startswith("lin_") else math.nan
        except ValueError:
            start = math.nan
        if math.isnan(start):
            hint = "; text that holds a number: write it as a number (in YAML `!!float 3e-4`)" if _is_number(value) else ""
            raise ValueError(f"{cure}, got {value!r}{hint}")
        schedule: Schedule = LinearSchedule(start, 0.0, 1.0)
    elif isinstance(value, Real) and not isinstance(value, bool):
        schedule = FloatSchedule(float(value))
    elif callable(value):
        schedule = FloatSchedule(value)
    else:
        raise ValueError(f"{cure}, got {value!r}")
    try:
        start = float(schedule(1.0))
    except Exception as error:
        raise ValueError(f"{cure}; the schedule {value!r} failed at the start of training: {error}") from error
    if not (math.isfinite(start) and start >= 0.0):
        raise ValueError(f"{cure}, got {value!r}, which is {start} at the start of training")
    return schedule


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
