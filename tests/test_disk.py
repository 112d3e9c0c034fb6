"""A full disk, and a folder that is deleted, while a run of the command line trains."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common import callbacks
from stable_baselines3.common.monitor import Monitor

pytest.importorskip("rl_zoo3")

from sb3_reinforce import REINFORCE
from sb3_reinforce.running.logs import appending_logger
from sb3_reinforce.zoo import cli
from sb3_reinforce.zoo.checkpoints import RunCheckpoint
from sb3_reinforce.zoo.disk import DiskError, no_room_in_one_line, with_forgiving_monitor
from sb3_reinforce.zoo.experiment import exp_manager
from sb3_reinforce.zoo.report import tracked_run

RUN = Path("logs/reinforce/CartPole-v1_1")
FULL = OSError(errno.ENOSPC, "No space left on device")
TRAIN = [
    "train", "--env", "CartPole-v1", "-n", "600", "--eval-freq", "100", "--save-freq", "150", "--checkpoint-every", "1",
    "-params", "n_steps:64", "n_envs:1", "normalize:True",
]  # fmt: skip


def at_step_250(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do it once, when there are checkpoints and evaluations."""
    left = [action]

    def on_step(checkpoint: RunCheckpoint) -> bool:
        if checkpoint.num_timesteps >= 250 and left:
            left.pop()()
        return True

    monkeypatch.setattr(RunCheckpoint, "_on_step", on_step)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fail(*_: object, **__: object) -> None:
    raise FULL


def score_that_rises(model: REINFORCE, *_: object, n_eval_episodes: int, **__: object) -> tuple[list[float], list[int]]:
    """In place of ``evaluate_policy``: each evaluation has a new best model, whatever was learned."""
    return [float(model.num_timesteps)] * n_eval_episodes, [1] * n_eval_episodes


def test_the_disk_is_full_until_it_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Training goes on to its end, what was whole stays whole, and ``--resume`` trains from the last checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "evaluate_policy", score_that_rises)
        at_step_250(lambda: patch.setattr(os, "replace", fail), patch)
        with pytest.warns(UserWarning, match="No space left on device") as warned:
            assert cli.main(TRAIN) == 1
    for name in ("best_model.zip", "evaluations.npz", "rl_model_300_steps.zip"):
        message = f"{RUN / name} could not be written, training goes on without it: No space left on device"
        assert [str(each.message) for each in warned].count(message) >= 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sb3-reinforce train: error: the trained model could not be saved in {RUN}: No space left on")
    assert line.endswith(f"sb3-reinforce train --resume {RUN}")
    assert np.load(RUN / "evaluations.npz")["timesteps"].tolist() == [100, 200]
    REINFORCE.load(RUN / "best_model.zip")
    assert not [file.name for file in RUN.rglob("*") if file.name.endswith(".tmp")]

    assert cli.main(["train", "--resume", str(RUN)]) == 0
    assert REINFORCE.load(RUN / "CartPole-v1.zip").num_timesteps >= 600
    assert np.load(RUN / "evaluations.npz")["timesteps"].tolist()[:6] == [100, 200, 300, 400, 500, 600]


def test_the_folder_is_deleted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """It is made anew, so that nothing but Monitor's rows is missing at the end."""
    at_step_250(lambda: shutil.rmtree("logs"), monkeypatch)
    assert cli.main(TRAIN) == 0
    out = capsys.readouterr().out
    assert f"{RUN} was deleted during training: it is made anew, without Monitor's rows" in out
    assert f"Learning curve: not drawn: No monitor files of the form *monitor.csv found in {RUN}" in out
    assert np.load(RUN / "evaluations.npz")["timesteps"].tolist()[:6] == [100, 200, 300, 400, 500, 600]
    assert cli.main(["enjoy", "--env", "CartPole-v1", "-n", "5", "--no-render"]) == 0


def test_resume_is_not_recommended_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch):
    """The checkpoint that is written when the error comes has no command line beside it."""

    def delete_and_raise() -> None:
        shutil.rmtree("logs")
        raise RuntimeError("enough")

    at_step_250(delete_and_raise, monkeypatch)
    with pytest.raises(RuntimeError, match="enough") as caught:
        cli.main(TRAIN)
    notes = "\n".join(caught.value.__notes__)
    assert "Stopped; nothing was saved to resume from: " in notes
    assert "--resume" not in notes


def test_stopped_in_a_deleted_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The settings are written again, so the run can be resumed."""

    def delete_and_stop() -> None:
        shutil.rmtree("logs")
        os.kill(os.getpid(), signal.SIGTERM)

    at_step_250(delete_and_stop, monkeypatch)
    assert cli.main(TRAIN) == 128 + signal.SIGTERM
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"train --resume {RUN}")
    assert cli.main(["train", "--resume", str(RUN)]) == 0


def test_a_deleted_folder_of_wandb_is_not_named(tmp_path: Path):
    (tmp_path / "there").mkdir()
    for name, shown in (("there", "there (shown by: "), ("gone", "none was kept")):
        tracker = SimpleNamespace(run_url=None, run_dir=tmp_path / name)
        assert tracked_run(tracker).startswith(shown)


def test_full_at_the_start_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(exp_manager.ExperimentManager, "_save_config", fail)
    assert cli.main(TRAIN) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "sb3-reinforce train: error: no room on the disk: [Errno 28] No space left on device"
    assert not RUN.exists()


def test_other_errors_stay():
    with pytest.raises(DiskError, match="no room on the disk"), no_room_in_one_line():
        raise FULL
    of_optuna = AssertionError("Should not reach.")
    of_optuna.__context__ = FULL
    with pytest.raises(DiskError, match="no room on the disk"), no_room_in_one_line():
        raise of_optuna
    with pytest.raises(ConnectionResetError), no_room_in_one_line():
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")


def test_monitor(tmp_path: Path):
    (tmp_path / "0.monitor.csv").symlink_to("/dev/full")
    monitor = Monitor(gym.make("CartPole-v1"), str(tmp_path / "0"), override_existing=False)
    env = with_forgiving_monitor(monitor, gym.wrappers.FlattenObservation)
    assert env.env is monitor
    message = "rows for /dev/full could not be written, training goes on"
    with pytest.warns(UserWarning, match=message) as warned:
        monitor.results_writer.write_row({"r": 1, "l": 2, "t": 3})
    assert len(warned) == 1
    monitor.results_writer.write_row({"r": 1, "l": 2, "t": 3})  # said once
    with pytest.warns(UserWarning, match=message):  # of rows that still wait
        env.close()


def test_log_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logger = appending_logger(tmp_path, ["csv", "json"])

    def write(**values: float) -> None:
        for name, value in values.items():
            logger.record(name, value)
        logger.dump()

    write(a=1)
    with monkeypatch.context() as patch:
        patch.setattr("sb3_reinforce.running.logs.write_atomically", fail)
        logger.output_formats[1].file.close()
        logger.output_formats[1].file = open("/dev/full", "w")
        with pytest.warns(UserWarning, match="rows for Appending(CSV|JSON) could not be written") as warned:
            write(a=2, b=2)
        write(a=3, b=3)  # said once
    assert len(warned) == 2
    write(a=4, b=4)
    assert (tmp_path / "progress.csv").read_text() == "a,b\n1,\n4,4\n"
    with pytest.warns(UserWarning, match="rows for AppendingJSON could not be written"):
        logger.close()
