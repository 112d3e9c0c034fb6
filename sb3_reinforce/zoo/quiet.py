"""
What other packages print while a command runs: what is known, and asks nothing of the user, is left out. ``-v`` shows it.

Each kind is named here: lines on standard output by their words and the package that prints them, MuJoCo's warnings by their
words, Python's warnings by category and words, loggers by their names. All else, errors and unknown warnings among them, is
shown, and all that the user's own code prints.
"""

import argparse
import builtins
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from importlib.util import find_spec
from types import FrameType
from typing import Any

from gymnasium.envs import registration

from sb3_reinforce.zoo.patches import environment, replaced

# Whose lines may be left out
PACKAGES = ("rl_zoo3", "stable_baselines3", "sb3_contrib", "huggingface_sb3", "huggingface_hub", "wasabi", "gymnasium")
# Whole lines: RL Zoo and SB3 tell what they do, in words about their code. Our last lines, config.yml and args.yml in the
# run's folder, or the picture and the video themselves, say the same.
LINES = re.compile(
    r"""
    =+\ .*\ =+ | Loading\ hyperparameters\ from:\ .* | Using\ \d+\ environments | Using\ '?\w+'?\ hyperparameters
    | Overwriting\ n_timesteps\ with\ n=.* | Creating\ test\ environment | Normalization\ activated:\ .*
    | Normalizing\ input\ and\ reward | Stacking\ \d+\ frames | Wrapping\ the\ env\ .* | Using\ \w+(:\d+)?\ device
    | Sampling\ actions\ with\ \w+ | (eval_)?env_kwargs=.* | Loading\ pretrained\ agent
    | Loading\ running\ average | with\ params:\ .* | Loading\ latest\ experiment,\ id=.* | Optimizing\ hyperparameters
    | Doing\ \d+\ intermediate\ evaluations\ .* | Sampler:\ .* | Loading\ from\ Optuna\ study\.\.\. | Eval\ not\ found\ for\ .*
    | Eval\ num_timesteps=.* | Episode\ length:\ .* | New\ best\ mean\ reward! | Saving\ to\ (?!.*\.pkl).*
    | keys:\ .* | [^\w]*[\dm;]*\W*This\ function\ will\ save,\ evaluate(?s:.*)
    """,
    re.X,
)
# In a search, RL Zoo prints the best trial, which our last lines name, with its settings, which best.yml has
BEST_TRIAL = re.compile(
    r"Number of finished trials: .*|Best trial:|Value: .*|Params: |User Attributes: |    \w+: .*|Writing report to .*"
)
# MuJoCo's own models use this attribute, so gymnasium's environments print it once each
MUJOCO = re.compile(r"compiler attribute '\w+' is deprecated")
# pygame's and gymnasium's own code; nobody but them can change it
WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    ("pkg_resources is deprecated", UserWarning),
    ("Overwriting existing videos at", UserWarning),
)
# They repeat, for each attempt, the error with which the command ends
LOGGERS = ("huggingface_hub.utils._http",)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add ``-v``, or make it another name of RL Zoo's ``--verbose N``, if the parser has that."""
    known = parser._option_string_actions
    if "-v" in known:
        return
    if "--verbose" not in known:
        parser.add_argument("-v", "--verbose", action="store_true", help="show what other packages print, too")
        return
    action = known["--verbose"]
    action.nargs, action.const, action.metavar = "?", 1, "N"
    action.help = "show all messages of RL Zoo and SB3, too; 0: as few as possible, 1 (-v alone): all, 2: more yet"
    action.option_strings = ["-v", "--verbose"]
    known["-v"] = action


def asks_for_more(arguments: Sequence[str]) -> bool:
    """:return: whether a command line has ``-v`` or ``--verbose``, with another number than 0"""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        option, _, value = word.partition("=")
        if option in ("-v", "--verbose") and (value or following) != "0":
            return True
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what is listed above."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # W&B tells where the run is, as we do, and has a spinner for each video; its warnings and errors are shown
        wandb = environment(WANDB_QUIET="true", WANDB_SHOW_INFO="false")
        with wandb, without_lines(LINES), _quiet_mujoco(), warnings.catch_warnings():
            for words, category in WARNINGS:
                warnings.filterwarnings("ignore", words, category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def without_lines(known: re.Pattern[str]) -> Iterator[None]:
    """Inside, ``print`` prints no text of another package that matches as a whole."""

    def selected(*words: Any, **options: Any) -> None:
        to_stdout = options.get("file") in (None, sys.stdout)
        if not to_stdout or known.fullmatch(" ".join(map(str, words))) is None or _printing_package() not in PACKAGES:
            original(*words, **options)

    original = builtins.print
    with replaced(builtins, "print", selected):
        yield


def _printing_package() -> str:
    """:return: the package whose code calls ``print``, directly or through ours"""
    frame: FrameType | None = sys._getframe(1)
    package = "sb3_reinforce"
    while frame is not None and package == "sb3_reinforce":
        package = str(frame.f_globals.get("__package__")).partition(".")[0]  # __name__ is __main__ in RL Zoo's scripts
        frame = frame.f_back
    return package


@contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """MuJoCo calls one function with all its warnings, instead of writing them to the terminal and to MUJOCO_LOG.TXT."""

    def load(name: str) -> Any:
        creator = original(name)
        if "mujoco" in sys.modules:  # by now, if the environment needs it, and its model is not read yet
            sys.modules["mujoco"].set_mju_user_warning(_warn_of_mujoco)
        return creator

    original = registration.load_env_creator
    try:
        with replaced(registration, "load_env_creator", load):
            yield
    finally:
        if "mujoco" in sys.modules:
            sys.modules["mujoco"].set_mju_user_warning(None)


def _warn_of_mujoco(message: str) -> None:
    if MUJOCO.match(message) is None:
        print(f"MuJoCo: warning: {message}", file=sys.stderr)


@contextmanager
def quiet_moviepy() -> Iterator[None]:
    """Inside, moviepy writes videos without its messages and its progress bar, unless it is told which."""
    if find_spec("moviepy") is None:
        yield
        return
    from moviepy import VideoClip  # optional: the extra `video`

    with replaced(VideoClip, "write_videofile", partialmethod(VideoClip.write_videofile, logger=None)):
        yield
