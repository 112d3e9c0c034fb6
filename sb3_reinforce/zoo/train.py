"""``sb3-reinforce train``: RL Zoo's train, tracked by our callback, and a report of what came out."""

import argparse
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from sb3_reinforce.tracking.callback import Mode, WandbCallback
from sb3_reinforce.zoo import config_file, register
from sb3_reinforce.zoo.report import draw_learning_curve, evaluate_saved, report_lines

if TYPE_CHECKING:
    from rl_zoo3.exp_manager import ExperimentManager
    from stable_baselines3.common.base_class import BaseAlgorithm


def train(arguments: Sequence[str]) -> int:
    """
    Train as ``python -m rl_zoo3.train`` does, with REINFORCE registered, and say where the results are.

    Tracking and the final evaluation are ours, see ``--help``; every other option goes to the zoo unchanged. ``--algo
    reinforce`` and our config file are put in front of them: of an option given twice the last counts, the user's own.

    :param arguments: the command line after the verb
    :return: the exit code
    """
    parser = _parser()
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        print("\n--- RL Zoo's options (for --track and --wandb-*, those above apply) ---\n")
    options, zoo_arguments = parser.parse_known_args(arguments)
    if options.eval_final < 0:
        parser.error(f"--eval-final must be a number of episodes >= 0, got {options.eval_final}")
    defaults = ["--algo", "reinforce"]
    if _algo(arguments) == "reinforce":
        defaults += ["--conf-file", str(config_file())]
    tracker = _tracker(options, parser) if options.track else None

    exit_code = 1
    try:
        experiment = _run_zoo([*defaults, *zoo_arguments], tracker)
        lines = _results(experiment, tracker, options.eval_final) if experiment is not None else []
        exit_code = 0
    finally:
        # before the report, so that nothing is printed below it
        if tracker is not None:
            tracker.finish(exit_code)
    print("\n".join(lines), flush=True)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    # no abbreviations: `--eval` would take the zoo's `--eval-freq` away
    parser = argparse.ArgumentParser(prog="sb3-reinforce train", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--eval-final", metavar="N", type=int, default=0, help="play N episodes with the saved model (default: 0)"
    )
    parser.add_argument("--track", action="store_true", help="log to Weights & Biases")
    parser.add_argument(
        "--wandb-mode",
        choices=get_args(Mode),
        default="auto",
        help="auto: what WANDB_MODE says, else online if an API key is configured, else offline (default: auto)",
    )
    parser.add_argument("--wandb-project-name", metavar="NAME", default="sb3-reinforce", help="default: sb3-reinforce")
    parser.add_argument("--wandb-entity", metavar="NAME", help="user or team that owns the project")
    parser.add_argument("--wandb-group", metavar="NAME", help="name that runs of one study share")
    parser.add_argument("-tags", "--wandb-tags", metavar="TAG", nargs="+", default=[], help="labels of the run")
    return parser


def _algo(arguments: Sequence[str]) -> str:
    """
    The algorithm that the zoo will train.

    :param arguments: the command line after the verb
    :return: its name in ``rl_zoo3.ALGOS``; of several the last, as argparse takes them
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--algo", default="reinforce")
    return str(peek.parse_known_args(arguments)[0].algo)


def _tracker(options: argparse.Namespace, parser: argparse.ArgumentParser) -> WandbCallback:
    try:
        return WandbCallback(
            project=options.wandb_project_name,
            entity=options.wandb_entity,
            group=options.wandb_group,
            tags=options.wandb_tags,
            mode=options.wandb_mode,
            finish_at_end=False,  # the final evaluation belongs to the run, too
        )
    except ImportError as error:
        parser.error(f"--track: {error}")


def _run_zoo(arguments: list[str], tracker: WandbCallback | None) -> "ExperimentManager | None":
    """
    Run ``rl_zoo3.train`` in this process.

    :param arguments: its command line
    :param tracker: callback to put beside the zoo's own
    :return: the experiment, if it saved a model (a hyperparameter search does not)
    """
    register()
    from rl_zoo3 import exp_manager

    saved: list[ExperimentManager] = []

    class TrackedExperimentManager(exp_manager.ExperimentManager):
        """The zoo's, with our callback, and known to us once it saved its model."""

        def create_callbacks(self) -> None:
            super().create_callbacks()
            if tracker is None:
                return
            if self.optimize_hyperparameters:
                warnings.warn("--track follows one training run; the trials of a search are not tracked", stacklevel=2)
                return
            tracker.config.setdefault("env_id", str(self.env_name.gym_id))
            self.callbacks.append(tracker)

        def save_trained_model(self, model: "BaseAlgorithm") -> None:
            super().save_trained_model(model)
            saved.append(self)

    # rl_zoo3.train keeps its manager to itself, but takes the class from exp_manager each time it is run
    with _replaced(exp_manager, "ExperimentManager", TrackedExperimentManager):
        with _replaced(sys, "argv", ["sb3-reinforce train", *arguments]):
            runpy.run_module("rl_zoo3.train", run_name="__main__")
    return saved[-1] if saved else None


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _results(experiment: "ExperimentManager", tracker: WandbCallback | None, n_episodes: int) -> list[str]:
    score = evaluate_saved(experiment, n_episodes) if n_episodes > 0 else None
    if tracker is not None and score is not None:
        tracker.log_summary({"eval/final_mean_reward": score.mean, "eval/final_std_reward": score.std})
    return report_lines(experiment, score, draw_learning_curve(experiment, score), tracker)
