"""The settings kept with a run: what decides the result, and no secret."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("wandb")

from sb3_reinforce.tracking import WandbCallback
from sb3_reinforce.tracking.settings import masked_command, masked_text
from tests.wandb_file import config, no_account, small_model  # noqa: F401


def test_config_is_what_decides_the_result():
    tracker = WandbCallback(mode="offline", verbose=0, tags=["a"], group="g", config={"note": "mine"})
    small_model(gamma=0.97, baseline="leave_one_out", policy_kwargs={"net_arch": [8]}, seed=3).learn(50, callback=tracker)
    settings = {key: value for key, value in config(tracker.run_dir).items() if key != "_wandb"}
    expected = {
        "algo": "REINFORCE",
        "policy": "ActorCriticPolicy",
        "gamma": 0.97,
        "baseline": "leave_one_out",
        "n_episodes": 4,
        "seed": 3,
        "policy_kwargs": {"net_arch": [8]},
        "env_id": "CartPole-v1",
        "n_envs": 1,
        "total_timesteps": 50,
        "note": "mine",
    }
    assert {key: settings.get(key) for key in expected} == expected
    assert {"python", "stable-baselines3", "torch", "gymnasium"} <= set(settings["versions"])
    # junk that W&B's own callback records: buffers, environments, loggers, private counters
    assert not any(key.startswith("_") for key in settings)
    assert not any("object at 0x" in json.dumps(value) for value in settings.values())


@pytest.mark.parametrize(
    "given, shown",
    [
        (["--api-key", "abc"], ["--api-key", "***"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["--wandb-token", "abc", "--seed", "1"], ["--wandb-token", "***", "--seed", "1"]),
        (["-params", "password:x", "gamma:0.9"], ["-params", "password:***", "gamma:0.9"]),
        (["SECRET=x"], ["SECRET=***"]),
        (["0123456789abcdef" * 3], ["***"]),
        (["hf_" + "aB3" * 10], ["***"]),
        (["https://me:pass@host/x"], ["https://***@host/x"]),
        (["--storage", "postgresql://me:p@s/s@host/db"], ["--storage", "postgresql://***@host/db"]),
        (["postgresql://h/db?user=me&password=x&a=b"], ["postgresql://h/db?user=me&password=***&a=b"]),
        (["login:dict(password='x y', user='me')"], ["login:dict(password=***"]),
        (["x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"], ["x", "***"]),
        # what is none
        (["--env", "CartPole-v1", "-n", "-5", "--tb", "lin_3e-4"], ["--env", "CartPole-v1", "-n", "-5", "--tb", "lin_3e-4"]),
        (["--keyboard", "us", "logs/reinforce/CartPole-v1_1/best_model.zip"],
         ["--keyboard", "us", "logs/reinforce/CartPole-v1_1/best_model.zip"]),
        (["--env-kwargs", "render_mode:'rgb_array'"], ["--env-kwargs", "render_mode:'rgb_array'"]),
        *([[env_id], [env_id]] for env_id in (
            "MiniGrid-Dynamic-Obstacles-5x5-v0", "HandManipulateEggRotate_ContinuousTouchSensors-v1", "TaskCartPoleSwingup-v0",
        )),
        (["benchmark_learning_results"], ["benchmark_learning_results"]),
        *([[path], [path]] for path in (
            "CartPole-v1_1_04eaeb39-e715-47a2-b1d0-3d8488a5ffdb", "MiniGrid-Dynamic-Obstacles-5x5-v0_12",
            "local_runs_of_my_experiments/X", "logs/local_runs_of_my_experiments", "sqlite:///a.db", "a@b",
        )),
    ],
)  # fmt: skip
def test_masked_command(given: list[str], shown: list[str]):
    assert masked_command(given) == shown


@pytest.mark.parametrize(
    "text, shown",
    [
        ("dict(password='x y', user='me')", "dict(password='***', user='me')"),
        ('{"apiKey": "x", "gamma": 1}', '{"apiKey": "***", "gamma": 1}'),
        ("failed at postgresql://me:p@ss@host/db: no route", "failed at postgresql://***@host/db: no route"),
        ("https://h/?token=abc and ?n=1", "https://h/?token=*** and ?n=1"),
        # what is none
        ("KeyError: 'json'", "KeyError: 'json'"),
        ("no hyperparameter 'key', did you mean 'keys'? must hold `key: value`",) * 2,
    ],
)  # fmt: skip
def test_masked_text(text: str, shown: str):
    assert masked_text(text) == shown


def test_no_secret_reaches_the_files(monkeypatch: pytest.MonkeyPatch):
    """Not the environment's, not the command's, not the config's; neither the program's output nor uncommitted changes."""
    secrets = [
        "swordfish-environment",
        "swordfish-command",
        "swordfish-config",
        "swordfish-output",
        "swordfish-diff",
        "f00d" * 10,
    ]
    monkeypatch.setenv("MY_TOKEN", secrets[0])
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", secrets[1], secrets[5]])
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    Path("code.py").write_text("old\n")
    subprocess.run([*git, "add", "code.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    Path("code.py").write_text(secrets[4])
    tracker = WandbCallback(mode="offline", config={"api_key": secrets[2], "note": secrets[5], "url": "http://u:p4ss@h"})
    print(secrets[3])
    small_model().learn(100, callback=tracker)
    found = config(tracker.run_dir)
    assert found["api_key"] == found["note"] == "***"
    assert found["url"] == "http://***@h"
    assert found["command"] == "train.py --api-key *** ***"
    assert found["git_commit"] == commit
    for path in Path("wandb").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [secret for secret in [*secrets, "p4ss"] if secret.encode() in data], path
