"""``sb3-reinforce train``: RL Zoo's train, saved as it goes, tracked by our callback, and a report of what came out."""

import argparse
import json
import os
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import numpy as np

from sb3_reinforce import distributed
from sb3_reinforce.tracking.callback import WandbCallback
from sb3_reinforce.tracking.run import INTERRUPTED, Mode, exit_code_of
from sb3_reinforce.tracking.settings import command_line
from sb3_reinforce.zoo import config_file, register
from sb3_reinforce.zoo.checkpoints import Run, read_run, run_of_launch, without_resume
from sb3_reinforce.zoo.report import draw_learning_curve, evaluate_saved, report_lines

if TYPE_CHECKING:
    from sb3_reinforce.zoo.experiment import Experiment, Plan

EXAMPLES = {
    "train": "sb3-reinforce train --env CartPole-v1 -P --eval-final 100",
    "tune": "sb3-reinforce tune --env CartPole-v1 --n-trials 50 -n 50000",
}


def train(arguments: Sequence[str]) -> int:
    """
    Train as ``python -m rl_zoo3.train`` does, with REINFORCE registered, and say where the results are.

    Tracking and the final evaluation are ours, see ``--help``; every other option goes to the zoo unchanged. ``--algo
    reinforce`` and our config file are put in front of them: of an option given twice the last counts, the user's own.

    Under ``torchrun`` every rank runs this: rank 0 chooses folder and seed, evaluates, saves, tracks and reports.

    :param arguments: the command line after the verb
    :return: the exit code
    """
    return _train("train", arguments)


def tune(arguments: Sequence[str]) -> int:
    """
    Search hyperparameters as ``python -m rl_zoo3.train -optimize`` does, in a study that outlives the process.

    :param arguments: the command line after the verb
    :return: the exit code: 1 if no trial has finished
    """
    return _train("tune", ["-optimize", *arguments])


def _train(verb: str, arguments: Sequence[str]) -> int:
    parser = _parser(verb)
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        print("\n--- RL Zoo's options (for --track and --wandb-*, those above apply) ---\n")
    options, zoo_arguments = parser.parse_known_args(arguments)
    zoo_options = _zoo_options(arguments)
    if distributed.launched():
        zoo_arguments += _join_ranks(zoo_options, parser)
    run = _run_to_go_on_with(options.resume, zoo_options.log_folder, parser)
    if run is not None:
        if options.resume is not None:
            _check_resumed(options, zoo_options, run, parser)
        # begun again by torchrun: the command line is the same
        arguments = [*run.arguments, *(without_resume(arguments) if options.resume is not None else ())]
        options, zoo_arguments = parser.parse_known_args(arguments)
        zoo_options = _zoo_options(arguments)
    _check(options, zoo_options, run, parser)
    tracker = _tracker(options, parser) if options.track and distributed.rank() == 0 else None
    # imported here: `--help` shows our own options first
    from sb3_reinforce.zoo.config import UsageError
    from sb3_reinforce.zoo.experiment import Plan, how_to_go_on

    plan = Plan(
        arguments=arguments,
        tracker=tracker,
        run=run,
        checkpoint_every=options.checkpoint_every,
        video_freq=options.wandb_video_freq,
        conf_file_given=zoo_options.conf_file is not None,
        sampled=options.sampled,
    )
    exit_code = 1
    try:
        with _silent(distributed.rank() > 0):
            _run_zoo([*_defaults(zoo_options), *zoo_arguments], plan)
        lines, exit_code = plan.found, int(plan.found_nothing)
        if plan.trained is not None and plan.trained.stopped_by:
            lines, exit_code = how_to_go_on(plan.trained), 128 + plan.trained.stopped_by[0]
        elif plan.trained is not None:
            lines = _results(plan.trained, tracker, options.eval_final)
    except UsageError as error:
        exit_code = 2
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return exit_code
    except BaseException as error:
        exit_code = exit_code_of(error)
        raise
    finally:
        # before the report, so that nothing is printed below it
        if tracker is not None:
            # the zoo, where it trains without our checkpoints, keeps a Ctrl-C to itself
            tracker.finish(INTERRUPTED if exit_code == 0 and tracker.training_interrupted else exit_code)
    if lines:
        print("\n".join(lines), flush=True)
    return exit_code


def _check_resumed(
    options: argparse.Namespace, zoo_options: argparse.Namespace, run: Run, parser: argparse.ArgumentParser
) -> None:
    """Refuse, as a usage error, what a run that is gone on with cannot change."""
    own = _zoo_options(run.arguments)
    given: dict[str, tuple[str, Any]] = {
        "-params": ("hyperparams", []), "--conf-file": ("conf_file", None), "--trial-id": ("trial_id", None),
        "-i": ("trained_agent", None), "--seed": ("seed", -1),
    }  # fmt: skip
    changed = [
        option for option, (name, missing) in given.items() if getattr(zoo_options, name) not in (missing, getattr(own, name))
    ]
    changed += ["--sampled"] if options.sampled is not None else []
    if changed:
        parser.error(
            f"--resume goes on with the run's own hyperparameters and seed, so {', '.join(changed)} cannot be given: leave it "
            f"out, or begin a new run with the agent of this one, -i MODEL.zip"
        )


def _check(
    options: argparse.Namespace, zoo_options: argparse.Namespace, run: Run | None, parser: argparse.ArgumentParser
) -> None:
    """Refuse, as a usage error, what the zoo would fail on with a traceback, and our own options' wrong values."""
    for name, unit in (("eval_final", "episodes"), ("checkpoint_every", "updates"), ("wandb_video_freq", "steps")):
        value = getattr(options, name)
        if value < 0:
            parser.error(f"--{name.replace('_', '-')} must be a number of {unit} >= 0, got {value}")
    if run is not None and zoo_options.optimize_hyperparameters:
        parser.error(
            "--resume goes on with a training run; a search goes on by itself: give the same --study-name and --storage"
        )
    agent = zoo_options.trained_agent
    if run is None and agent is not None and not (agent.endswith(".zip") and os.path.isfile(agent)):
        parser.error(f"-i must be the file of a saved model, which ends in .zip, got {agent!r}: there is no such file")
    from rl_zoo3.utils import StoreDict

    for option, values in (
        ("-params", zoo_options.hyperparams),
        ("--env-kwargs", zoo_options.env_kwargs),
        ("--eval-env-kwargs", zoo_options.eval_env_kwargs),
    ):
        for value in values:
            try:
                if ":" not in value:
                    raise ValueError("there is no colon")
                StoreDict([option], "checked")(parser, argparse.Namespace(), [value])
            except Exception as error:
                parser.error(
                    f"{option} takes name:value, the value being Python, so text needs quotes: \"baseline:'none'\"; "
                    f"got {value!r} ({error})"
                )


def _defaults(zoo_options: argparse.Namespace) -> list[str]:
    """
    :param zoo_options: what the user asked for
    :return: what is put before the user's own options for the zoo
    """
    from sb3_reinforce.zoo.study import default_storage, default_study_name

    algo, env_id = zoo_options.algo, zoo_options.env
    defaults = ["--algo", "reinforce"]
    if algo == "reinforce":
        defaults += ["--conf-file", str(config_file())]
    if zoo_options.optimize_hyperparameters or zoo_options.trial_id is not None:
        defaults += ["--storage", default_storage(zoo_options.log_folder, algo, env_id)]
        defaults += ["--study-name", default_study_name(algo, env_id)]
    return defaults


def _sampled(text: str) -> dict[str, Any]:
    """:return: ``--sampled``'s JSON"""
    try:
        sampled = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be JSON, got {text!r} ({error})") from error
    if not isinstance(sampled, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return sampled


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the list of all options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser(verb: str) -> argparse.ArgumentParser:
    # no abbreviations: `--eval` would take the zoo's `--eval-freq` away
    parser = _Parser(prog=f"sb3-reinforce {verb}", epilog=f"example: {EXAMPLES[verb]}", add_help=False, allow_abbrev=False)
    if verb == "train":
        _add_options_of_training(parser)
    else:
        parser.description = (
            "RL Zoo's search, kept in a journal that several workers share (--storage, by default "
            "logs/ALGO/ENV-study.log), in the study ALGO-ENV (--study-name). Start the same command once per worker, and "
            "again to go on. The best trial is written as a config for `train --conf-file`, beside Optuna's plots "
            "(--no-optim-plots: without). `train --trial-id N` trains with any one trial."
        )
        parser.set_defaults(eval_final=0, resume=None, checkpoint_every=0, wandb_video_freq=0, sampled=None)
    parser.add_argument(
        "--track", action="store_true", help="log to Weights & Biases" + ("" if verb == "train" else ", one run per trial")
    )
    parser.add_argument(
        "--wandb-mode",
        choices=get_args(Mode),
        default="auto",
        help="auto: what WANDB_MODE says, else online if an API key is configured, else offline (default: auto)",
    )
    parser.add_argument("--wandb-project-name", metavar="NAME", default="sb3-reinforce", help="default: sb3-reinforce")
    parser.add_argument("--wandb-entity", metavar="NAME", help="user or team that owns the project")
    parser.add_argument(
        "--wandb-group",
        metavar="NAME",
        help="name that runs of one study share" + ("" if verb == "train" else " (default: the study's)"),
    )
    parser.add_argument("-tags", "--wandb-tags", metavar="TAG", nargs="+", default=[], help="labels of the run")
    return parser


def _add_options_of_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--eval-final", metavar="N", type=int, default=0, help="play N episodes with the saved model (default: 0)"
    )
    parser.add_argument(
        "--resume", metavar="FOLDER", help="go on with the run in this folder, with its own arguments and those given now"
    )
    parser.add_argument(
        "--checkpoint-every",
        metavar="N",
        type=int,
        default=10,
        help="save the run every N updates, to go on after a crash; 0: never (default: 10)",
    )
    parser.add_argument(
        "--wandb-video-freq",
        metavar="N",
        type=int,
        default=0,
        help="film an episode every N steps (default: 0, never)",
    )
    parser.add_argument(
        "--sampled",
        metavar="JSON",
        type=_sampled,
        help="values of `tune`'s search space by its names, as a W&B sweep's ${args_json} gives them (zoo_configs/sweep.yml)",
    )


def _zoo_options(arguments: Sequence[str]) -> argparse.Namespace:
    """
    Those of the zoo's options that decide what is done around it.

    :param arguments: the command line after the verb
    :return: their values; of several the last, as argparse takes them
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--algo", default="reinforce")
    peek.add_argument("--device", default="auto")
    peek.add_argument("--seed", type=int, default=-1)
    peek.add_argument("-f", "--log-folder", default="logs")
    peek.add_argument("--env", default="CartPole-v1")
    peek.add_argument("-i", "--trained-agent")
    peek.add_argument("-conf", "--conf-file")
    for names in (("-params", "--hyperparams"), ("--env-kwargs",), ("--eval-env-kwargs",)):
        peek.add_argument(*names, nargs="+", default=[])
    peek.add_argument("--trial-id", type=int)
    peek.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    return peek.parse_known_args(arguments)[0]


def _run_to_go_on_with(folder: str | None, log_folder: str, parser: argparse.ArgumentParser) -> Run | None:
    """
    The run to go on with, as rank 0 finds it.

    :param folder: the one that the user names; None: that of this launch of torchrun, if it has failed and begins again
    :param log_folder: where runs are
    :param parser: for usage errors
    :return: the run; None: a new one
    """
    run = None
    if distributed.rank() == 0 and folder is not None:
        try:
            run = read_run(folder)
        except ValueError as error:
            parser.error(f"--resume {error}")
    elif distributed.rank() == 0 and distributed.restarted():
        run = run_of_launch(log_folder, distributed.launch_id())
    return distributed.broadcast(run)


def _join_ranks(zoo_options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """
    Start the group of ranks.

    :param zoo_options: what the user asked for
    :param parser: for usage errors
    :return: more options for the zoo: the seed that rank 0 has drawn, where none is given
    """
    if zoo_options.algo != "reinforce":
        parser.error(f"torchrun trains --algo reinforce, got {zoo_options.algo!r}: run it without torchrun")
    if zoo_options.optimize_hyperparameters:
        parser.error(
            "a search is not for torchrun: start the same command once per worker, without torchrun, with one "
            "--study-name and --storage (a database's address or a journal's file)"
        )
    distributed.start(zoo_options.device)
    if zoo_options.seed >= 0:
        return []
    return ["--seed", str(distributed.broadcast(int(np.random.SeedSequence().generate_state(1)[0])))]


@contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """Without standard output and warnings, if ``silent``."""
    if not silent:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tracker(options: argparse.Namespace, parser: argparse.ArgumentParser) -> WandbCallback:
    try:
        return WandbCallback(
            project=options.wandb_project_name,
            entity=options.wandb_entity,
            group=options.wandb_group,
            tags=options.wandb_tags,
            mode=options.wandb_mode,
            config={"command": command_line()},  # while the zoo runs, sys.argv is the zoo's
            finish_at_end=False,  # the final evaluation belongs to the run, too
        )
    except ImportError as error:
        parser.error(f"--track: {error}")


def _run_zoo(zoo_arguments: list[str], plan: "Plan") -> None:
    """
    Run ``rl_zoo3.train`` in this process.

    :param zoo_arguments: its command line
    :param plan: what is asked for beyond that; what comes of it is noted there
    """
    register()
    from rl_zoo3 import exp_manager

    from sb3_reinforce.zoo.experiment import Experiment
    from sb3_reinforce.zoo.mends import replaced
    from sb3_reinforce.zoo.verbs import errors_in_one_line

    # rl_zoo3.train keeps its manager to itself, but takes the class from exp_manager each time it is run
    with replaced(exp_manager, "ExperimentManager", type("Experiment", (Experiment,), {"plan": plan})):
        with replaced(sys, "argv", ["sb3-reinforce train", *zoo_arguments]), errors_in_one_line("train"):
            runpy.run_module("rl_zoo3.train", run_name="__main__")


def _results(experiment: "Experiment", tracker: WandbCallback | None, n_episodes: int) -> list[str]:
    score = evaluate_saved(experiment, n_episodes) if n_episodes > 0 else None
    if tracker is not None and score is not None:
        tracker.log_summary({"eval/final_mean_reward": score.mean, "eval/final_std_reward": score.std})
    return report_lines(experiment, score, draw_learning_curve(experiment, score), tracker)
