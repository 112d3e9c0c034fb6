"""Baselines worked out by hand, and their bias as check_unbiased measures it; test_gradient.py tests updates with them."""

import copy
import runpy
from pathlib import Path

import pytest
import torch as th

from sb3_reinforce import check_unbiased
from sb3_reinforce.baselines import (
    BASELINES,
    Baseline,
    Episodes,
    MovingAverageBaseline,
    at_same_step,
    leave_one_out,
    make_baseline,
    mean,
    optimal,
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


def test_optimal():
    # X.S = 4, -1, 6 and abs(S)^2 = 2, 1, 3: others of episode 0: (-1 + 6) / (1 + 3); of 1: (4 + 6) / 5; of 2: (4 - 1) / 3
    products, squares = th.tensor([4.0, -1.0, 6.0]), th.tensor([2.0, 1.0, 3.0])
    th.testing.assert_close(optimal(products, squares, th.arange(3)), th.tensor([1.25, 2.0, 1.0]))
    # n_steps: one environment has played the first two; its b is of the third, 6 / 3
    th.testing.assert_close(optimal(products, squares, th.tensor([0, 0, 1])), th.tensor([2.0, 2.0, 1.0]))
    batch = episodes(RETURNS, LENGTHS, score_products=products.double(), score_squares=squares.double())
    assert BASELINES["optimal"]().predict(batch).tolist() == [1.25, 1.25, 2, 1, 1, 1]


def test_optimal_is_the_minimum_for_the_others():
    """b_0 minimises abs(X - b S)^2 of the other episode."""
    s, x = th.tensor([1.0, 2.0, -1.0]), th.tensor([3.0, 1.0, 0.5])
    b = optimal(th.stack([th.tensor(9.0), s @ x]), th.stack([th.tensor(1.0), s @ s]), th.arange(2))[0]
    around = b + th.linspace(-1, 1, 21)
    assert (x - around[:, None] * s).square().sum(1).argmin() == 10


def test_optimal_of_a_policy_without_scores():
    assert optimal(th.zeros(2), th.zeros(2), th.arange(2)).tolist() == [0, 0]


def test_at_same_step():
    # partners of 2 and 3 steps: the third step of episode 0 has the partner's last value
    partners, lengths = th.tensor([5.0, 3.0, 7.0, 2.0, 1.0]), th.tensor([3, 1])
    assert at_same_step(partners, th.tensor([2, 3]), lengths).tolist() == [5, 3, 3, 7]
    assert BASELINES["greedy"]().predict(episodes([0.0] * 4, [3, 1], greedy_returns=partners[:4])).tolist() == [5, 3, 7, 2]


def everyone(products, groups):
    return optimal(products, th.ones(2), groups)


@pytest.mark.parametrize("function", [leave_one_out, lambda r, g: per_step(r, th.arange(2), g), everyone])
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
        ("critic", "baseline must be one of 'none', 'mean', .*'greedy' or a Baseline object, got 'critic'"),
        (3.0, "or a Baseline object, got 3.0"),
        (MovingAverageBaseline, "or a Baseline object, got <class"),
        (NeedsTheMoon(), r"needs may contain 'values', 'scores', 'greedy', got \['moon'\]"),
    ],
)
def test_make_baseline_refuses(baseline, message):
    with pytest.raises(ValueError, match=message):
        make_baseline(baseline)


# --- check_unbiased ----------------------------------------------------------------------------------------------

UNBIASED = sorted(set(BASELINES) - {"mean"})
WHOLE = dict(returns="episode", n_episodes=2)


@pytest.mark.parametrize(
    ("baseline", "batches"),
    [(b, dict()) for b in UNBIASED]
    + [(b, dict(n_steps=3)) for b in ("none", "per_step", "optimal")]
    + [(b, WHOLE) for b in ("leave_one_out", "optimal", "greedy")],
    ids=str,
)
def test_no_bias_is_seen(baseline, batches):
    report = check_unbiased(baseline, n_batches=2000, **batches)
    assert report.largest < 4.0
    assert str(report).startswith("no bias is seen")


@pytest.mark.parametrize("batches", [dict(), WHOLE], ids=str)
def test_bias_of_the_mean_is_seen(batches):
    report = check_unbiased("mean", n_batches=3000, **batches)
    assert report.largest > 5.0
    assert str(report).startswith("BIASED")


def test_bias_of_the_mean_is_that_of_the_formula():
    """Episodes of one return each, N = 2: R_i - mean = (R_i - R_j) / 2 would be half the gradient; lengths differ here."""
    assert check_unbiased("mean", returns="episode", n_episodes=2, n_batches=3000).relative == pytest.approx(0.5, abs=0.15)


class Fitted(Baseline):
    """A table V(s), fitted to the returns before or after it predicts them."""

    def __init__(self, before: bool):
        self.before, self.sums, self.counts = before, th.zeros(3, dtype=th.float64), th.zeros(3)

    def fit(self, episodes):
        states = episodes.observations.argmax(1)
        self.sums = self.sums.index_add(0, states, episodes.returns)
        self.counts = self.counts + th.bincount(states, minlength=3)

    def predict(self, episodes):
        if self.before:
            self.sums, self.counts = th.zeros(3, dtype=th.float64), th.zeros(3)
            self.fit(episodes)
        return (self.sums / self.counts.clamp(min=1))[episodes.observations.argmax(1)]

    def update(self, episodes):
        if not self.before:
            self.fit(episodes)


class OwnFuture(Baseline):
    """Half of the step's own return: b depends on what comes after the action."""

    def predict(self, episodes):
        return 0.5 * episodes.returns


def test_check_unbiased_of_own_baselines():
    assert check_unbiased(Fitted(before=False), n_batches=3000).largest < 4.0
    assert check_unbiased(Fitted(before=True), n_batches=3000).largest > 6.0
    report = check_unbiased(OwnFuture(), n_batches=3000)
    th.testing.assert_close(report.bias, -0.5 * report.gradient, atol=4 * float(report.standard_error.max()), rtol=0)


def test_check_unbiased_leaves_the_baseline_alone():
    baseline = MovingAverageBaseline()
    check_unbiased(baseline, n_batches=2)
    assert baseline.average is None


class TooShort(Baseline):
    def predict(self, episodes):
        return episodes.returns[1:]


@pytest.mark.parametrize(
    ("baseline", "kwargs", "message"),
    [
        ("critic", {}, "got 'critic'"),
        (TooShort(), {}, "TooShort.predict must return a tensor of shape"),
        ("leave_one_out", dict(n_steps=4, n_envs=1), "at least 2 independent groups of them, got 1: raise n_episodes"),
        ("none", dict(n_batches=1), "n_batches must be >= 2, got 1"),
        ("none", dict(n_steps=0), "must be >= 1 .* got n_episodes=4, n_steps=0, n_envs=2"),
        ("none", dict(n_episodes=3), "n_episodes must be a multiple of n_envs, got n_episodes=3 and n_envs=2"),
        ("none", dict(gamma=-3), r"gamma must be a number in \[0, 1\], got -3"),
        ("none", dict(returns="episode", discount_state=True), 'discount_state=True is for returns="reward_to_go"'),
        ("none", dict(returns="gae"), "got n_episodes=4, n_steps=None, n_envs=2, returns='gae'"),
    ],
)
def test_check_unbiased_refuses(baseline, kwargs, message):
    with pytest.raises(ValueError, match=message):
        check_unbiased(baseline, **kwargs)


def test_example_of_a_custom_baseline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "custom_baseline.py"))
    baseline = script["LinearValue"]()
    assert check_unbiased(baseline, n_batches=3000).largest < 4.0
    # y = 2 x + 1, exactly: after enough batches V predicts it
    batch = episodes([1.0, 3.0, 5.0], [1, 2], observations=th.tensor([[0.0], [1.0], [2.0]]))
    for _ in range(300):
        baseline.update(batch)
    th.testing.assert_close(baseline.predict(batch), batch.returns, atol=0.01, rtol=0)
    restored = script["LinearValue"]()
    restored.load_state_dict(copy.deepcopy(baseline.state_dict()))
    th.testing.assert_close(restored.predict(batch), baseline.predict(batch))
    assert script["main"](2000).num_timesteps >= 2000
