"""Curves of the report: which runs are one curve, where it is drawn, its mean, band and single runs."""

from typing import Any

import numpy as np
import pytest

from sb3_reinforce.tracking.curves import CLOCK, GRID, STUDENT, curves_of, differences, panel_data
from sb3_reinforce.tracking.metrics import all_metrics
from sb3_reinforce.tracking.runs import LoggedRun
from tests.logged_runs import RETURN, run_of, series


def shown_curve(metric: str, runs: list[LoggedRun]) -> dict[str, Any]:
    """The only curve of a panel."""
    data = panel_data(all_metrics()[metric], curves_of(runs))
    assert data is not None
    (shown,) = data["curves"]
    return shown


def test_mean_and_band_by_hand():
    # Five runs, 1 to 5 at step 0: mean 3, standard deviation sqrt(10 / 4); at step 10 twice as much. t(4) = 2.776
    runs = [run_of(seed, {"train/entropy_loss": series((0, 1 + seed), (10, 2 + 2 * seed))}) for seed in range(5)]
    shown = shown_curve("train/entropy_loss", runs)
    assert (shown["x"], shown["n"], shown["mean"], shown["runs"]) == ([0.0, 10.0], 5, [3.0, 6.0], [])
    width = 2.776 * np.sqrt(2.5) / np.sqrt(5)
    np.testing.assert_allclose(shown["high"], [3 + width, 6 + 2 * width], rtol=1e-4)
    np.testing.assert_allclose(shown["low"], [3 - width, 6 - 2 * width], rtol=1e-4)


def test_students_t():
    stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(STUDENT, stats.t.ppf(0.975, np.arange(4, 31)), atol=6e-4)


def test_few_runs_are_thin_lines():
    runs = [run_of(seed, {RETURN: series((0, seed), (10, 2 * seed))}) for seed in range(4)]
    shown = shown_curve(RETURN, runs)
    assert shown["runs"] == [[0, 0], [1, 2], [2, 4], [3, 6]]
    assert shown["low"] == shown["high"] == []
    assert shown_curve(RETURN, runs[:1])["runs"] == []  # it is the line itself


def test_bands_are_cut_to_what_a_metric_can_be():
    values = (0.0, 0.0, 0.0, 1.0, 1.0)  # mean 0.4, half a band 0.68
    for metric, low, high in (
        ("train/approx_kl", 0, 1.08),
        ("train/clip_fraction", 0, 1),
        ("train/entropy_loss", -0.28, 1.08),
    ):
        shown = shown_curve(metric, [run_of(seed, {metric: series((0, y))}) for seed, y in enumerate(values)])
        np.testing.assert_allclose([*shown["low"], *shown["high"]], [low, high], atol=0.01)
    # a return: within those of single episodes
    of_all = [
        run_of(seed, {RETURN: series((0, y)), "episode/return": series((0, -0.1), (1, 1.05))}) for seed, y in enumerate(values)
    ]
    shown = shown_curve(RETURN, of_all)
    np.testing.assert_allclose([*shown["low"], *shown["high"]], [-0.1, 1.05])


def test_runs_at_other_steps_and_one_that_ended_early():
    # linear in between: at 5 the second run is at 15. It ends at 10; beyond, there is the first alone.
    runs = [run_of(0, {RETURN: series((0, 0), (5, 5), (10, 10), (100, 100))}), run_of(1, {RETURN: series((0, 10), (10, 20))})]
    shown = shown_curve(RETURN, runs)
    assert shown["x"] == [0, 5, 10, 100]
    assert shown["mean"] == [5, 10, 15, 100]
    assert shown["runs"] == [[0, 5, 10, 100], [10, 15, 20, None]]


def test_no_curve_goes_beyond_the_steps_of_its_runs():
    """A short run beside a long one, and runs of one setting that end at slightly different steps."""
    long = np.arange(0.0, 1_000_001, 1000)
    runs = [
        run_of(0, {RETURN: (long, long)}, baseline="value"),
        run_of(0, {RETURN: series((1000, 1), (3000, 3))}, baseline="none"),
        *(run_of(seed, {RETURN: series((0, 0), (100_000 + 500 * seed, 1))}, baseline="mean") for seed in range(3)),
    ]
    data = panel_data(all_metrics()[RETURN], curves_of(runs))
    assert data is not None
    ends = [(curve["x"][0], curve["x"][-1], curve["mean"][-1]) for curve in data["curves"]]
    # 100,000 of 100,000, of 100,500 and of 101,000
    # the value at the end is a mean over the last pixel
    assert ends[0] == (0, 1_000_000, pytest.approx(1_000_000, rel=2e-3))
    assert ends[1] == (1000, 3000, 3)
    assert ends[2] == (0, 100_000, pytest.approx((1 + 100 / 100.5 + 100 / 101) / 3, rel=1e-5))


def test_seconds_of_training():
    runs = [run_of(seed, {RETURN: series((0, 0), (10, 1)), CLOCK: series((0, 0), (10, 4 + 2 * seed))}) for seed in range(2)]
    assert shown_curve(RETURN, runs)["seconds"] == [0, 5]
    assert shown_curve(RETURN, [run_of(0, {RETURN: series((0, 0))})])["seconds"] is None


def test_many_points_become_means_of_neighbours():
    x = np.arange(10_000, dtype=float)
    shown = shown_curve(RETURN, [run_of(0, {RETURN: (x, np.where(x % 2 == 0, 0.0, 2.0))})])
    assert len(shown["x"]) == GRID
    np.testing.assert_allclose(shown["mean"], 1.0, atol=0.06)
    assert shown["high"] == []  # one run has no confidence


def test_runs_that_differ_in_more_than_the_seed_are_other_curves():
    one = {RETURN: series((0, 0))}
    runs = [run_of(0, one, baseline="value"), run_of(1, one, baseline="value"), run_of(2, one, baseline="none")]
    assert [(label, len(members)) for label, members in curves_of(runs).items()] == [
        ("REINFORCE CartPole-v1 · baseline=value", 2),
        ("REINFORCE CartPole-v1 · baseline=none", 1),
    ]


def test_settings_in_which_curves_differ():
    one = {RETURN: series((0, 0))}
    curves = curves_of([run_of(0, one, gamma=0.9), run_of(1, one, gamma=0.99, batch_size=32), run_of(2, one, gamma=0.9)])
    assert differences(curves) == [("batch_size", ["", "32"]), ("gamma", ["0.9", "0.99"])]
    assert differences(curves_of([run_of(0, one), run_of(1, one)])) == []
