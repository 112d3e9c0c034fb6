"""The rows of a run, read back from its file: the step axis, SB3's metrics, episodes, histograms."""

import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

wandb = pytest.importorskip("wandb")

from sb3_reinforce import REINFORCE  # noqa: E402
from sb3_reinforce.tracking import WandbCallback, WandbOutputFormat, background  # noqa: E402
from tests.envs import OneLife, RewardListEnv  # noqa: E402
from tests.wandb_file import config, exit_codes, history, no_account, records, small_model, updates  # noqa: E402, F401


class StepsAtDump(BaseCallback):
    """What the rows' steps must be: num_timesteps at the end of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def _on_rollout_end(self) -> None:
        self.steps.append(self.num_timesteps)

    def _on_step(self) -> bool:
        return True


def test_rows_carry_the_time_step_and_sb3s_names():
    tracker, expected = WandbCallback(mode="offline", verbose=0), StepsAtDump()
    small_model(seed=0).learn(600, callback=[expected, tracker])
    rows = updates(tracker.run_dir)
    assert [row["global_step"] for row in rows] == expected.steps
    assert len(rows) >= 3
    for row in rows:
        assert {"rollout/ep_rew_mean", "train/policy_gradient_loss", "train/grad_norm", "time/fps"} <= set(row)
        # W&B's own row counter must not be what the plots are drawn over
        assert row["global_step"] == row["time/total_timesteps"]
    metrics = [record.metric for record in records(tracker.run_dir) if record.WhichOneof("record_type") == "metric"]
    assert any(metric.glob_name == "*" and metric.step_metric == "global_step" for metric in metrics)
    assert exit_codes(tracker.run_dir) == [0]
    assert wandb.run is None


def test_works_with_other_algorithms():
    tracker = WandbCallback(mode="offline", verbose=0)
    A2C("MlpPolicy", "CartPole-v1", device="cpu").learn(20, callback=tracker, log_interval=1)
    assert [row["global_step"] for row in updates(tracker.run_dir)] == [5, 10, 15, 20]
    assert config(tracker.run_dir)["gae_lambda"] == 1.0


class BrokenRun:
    """A run to which nothing can be logged."""

    def __init__(self) -> None:
        self.calls = 0

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        self.calls += 1
        raise OSError("disk full")


def test_a_failing_log_warns_once_and_goes_quiet():
    run = BrokenRun()
    writer = WandbOutputFormat(run)
    with pytest.warns(UserWarning, match=r"training goes on \(OSError: disk full\)"):
        writer.write({"a": 1.0}, {"a": ()}, step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.write({"a": 2.0}, {"a": ()}, step=2)
    assert run.calls == 1


def test_raw_episodes_of_each_update():
    """Mean, std, min, max and histogram of the returns and lengths of the very episodes that the update used."""

    class Used(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.lengths: list[list[int]] = []

        def _on_rollout_end(self) -> None:
            self.lengths.append(self.model.rollout.lengths.tolist())

        def _on_step(self) -> bool:
            return True

    tracker, used = WandbCallback(mode="offline", verbose=0), Used()
    REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 3), n_steps=32, seed=0, device="cpu").learn(
        600, callback=[used, tracker]
    )
    rows = updates(tracker.run_dir)
    assert len(rows) == len(used.lengths) >= 3
    for row, lengths in zip(rows, used.lengths, strict=True):
        for name in ("return", "length"):  # CartPole pays 1 per step
            assert row[f"rollout/ep_{name}_mean"] == pytest.approx(np.mean(lengths))
            assert row[f"rollout/ep_{name}_std"] == pytest.approx(np.std(lengths))
            assert row[f"rollout/ep_{name}_min"] == min(lengths)
            assert row[f"rollout/ep_{name}_max"] == max(lengths)
            assert sum(row[f"rollout/ep_{name}_hist.values"]) == len(lengths)


def test_single_episodes_are_no_more_than_asked_for():
    """1000 episodes of one step each take well below a second, in which ten rows may be written."""
    tracker = WandbCallback(mode="offline", verbose=0)
    env = DummyVecEnv([lambda: Monitor(RewardListEnv([2.0]))])
    started = time.monotonic()
    REINFORCE("MlpPolicy", env, n_episodes=100, seed=0, device="cpu").learn(1000, callback=tracker)
    seconds = time.monotonic() - started
    rows = [row for row in history(tracker.run_dir) if "episode/return" in row]
    assert 1 <= len(rows) <= 10 * seconds + 1
    assert {(row["episode/return"], row["episode/length"]) for row in rows} == {(2.0, 1.0)}
    assert all("time/fps" not in row for row in rows)
    assert len(updates(tracker.run_dir)) == 10

    tracker = WandbCallback(mode="offline", verbose=0, episode_rate=0)
    small_model().learn(50, callback=tracker)
    assert not [row for row in history(tracker.run_dir) if "episode/return" in row]


def test_episodes_are_whole_games_where_a_wrapper_ends_them_at_each_life():
    """Three lives of two steps: the game pays 30 in 6 steps."""
    tracker = WandbCallback(mode="offline", verbose=0)
    model = REINFORCE("MlpPolicy", OneLife(Monitor(RewardListEnv([5.0] * 6))), n_episodes=6, seed=0, device="cpu")
    model.learn(24, callback=tracker)
    rows = [row for row in history(tracker.run_dir) if "episode/return" in row]
    assert {(row["episode/return"], row["episode/length"]) for row in rows} == {(30.0, 6.0)}
    for row in updates(tracker.run_dir):
        assert (row["rollout/ep_return_min"], row["rollout/ep_return_max"], row["rollout/ep_length_mean"]) == (30, 30, 6)


def test_histograms_at_the_chosen_rate():
    tracker = WandbCallback(mode="offline", verbose=0, histogram_freq=2)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(400, callback=tracker)
    rows = updates(tracker.run_dir)
    assert len(rows) >= 4
    for number, row in enumerate(rows):
        names = {key.split(".")[0] for key in row if key.startswith("histogram/")}
        assert names == ({"histogram/returns", "histogram/advantages", "histogram/actions"} if number % 2 == 0 else set())
    if len(rows) % 2:  # the last row's is that of the buffer as it is now
        actions = model.rollout_buffer.actions.ravel()
        assert rows[-1]["histogram/actions.values"] == [int((actions == 0).sum()), int((actions == 1).sum())]


def test_off_policy_algorithms():
    tracker = WandbCallback(mode="offline", verbose=0, histogram_freq=1)
    DQN("MlpPolicy", "CartPole-v1", device="cpu", learning_starts=10, buffer_size=500).learn(300, callback=tracker)
    rows = updates(tracker.run_dir)
    assert rows
    for row in rows:  # SB3 writes a row after every fourth episode
        assert sum(row["rollout/ep_return_hist.values"]) == 4
        assert {"rollout/ep_length_max", "histogram/actions.values"} <= set(row)


def test_tracking_changes_no_number():
    """Same seed, with and without a tracker that films and saves: the same parameters to the last bit."""
    parameters = []
    for callback in (
        None,
        WandbCallback(mode="offline", verbose=0, video_env="CartPole-v1", video_freq=100, histogram_freq=1),
    ):
        model = small_model(seed=0).learn(400, callback=callback)
        parameters.append(model.policy.state_dict())
    for name, value in parameters[0].items():
        assert th.equal(value, parameters[1][name]), name


def test_calls_are_made_in_bursts_and_at_once_when_the_run_ends(monkeypatch: pytest.MonkeyPatch):
    class KeepsRows:
        def log(self, row: dict[str, Any], step: int | None) -> None:
            rows.append(row)

    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(background, "PAUSE", 3600.0)
    run = background.BackgroundRun(KeepsRows())  # type: ignore[arg-type]
    pausing, closing = threading.Event(), run._rows._closing
    monkeypatch.setattr(closing, "wait", lambda seconds: pausing.set() or threading.Event.wait(closing, seconds))
    run.log({"made": lambda: 1, "impossible": lambda: None, "plain": 2})
    assert pausing.wait(20)
    run.log({"plain": 3})
    run.log({"plain": 4})
    assert rows == [{"made": 1, "plain": 2}]
    assert run.close(None, timeout=20)
    assert rows == [{"made": 1, "plain": 2}, {"plain": 3}, {"plain": 4}]
