"""Numbers and strings to schedules."""

import numpy as np
import pytest
from stable_baselines3.common.utils import LinearSchedule

from sb3_reinforce.schedules import make_schedule, plain_schedule


@pytest.mark.parametrize(
    ("value", "at_start", "at_half", "at_end"),
    [
        (3e-4, 3e-4, 3e-4, 3e-4),
        (0, 0.0, 0.0, 0.0),
        (np.float32(0.5), 0.5, 0.5, 0.5),
        ("lin_3e-4", 3e-4, 1.5e-4, 0.0),
        (LinearSchedule(1.0, 0.5, 0.5), 1.0, 0.5, 0.5),
        (lambda progress: 2 * progress, 2.0, 1.0, 0.0),
    ],
)
def test_make_schedule(value, at_start, at_half, at_end):
    schedule = make_schedule("learning_rate", value)
    assert [schedule(1.0), schedule(0.5), schedule(0.0)] == pytest.approx([at_start, at_half, at_end])
    assert type(schedule(0.5)) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1e-3, "got -0.001, which is -0.001 at the start"),
        (float("nan"), "which is nan at the start"),
        (float("inf"), "which is inf at the start"),
        ("lin_-3", "which is -3.0 at the start"),
        ("lin_fast", "ent_coef must be a number >= 0, .*got 'lin_fast'"),
        ("3e-4", "got '3e-4'; text that holds a number: write it as a number"),
        ("fast", "got 'fast'"),
        (True, "got True"),
        (None, "got None"),
        ([1e-3], r"got \[0.001\]"),
        (lambda progress: 1 / 0, "failed at the start of training: division by zero"),
        (lambda progress: progress - 2, "which is -1.0 at the start"),
    ],
)
def test_make_schedule_refuses(value, message):
    with pytest.raises(ValueError, match=message):
        make_schedule("ent_coef", value)


def test_zoo_schedule_becomes_sb3s():
    """A class that looks like RL Zoo's own, which need not be installed here."""
    zoo_class = type("SimpleLinearSchedule", (), {"__module__": "rl_zoo3.utils", "initial_value": 0.2})
    plain = plain_schedule(zoo_class())
    assert type(plain) is LinearSchedule
    assert plain(0.5) == pytest.approx(0.1)
    assert plain_schedule("lin_3e-4") == "lin_3e-4"
