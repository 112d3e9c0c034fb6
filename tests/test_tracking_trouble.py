"""W&B's process hangs or dies, the disk is full: training continues."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import BaseCallback

wandb = pytest.importorskip("wandb")

from sb3_reinforce.tracking import WandbCallback  # noqa: E402
from sb3_reinforce.tracking.runs import find_runs  # noqa: E402
from sb3_reinforce.tracking.wandb_internals import end_service, service_process  # noqa: E402
from tests.wandb_file import artifacts, exit_codes, no_account, run_dirs, small_model  # noqa: E402, F401


@pytest.mark.slow
def test_a_stopped_process_of_wandbs_stops_nobody():
    """As with a hung disk: W&B's own calls would wait for ever."""
    tracker = WandbCallback(mode="offline", verbose=0, finish_timeout=2)

    class StopService(BaseCallback):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps < 200:
                os.kill(service_process().pid, signal.SIGSTOP)

        def _on_step(self) -> bool:
            return True

    model = small_model()
    started = time.monotonic()
    with pytest.warns(UserWarning, match="W&B: did not end within 2 s, what was logged is in .*, training goes on"):
        model.learn(1000, callback=[tracker, StopService()])
    assert time.monotonic() - started < 40
    assert model.num_timesteps >= 1000
    # and the next one is tracked again
    tracker = WandbCallback(mode="offline", verbose=0)
    small_model().learn(50, callback=tracker)
    assert exit_codes(tracker.run_dir) == [0]


def test_a_process_of_wandbs_that_does_not_end_is_ended():
    wandb.setup().ensure_service()
    process = service_process()
    process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    end_service(patience=1)
    assert 1 <= time.monotonic() - started < 20
    assert process.wait(20) == -signal.SIGKILL
    # and one that does is not killed
    wandb.setup().ensure_service()
    process = service_process()
    end_service(patience=60)
    assert process.wait(20) == 0


def test_where_wandb_has_changed_nothing_is_ended(monkeypatch: pytest.MonkeyPatch):
    from wandb.sdk import wandb_setup

    wandb.setup().ensure_service()
    assert service_process() is not None
    with monkeypatch.context() as changed:
        changed.delattr(wandb_setup, "singleton")
        assert service_process() is None
        end_service()
    assert service_process().poll() is None


def test_a_process_of_wandbs_that_dies_costs_a_warning():
    tracker = WandbCallback(mode="offline", verbose=0, finish_timeout=2)

    class KillService(BaseCallback):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps < 200:
                os.kill(service_process().pid, signal.SIGKILL)

        def _on_step(self) -> bool:
            return True

    model = small_model()
    started = time.monotonic()
    with pytest.warns(UserWarning, match="W&B: ") as warned:
        model.learn(1000, callback=[tracker, KillService()])
    assert time.monotonic() - started < 40
    assert model.num_timesteps >= 1000
    assert len([warning for warning in warned if "W&B" in str(warning.message)]) == 1


def test_the_debug_log_is_quiet_on_a_full_disk(capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("wandb")
    tracker = WandbCallback(mode="offline", verbose=0)

    class FullDisk(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            for handler in logger.handlers:
                if getattr(handler, "baseFilename", "").endswith("debug.log"):
                    handler.setStream(open("/dev/full", "w"))
            logger.error("what does not fit")

    small_model().learn(10, callback=[tracker, FullDisk()])
    assert "Logging error" not in capsys.readouterr().err


def test_a_model_that_could_not_be_saved_is_no_artifact(monkeypatch: pytest.MonkeyPatch):
    """As in ``sb3-reinforce train``, where a full disk is a warning of ``save``."""
    model = small_model()
    monkeypatch.setattr(model, "save", lambda path: None)
    tracker = WandbCallback(mode="offline", verbose=0)
    model.learn(10, callback=tracker)
    assert artifacts(tracker.run_dir) == []


@pytest.mark.slow
def test_a_full_disk_costs_a_warning(tmp_path: Path):
    """A limit on the size of files stands in for the disk: W&B's process cannot write more than 100 kB into its run's file."""
    program = """
import resource, time, sys
from sb3_reinforce import REINFORCE
from sb3_reinforce.tracking import WandbCallback
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=1, n_value_epochs=1, device="cpu")
started = time.monotonic()
model.learn(8000, callback=WandbCallback(mode="offline", verbose=0, finish_timeout=4))
print("trained", model.num_timesteps >= 8000, time.monotonic() - started < 60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("trained True True"), done.stdout
    (directory,) = run_dirs()
    (run,) = find_runs([directory])
    assert run.metrics  # what fitted on the disk is kept
    assert run.state == "killed or running"
