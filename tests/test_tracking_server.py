"""Online runs and ``wandb sync`` against a server on loopback: one that works, refuses, stalls, and dies in the middle."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

wandb = pytest.importorskip("wandb")

from sb3_reinforce import REINFORCE, TrainingCheckpoint  # noqa: E402
from sb3_reinforce.tracking import WandbCallback  # noqa: E402
from tests.wandb_file import history, no_account, updates  # noqa: E402, F401
from tests.wandb_server import WandbServer  # noqa: E402

# What training itself may take on a machine that others use as well
TRAINING = 30


def log_in(monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def train(tracker: WandbCallback, *others: BaseCallback) -> tuple[REINFORCE, float]:
    """:return: the model, and the seconds that all of it took"""
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=4, seed=0, device="cpu")
    started = time.monotonic()
    model.learn(1000, callback=[tracker, *others])
    assert model.num_timesteps >= 1000
    return model, time.monotonic() - started


class At(BaseCallback):
    """Does something to the server in the middle of training."""

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.action = action

    def _on_step(self) -> bool:
        if self.n_calls == 500:
            self.action()
        return True


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as they were logged, single numbers only; W&B adds time and number of the row."""
    return [
        {key: value for key, value in row.items() if isinstance(value, int | float) and "." not in key and key[0] != "_"}
        for row in rows
    ]


def test_what_arrives_is_what_was_logged(monkeypatch: pytest.MonkeyPatch):
    with WandbServer() as server:
        log_in(monkeypatch, server)
        tracker = WandbCallback(verbose=0, config={"note": "mine"})  # `auto`: there is a key
        train(tracker)
        assert tracker.run_url is not None
        assert server.wait_for(lambda: server.exit_codes)
        assert server.exit_codes == [0]
        logged = history(tracker.run_dir)
        assert len(updates(tracker.run_dir)) >= 3
        assert comparable(server.rows) == comparable(logged)
        assert [row["_step"] for row in server.rows] == list(range(len(logged)))
        assert server.config["note"]["value"] == "mine"
        assert server.config["gamma"]["value"] == 0.99
        (artifact,) = server.artifacts
        assert artifact["artifactTypeName"] == "model"
        assert "last" in [alias["alias"] for alias in artifact["aliases"]]
        assert server.files["artifact/model.zip"][:2] == b"PK"


def test_a_resumed_run_goes_on_in_the_same_run(monkeypatch: pytest.MonkeyPatch):
    """Stopped and resumed from its checkpoint: one run on the server, each row in its place, no step twice."""
    with WandbServer() as server:
        log_in(monkeypatch, server)
        first = WandbCallback(verbose=0)
        env = make_vec_env("CartPole-v1", 1)
        model = REINFORCE("MlpPolicy", env, n_episodes=4, seed=0, device="cpu")
        model.learn(400, callback=[first, TrainingCheckpoint("run")])
        assert server.wait_for(lambda: server.exit_codes)
        n_rows = len(server.rows)
        server.exit_codes.clear()

        second = WandbCallback(verbose=0)
        model = REINFORCE.resume("run", env)
        model.learn(400, callback=[second, TrainingCheckpoint("run")], reset_num_timesteps=False)
        assert server.wait_for(lambda: server.exit_codes)

        assert second.run_url == first.run_url
        assert list(server.runs) == [first.run_id]
        rows = [json.loads(row) for row in server.runs[first.run_id]]
        # nothing of the first part was written over
        assert rows == server.rows
        assert len(rows) > n_rows > 3
        assert [row["_step"] for row in rows] == list(range(len(rows)))
        updates_of = [row["global_step"] for row in rows if "train/grad_norm" in row]
        assert updates_of == sorted(set(updates_of))
        assert updates_of[-1] == model.num_timesteps >= 800


@pytest.mark.slow
def test_wandb_sync_uploads_an_offline_run(monkeypatch: pytest.MonkeyPatch):
    tracker = WandbCallback(mode="offline", verbose=0)
    train(tracker)
    logged = history(tracker.run_dir)
    with WandbServer() as server:
        log_in(monkeypatch, server)
        command = [sys.executable, "-m", "wandb", "sync", str(tracker.run_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert server.wait_for(lambda: server.exit_codes)
    assert comparable(server.rows) == comparable(logged)
    assert server.exit_codes == [0]
    assert server.config["gamma"]["value"] == 0.99


@pytest.mark.parametrize("status", [401, 500])
def test_a_server_that_refuses(status: int, monkeypatch: pytest.MonkeyPatch):
    with WandbServer(status=status) as server:
        log_in(monkeypatch, server)
        tracker = WandbCallback(verbose=0, init_timeout=4, finish_timeout=4)
        with pytest.warns(UserWarning, match="could not start online, the run is kept offline, training goes on") as warned:
            _, seconds = train(tracker)
    assert seconds < 4 + 4 + TRAINING
    assert len([warning for warning in warned if "W&B" in str(warning.message)]) == 1
    assert "offline-run" in tracker.run_dir.name
    assert len(updates(tracker.run_dir)) >= 3


@pytest.mark.slow
def test_no_server(monkeypatch: pytest.MonkeyPatch):
    with WandbServer() as server:
        log_in(monkeypatch, server)
    tracker = WandbCallback(verbose=0, init_timeout=4, finish_timeout=4)
    with pytest.warns(UserWarning, match="could not start online, the run is kept offline, training goes on"):
        _, seconds = train(tracker)
    assert seconds < 4 + 4 + TRAINING
    assert len(updates(tracker.run_dir)) >= 3


@pytest.mark.slow
def test_a_server_that_stalls(monkeypatch: pytest.MonkeyPatch):
    with WandbServer(stall=True) as server:
        log_in(monkeypatch, server)
        tracker = WandbCallback(verbose=0, init_timeout=4, finish_timeout=4)
        with pytest.warns(UserWarning, match="could not start online, the run is kept offline, training goes on") as warned:
            _, seconds = train(tracker)
        assert server.requests > 0
    assert seconds < 4 + 4 + TRAINING
    assert len([warning for warning in warned if "W&B" in str(warning.message)]) == 1
    assert len(updates(tracker.run_dir)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["dies", "stalls"])
def test_a_server_that_leaves_in_the_middle(trouble: str, monkeypatch: pytest.MonkeyPatch):
    with WandbServer() as server:
        log_in(monkeypatch, server)
        tracker = WandbCallback(verbose=0, init_timeout=4, finish_timeout=4)
        leave = At(server.die if trouble == "dies" else lambda: setattr(server, "stall", True))
        with pytest.warns(
            UserWarning, match="W&B: did not end within 4 s, what was logged is in .*training goes on"
        ) as warned:
            _, seconds = train(tracker, leave)
        assert server.operations  # it had begun well
    assert seconds < 4 + 4 + 5 + TRAINING
    assert len([warning for warning in warned if "W&B" in str(warning.message)]) == 1
    # all of it is in the run's folder, also what was logged when the server was away
    rows = updates(tracker.run_dir)
    assert rows[-1]["global_step"] >= 1000
    assert wandb.run is None
