"""A first run is short to read: known messages of others are left out, commands connect; help and completion."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest

import sb3_reinforce

pytest.importorskip("rl_zoo3")

from sb3_reinforce.tracking.wandb_internals import end_service
from sb3_reinforce.zoo import cli
from sb3_reinforce.zoo.completion import words_of
from sb3_reinforce.zoo.quiet import BEST_TRIAL, LINES, add_verbose, asks_for_more, quiet, without_lines
from sb3_reinforce.zoo.report import compare_command
from sb3_reinforce.zoo.usage import shell_line
from sb3_reinforce.zoo.verbs import ZOO_VERBS

SHORT = ["train", "--env", "CartPole-v1", "-n", "300", "--seed", "0", "--eval-freq", "-1"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


# --- a run ---


def test_a_run_has_few_lines_and_its_next_commands_work(capfd: pytest.CaptureFixture[str]):
    pytest.importorskip("wandb")
    warnings.simplefilter("default")  # as in a program of its own, where pytest makes no errors of them
    assert cli.main([*SHORT, "-P", "--eval-final", "2", "--track", "--wandb-mode", "offline"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.rstrip().splitlines()
    assert len(lines) <= 15
    assert lines[:2] == ["Seed: 0", "Log path: logs/reinforce/CartPole-v1_1"]
    assert lines[-4] == "Next:"
    commands = [shlex.split(re.split("  +", line.strip(), maxsplit=1)[1]) for line in lines[-3:]]
    assert [Path(words[0]).name for words in commands] == ["sb3-reinforce"] * 3
    assert [words[1] for words in commands] == ["record-video", "report", "train"]
    for words in commands:
        assert cli.main(words[1:]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert len(out.splitlines()) <= 20  # of all three
    (video,) = Path("logs").rglob("*.mp4")
    made = {Path("logs/report.html"), Path("logs/reinforce/CartPole-v1_2/learning_curve.png"), video}
    assert all(file.stat().st_size > 1000 for file in made)
    # one place for all that they leave, and W&B's own
    assert {path.name for path in Path().iterdir()} == {"logs", "wandb"}
    end_service(patience=30)


def test_more_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]):
    assert cli.main([*SHORT, "-P", "-v", "--diagnostics", "1"]) == 0
    out = capsys.readouterr().out
    for words in ("Using cpu device", "Hyperparameters", "| rollout/ ", "| gradient/ ", "variance_reduction"):
        assert words in out, words
    assert cli.main(["enjoy", "--env", "CartPole-v1", "-n", "100"]) == 0
    assert "Episode Reward" not in capsys.readouterr().out
    assert cli.main(["enjoy", "--env", "CartPole-v1", "-n", "100", "-v"]) == 0
    assert "Episode Reward" in capsys.readouterr().out
    # the arguments of a run stay with it, and those of a resumed one are not printed twice
    assert cli.main(["train", "--resume", "logs/reinforce/CartPole-v1_1", "-n", "600"]) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following.count(" -n ") == following.count(" --seed ") == following.count(" --diagnostics ") == 1
    assert " -n 600 " in following


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--algo", "ppo", "--diagnostics"],
            "--diagnostics measures REINFORCE's gradient, which ppo does not have: leave it out",
        ),
        (["--diagnostics", "-3"], "--diagnostics must be a number of updates >= 0, got -3"),
        (["--diagnostics", "x"], "argument --diagnostics: invalid int value: 'x'"),
        (["-optimize", "--diagnostics"], "--diagnostics is for a single run"),
    ],
)
def test_diagnostics_of_what_has_none(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--env", "CartPole-v1", *arguments])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train --env CartPole-v1 --eval-fianl 3", "unrecognized arguments: --eval-fianl 3, did you mean --eval-final?"),
        ("train CartPole-v1", "unrecognized arguments: CartPole-v1, did you mean --env CartPole-v1?"),
        ("enjoy CartPole-v1", "did you mean --env CartPole-v1?"),
        ("compare-baselines --env CartPole-v1 --episode 5", "did you mean --episodes?"),
        ("report --texst", "did you mean --text?"),
        ("compare-baselines", "the following arguments are required: --env"),
        ("-v train", "a command comes first, got '-v'"),
        ("enjoy", "`sb3-reinforce train"),
    ],
)
def test_a_mistake_gets_one_line(command: str, words: str, capsys: pytest.CaptureFixture[str]):
    try:
        code = cli.main(command.split())
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env", "A-v1"], "without a baseline: --env A-v1 -params 'baseline:\"none\"'"),
        (
            ["-params", "gamma:0.9", "n_steps:8", "-P"],
            "without a baseline: -params gamma:0.9 n_steps:8 'baseline:\"none\"' -P",
        ),
        (["--hyperparams", "baseline:'mean'"], "without a baseline: --hyperparams 'baseline:\"none\"'"),
        (["-params", "baseline:'none'", "-P"], "with the default baseline: -P"),
        # what resumes a run adds to the run's own: nothing stands twice
        (["-n", "9", "--seed", "-1", "-P", "-n", "50"], "without a baseline: -n 50 --seed -1 -P -params 'baseline:\"none\"'"),
        (["-f", "my logs"], "without a baseline: -f 'my logs' -params 'baseline:\"none\"'"),
    ],
)
def test_a_run_to_compare_with(arguments: list[str], expected: str):
    ((what, line),) = compare_command(SimpleNamespace(algo="reinforce"), arguments).items()
    assert f"{what}: {line.removeprefix(shell_line(['train', '']).removesuffix(chr(39) * 2))}" == expected


# --- what is left out, and what is not ---


def test_only_known_lines_are_left_out(capsys: pytest.CaptureFixture[str]):
    lines = """if True:
        print("Using cpu device")
        print("Loading hyperparameters from:", "x.yml")
        print("Using cpu device", file=sys.stderr)  # errors are another's
        print("There is no vecnormalize.pkl: VecNormalize starts afresh")
        print("Error: Using cpu device")"""
    zoo = {"__name__": "__main__", "__package__": "rl_zoo3", "sys": sys}
    with without_lines(LINES), without_lines(re.compile("Loading .*")):
        exec(lines, zoo)
        print("Using cpu device")  # the user's own, such as an environment's
    print("Using cpu device")
    out, err = capsys.readouterr()
    shown = ["There is no vecnormalize.pkl: VecNormalize starts afresh", "Error: Using cpu device", *2 * ["Using cpu device"]]
    assert out.splitlines() == shown
    assert err == "Using cpu device\n"


def test_known_lines_are_neither_ours_nor_errors():
    """Lines that a user needs: those at the end of a run, what is missing, and what has failed."""
    kept = ("Score:          500.0", "Log path: logs", "Mean reward: 3", "No display: playing without",
            "Not enough timesteps", "Error during evaluation, skipping...", "Skipping mujoco env: X", "Saving to results.pkl",
            "Trial 3 failed")  # fmt: skip
    patterns = [LINES, BEST_TRIAL, *(re.compile(verb.repeats) for verb in ZOO_VERBS.values())]
    assert not [text for text in kept for pattern in patterns if pattern.fullmatch(text)]


def test_mujoco_tells_of_trouble_alone(capfd: pytest.CaptureFixture[str]):
    mujoco = pytest.importorskip("mujoco")
    with quiet():
        gym.make("HalfCheetah-v5").close()  # its model has an attribute that MuJoCo is about to drop
        assert capfd.readouterr().err == ""
        mujoco.get_mju_user_warning()("Nan, Inf or huge value in QACC at DOF 0")
    assert capfd.readouterr().err == "MuJoCo: warning: Nan, Inf or huge value in QACC at DOF 0\n"
    assert mujoco.get_mju_user_warning() is None
    assert not Path("MUJOCO_LOG.TXT").exists()


def test_what_others_put_into_the_environment_stays(monkeypatch: pytest.MonkeyPatch):
    """W&B starts a process when a run begins, and keeps its address in a variable: with an old one, the next run failed."""
    monkeypatch.setenv("WANDB_SERVICE", "of a process that has ended")
    monkeypatch.delenv("WANDB_QUIET", raising=False)
    with quiet():
        assert os.environ["WANDB_QUIET"] == "true"
        os.environ["WANDB_SERVICE"] = "of the one that runs now"
    assert os.environ["WANDB_SERVICE"] == "of the one that runs now"
    assert "WANDB_QUIET" not in os.environ


def test_unknown_warnings_are_shown():
    with pytest.warns(UserWarning, match="your reward is NaN"), quiet():  # noqa: PT031
        warnings.warn("your reward is NaN", stacklevel=1)
        warnings.warn("pkg_resources is deprecated as an API", stacklevel=1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", False), ("-P", False),
        ("-v", True), ("--verbose", True), ("--verbose 1", True), ("--verbose=2 -P", True), ("-v -P", True),
        ("--verbose 0", False),
        ("--verbose=0", False), ("-vec x", False),
    ],
)  # fmt: skip
def test_who_asks_for_more(arguments: str, expected: bool):
    assert asks_for_more(arguments.split()) is expected


def test_verbose_is_one_option_beside_the_zoos_own():
    zoo = argparse.ArgumentParser()
    zoo.add_argument("--verbose", help="Verbose mode (0: no output, 1: INFO)", default=1, type=int)
    for parser, given in (
        (zoo, {"": 1, "-v": 1, "--verbose 2": 2, "--verbose 0": 0}),
        (argparse.ArgumentParser(), {"": 0, "-v": 1}),
    ):
        for _ in range(2):  # a second time changes nothing
            add_verbose(parser)
        assert {text: int(parser.parse_args(text.split()).verbose) for text in given} == given
        assert parser.format_help().count("  -v") == 1


# --- help, completion, start ---


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_help_lists_each_option_once_and_the_first_ones_first(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    names, choices = words_of(text)
    assert len(names) == len(set(names)) > 50
    titles = re.findall(r"^(\S.*):$", text, re.M)
    assert [title.partition(" (")[0] for title in titles] == [
        "to begin with", "options of sb3-reinforce", "RL Zoo's options for a search", "RL Zoo's other options",
    ]  # fmt: skip
    assert "--env" in text.partition("options of sb3-reinforce:")[0]
    assert "reinforce" in choices["--algo"]


def test_completion_in_bash(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["completion"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        call = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _sb3_reinforce; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash"], input=f"{script}\n{call}", capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("sb3-reinforce", "re") == ["record-video", "record-training", "report"]
    assert completed("sb3-reinforce", "train", "--eval-fi") == ["--eval-final"]
    assert completed("sb3-reinforce", "enjoy", "--load-b") == ["--load-best"]
    assert completed("sb3-reinforce", "train", "--algo", "rei") == ["reinforce"]
    assert completed("sb3-reinforce", "train", "--env", "CartPole-v") == ["CartPole-v0", "CartPole-v1"]
    assert completed("sb3-reinforce", "report", "--te") == ["--text"]
    assert completed("sb3-reinforce", "enjoy", "logs/") == []  # then bash completes files


def test_the_command_line_starts_without_torch():
    code = "import sys, sb3_reinforce.zoo.cli as cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(sb3_reinforce.__file__).parents[1])
    assert done.returncode == 0


def test_public_names_are_imported_when_used(monkeypatch: pytest.MonkeyPatch):
    assert {*sb3_reinforce._MODULES, "__version__"} == set(sb3_reinforce.__all__) <= set(dir(sb3_reinforce))
    for name in sb3_reinforce.__all__:
        assert getattr(sb3_reinforce, name) is not None
    assert sb3_reinforce.baselines.Baseline is sb3_reinforce.Baseline  # modules, too
    with pytest.raises(AttributeError, match="module 'sb3_reinforce' has no attribute 'Reinforce'"):
        sb3_reinforce.Reinforce  # noqa: B018

    def without_the_zoo(path: str) -> None:
        raise ModuleNotFoundError("No module named 'rl_zoo3'", name="rl_zoo3")

    monkeypatch.setattr(sb3_reinforce, "import_module", without_the_zoo)
    with pytest.raises(ModuleNotFoundError, match="rl_zoo3"):  # a module that is there, but lacks what it needs
        sb3_reinforce.needs_the_zoo  # noqa: B018
