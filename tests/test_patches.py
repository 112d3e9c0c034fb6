"""
Each patch of RL Zoo: the release that it names is broken without it, and works with it.

``test_PATCH_alone`` fails when RL Zoo, or a package that it calls, is fixed: then delete the patch.
"""

import importlib
import os
import runpy
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest

pytest.importorskip("rl_zoo3")

from sb3_reinforce.zoo import cli, patches, register
from sb3_reinforce.zoo.model_card import our_card
from tests.conftest import CHECKOUT
from tests.test_model_card import uploaded

MODEL = ["--algo", "reinforce", "--env", "CartPole-v1"]


def the_zoo_alone(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    runpy.run_module(f"rl_zoo3.{module}", run_name="__main__")


def test_replaced_is_put_back():
    class Owner:
        there = 1

    with patches.replaced(Owner, "there", 2), patches.replaced(Owner, "not_there", 3):
        assert (Owner.there, Owner.not_there) == (2, 3)
    assert Owner.there == 1
    assert not hasattr(Owner, "not_there")


@pytest.mark.parametrize("patch", patches.PATCHES, ids=lambda patch: patch.function.__name__)
def test_every_patch_is_for_a_pinned_release_and_tested(patch: patches.Patch):
    name = patch.function.__name__
    assert patch.upstream in (CHECKOUT / "constraints.txt").read_text().splitlines(), "is it still needed? See its test"
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_patches*.py"))
    assert f"def test_{name}(" in tests
    assert f"def test_{name}_alone(" in tests


# --- registered_children ---


@pytest.mark.parametrize(
    "module, arguments, starts",
    [
        ("benchmark", ["--no-hub", "--log-dir"], ["python", "enjoy.py"]),
        ("record_training", [*MODEL, "-o", "videos", "-f"], ["python", "-m", "rl_zoo3.record_video"]),
    ],
)
def test_registered_children_alone(module, arguments, starts, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A child that is started by these words knows no REINFORCE."""

    def call(command, *args, **kwargs):
        assert command[: len(starts)] == starts, "RL Zoo has changed: is registered_children still needed?"
        raise InterruptedError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "call", call)
    with pytest.raises(InterruptedError):
        the_zoo_alone(module, [*arguments, str(trained / "logs")], monkeypatch)


def test_registered_children(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    before = subprocess.call
    logs = ["-f", str(trained / "logs"), "-n", "9", "--no-render"]
    with patches.registered_children(cli.main):
        assert subprocess.call(["python", "enjoy.py", *MODEL, *logs]) == 0
        assert subprocess.call(["python", "-m", "rl_zoo3.enjoy", *MODEL, *logs, "--exp-id", "9"]) == 2
        assert subprocess.call(["python", "enjoy.py", "--no-such-option"]) == 2
        # an error that is nobody's wrong input is one of the child alone
        assert subprocess.call(["python", "enjoy.py", *MODEL, *logs, "--env-kwargs", "no_such:1"]) == 1
        assert "Traceback" in capfd.readouterr().err
        # what is none of ours
        assert subprocess.call([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert subprocess.call is before


# --- ffmpeg_on_path, absolute_output_folder ---


@pytest.fixture
def commands(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that the zoo alone runs to make one video of a relative folder; and the list of videos, for ffmpeg."""
    commands = []

    def call(command, *args, **kwargs):
        Path("videos/final-model-x.mp4").touch()
        return 0

    def system(command):
        commands.append(command)
        if "drawtext" in command:
            Path("videos/final-model-x_with_text.mp4").touch()
        if "-f concat" in command:
            commands.append(Path("videos/tmp.txt").read_text())
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(os, "system", system)
    the_zoo_alone("record_training", [*MODEL, "-f", str(trained / "logs"), "-o", "videos"], monkeypatch)
    return commands


def test_ffmpeg_on_path_alone(commands: list[str]):
    assert [command.split()[0] for command in commands] == ["ffmpeg", "ffmpeg", "file"], "delete ffmpeg_on_path"


def test_absolute_output_folder_alone(commands: list[str]):
    """ffmpeg takes a relative name in the list as relative to the list."""
    assert commands[-1] == "file videos/final-model-x_with_text.mp4\n", "delete absolute_output_folder"


def test_absolute_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    options = Namespace(output_folder="videos")
    patches.absolute_output_folder(options)
    assert options.output_folder == str(tmp_path / "videos")


def test_ffmpeg_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path))
    with patches.ffmpeg_on_path():
        found = shutil.which("ffmpeg")
        assert found is not None
        assert "ffmpeg version" in subprocess.run([found, "-version"], capture_output=True, text=True).stdout
    assert os.environ["PATH"] == str(tmp_path)
    assert shutil.which("ffmpeg") is None
    # the system's own is preferred
    own = tmp_path / "ffmpeg"
    own.symlink_to(sys.executable)
    with patches.ffmpeg_on_path():
        assert shutil.which("ffmpeg") == str(own)


# --- steps_as_trained ---


def test_steps_as_trained_alone(trained: Path):
    """Both seeds were trained with ``-n 1500``."""
    from rl_zoo3.utils import get_saved_hyperparams

    folder = str(trained / "logs/reinforce/CartPole-v1_1/CartPole-v1")
    assert get_saved_hyperparams(folder)[0]["n_timesteps"] != 1500, "delete steps_as_trained"


def test_steps_as_trained(trained: Path, tmp_path: Path):
    import rl_zoo3.utils

    folder = trained / "logs/reinforce/CartPole-v1_1/CartPole-v1"
    with patches.steps_as_trained():
        assert rl_zoo3.get_saved_hyperparams is rl_zoo3.utils.get_saved_hyperparams
        assert rl_zoo3.get_saved_hyperparams(str(folder))[0]["n_timesteps"] == 1500
        assert rl_zoo3.get_saved_hyperparams("nowhere") == ({}, None)
        # without -n the config's number holds
        shutil.copy(folder / "config.yml", tmp_path)
        (tmp_path / "args.yml").write_text("n_timesteps: -1\n")
        hyperparams, _ = rl_zoo3.get_saved_hyperparams(str(tmp_path))
    assert hyperparams["n_timesteps"] == rl_zoo3.get_saved_hyperparams(str(folder))[0]["n_timesteps"]


# --- namespaced_ids ---


def newest_run_of_pong(folder: Path) -> int:
    """As ``benchmark`` looks for it."""
    import rl_zoo3.utils

    settings = folder / "ppo/ALE-Pong-v5_1/ALE-Pong-v5"
    settings.mkdir(parents=True)
    (settings / "args.yml").write_text("env: ALE/Pong-v5\n")
    ((algo, env_id),) = rl_zoo3.utils.get_trained_models(str(folder)).values()
    return rl_zoo3.utils.get_latest_run_id(os.path.join(folder, algo), env_id)


def test_namespaced_ids_alone(tmp_path: Path):
    assert newest_run_of_pong(tmp_path) == 0, "delete namespaced_ids"


def test_namespaced_ids(tmp_path: Path):
    pandas, pytablewriter = pytest.importorskip("pandas"), pytest.importorskip("pytablewriter")
    with patches.namespaced_ids():
        assert newest_run_of_pong(tmp_path) == 1
        # the name that the child gets, and the table shows, is the environment's
        env_id = importlib.import_module("huggingface_sb3").EnvironmentName("ALE/Pong-v5")
        writer = pytablewriter.MarkdownTableWriter()
        writer.from_dataframe(pandas.DataFrame({"env_id": [env_id], "mean_reward": [1.5]}))
        assert writer.value_matrix == [["ALE/Pong-v5", 1.5]]
    commands = []
    with patches.registered_children(lambda command: commands.append(command) or 0):
        subprocess.call(["python", "enjoy.py", "--env", env_id])
    assert commands == [["enjoy", "--env", "ALE/Pong-v5"]]


# --- timesteps_kept ---


class Agent(SimpleNamespace):
    """A loaded agent that has played 5 steps."""

    def learn(self, total_timesteps: int, reset_num_timesteps: bool = True) -> None:
        self.num_timesteps = total_timesteps + (0 if reset_num_timesteps else 5)


def learn_on(agent: Agent) -> int:
    from rl_zoo3.exp_manager import ExperimentManager

    ExperimentManager.learn(SimpleNamespace(log_interval=-1, callbacks=[], algo="x", n_timesteps=3), agent)
    return agent.num_timesteps


def test_timesteps_kept_alone():
    assert learn_on(Agent(env=gym.make("CartPole-v1"))) == 3, "delete timesteps_kept"


def test_timesteps_kept():
    with patches.timesteps_kept(Agent):
        assert learn_on(Agent(env=gym.make("CartPole-v1"))) == 3 + 5


# --- add_config_env_kwargs ---


@pytest.fixture
def run_with_env_kwargs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[dict]]:
    """Arguments that name a run whose config has env_kwargs; and what environments are then made with."""
    import rl_zoo3.utils

    made_with = []

    def create_test_env(*_, env_kwargs: dict, **__) -> None:
        made_with.append(env_kwargs)
        raise ValueError("enough")

    shutil.copytree(trained / "logs", tmp_path / "logs")
    with (tmp_path / "logs/reinforce/CartPole-v1_2/CartPole-v1/config.yml").open("a") as file:
        file.write("  - - env_kwargs\n    - {sutton_barto_reward: true}\n")
    monkeypatch.setattr(rl_zoo3.utils, "create_test_env", create_test_env)
    return [*MODEL, "-f", str(tmp_path / "logs")], made_with


def test_add_config_env_kwargs_alone(run_with_env_kwargs, monkeypatch: pytest.MonkeyPatch):
    arguments, made_with = run_with_env_kwargs
    with pytest.raises(ValueError, match="enough"):
        the_zoo_alone("record_video", arguments, monkeypatch)
    assert made_with == [{"render_mode": "rgb_array"}], "delete add_config_env_kwargs"


def test_add_config_env_kwargs(run_with_env_kwargs):
    arguments, made_with = run_with_env_kwargs
    assert cli.main(["record-video", *arguments]) == 2
    assert cli.main(["push", *arguments, "-orga", "me", "--env-kwargs", "sutton_barto_reward:False"]) == 2
    assert made_with == [{"render_mode": "rgb_array", "sutton_barto_reward": value} for value in (True, False)]


# --- hub_metadata, card_with_our_commands ---


def test_hub_metadata_alone(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ImportError, match="generate_metadata"):
        the_zoo_alone("push_to_hub", ["--help"], monkeypatch)  # else: delete hub_metadata


def card(algo: str) -> tuple[str, dict]:
    with patches.hub_metadata():
        push_to_hub = importlib.import_module("rl_zoo3.push_to_hub")
        return push_to_hub.generate_model_card(algo, algo.upper(), "me", "CartPole-v1", 1.0, 0.5, {"gamma": 0.9}, {})


def test_hub_metadata():
    metadata = card("reinforce")[1]
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "CartPole-v1"
    assert result["metrics"][0]["value"] == "1.00 +/- 0.50"
    hub = importlib.import_module("huggingface_sb3.push_to_hub")
    assert not hasattr(hub, "generate_metadata")  # put back


def test_card_with_our_commands_alone():
    """RL Zoo's own enjoy does not know the algorithm that the card tells people to play with it."""
    text = card("reinforce")[0]
    assert "python -m rl_zoo3.enjoy --algo reinforce" in text, "delete card_with_our_commands"
    command = [sys.executable, "-m", "rl_zoo3.enjoy", "--algo", "reinforce"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "invalid choice: 'reinforce'" in done.stderr, "delete card_with_our_commands"


@pytest.mark.parametrize("algo, ours", [("reinforce", True), ("ppo", False)])
def test_card_with_our_commands(algo: str, ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import repocard

    text, page = card(algo)[0], uploaded(tmp_path / "pole") / "README.md"
    page.write_text(text)
    monkeypatch.setattr(repocard, "metadata_save", lambda path, data: None)
    with patches.card_with_our_commands():
        repocard.metadata_save(page, {})
    assert page.read_text() == (our_card(text, page.parent) if ours else text)


# --- optional_statistics ---


def a_hub_without_statistics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_sb3
    from huggingface_hub.errors import RemoteEntryNotFoundError

    response = SimpleNamespace(headers={}, request=None)

    def load_from_hub(repo_id: str, filename: str) -> str:
        if filename == "vec_normalize.pkl":
            raise RemoteEntryNotFoundError("404", response=response)
        path = folder / filename
        path.write_bytes(b"PK\5\6" + bytes(18))  # an empty zip
        return str(path)

    monkeypatch.setattr(huggingface_sb3, "load_from_hub", load_from_hub)


def test_optional_statistics_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.errors import EntryNotFoundError

    a_hub_without_statistics(tmp_path, monkeypatch)
    with pytest.raises(EntryNotFoundError):
        the_zoo_alone("load_from_hub", [*MODEL, "-f", str(tmp_path)], monkeypatch)  # else: delete optional_statistics


def test_optional_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a_hub_without_statistics(tmp_path, monkeypatch)
    with patches.optional_statistics():
        the_zoo_alone("load_from_hub", [*MODEL, "-f", str(tmp_path)], monkeypatch)
    assert (tmp_path / "reinforce/CartPole-v1_1/CartPole-v1.zip").is_file()


# --- downloads ---


def download(monkeypatch: pytest.MonkeyPatch) -> str:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: "file")
    return importlib.import_module("huggingface_sb3").load_from_hub("me/pole", "config.yml")


def test_downloads_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    with pytest.raises(ValueError, match="TRUST_REMOTE_CODE"):
        download(monkeypatch)  # else: delete downloads


def test_downloads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    with patches.downloads():
        assert download(monkeypatch) == "file"
