"""No secret of a command line is printed, or in a file that others may read."""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

pytest.importorskip("rl_zoo3")

from sb3_reinforce.tracking.wandb_internals import end_service
from sb3_reinforce.zoo import cli
from sb3_reinforce.zoo.checkpoints import SavedRun, read_run, write_run
from sb3_reinforce.zoo.study import Results

SECRET = "swordfish"
STORAGE = f"postgresql://me:{SECRET}@host/db"


class Remote(CartPoleEnv):
    """Needs a key."""

    def __init__(self, api_key: str, render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        assert api_key == SECRET


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    gym.register("Remote-v0", Remote, max_episode_steps=20)
    yield
    del gym.registry["Remote-v0"]


def readable_with_secret() -> list[str]:
    """The files below the working directory that hold the secret, and that others may read."""
    files = [file for file in Path().rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    return [str(file) for file in files if stat.S_IMODE(file.stat().st_mode) & 0o077]


def test_a_run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """A tracked run of an environment that takes a key, with a database."""
    pytest.importorskip("wandb")
    from sb3_reinforce.tracking.runs import find_runs

    config = "Remote-v0: {policy: MlpPolicy, n_timesteps: 100, n_steps: 64}"
    Path("mine.yml").write_text(config)
    given = ["--env", "Remote-v0", "--conf-file", "mine.yml", "--eval-freq", "-1", "--env-kwargs", f"api_key:'{SECRET}'"]
    command = ["train", *given, "--storage", STORAGE, "--track", "--wandb-mode", "offline"]
    monkeypatch.setattr(sys, "orig_argv", ["sb3-reinforce", *command])
    monkeypatch.setattr(sys, "argv", ["sb3-reinforce", *command])
    assert cli.main(command) == 0
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    following = out.splitlines()[-1]
    assert "  without a baseline  " in following
    assert "--storage 'postgresql://***@host/db'" in following
    assert "--env-kwargs 'api_key:***'" in following
    assert readable_with_secret() == []
    settings = Path("logs/reinforce/Remote-v0_1/Remote-v0")
    assert SECRET in (settings / "args.yml").read_text()  # for `enjoy`, which makes the same environment
    assert "api_key:***" in (settings / "command.txt").read_text()
    (run,) = find_runs([Path("wandb"), Path("logs")])  # W&B's run names the folder of the training
    assert run.config["run_folder"] == str(settings.parent)
    assert run.config["env_kwargs"] == {"api_key": "***"}
    assert cli.main(["enjoy", "--env", "Remote-v0", "-n", "5", "--no-render"]) == 0
    end_service(patience=30)


def test_a_run_without_secrets_may_be_read_by_others():
    assert cli.main(["train", "--env", "CartPole-v1", "-n", "50", "--eval-freq", "-1", "-params", "n_steps:32"]) == 0
    assert stat.S_IMODE(Path("logs/reinforce/CartPole-v1_1/CartPole-v1/args.yml").stat().st_mode) & 0o044


def test_start_anew(tmp_path: Path):
    write_run(SavedRun(tmp_path, ["--storage", STORAGE, "--api-key", SECRET, "-n", "3"], None))
    with pytest.raises(ValueError, match=r"sb3-reinforce train --storage postgresql://\*\*\*@host/db --api-key \*\*\* -n 3$"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["tune", "--storage", f"postgresql//me:x?password={SECRET}"], "--storage must be a journal's file"),
        (["tune", "--storage", f"nodriver://me:{SECRET}@host/db"], "--storage nodriver://***@host/db cannot be used"),
        (["train", "--env-kwargs", f"api_key:{SECRET} {SECRET}"], "--env-kwargs takes name:value"),
        (["train", "--sampled", f'{{"api_key": "{SECRET}", '], "must be JSON"),
        (["train", "--sampled", f'["{STORAGE}"]'], "must be a JSON object"),
    ],
)
def test_errors(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]):
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    out, err = capfd.readouterr()
    assert words in err
    assert SECRET not in out + err


def test_a_search(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """A database whose address has a key, which SQLite ignores."""
    pytest.importorskip("optuna")
    command = ["tune", "--env", "CartPole-v1", "-n", "50", "--n-trials", "1", "--eval-episodes", "1", "--no-optim-plots"]
    command += ["--storage", f"sqlite:///file:study.db?uri=true&token={SECRET}"]
    monkeypatch.setattr(sys, "orig_argv", ["sb3-reinforce", *command])
    assert cli.main(command) == 0
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert "in sqlite:///file:study.db?uri=true&token=***\n" in out
    assert readable_with_secret() == []


def test_the_best_config_is_private_if_it_has_a_secret(tmp_path: Path):
    study = SimpleNamespace(best_trial=SimpleNamespace(number=0, value=1.0), study_name="s", get_trials=lambda deepcopy: [])
    for value, mode in ((SECRET, 0o600), (3, 0o644)):
        file = Results(study, tmp_path).write_config("X", {"env_kwargs": {"api_key": value}})
        assert stat.S_IMODE(file.stat().st_mode) & 0o600 == 0o600
        assert stat.S_IMODE(file.stat().st_mode) & ~mode == 0
