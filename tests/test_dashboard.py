"""What the dashboard shows is what is logged: real trainings are read back from their run files."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_reinforce import REINFORCE, GradientDiagnostics
from sb3_reinforce.tracking.metrics import SECTIONS, STEP_KEY, all_metrics
from sb3_reinforce.zoo import cli

wandb = pytest.importorskip("wandb")
pytest.importorskip("wandb_workspaces")

from sb3_reinforce.tracking import WandbCallback  # noqa: E402
from sb3_reinforce.tracking.dashboard import as_json, make_report, make_workspace  # noqa: E402
from tests.wandb_file import history, no_account  # noqa: E402, F401


class PointEnv(gym.Env):
    """One step of a Box action; it succeeds where the action is positive."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), float(action[0]), True, False, {"is_success": bool(action[0] > 0)}


def logged_metrics() -> set[str]:
    """Names of all that REINFORCE, its diagnostics, an EvalCallback and the tracker log, off the files of two short runs."""
    # CartPole: films, several optimiser steps per batch (clip_fraction)
    evaluation = EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=100, n_eval_episodes=1, verbose=0, warn=False)
    tracker = WandbCallback(mode="offline", verbose=0, video_env="CartPole-v1")
    model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=64, n_epochs=2, seed=0, device="cpu")
    model.learn(300, callback=[evaluation, GradientDiagnostics(1), tracker])
    found = names(tracker.run_dir)
    # Box actions (std), successes, and the natural gradient's target
    evaluation = EvalCallback(Monitor(PointEnv()), eval_freq=20, n_eval_episodes=2, verbose=0, warn=False)
    tracker = WandbCallback(mode="offline", verbose=0)
    model = REINFORCE("MlpPolicy", PointEnv(), n_episodes=8, natural_gradient=True, seed=0, device="cpu")
    model.learn(40, callback=[evaluation, tracker])
    return found | names(tracker.run_dir)


def names(run_dir: Path | None) -> set[str]:
    assert run_dir is not None
    keys = {key.split(".")[0] for row in history(run_dir) for key in row}
    return {key for key in keys if not key.startswith("_")} - {STEP_KEY}


def shown_in(made: Any) -> set[str]:
    """Every metric that the JSON of a workspace or report has a panel for."""
    found: set[str] = set()
    if isinstance(made, dict):
        for key, value in made.items():
            found |= set(value) if key in ("metrics", "mediaKeys") and isinstance(value, list) else shown_in(value)
    elif isinstance(made, list):
        for item in made:
            found |= shown_in(item)
    return found


def test_every_metric_shown_is_logged_and_every_metric_logged_is_shown():
    pytest.importorskip("moviepy")
    logged = logged_metrics()
    assert set(all_metrics()) == logged
    assert shown_in(as_json(make_workspace("p", "me"))) == logged
    assert shown_in(as_json(make_report("p", "me"))) == logged


def test_the_definition_names_each_metric_once():
    keys = [metric.key for section in SECTIONS for metric in section.metrics]
    assert len(keys) == len(set(keys))


def test_workspace_and_report_have_our_sections_over_the_time_step():
    workspace, report = as_json(make_workspace("p", "me")), as_json(make_report("p", "me"))
    for section in SECTIONS:
        for made in (workspace, report):
            assert json.dumps(section.title) in json.dumps(made)
    assert "Does the return rise?" in json.dumps(report)
    x_axes = [panel["config"]["xAxis"] for panel in panels(report) if panel["viewType"] == "Run History Line Plot"]
    assert len(x_axes) > 30
    assert set(x_axes) == {STEP_KEY}


def panels(made: Any) -> list[dict[str, Any]]:
    if isinstance(made, dict):
        own = [made] if "viewType" in made and "config" in made else []
        return own + [panel for value in made.values() for panel in panels(value)]
    return [panel for item in made for panel in panels(item)] if isinstance(made, list) else []


def test_the_command_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["dashboard", "--project", "mine", "--out", str(tmp_path / "a" / "b")]) == 0
    for name in ("workspace", "report"):
        file = tmp_path / "a" / "b" / f"{name}.json"
        assert f"{name}: {file}" in capsys.readouterr().out or name == "report"
        assert shown_in(json.loads(file.read_text())) == set(all_metrics())


def test_push_without_a_key_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["dashboard", "--push", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "sb3-reinforce: error: --push needs an API key: wandb login\n"


def test_push_to_a_server_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert cli.main(["dashboard", "--push", "--entity", "me", "--out", str(tmp_path)]) == 1
    assert "sb3-reinforce: error: W&B did not take it (" in capsys.readouterr().err
