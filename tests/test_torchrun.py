"""The command line under torchrun."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from sb3_reinforce import REINFORCE
from tests.processes import TORCHRUN, variables


def train(*arguments: str, torchrun: tuple[str, ...] = ()) -> list[str]:
    return [*TORCHRUN, *torchrun, "-m", "sb3_reinforce", "train", "--env", "CartPole-v1", "--eval-freq", "-1", *arguments]


def steps_in(monitor_file: Path) -> list[str]:
    """Return and length of each episode, without the time, which differs from run to run."""
    return [row.rsplit(",", 1)[0] for row in monitor_file.read_text().splitlines()[2:]]


def test_train_under_torchrun(tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo import cli

    arguments = ["-n", "3000", "--save-freq", "1000", "--eval-final", "2", "--checkpoint-every", "1"]
    done = subprocess.run(train(*arguments), cwd=tmp_path, env=variables(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    # one folder, one report, one seed, chosen by rank 0
    run = tmp_path / "logs/reinforce/CartPole-v1_1"
    assert list((tmp_path / "logs/reinforce").iterdir()) == [run]
    for words in ("Seed: ", "Log path: ", "Score: ", "Model: "):
        assert done.stdout.count(words) == 1, words
    model = REINFORCE.load(run / "CartPole-v1.zip")
    played = [sum(int(row.split(",")[1]) for row in steps_in(run / f"{rank}.monitor.csv")) for rank in (0, 1)]
    # Monitor writes whole episodes, and with one environment per rank every episode is played to its end
    assert sum(played) == model.num_timesteps >= 3000
    assert min(played) > 1000
    # every 1000 steps of all ranks together
    assert 2 <= len(list(run.glob("rl_model_*_steps.zip"))) <= 4
    # it resumes on one rank only where that is asked for
    monkeypatch.chdir(tmp_path)
    resume = ["train", "--resume", str(run.relative_to(tmp_path)), "-n", "3001", "--eval-freq", "-1"]
    assert cli.main(resume) == 2
    assert "is of a run on 2 ranks, got 1: start as many as then, or resume with other_ranks=True" in capsys.readouterr().err
    assert cli.main([*resume, "--other-ranks"]) == 0
    assert "--other-ranks" not in (run / "checkpoints/run.json").read_text()


@pytest.mark.slow
def test_a_killed_run_equals_one_that_was_left_alone(tmp_path: Path):
    """SIGKILL in mid-run, ``--max-restarts``: the same parameters and episodes."""
    pytest.importorskip("rl_zoo3")
    arguments = ["-n", "20000", "--seed", "3", "--checkpoint-every", "2", "-params", "n_steps:128", "normalize:True"]
    folders = [tmp_path / name for name in ("left_alone", "killed")]
    for folder in folders:
        folder.mkdir()
    command = train(*arguments)
    subprocess.run(command, cwd=folders[0], env=variables(), check=True, timeout=300, stdout=subprocess.DEVNULL)
    with (folders[1] / "output").open("w") as output:
        command = train(*arguments, torchrun=("--max-restarts", "2"))
        launch = subprocess.Popen(command, cwd=folders[1], env=variables(), stdout=output)
    try:
        checkpoints = folders[1] / "logs/reinforce/CartPole-v1_1/checkpoints"
        deadline = time.monotonic() + 120
        while len(list(checkpoints.glob("*.zip"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        ranks = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        assert launch.wait(timeout=240) == 0
    finally:
        launch.kill()
    assert (folders[1] / "output").read_text().count("Going on from ") == 1
    runs = [folder / "logs/reinforce/CartPole-v1_1" for folder in folders]
    models = [REINFORCE.load(run / "CartPole-v1.zip") for run in runs]
    assert models[0].num_timesteps == models[1].num_timesteps >= 20_000
    for name, parameter in models[0].policy.state_dict().items():
        np.testing.assert_array_equal(parameter, models[1].policy.state_dict()[name], err_msg=name)
    for rank in (0, 1):
        assert steps_in(runs[0] / f"{rank}.monitor.csv") == steps_in(runs[1] / f"{rank}.monitor.csv")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--algo", "ppo"], "torchrun trains --algo reinforce, got 'ppo'"),
        (["-optimize"], "a search is not for torchrun: start the same command once per worker, without torchrun"),
    ],
)
def test_usage_errors_under_torchrun(arguments: list[str], words: str, monkeypatch, capsys):
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo import cli

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", *arguments])
    assert words in capsys.readouterr().err


def test_the_run_of_a_launch(tmp_path: Path):
    """After a restart the run is found by the launch that started it, not by its age or name."""
    from sb3_reinforce.zoo.checkpoints import SavedRun, run_of_launch, write_run

    for number, launch in enumerate(["a", "b", "a", None]):
        folder = tmp_path / f"logs/reinforce/CartPole-v1_{number}"
        write_run(SavedRun(folder, [], None, launch))
        (folder / "checkpoints/checkpoint_5_steps.zip").write_text("")
        os.utime(folder / "checkpoints/run.json", (number, number))
    found = run_of_launch(tmp_path / "logs", "a")
    assert found is not None
    assert found.folder.name == "CartPole-v1_2"
    (folder.parent / "CartPole-v1_2/checkpoints/checkpoint_5_steps.zip").unlink()
    assert run_of_launch(tmp_path / "logs", "a") is None  # not the older one of the same launch
    assert run_of_launch(tmp_path / "logs", "c") is run_of_launch(tmp_path / "logs", None) is None
