"""The options of ``train`` and ``tune``: our own, those of RL Zoo that decide what we do, and what we refuse."""

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import rl_zoo3.import_envs  # noqa: F401  registers more environments
from rl_zoo3.utils import StoreDict

from sb3_reinforce.tracking.run import Mode
from sb3_reinforce.tracking.settings import masked_command
from sb3_reinforce.zoo import config_file
from sb3_reinforce.zoo.checkpoints import SavedRun
from sb3_reinforce.zoo.environments import find_environment
from sb3_reinforce.zoo.quiet import asks_for_more
from sb3_reinforce.zoo.study import JOURNAL
from sb3_reinforce.zoo.usage import Parser

EXAMPLES = {
    "train": "sb3-reinforce train --env CartPole-v1 -P --eval-final 100",
    "tune": "sb3-reinforce tune --env CartPole-v1 --n-trials 50 -n 50000",
}


def make_parser(verb: str) -> Parser:
    """:return: a parser of our own options of ``train`` or ``tune``"""
    # no abbreviations: `--eval` would match our `--eval-final`, and the zoo has `--eval-freq`
    parser = Parser(prog=f"sb3-reinforce {verb}", epilog=f"example: {EXAMPLES[verb]}", add_help=False, allow_abbrev=False)
    if verb == "train":
        _add_options_of_training(parser)
    else:
        parser.description = (
            "RL Zoo's search, kept in a journal that several workers share (--storage, by default "
            "logs/ALGO/ENV-study.log), in the study ALGO-ENV (--study-name). Start the same command once per worker, and "
            "again to continue. The best trial is written as a config for `train --conf-file`, beside Optuna's plots "
            "(--no-optim-plots: without). `train --trial-id N` trains with any one trial."
        )
        no_resuming: dict[str, Any] = dict(resume=None, other_ranks=False, trust=False, checkpoint_every=0, diagnostics=0)
        parser.set_defaults(eval_final=0, wandb_video_freq=0, sampled=None, **no_resuming)
    per_trial, default_group = ("", "") if verb == "train" else (", one run per trial", " (default: the study's)")
    parser.add_argument("--track", action="store_true", help=f"log to Weights & Biases{per_trial}")
    parser.add_argument(
        "--wandb-mode",
        choices=get_args(Mode),
        default="auto",
        help="auto: what WANDB_MODE says, else online if an API key is configured, else offline (default: auto)",
    )
    parser.add_argument("--wandb-project-name", metavar="NAME", default="sb3-reinforce", help="default: sb3-reinforce")
    parser.add_argument("--wandb-entity", metavar="NAME", help="user or team that owns the project")
    parser.add_argument("--wandb-group", metavar="NAME", help=f"name that runs of one study share{default_group}")
    parser.add_argument("-tags", "--wandb-tags", metavar="TAG", nargs="+", default=[], help="labels of the run")
    return parser


def _add_options_of_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", metavar="FOLDER", help="resume the run in this folder, with its arguments and those given now"
    )
    parser.add_argument(
        "--other-ranks",
        action="store_true",
        help="with --resume: also on another number of torchrun's processes, with other batches and random numbers",
    )
    parser.add_argument(
        "--trust", action="store_true", help="run code that the files of --resume or -i may hold: as you would run a program"
    )
    parser.add_argument(
        "--sampled",
        metavar="JSON",
        type=_sampled,
        help="values of `tune`'s search space by its names, as a W&B sweep's ${args_json} gives them (zoo_configs/sweep.yml)",
    )
    parser.add_argument(
        "--diagnostics",
        metavar="N",
        nargs="?",
        type=int,
        const=20,
        default=0,
        help="log the gradient's variance, noise scale and signal-to-noise ratio every N updates, 20 by default: for --track "
        "and --tensorboard-log, or without -P for the terminal",
    )
    for option, default, help_ in (
        ("--eval-final", 0, "play N episodes with the saved model (default: 0)"),
        ("--checkpoint-every", 10, "save the run every N updates, to resume after a crash; 0: never (default: 10)"),
        ("--wandb-video-freq", 0, "film an episode every N steps (default: 0, never)"),
    ):
        parser.add_argument(option, metavar="N", type=int, default=default, help=help_)


def _sampled(text: str) -> dict[str, Any]:
    try:
        sampled = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be JSON, got {text!r} ({error})") from error
    if not isinstance(sampled, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return sampled


def read_options(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """:return: as :func:`parse`, for arguments of a file, too: no package is imported, and the environment not looked for"""
    options, zoo_arguments = parser.parse_known_args(arguments)
    peek = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    peek.add_argument("--algo", default="reinforce")
    peek.add_argument("--device", default="auto")
    peek.add_argument("--seed", type=int, default=-1)
    peek.add_argument("-f", "--log-folder", default="logs")
    peek.add_argument("--env", default="CartPole-v1")
    peek.add_argument("--gym-packages", nargs="+", default=[])
    peek.add_argument("-i", "--trained-agent")
    peek.add_argument("-conf", "--conf-file")
    for names in (("-params", "--hyperparams"), ("--env-kwargs",), ("--eval-env-kwargs",)):
        peek.add_argument(*names, nargs="+", default=[])
    peek.add_argument("--trial-id", type=int)
    peek.add_argument("-n", "--n-timesteps")
    peek.add_argument("--n-trials")
    peek.add_argument("-P", "--progress", action="store_true")
    peek.add_argument("-optimize", "--optimize-hyperparameters", action="store_true")
    return peek.parse_known_args(arguments, options)[0], zoo_arguments


def parse(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """:return: the values of our options, and of the zoo's that decide what we do; the arguments for the zoo"""
    options, zoo_arguments = read_options(parser, arguments)
    options.arguments = arguments
    try:
        options.env = find_environment(options.env, options.gym_packages)
    except ValueError as error:
        parser.error(str(error))
    return options, [*zoo_arguments, "--env", options.env]


def defaults_for_zoo(options: argparse.Namespace) -> list[str]:
    """:return: arguments that are put in front of the user's own for the zoo"""
    defaults = ["--algo", "reinforce"]
    if (options.progress or options.optimize_hyperparameters) and not asks_for_more(options.arguments):
        defaults += ["--verbose", "0"]  # the bar instead of a table for each update
    if options.algo == "reinforce":
        defaults += ["--conf-file", str(config_file())]
    if options.optimize_hyperparameters or options.trial_id is not None:
        # one file per environment, which several workers may share
        journal = Path(options.log_folder, options.algo, f"{options.env.replace('/', '-')}-study{JOURNAL}")
        defaults += ["--storage", str(journal), "--study-name", f"{options.algo}-{options.env}"]
    return defaults


def check_resumed(options: argparse.Namespace, run: SavedRun, parser: Parser) -> None:
    """Refuse, by the parser's error, options that cannot change when a run is resumed."""
    names = {
        "hyperparams": "-params", "conf_file": "--conf-file", "trial_id": "--trial-id",
        "trained_agent": "-i", "seed": "--seed",
    }  # fmt: skip
    unset, own = (vars(read_options(parser, arguments)[0]) for arguments in ([], run.arguments))
    changed = [option for name, option in names.items() if getattr(options, name) not in (unset[name], own[name])]
    if options.sampled is not None:
        changed.append("--sampled")
    if changed:
        parser.error(
            f"--resume goes on with the run's own hyperparameters and seed, so {', '.join(changed)} cannot be given: leave it "
            "out, or begin a new run with the agent of this one, -i MODEL.zip"
        )


def check_options(options: argparse.Namespace, run: SavedRun | None, parser: Parser) -> None:
    """Refuse, by the parser's error, wrong values of our options, and those of the zoo's that would end in a traceback."""
    units = {"eval_final": "episodes", "checkpoint_every": "updates", "wandb_video_freq": "steps", "diagnostics": "updates"}
    for name, unit in units.items():
        value = getattr(options, name)
        if value < 0:
            parser.error(f"--{name.replace('_', '-')} must be a number of {unit} >= 0, got {value}")
    for option, number, unit in (("-n", options.n_timesteps, "steps"), ("--n-trials", options.n_trials, "trials")):
        with suppress(TypeError, ValueError):  # not given, or no number: the zoo's parser says so
            if int(number) < 1 and (option, int(number)) != ("-n", -1):  # the zoo's default: as the config says
                parser.error(f"{option} must be a number of {unit} >= 1, got {number}")
    if options.diagnostics and options.algo != "reinforce":
        parser.error(f"--diagnostics measures REINFORCE's gradient, which {options.algo} does not have: leave it out")
    if options.diagnostics and options.optimize_hyperparameters:
        parser.error("--diagnostics is for a single run, and a search has many: leave it out")
    if run is not None and options.optimize_hyperparameters:
        parser.error(
            "--resume goes on with a training run; a search goes on by itself: give the same --study-name and --storage"
        )
    agent = options.trained_agent
    if agent is not None and options.optimize_hyperparameters:
        parser.error(f"-i trains an agent further, and a search trains new ones: leave it out, got {agent!r}")
    if run is None and agent is not None and not (agent.endswith(".zip") and os.path.isfile(agent)):
        parser.error(f"-i must be the file of a saved model, which ends in .zip, got {agent!r}: there is no such file")
    for option, values in (
        ("-params", options.hyperparams),
        ("--env-kwargs", options.env_kwargs),
        ("--eval-env-kwargs", options.eval_env_kwargs),
    ):
        for value in values:
            try:
                if ":" not in value:
                    raise ValueError("there is no colon")
                StoreDict([option], "checked")(parser, argparse.Namespace(), [value])
            except Exception as error:
                parser.error(
                    f"{option} takes name:value, the value being Python, so text needs quotes: \"baseline:'none'\"; "
                    f"got {masked_command([value])[0]!r} ({error})"
                )


def check_ranks(options: argparse.Namespace, parser: Parser) -> None:
    """Refuse, by the parser's error, what torchrun cannot run."""
    if options.algo != "reinforce":
        parser.error(f"torchrun trains --algo reinforce, got {options.algo!r}: run it without torchrun")
    if options.optimize_hyperparameters:
        parser.error(
            "a search is not for torchrun: start the same command once per worker, without torchrun, with one "
            "--study-name and --storage (a database's address or a journal's file)"
        )
