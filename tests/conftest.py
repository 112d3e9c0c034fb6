"""Fixtures of several test files: the installed wheel, and agents trained with it. They need no network."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test that gives no seed, such as ``sb3-reinforce train`` without ``--seed``, gets the same one in every run."""
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)


def pip(command: str, *arguments: str) -> None:
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *options, *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(CHECKOUT), "--no-build-isolation", "--wheel-dir", str(folder))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", str(wheel), "--target", str(folder))
    return folder


class Installed:
    """
    The command of the installed wheel, in a separate process without display, accounts or settings.

    :param folder: where the wheel is installed
    :param home: an empty folder
    """

    def __init__(self, folder: Path, home: Path):
        self.folder, self.home = folder, home

    def __call__(self, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        dropped = ("WANDB_", "HF_", "HUGGING", "DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "TRUST_REMOTE_CODE", "MPLBACKEND")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        environment |= {"HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder), **variables}
        return subprocess.run(
            [sys.executable, "-m", "sb3_reinforce", *arguments],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )


@pytest.fixture(scope="session")
def command(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    pytest.importorskip("rl_zoo3")
    return Installed(installed, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def trained(command: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``logs``: two seeds of CartPole-v1, 1500 steps each, with evaluations and checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--env", "CartPole-v1", "-n", "1500", "--eval-freq", "500", "--save-freq", "700"]
    params = ["-params", "learning_rate:'lin_3e-3'", "clip_range:'lin_0.2'", "n_steps:256"]
    for seed in ("0", "1"):
        done = command("train", *options, "--seed", seed, *params, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder
