"""Baselines worked out by hand; that they add no bias is shown in test_gradient.py."""

import pytest
import torch as th

from sb3_reinforce.baselines import (
    BASELINES,
    Baseline,
    Episodes,
    MovingAverageBaseline,
    leave_one_out,
    make_baseline,
    mean,
    per_step,
)


def episodes(returns, lengths, env_indices=None, fixed_count=True, **kwargs) -> Episodes:
    indices = th.zeros(len(lengths), dtype=th.long) if env_indices is None else th.tensor(env_indices)
    return Episodes(th.tensor(returns, dtype=th.float64), th.tensor(lengths), indices, fixed_count, **kwargs)


# Three episodes of 2, 1 and 3 steps
RETURNS, LENGTHS = [4.0, 2.0, 5.0, 9.0, 6.0, 1.0], [2, 1, 3]


def test_groups_are_episodes_or_environments():
    assert episodes(RETURNS, LENGTHS).groups.tolist() == [0, 0, 1, 2, 2, 2]
    # n_steps: environment 7 has played the first two episodes, environment 9 the third
    assert episodes(RETURNS, LENGTHS, [7, 7, 9], fixed_count=False).groups.tolist() == [0, 0, 0, 1, 1, 1]


def test_mean():
    # (4 + 2 + 5 + 9 + 6 + 1) / 6 = 27 / 6 = 4.5
    assert mean(th.tensor(RETURNS)).tolist() == [4.5] * 6


def test_leave_one_out():
    # others of episode 0: (5 + 9 + 6 + 1) / 4 = 5.25; of 1: (4 + 2 + 9 + 6 + 1) / 5 = 4.4; of 2: (4 + 2 + 5) / 3
    expected = th.tensor([5.25, 5.25, 4.4, 11 / 3, 11 / 3, 11 / 3], dtype=th.float64)
    th.testing.assert_close(BASELINES["leave_one_out"]().predict(episodes(RETURNS, LENGTHS)), expected)


def test_leave_one_out_of_environments():
    # others of environment 0: (9 + 6 + 1) / 3; of environment 1: (4 + 2 + 5) / 3
    batch = episodes(RETURNS, LENGTHS, [0, 0, 1], fixed_count=False)
    expected = th.tensor([16 / 3] * 3 + [11 / 3] * 3, dtype=th.float64)
    th.testing.assert_close(BASELINES["leave_one_out"]().predict(batch), expected)


def test_per_step():
    # t = 0: 4, 5, 9; t = 1: 2, -, 6; t = 2: -, -, 1.
    # episode 0: (5 + 9) / 2 = 7, then 6; episode 1: (4 + 9) / 2 = 6.5;
    # episode 2: (4 + 5) / 2 = 4.5, then 2, and at t = 2 nobody else lives: 2 again
    expected = th.tensor([7, 6, 6.5, 4.5, 2, 2], dtype=th.float64)
    th.testing.assert_close(BASELINES["per_step"]().predict(episodes(RETURNS, LENGTHS)), expected)


def test_whole_episode_mean_is_leave_one_out_at_a_part_of_the_step():
    # N = 3 equal lengths: R - mean = (N - 1) / N * (R - leave_one_out)
    returns, groups = th.tensor([1.0, 2.0, 6.0]), th.arange(3)
    th.testing.assert_close(returns - mean(returns), 2 / 3 * (returns - leave_one_out(returns, groups)))


@pytest.mark.parametrize("function", [leave_one_out, lambda r, g: per_step(r, th.arange(2), g)])
def test_nobody_else(function):
    with pytest.raises(ValueError, match="at least 2 independent groups of them, got 1"):
        function(th.ones(2), th.zeros(2, dtype=th.long))


def test_moving_average():
    baseline = MovingAverageBaseline(decay=0.5)
    assert baseline.predict(episodes(RETURNS, LENGTHS)).tolist() == [0] * 6
    baseline.update(episodes(RETURNS, LENGTHS))  # starts at the first mean, 4.5
    assert baseline.predict(episodes([1.0], [1])).tolist() == [4.5]
    baseline.update(episodes([1.5], [1]))  # 0.5 * 4.5 + 0.5 * 1.5 = 3
    assert baseline.predict(episodes([1.0], [1])).tolist() == [3]

    restored = MovingAverageBaseline()
    restored.load_state_dict(baseline.state_dict())
    assert restored.average == 3


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_moving_average_refuses_decay(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
        MovingAverageBaseline(decay)


def test_make_baseline():
    for name, baseline_class in BASELINES.items():
        assert type(make_baseline(name)) is baseline_class
    own = MovingAverageBaseline(0.3)
    assert make_baseline(own) is own


class NeedsTheMoon(Baseline):
    needs = frozenset({"values", "moon"})

    def predict(self, episodes):
        return episodes.returns


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("critic", "baseline must be one of 'none', 'mean', .*'value' or a Baseline object, got 'critic'"),
        (3.0, "or a Baseline object, got 3.0"),
        (MovingAverageBaseline, "or a Baseline object, got <class"),
        (NeedsTheMoon(), r"needs may contain 'values' only, got \['moon'\]"),
    ],
)
def test_make_baseline_refuses(baseline, message):
    with pytest.raises(ValueError, match=message):
        make_baseline(baseline)
