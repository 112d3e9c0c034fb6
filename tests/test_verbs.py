"""RL Zoo's commands as a user runs them: the installed wheel, a process each, a directory that is not the checkout."""

import argparse
import json
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

from sb3_reinforce.zoo import cli
from sb3_reinforce.zoo.verbs import ZOO_VERBS
from tests.conftest import Installed
from tests.hub_server import TOKEN, hub_server

RUN = Path("logs/reinforce/CartPole-v1_2")


def check(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and path.stat().st_size > 10_000


def is_mp4(path: Path) -> bool:
    return path.read_bytes()[4:8] == b"ftyp" and path.stat().st_size > 1_000


# --- one after the other ---


@pytest.mark.parametrize(
    "which, file",
    [([], "CartPole-v1.zip"), (["--load-best"], "best_model.zip"), (["--load-last-checkpoint"], "rl_model_1400_steps.zip")],
)
def test_enjoy(command: Installed, trained: Path, which: list[str], file: str):
    out = check(command("enjoy", "--env", "CartPole-v1", "-n", "550", *which, cwd=trained))
    assert "No display: playing without rendering" in out
    assert f"Loading {RUN / file}" in out
    assert "Mean reward:" in out  # no episode is longer than 500 steps


def test_other_algorithms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    params = ["-params", "n_envs:1", "n_steps:64"]
    assert cli.main(["train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "10", *params]) == 0
    assert cli.main(["enjoy", "--algo", "ppo", "--env", "CartPole-v1", "-n", "10", "--no-render"]) == 0
    assert "Loading logs/ppo/CartPole-v1_1/CartPole-v1.zip" in capsys.readouterr().out


def test_benchmark_writes_a_table(command: Installed, trained: Path, tmp_path: Path):
    folder = tmp_path / "benchmark"
    options = ["--log-dir", str(trained / "logs"), "--benchmark-dir", str(folder), "-n", "600"]
    check(command("benchmark", *options, cwd=tmp_path))
    table = (tmp_path / "benchmark.md").read_text()
    assert table == (folder / "benchmark.md").read_text()
    header, _, row = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    found = dict(zip(header, row, strict=True))
    assert (found["algo"], found["env_id"], found["n_timesteps"]) == ("reinforce", "CartPole-v1", "1k")  # 1500, cut
    assert 8 <= float(found["mean_reward"]) <= 500
    assert 1 <= int(found["eval_episodes"])
    assert 8 <= int(found["eval_timesteps"]) <= 600


def test_plots(command: Installed, trained: Path, tmp_path: Path):
    """From the training returns, and from the evaluations of two seeds: table, curve with a band, bars."""
    logs = ["-f", str(trained / "logs")]
    check(command("plot-train", "-e", "CartPole-v1", *logs, "-w", "5", cwd=tmp_path))
    assert is_png(trained / "logs/plots/Training-Episodic-Reward.png")

    out = check(
        command("all-plots", "-e", "CartPole-v1", *logs, "-l", "short", "-print", "-o", "all", "--png", "p", cwd=tmp_path)
    )
    assert "CartPole-v1-REINFORCE-short: 2" in out
    assert is_png(tmp_path / "p/Results-CartPole-v1.png")

    check(command("plot-file", "-i", "all", "--png", "q", "-o", "bars.svg", cwd=tmp_path))
    assert is_png(tmp_path / "q/Results-CartPole-v1.png")
    assert is_png(tmp_path / "q/Sensitivity-plot.png")
    assert (tmp_path / "bars.svg").read_text().startswith("<?xml")


def test_record_video(command: Installed, trained: Path, tmp_path: Path):
    options = ["--env", "CartPole-v1", "-f", str(trained / "logs"), "-n", "20", "-o", "videos"]
    check(command("record-video", *options, "--load-best", cwd=tmp_path))
    assert is_mp4(tmp_path / "videos/best-model-reinforce-CartPole-v1-step-0-to-step-20.mp4")


def test_record_training(command: Installed, trained: Path, tmp_path: Path):
    """Final, best and two checkpoints' videos in one; the output folder is given relative to where the user stands."""
    options = ["--env", "CartPole-v1", "-f", str(trained / "logs"), "-n", "20", "-o", "videos"]
    # without the directories of PATH there is no ffmpeg, nor a python
    check(command("record-training", *options, cwd=tmp_path, PATH=str(tmp_path)))
    assert is_mp4(tmp_path / "videos/training.mp4")
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 5
    # the zoo empties the folder
    (tmp_path / "videos/thesis.tex").touch()
    done = command("record-training", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "-o must be a new folder, or one with videos alone, because RL Zoo empties it" in done.stderr
    assert (tmp_path / "videos/thesis.tex").is_file()


@pytest.mark.slow
def test_video_of_mujoco(command: Installed, tmp_path: Path):
    pytest.importorskip("mujoco")
    check(command("train", "--env", "HalfCheetah-v5", "-n", "1000", "-params", "n_envs:1", "n_steps:1000", cwd=tmp_path))
    check(command("record-video", "--env", "HalfCheetah-v5", "-n", "20", "-o", "videos", cwd=tmp_path))
    assert is_mp4(tmp_path / "videos/final-model-reinforce-HalfCheetah-v5-step-0-to-step-20.mp4")


@pytest.mark.slow
def test_push_and_pull(command: Installed, trained: Path, tmp_path: Path):
    """There, and back by the commands of the model card."""
    with hub_server() as (address, repositories):
        push = ["push", "--env", "CartPole-v1", "-f", str(trained / "logs"), "-orga", "me", "-name", "pole", "-n", "20"]
        check(command(*push, cwd=tmp_path, HF_ENDPOINT=address, HF_TOKEN=TOKEN))
        files = repositories["me/pole"]
        assert {"reinforce-CartPole-v1.zip", "config.yml", "args.yml", "results.json", "replay.mp4"} <= set(files)
        assert files["replay.mp4"][4:8] == b"ftyp"
        assert "vec_normalize.pkl" not in files  # these settings normalise nothing

        card = files["README.md"].decode()
        assert "mean_reward" in card
        assert "('n_timesteps', 1500)" in card
        commands = [line for line in card.splitlines() if line.startswith("sb3-reinforce ")]
        pull, enjoy, train, again = commands
        # as the fixture has trained
        params = ["clip_range:'lin_0.2'", "learning_rate:'lin_3e-3'", "n_steps:256"]
        assert shlex.split(train)[-8:] == ["--seed", "1", "-n", "1500", "-params", *params]
        assert again.endswith(" -orga me -name pole")
        mean = json.loads(files["results.json"])["mean_reward"]
        assert f"Return: {mean:.1f} +- " in card
        assert "render_mode" not in card
        assert pull.startswith("sb3-reinforce pull ")
        other = tmp_path / "somebody"
        other.mkdir()
        out = check(command(*pull.split()[1:], cwd=other, HF_ENDPOINT=address))
        assert "No normalization file" in out
    assert enjoy.startswith("sb3-reinforce enjoy ")
    out = check(command(*enjoy.split()[1:], cwd=other))
    assert "Loading logs/reinforce/CartPole-v1_1/CartPole-v1.zip" in out
    assert "Mean reward:" in out


@pytest.mark.slow
def test_the_hub_refuses(command: Installed, trained: Path, tmp_path: Path):
    with hub_server() as (address, repositories):
        logs = ["-f", str(trained / "logs")]
        done = command("push", "--env", "CartPole-v1", *logs, "-orga", "me", cwd=tmp_path, HF_ENDPOINT=address)
        assert done.returncode == 2
        assert not repositories
        line = done.stderr.splitlines()[-1]
        assert line.startswith("sb3-reinforce push: error: Hugging Face Hub: Client error '401")
        assert line.endswith("log in by `hf auth login` or HF_TOKEN")

        done = command("pull", "--env", "CartPole-v1", "-orga", "me", cwd=tmp_path, HF_ENDPOINT=address)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("sb3-reinforce pull: error: Hugging Face Hub: 404 Client Error. Repository Not Found")
    done = command("pull", "--env", "CartPole-v1", "-orga", "me", cwd=tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("sb3-reinforce pull: error: ")
    assert "Traceback" not in done.stderr


def test_a_model_trained_with_the_zoos_schedules_loads_without_the_zoo(installed: Path, trained: Path):
    code = f"""
import sys, warnings
sys.path.insert(0, {str(installed)!r})
sys.modules["rl_zoo3"] = None  # as if it were not installed
warnings.simplefilter("error")
from sb3_reinforce import REINFORCE
model = REINFORCE.load("{RUN}/CartPole-v1.zip")
print(model.predict(model.observation_space.sample())[0] in (0, 1))
for value in (model.learning_rate, model.clip_range):
    print(type(value).__module__, value(1.0), value(0.5), value(0.0))
print(model.lr_schedule(0.5))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=trained, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True",
        "stable_baselines3.common.utils 0.003 0.0015 0.0",
        "stable_baselines3.common.utils 0.2 0.1 0.0",
        "0.0015",
    ]
    with zipfile.ZipFile(trained / RUN / "CartPole-v1.zip") as archive:
        assert b"rl_zoo3" not in archive.read("data")


# --- help, bad input ---


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the one line says with which a command ends at once."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2
        return line

    return run


@pytest.mark.parametrize("verb", ZOO_VERBS)
def test_help_says_what_is_added(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main([verb, "--help"])
    out = capsys.readouterr().out
    assert out.startswith(f"usage: sb3-reinforce {verb} ")
    assert ZOO_VERBS[verb].adds in out
    for option, _ in ZOO_VERBS[verb].options:
        assert option in out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main([verb, "--help"])
    (example,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("example: ")]
    assert f"sb3-reinforce {verb} " in example


OF_AN_ENV = ["enjoy", "record-video", "record-training", "push -orga me", "pull"]
OF_A_MODEL = OF_AN_ENV[:-1]


@pytest.mark.parametrize("start", [*OF_AN_ENV, "train", "compare-baselines"])
def test_unknown_environment(start: str, refused: Callable[..., str]):
    line = refused(*start.split(), "--env", "CartPoe-v1")
    assert "CartPoe" in line
    assert "CartPole" in line.partition("CartPoe")[2]


@pytest.mark.parametrize("start", OF_AN_ENV)
def test_unknown_algorithm(start: str, refused: Callable[..., str]):
    assert "invalid choice: 'reinforc'" in refused(*start.split(), "--env", "CartPole-v1", "--algo", "reinforc")


@pytest.mark.parametrize("start", OF_A_MODEL)
def test_missing_model(start: str, refused: Callable[..., str], trained: Path):
    line = refused(*start.split(), "--env", "CartPole-v1", "-f", "nowhere")
    assert "The nowhere/reinforce folder was not found" in line
    assert line.endswith("`sb3-reinforce train --algo reinforce --env CartPole-v1 -f nowhere` makes one")
    line = refused(*start.split(), "--env", "Acrobot-v1", "-f", str(trained / "logs"))
    assert "No model found for reinforce on Acrobot-v1" in line
    assert "folder was not found" in refused(
        *start.split(), "--env", "CartPole-v1", "-f", str(trained / "logs"), "--exp-id", "7"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["enjoy", "--no-such-option"],
            "enjoy: error: unrecognized arguments: --no-such-option; `sb3-reinforce enjoy --help`",
        ),
        (["enjoy", "--gym-packages", "no_such"], "no_such, which is to register environments, cannot be imported"),
        (["enjoy", "--env", "no_such:CartPole-v1"], "no_such, which is to register environments, cannot be imported"),
        (["push", "--env", "CartPole-v1"], "the following arguments are required: -orga/--organization"),
        (["benchmark"], "--log-dir must be a folder with runs of train, got logs"),
        (["benchmark", "--log-dir", "."], "got ., which has none: looked for ALGO/RUN/ENV/args.yml"),
        (["plot-train", "-e", "CartPole-v1"], "no run of CartPole-v1: looked for logs/reinforce/*CartPole-v1*/*monitor.csv"),
        (["all-plots"], "-e must name at least one environment"),
        (
            ["all-plots", "-e", "CartPole-v1", "-a", "ppo", "a2c"],
            "no run of ppo on CartPole-v1 with two evaluations or more: looked for logs/ppo/*CartPole-v1*/evaluations.npz; no",
        ),
        (["plot-file"], "-i must name a file that `sb3-reinforce all-plots -o` has written"),
        (["plot-file", "-i", "nothing"], "No such file or directory: 'nothing.pkl'"),
    ],
)
def test_bad_input(arguments: list[str], words: str, refused: Callable[..., str]):
    pytest.importorskip("seaborn")
    assert words in refused(*arguments)


def test_what_cannot_be_plotted(refused: Callable[..., str], trained: Path, tmp_path: Path):
    pytest.importorskip("seaborn")
    logs = ["-f", str(trained / "logs")]
    line = refused("plot-train", "-e", "CartPole-v1", *logs, "-w", "5000")
    assert "a mean over --episode-window episodes needs that many, got 5000" in line
    (tmp_path / "all.pkl").write_bytes(b"what is this?")
    assert "-i must name a file that `sb3-reinforce all-plots -o` has written" in refused("plot-file", "-i", "all")
    values = {"last_evals": np.zeros(2)}
    results = {"A": {"x": values, "y": values}, "B": {"x": values, "y": {"last_evals": np.float64(0)}}, "results_table": {}}
    (tmp_path / "all.pkl").write_bytes(pickle.dumps(results))
    assert "--rliable needs 2 runs on each environment, y has 1 on B" in refused("plot-file", "-i", "all.pkl", "--rliable")
    del results["B"]["y"]
    results["results_table"] = {}
    (tmp_path / "all.pkl").write_bytes(pickle.dumps(results))
    assert "a curve needs 1 run on each environment, y has 0 on B" in refused("plot-file", "-i", "all.pkl")


def write_evaluations(folder: Path, results: list[list[float]]) -> None:
    """Of a run that was evaluated at 10, 20, ... steps."""
    folder.mkdir(parents=True)
    np.savez(folder / "evaluations.npz", timesteps=10 * np.arange(1, len(results) + 1), results=results)


def test_all_plots_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """One episode per evaluation, one run, and an algorithm without a run."""
    pytest.importorskip("seaborn")
    monkeypatch.chdir(tmp_path)
    write_evaluations(tmp_path / "logs/reinforce/CartPole-v1_1", [[1], [3]])
    write_evaluations(tmp_path / "logs/reinforce/CartPole-v1_2", [[1], [9]])
    write_evaluations(tmp_path / "logs/ppo/CartPole-v1_1", [[2], [7]])
    assert cli.main(["all-plots", "-e", "CartPole-v1", "-a", "reinforce", "ppo", "a2c", "-o", "all", "--no-display"]) == 0
    out = capsys.readouterr().out
    assert "no run of a2c on CartPole-v1 with two evaluations or more: looked for logs/a2c/*CartPole-v1*/evaluations" in out
    # 3 and 9: mean 6, standard deviation 3, of the mean 3 / sqrt(2) = 2.1
    row = "6 +/- 2 7 +/- 0 no run"
    assert row in " ".join(out.replace("|", " ").split())
    for more, words in (
        (
            ["--skip-envs", "CartPole-v1"],
            "nothing is left to draw: all.pkl has the environments CartPole-v1 and the curves REIN",
        ),
        (["--keep-keys", "A2C-logs"], "nothing is left to draw: all.pkl has the environments CartPole-v1 and the curves REIN"),
        (["-l", "a"], "-l must have a label for each of REINFORCE-logs, PPO-logs, got a"),
    ):
        assert cli.main(["plot-file", "-i", "all", *more]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["plot-file", "-i", "all", "--png", "plots"]) == 0
    assert row in " ".join(capsys.readouterr().out.replace("|", " ").split())
    assert is_png(tmp_path / "plots/Sensitivity-plot.png")
    last = {
        name: sorted(curve["last_evals"]) for name, curve in pickle.loads(Path("all.pkl").read_bytes())["CartPole-v1"].items()
    }
    assert last == {"REINFORCE-logs": [3, 9], "PPO-logs": [7]}
    for more, words in (
        (
            ["-k", "succes"],
            "-k must be one of timesteps, results, which logs/ppo/CartPole-v1_1/evaluations.npz has, got 'succes'",
        ),
        (["-max", "9"], "-max must be at least 10, where a run of ppo on CartPole-v1 was first evaluated, got 9"),
        (["-l", "a", "b"], "-l must have a label for each folder of -f, got ['a', 'b'] for ['logs']"),
    ):
        assert cli.main(["all-plots", "-e", "CartPole-v1", "-a", "ppo", *more]) == 2
        assert words in capsys.readouterr().err
    Path("logs/ppo/CartPole-v1_1/evaluations.npz").write_bytes(b"PK")
    assert cli.main(["all-plots", "-e", "CartPole-v1", "-a", "ppo"]) == 2
    assert "logs/ppo/CartPole-v1_1/evaluations.npz cannot be read (" in capsys.readouterr().err


def test_runs_that_a_plot_leaves_out_are_named(tmp_path: Path, monkeypatch, capsys):
    """The zoo draws only the runs with the most evaluations, and a rollout played to its end may bring one more."""
    pytest.importorskip("seaborn")
    monkeypatch.chdir(tmp_path)
    for number, steps in enumerate([[10, 20, 30], [10, 20], [10, 20]], start=1):
        write_evaluations(tmp_path / f"logs/reinforce/CartPole-v1_{number}", [[1] * 5 for _ in steps])
    arguments = ["all-plots", "-e", "CartPole-v1", "-print", "--png", "plots"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "CartPole-v1-REINFORCE-logs: 1" in out
    assert "runs with fewer evaluations than the longest are left out, 1 of 3 stay; -max 20 would keep all" in out
    assert cli.main([*arguments, "-max", "20"]) == 0
    assert "CartPole-v1-REINFORCE-logs: 3" in capsys.readouterr().out


@pytest.mark.parametrize("display", ["", ":0"])
def test_nothing_is_rendered_without_a_display(display: str, trained: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_sb3 import EnvironmentName

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    options = argparse.Namespace(
        env=EnvironmentName("CartPole-v1"), algo="reinforce", folder=str(trained / "logs"), exp_id=1, no_render=False,
        load_best=False, load_checkpoint=None, load_last_checkpoint=False, env_kwargs=None, gym_packages=[],
    )  # fmt: skip
    ZOO_VERBS["enjoy"].check(options)
    assert options.no_render == (not display)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    """An assertion without words is no way to refuse: its traceback is what helps."""

    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setitem(ZOO_VERBS, "enjoy", ZOO_VERBS["enjoy"]._replace(check=fails))
    with pytest.raises(AssertionError):
        cli.main(["enjoy"])


@pytest.mark.parametrize(
    "variables, library, chosen",
    [
        ({}, "libEGL.so.1", "egl"),
        ({}, None, None),
        ({"DISPLAY": ":0"}, "libEGL.so.1", None),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "libEGL.so.1", None),
        ({"MUJOCO_GL": "osmesa"}, "libEGL.so.1", "osmesa"),
    ],
)
def test_mujoco_renders_through_egl_where_there_is_no_display(variables, library, chosen, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(cli, "find_library", lambda name: library)
    monkeypatch.setitem(cli.VERBS, "x", cli.Verb(lambda arguments: 0, "", needs_zoo=False))
    # kept for pytest to undo
    monkeypatch.setenv("MUJOCO_GL", variables.get("MUJOCO_GL", ""))
    assert cli.main(["x"]) == 0
    assert (os.environ["MUJOCO_GL"] or None) == chosen
