"""``train --help`` and ``tune --help``: our options and RL Zoo's in one list, those that a newcomer needs first."""

import argparse
from typing import Literal

FIRST = {
    "train": (
        "--help", "--env", "--n-timesteps", "--seed", "--progress", "--eval-final", "--eval-freq", "--track", "--resume",
        "--hyperparams", "--log-folder", "--algo", "--verbose",
    ),
    "tune": (
        "--help", "--env", "--n-timesteps", "--n-trials", "--n-jobs", "--seed", "--storage", "--study-name", "--track",
        "--log-folder", "--algo", "--verbose",
    ),
}  # fmt: skip
# RL Zoo's options of a search, which `train` takes, too
SEARCH = (
    "--optimize-hyperparameters", "--optimization-log-path", "--n-trials", "--max-total-trials", "--no-optim-plots",
    "--n-jobs", "--sampler", "--pruner", "--n-startup-trials", "--n-evaluations", "--storage", "--study-name",
)  # fmt: skip


def grouped_help(verb: Literal["train", "tune"], ours: argparse.ArgumentParser, zoo: argparse.ArgumentParser) -> str:
    """
    :param ours: our options, shown in place of RL Zoo's of the same name
    :param zoo: RL Zoo's options
    :return: the help text
    """
    known = {action.option_strings[-1]: action for parser in (zoo, ours) for action in parser._actions}
    groups = {
        "to begin with": FIRST[verb],
        "options of sb3-reinforce": [action.option_strings[-1] for action in ours._actions],
        "RL Zoo's options for a search" + " (`tune` sets them)" * (verb == "train"): SEARCH,
        "RL Zoo's other options": list(known),
    }
    shown = argparse.ArgumentParser(
        prog=f"sb3-reinforce {verb}",
        usage=f"sb3-reinforce {verb} --env ID [option ...]",
        description=ours.description,
        epilog=ours.epilog,
        add_help=False,
    )
    for title, names in groups.items():
        group = shown.add_argument_group(title)
        for name in names:
            if name in known:
                group._add_action(known.pop(name))
    return shown.format_help()
