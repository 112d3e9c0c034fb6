"""Environments, packages and runs, as the commands find them by the names that a user gives."""

import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest

pytest.importorskip("rl_zoo3")

from sb3_reinforce.zoo import cli
from sb3_reinforce.zoo.verbs import ZOO_VERBS

PACKAGE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Mine(CartPoleEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "x": float(observation[0])}

gym.register("Mine-v0", Mine, max_episode_steps=20)
"""
CONFIG = """Mine-v0:
  policy: MlpPolicy
  n_timesteps: 200
  n_steps: 64
  monitor_kwargs: {info_keywords: [x]}
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that registers an environment, and a config for it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("envs_of_test.py").write_text(PACKAGE)
    Path("mine.yml").write_text(CONFIG)
    yield
    sys.modules.pop("envs_of_test", None)
    gym.registry.pop("Mine-v0", None)


def forget() -> None:
    """As in a new process."""
    sys.modules.pop("envs_of_test")
    gym.registry.pop("Mine-v0")


def test_an_environment_of_a_package(capsys: pytest.CaptureFixture[str]):
    """Trained by ``PACKAGE:ID`` or by ``--gym-packages``, with a list in ``monitor_kwargs``; then played."""
    train = ["train", "--conf-file", "mine.yml", "--eval-freq", "100", "--env"]
    assert cli.main([*train, "envs_of_test:Mine-v0"]) == 0
    assert Path("logs/reinforce/Mine-v0_1/0.monitor.csv").read_text().splitlines()[1] == "r,l,t,x"
    forget()
    assert cli.main([*train, "Mine-v0", "--gym-packages", "envs_of_test", "--uuid"]) == 0
    (run,) = Path("logs/reinforce").glob("Mine-v0_2_*")
    forget()
    capsys.readouterr()

    assert cli.main(["enjoy", "--env", "envs_of_test:Mine-v0", "-n", "30", "--no-render", "--load-last-checkpoint"]) == 0
    (checkpoint,) = run.glob("checkpoints/*.zip")
    assert f"Loading {checkpoint}" in capsys.readouterr().out
    assert (
        cli.main(["enjoy", "--env", "Mine-v0", "--exp-id", run.name.removeprefix("Mine-v0_"), "-n", "3", "--no-render"]) == 0
    )
    assert cli.main(["enjoy", "--env", "Mine-v0", "--exp-id", "1", "-n", "3", "--no-render"]) == 0
    loaded = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Loading ")]
    assert loaded == [f"Loading {run}/Mine-v0.zip", "Loading logs/reinforce/Mine-v0_1/Mine-v0.zip"]
    forget()
    assert (
        cli.main(["benchmark", "-n", "50", "--num-threads", "1", "--benchmark-dir", "b", "--gym-packages", "envs_of_test"])
        == 0
    )
    assert "|reinforce|Mine-v0|" in Path("benchmark.md").read_text().replace(" ", "")
    forget()
    short = ["--episodes", "8", "--png", "a.png"]
    assert cli.main(["compare-baselines", "--env", "Mine-v0", "--gym-packages", "envs_of_test", *short]) == 0


@pytest.mark.parametrize("verb", [*ZOO_VERBS, "train", "tune", "compare-baselines"])
def test_packages_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]):
    if verb in ("plot-train", "all-plots", "plot-file"):  # they need no environment
        return
    Path("logs").mkdir()
    arguments = [] if verb == "benchmark" else ["--env", "CartPole-v1", *(["-orga", "me"] if verb in ("push", "pull") else [])]
    try:
        code = cli.main([verb, *arguments, "--gym-packages", "json", "no_such"])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert "no_such, which is to register environments, cannot be imported" in capsys.readouterr().err


def test_the_name_of_a_package_that_cannot_be_one(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["enjoy", "--env", "..x:CartPole-v1"]) == 2
    assert "..x, which is to register environments, cannot be imported" in capsys.readouterr().err


def test_what_was_looked_for(capsys: pytest.CaptureFixture[str]):
    for verb, words in (
        ("enjoy", "; looked for a run logs/reinforce/CartPole-v1_N: -f names the folder with the runs"),
        ("enjoy --exp-id 3", "; looked for a run logs/reinforce/CartPole-v1_3: "),
        ("record-training", "; looked for a run logs/reinforce/CartPole-v1_N: "),
    ):
        assert cli.main([*verb.split(), "--env", "CartPole-v1"]) == 2
        assert words in capsys.readouterr().err
