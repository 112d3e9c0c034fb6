"""``sb3-reinforce train`` and ``tune``: RL Zoo's train, with checkpoints, tracking and a report of the results."""

import argparse
import os
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, Literal

import numpy as np
from rl_zoo3 import exp_manager

from sb3_reinforce.running import exchange, ranks
from sb3_reinforce.running.trust import UntrustedError
from sb3_reinforce.tracking.callback import WandbCallback
from sb3_reinforce.tracking.run import INTERRUPTED, exit_code_of
from sb3_reinforce.tracking.settings import command_line, masked_command, masked_text
from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.checkpoints import SavedRun, read_run, run_of_launch, without_resume
from sb3_reinforce.zoo.experiment import Experiment, Plan
from sb3_reinforce.zoo.option_groups import grouped_help
from sb3_reinforce.zoo.options import (
    check_options,
    check_ranks,
    check_resumed,
    defaults_for_zoo,
    make_parser,
    parse,
    read_options,
)
from sb3_reinforce.zoo.patches import replaced
from sb3_reinforce.zoo.quiet import asks_for_more
from sb3_reinforce.zoo.search import Search
from sb3_reinforce.zoo.training import Training
from sb3_reinforce.zoo.trust import check_command, files_read
from sb3_reinforce.zoo.usage import Parser, UsageError, errors_in_one_line, refuse


def train(verb: Literal["train", "tune"], arguments: Sequence[str]) -> int:
    """
    Train, or search hyperparameters, as ``python -m rl_zoo3.train`` does, with REINFORCE registered.

    Tracking and the final evaluation are ours, see ``--help``; every other option goes to the zoo unchanged, with our defaults
    in front: of an option given twice the last counts. Under ``torchrun`` every rank runs this: rank 0 chooses folder and
    seed, evaluates, saves, tracks and reports.

    :return: the exit code: 0, 1 for a search with no finished trial, 2 for a command line that cannot be run
    """
    if verb == "tune":
        arguments = ["-optimize", *arguments]
    parser = make_parser(verb)
    options, zoo_arguments = parse(parser, arguments)
    if ranks.launched():
        check_ranks(options, parser)
        ranks.start(options.device)
        if options.seed < 0:  # the same for all ranks
            zoo_arguments += ["--seed", str(exchange.broadcast(int(np.random.SeedSequence().generate_state(1)[0])))]
    run = _run_to_resume(options, parser)
    trust = options.trust or (run is None and options.trained_agent is None)  # then it reads its own files alone
    if run is not None:
        typed = without_resume(arguments)
        if options.resume is not None:
            check_resumed(options, run, parser)
        # a run that torchrun has restarted is its own
        trust = trust or (options.resume is None and run.arguments[: len(typed)] == typed)
        if not trust:
            try:
                check_command(read_options(parser, run.arguments)[0], read_options(parser, typed)[0], run.folder)
            except UntrustedError as error:
                parser.error(f"--resume {error}")
        # restarted by torchrun, the command line is the run's own
        arguments = [*run.arguments, *(typed if options.resume is not None else ())]
        other_ranks = options.other_ranks
        options, zoo_arguments = parse(parser, arguments)
        options.other_ranks = other_ranks
    options.trust = trust
    check_options(options, run, parser)
    tracker = _tracker(options, parser) if options.track and ranks.rank() == 0 else None
    plan = Plan(arguments, options, run, tracker)
    kind = Search if options.optimize_hyperparameters else Training
    lines: list[str] = []
    exit_code = 1
    try:
        with files_read(trust), _silence() if ranks.rank() > 0 else nullcontext():
            _run_zoo(verb, [*defaults_for_zoo(options), *zoo_arguments], kind, plan)
        with files_read(trust=True):  # those that it has just written
            lines, exit_code = plan.finished.outcome() if plan.finished is not None else (lines, 0)
    except UsageError as error:
        refuse(error, verb)
        exit_code = error.exit_code
    except BaseException as error:
        exit_code = exit_code_of(error)
        raise
    finally:
        if tracker is not None:  # before the report, so that nothing is printed below it
            # where the zoo trains without our checkpoints it swallows a Ctrl-C
            tracker.finish(INTERRUPTED if exit_code == 0 and tracker.training_interrupted else exit_code)
    if lines:
        print(masked_text("\n".join(lines)), flush=True)
    return exit_code


def _run_to_resume(options: argparse.Namespace, parser: Parser) -> SavedRun | None:
    """:return: the run that the user names, else that of this launch of torchrun if it was restarted; None: a new run"""
    run = None
    if ranks.rank() == 0 and options.resume is not None:
        try:
            run = read_run(options.resume)
        except ValueError as error:
            parser.error(f"--resume {error}")
    elif ranks.rank() == 0 and ranks.restarted():
        run = run_of_launch(options.log_folder, ranks.launch_id())
    return exchange.broadcast(run)


@contextmanager
def _silence() -> Iterator[None]:
    """Switch off standard output and warnings."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tracker(options: argparse.Namespace, parser: Parser) -> WandbCallback:
    try:
        return WandbCallback(
            project=options.wandb_project_name,
            entity=options.wandb_entity,
            group=options.wandb_group,
            tags=options.wandb_tags,
            mode=options.wandb_mode,
            verbose=2 if asks_for_more(options.arguments) else 1,
            config={"command": command_line()},  # while the zoo runs, sys.argv is the zoo's
            finish_at_end=False,  # the final evaluation belongs to the run, too
        )
    except ImportError as error:
        parser.error(f"--track: {error}")


def _run_zoo(verb: Literal["train", "tune"], zoo_arguments: list[str], kind: type[Experiment], plan: Plan) -> None:
    register()

    def print_masked(*words: object) -> None:
        print(masked_text(" ".join(map(str, words))))

    def print_help(zoo_parser: argparse.ArgumentParser, file: Any = None) -> None:
        print(grouped_help(verb, make_parser(verb), zoo_parser), file=file, end="")

    # rl_zoo3.train keeps its manager to itself, but takes the class from exp_manager each time it is run
    with replaced(exp_manager, "ExperimentManager", type(kind.__name__, (kind,), {"plan": plan})):
        # orig_argv: the zoo saves it in files and in the study
        with (
            replaced(sys, "argv", [f"sb3-reinforce {verb}", *zoo_arguments]),
            replaced(sys, "orig_argv", masked_command(sys.orig_argv)),
            replaced(exp_manager, "print", print_masked),
            replaced(argparse.ArgumentParser, "print_help", print_help),
            errors_in_one_line(verb, [option for action in make_parser(verb)._actions for option in action.option_strings]),
        ):
            runpy.run_module("rl_zoo3.train", run_name="__main__")
