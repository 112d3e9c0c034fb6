"""The command ``sb3-reinforce``: a verb, and its arguments, which go unchanged to the function that does the work."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from ctypes.util import find_library
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from sb3_reinforce.zoo.usage import USAGE_ERROR, errors_in_one_line, refuse


class Verb(NamedTuple):
    """A command: ``run`` takes the arguments after the verb and returns the exit code."""

    run: Callable[[Sequence[str]], int]
    summary: str
    needs_zoo: bool = True


def _call(module: str, *arguments: Any) -> int:
    """Call the function that is named like its module. Imports late: `--help` must not need rl_zoo3, optional and slow."""
    exit_code: int = getattr(import_module(module), module.rpartition(".")[2])(*arguments)
    return exit_code


def _zoo(name: str, arguments: Sequence[str]) -> int:
    from sb3_reinforce.zoo.verbs import run

    return run(name, arguments, main)


_train = partial(_call, "sb3_reinforce.zoo.train")
_compare = partial(_call, "sb3_reinforce.zoo.compare")
_dashboard = partial(_call, "sb3_reinforce.tracking.dashboard")
_report = partial(_call, "sb3_reinforce.tracking.report")
VERBS: dict[str, Verb] = {
    "train": Verb(partial(_train, "train"), "train an agent from the configs in zoo_configs/ (RL Zoo's train)"),
    "tune": Verb(partial(_train, "tune"), "search hyperparameters in a study that workers share, write the best as a config"),
    "enjoy": Verb(partial(_zoo, "enjoy"), "play a trained agent"),
    "benchmark": Verb(partial(_zoo, "benchmark"), "play all trained agents, scores as a Markdown table"),
    "plot-train": Verb(partial(_zoo, "plot-train"), "training returns, one curve per run"),
    "all-plots": Verb(partial(_zoo, "all-plots"), "evaluations of several seeds, mean and band, and a table"),
    "plot-file": Verb(partial(_zoo, "plot-file"), "draw what all-plots has saved"),
    "record-video": Verb(partial(_zoo, "record-video"), "film a trained agent"),
    "record-training": Verb(partial(_zoo, "record-training"), "film its checkpoints, one after the other"),
    "push": Verb(partial(_zoo, "push"), "upload a trained agent, its card and a video to the Hugging Face Hub"),
    "pull": Verb(partial(_zoo, "pull"), "download one"),
    "compare-baselines": Verb(_compare, "the gradient's variance under every baseline, as table and picture", needs_zoo=False),
    "compare-estimators": Verb(
        partial(_call, "sb3_reinforce.zoo.compare_estimators"),
        "the gradient's variance under every estimator, of a distribution and a cost in a Python file",
        needs_zoo=False,
    ),
    "dashboard": Verb(_dashboard, "write, and with --push save, a W&B workspace and report", needs_zoo=False),
    "inspect-run": Verb(lambda rest: _report(["--text", *rest]), "the old name of `report --text`", needs_zoo=False),
    "completion": Verb(
        lambda rest: _call("sb3_reinforce.zoo.completion", main, VERBS, rest),
        "print a script that completes commands in bash and zsh",
        needs_zoo=False,
    ),
    "report": Verb(_report, "W&B, TensorBoard or CSV runs as one HTML page, --text or --json", needs_zoo=False),
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the verb and its arguments; None takes them from the process
    :return: the exit code: 0, or 2 for a command line that cannot be run
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: sb3-reinforce COMMAND ...\n\nRL Zoo's command line with REINFORCE in it.\n")
        print("\n".join(f"  {name:<18} {verb.summary}" for name, verb in VERBS.items()))
        print("\nBegin with: sb3-reinforce train --env CartPole-v1 -P --eval-final 100")
        print("`sb3-reinforce COMMAND --help` shows the command's own options, `sb3-reinforce --version` the versions.")
        print("Known messages of other packages are left out; -v shows them.")
        return 0 if arguments else USAGE_ERROR
    if arguments[0] == "--version":
        from sb3_reinforce.tracking.settings import versions

        print("\n".join(f"{name} {number}" for name, number in versions().items()))
        return 0
    name, rest = arguments[0], arguments[1:]
    if name.startswith("-"):
        return refuse(f"a command comes first, got {name!r}: `sb3-reinforce --help` lists them all")
    if name not in VERBS:
        nearest = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.0)[0]
        return refuse(f"unknown command {name!r}, did you mean {nearest!r}? `sb3-reinforce --help` lists them all")
    if VERBS[name].needs_zoo and find_spec("rl_zoo3") is None:
        return refuse(f'{name} needs RL Zoo: pip install "sb3-reinforce[zoo]"')
    _render_without_display()
    # late: `--help` must not wait for them
    from gymnasium.error import DependencyNotInstalled

    from sb3_reinforce.zoo.quiet import asks_for_more, quiet

    try:
        shown = nullcontext() if asks_for_more(rest) else quiet()
        with shown, errors_in_one_line(name):
            code = VERBS[name].run(rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DependencyNotInstalled as error:
        return refuse(f"{name}: {error}")


def _render_without_display() -> None:
    """
    Choose what renders if there is no display and the user has chosen nothing: EGL for MuJoCo, and no driver for SDL (pygame),
    which would look for a display and print an error about XDG_RUNTIME_DIR. Both read this when they are imported.
    """
    if sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if not os.environ.get("MUJOCO_GL") and find_library("EGL") is not None:
        os.environ["MUJOCO_GL"] = "egl"
