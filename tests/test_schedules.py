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
        (-1e-3, "ent_coef must be finite and >= 0 throughout training, got -0.001 from .* at a remaining progress of 1"),
        (float("nan"), "got nan from"),
        (float("inf"), "got inf from"),
        ("lin_-3", "got -3.0 from LinearSchedule"),
        ("lin_fast", "ent_coef must be a number >= 0, .*got 'lin_fast'"),
        ("3e-4", "got '3e-4'; text that holds a number: write it as a number"),
        ("fast", "got 'fast'"),
        (True, "got True"),
        (None, "got None"),
        ([1e-3], r"got \[0.001\]"),
        (lambda progress: 1 / 0, "failed at a remaining progress of 1.0: division by zero"),
        (lambda progress: progress - 2, "got -1.0 from"),
        (lambda progress: progress - 0.5, "got -0.5 from .* at a remaining progress of 0"),
    ],
)
def test_make_schedule_refuses(value, message):
    with pytest.raises(ValueError, match=message):
        make_schedule("ent_coef", value)


def test_zoo_schedule_becomes_sb3s():
    """A class that looks like RL Zoo's, which need not be installed."""
    zoo_class = type("SimpleLinearSchedule", (), {"__module__": "rl_zoo3.utils", "initial_value": 0.2})
    plain = plain_schedule(zoo_class())
    assert type(plain) is LinearSchedule
    assert plain(0.5) == pytest.approx(0.1)
    assert plain_schedule("lin_3e-4") == "lin_3e-4"


def test_a_schedule_that_turns_bad_in_between_is_refused_where_it_does():
    schedule = make_schedule("clip_range", lambda progress: -1.0 if 0.4 < progress < 0.6 else 0.2)
    assert schedule(0.7) == 0.2
    with pytest.raises(
        ValueError, match=r"clip_range must be finite and >= 0 throughout training, got -1.0 .* progress of 0.5 "
    ):
        schedule(0.5)
