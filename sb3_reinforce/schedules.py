"""Numbers and strings to Stable-Baselines3 schedules: functions of the remaining progress, from 1 down to 0."""

import math
from numbers import Real
from typing import Any

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule


def plain_schedule(value: Any) -> Any:
    """
    Replace RL Zoo's linear schedule by that of Stable-Baselines3, so that a saved model loads without rl_zoo3.

    :param value: any argument of REINFORCE
    :return: a ``LinearSchedule`` for rl_zoo3's ``SimpleLinearSchedule``, any other value unchanged
    """
    if type(value).__name__ == "SimpleLinearSchedule" and type(value).__module__.startswith("rl_zoo3"):
        return LinearSchedule(float(value.initial_value), 0.0, 1.0)
    return value


class CheckedSchedule(FloatSchedule):
    """
    A schedule that checks its value at each call. A negative learning rate would make the policy worse.

    Must stay in this module, because saved models name its path.

    :param name: the argument's name, for error messages
    :param value: a constant, or a function of the remaining progress
    """

    def __init__(self, name: str, value: float | Schedule):
        super().__init__(value)
        self.name = name

    def __call__(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: from 1 at the start of training to 0 at its end
        :return: the value at this progress
        :raises ValueError: if it is negative or not finite
        """
        value = super().__call__(progress_remaining)
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(
                f"{self.name} must be finite and >= 0 throughout training, got {value} from {self.value_schedule} at a "
                f"remaining progress of {progress_remaining:.3g} (1 at the start, 0 at the end)"
            )
        return value


def make_schedule(name: str, value: float | str | Schedule) -> Schedule:
    """
    Make a schedule of an argument, and check it at the start and the end of training.

    :param name: the argument's name, for error messages
    :param value: a constant, a function of the remaining progress, or a string such as ``"lin_3e-4"`` (RL Zoo's
        notation): linear from 3e-4 at the start of training to 0 at its end
    :return: the schedule, which checks its value at each call
    :raises ValueError: if ``value`` is none of these, fails, or is negative or not finite at the start or the end
    """
    cure = f'{name} must be a number >= 0, a schedule (a function of the remaining progress) or a string such as "lin_3e-4"'
    if isinstance(value, str):
        if not value.startswith("lin_") or not is_number(value.removeprefix("lin_")):
            hint = "; text that holds a number: write it as a number (in YAML `!!float 3e-4`)" if is_number(value) else ""
            raise ValueError(f"{cure}, got {value!r}{hint}")
        value = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    elif isinstance(value, Real) and not isinstance(value, bool):
        value = float(value)
    elif not callable(value):
        raise ValueError(f"{cure}, got {value!r}")
    schedule = CheckedSchedule(name, value)
    for progress in (1.0, 0.0):
        try:
            schedule(progress)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{cure}; the schedule {value!r} failed at a remaining progress of {progress}: {error}"
            ) from error
    return schedule


def is_number(text: str) -> bool:
    """:return: whether ``float`` can read the text"""
    try:
        float(text)
    except ValueError:
        return False
    return True
