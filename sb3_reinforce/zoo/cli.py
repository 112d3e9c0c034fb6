"""The command ``sb3-reinforce``: a verb, and everything after it handed to what does the work."""

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

USAGE_ERROR = 2


class Verb(NamedTuple):
    """A word of the command line: ``run`` takes what follows it and returns the exit code."""

    run: Callable[[Sequence[str]], int]
    summary: str
    needs_zoo: bool = True


def _train(arguments: Sequence[str]) -> int:
    # imported here: `--help` and a misspelt verb need no rl_zoo3
    from sb3_reinforce.zoo.train import train

    return train(arguments)


def _tune(arguments: Sequence[str]) -> int:
    from sb3_reinforce.zoo.train import tune

    return tune(arguments)


def _compare(arguments: Sequence[str]) -> int:
    from sb3_reinforce.zoo.compare import compare

    return compare(arguments)


def _dashboard(arguments: Sequence[str]) -> int:
    from sb3_reinforce.tracking.dashboard import dashboard

    return dashboard(arguments)


def _inspect_run(arguments: Sequence[str]) -> int:
    from sb3_reinforce.tracking.inspect_run import inspect_run

    return inspect_run(arguments)


def _report(arguments: Sequence[str]) -> int:
    from sb3_reinforce.tracking.report import report

    return report(arguments)


VERBS = {
    "train": Verb(_train, "train an agent from the configs in zoo_configs/ (RL Zoo's train)"),
    "tune": Verb(_tune, "search hyperparameters in a study that several workers share, write the best as a config"),
    "compare-baselines": Verb(_compare, "the gradient's variance under every baseline, as table and picture", needs_zoo=False),
    "dashboard": Verb(_dashboard, "write, and with --push save, a W&B workspace and report", needs_zoo=False),
    "inspect-run": Verb(_inspect_run, "print config, summary and last values of a run's folder", needs_zoo=False),
    "report": Verb(_report, "one HTML page with the plots of W&B, TensorBoard or CSV runs", needs_zoo=False),
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command line.

    :param argv: the verb and its arguments; None takes them from the process
    :return: the exit code: 0, or 2 for a command line that cannot be run
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else USAGE_ERROR
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        nearest = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.0)[0]
        return _refuse(f"unknown command {name!r}, did you mean {nearest!r}? `sb3-reinforce --help` lists them all")
    if VERBS[name].needs_zoo and find_spec("rl_zoo3") is None:
        return _refuse(f'{name} needs RL Zoo: pip install "sb3-reinforce[zoo]"')
    return VERBS[name].run(rest)


def _refuse(message: str) -> int:
    print(f"sb3-reinforce: error: {message}", file=sys.stderr)
    return USAGE_ERROR


def _help() -> str:
    lines = [f"  {name:<18} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: sb3-reinforce COMMAND ...",
            "",
            "RL Zoo's command line with REINFORCE in it.",
            "",
            *lines,
            "",
            "`sb3-reinforce COMMAND --help` shows the command's own options.",
        ]
    )
