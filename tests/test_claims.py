"""A folder belongs to one process at a time, and a run's folder is made by one."""

import gc
import os
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import pytest

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running.claims import LOCK, Claim, FolderInUseError, claim
from tests.runs import StopAt, Stopped, make_env, stop

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_one_at_a_time(tmp_path: Path):
    held = claim(tmp_path)
    assert claim(tmp_path) is held  # parts of one process share it
    with pytest.raises(
        FolderInUseError, match=f"got {tmp_path}, which process {os.getpid()} on .* is using: wait for its end"
    ):
        Claim(tmp_path)  # opens the file anew, as another process does
    del held
    gc.collect()
    Claim(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the other process of this test locks by fcntl, which Windows lacks")
def test_a_claim_dies_with_its_process(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / LOCK)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(FolderInUseError):
        claim(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert claim(tmp_path) is not None


def test_where_files_cannot_be_locked_training_goes_on(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be locked .*: see to it that no other run uses it"):
        assert claim(tmp_path / "file") is None


def test_a_second_run_in_a_checkpoint_folder_is_refused(tmp_path: Path):
    """Before it touches a file: also a temporary one, which the first run may be writing."""
    other = Claim(tmp_path)
    (tmp_path / ".checkpoint_16_steps.1.tmp").touch()
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, device="cpu")
    with pytest.raises(ValueError, match="path must be a folder that no other run uses"):
        model.learn(60, TrainingCheckpoint(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".checkpoint_16_steps.1.tmp", LOCK]
    del other
    model.learn(60, TrainingCheckpoint(tmp_path))


@pytest.mark.parametrize("callbacks", [[], [StopAt(30, stop)]], ids=["ended", "failed"])
def test_a_run_that_has_ended_leaves_its_folder_to_others(tmp_path: Path, callbacks: list):
    checkpoint = TrainingCheckpoint(tmp_path)
    try:
        REINFORCE("MlpPolicy", make_env(), n_steps=16, device="cpu").learn(60, [checkpoint, *callbacks])
    except Stopped:
        pass
    Claim(tmp_path)


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path: Path):
    """Eight experiments that have chosen the same number, as RL Zoo does when it looks at what is there."""
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo.training import Training

    experiments = []
    for _ in range(8):
        experiment = object.__new__(Training)
        experiment.plan = Namespace(run=None)
        experiment.env_name, experiment.log_path = "CartPole-v1", str(tmp_path / "logs/reinforce")
        experiment.save_path = f"{experiment.log_path}/CartPole-v1_3_an-id"
        experiments.append(experiment)
    threads = [threading.Thread(target=experiment.create_log_folder) for experiment in experiments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(Path(experiment.created_folder).name for experiment in experiments)
    assert names == sorted(f"CartPole-v1_{number}_an-id" for number in range(3, 11))
    assert all(Path(experiment.params_path).parent == Path(experiment.save_path) for experiment in experiments)
    assert all(Path(experiment.params_path).is_dir() for experiment in experiments)


def test_a_run_that_is_resumed_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Before Monitor's files are touched."""
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo import cli

    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--env", "CartPole-v1", "-n", "60", "-params", "n_envs:1", "n_steps:32", "--checkpoint-every", "1"]
    assert cli.main(arguments) == 0
    run = tmp_path / "logs/reinforce/CartPole-v1_1"
    before = (run / "0.monitor.csv").read_bytes()
    gc.collect()  # the first run's claim
    other = Claim(run / "checkpoints")
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(run), "-n", "300"]) == 2
    assert "train: error: --resume must be a folder that no other run uses, got" in capsys.readouterr().err
    assert (run / "0.monitor.csv").read_bytes() == before
    del other
    assert cli.main(["train", "--resume", str(run), "-n", "300"]) == 0
