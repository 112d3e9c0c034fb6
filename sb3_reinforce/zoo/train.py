"""``sb3-reinforce train``: RL Zoo's train, saved as it goes, tracked by our callback, and a report of what came out."""

import argparse
import copy
import os
import runpy
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from sb3_reinforce import distributed
from sb3_reinforce.tracking.callback import (
    INTERRUPTED,
    Mode,
    WandbCallback,
    exit_code_of,
    trial_callback,
)
from sb3_reinforce.tracking.settings import command_line
from sb3_reinforce.zoo import config_file, register
from sb3_reinforce.zoo.checkpoints import (
    Run,
    RunCheckpoint,
    keyboard_left_to_us,
    monitor_files,
    plain_hyperparams,
    read_run,
    run_of_launch,
    started_at,
    stopped_by_signals,
    without_resume,
    write_run,
)
from sb3_reinforce.zoo.report import command, draw_learning_curve, evaluate_saved, relative, report_lines

if TYPE_CHECKING:
    import optuna
    from rl_zoo3.exp_manager import ExperimentManager
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv


def train(arguments: Sequence[str]) -> int:
    """
    Train as ``python -m rl_zoo3.train`` does, with REINFORCE registered, and say where the results are.

    Tracking and the final evaluation are ours, see ``--help``; every other option goes to the zoo unchanged. ``--algo
    reinforce`` and our config file are put in front of them: of an option given twice the last counts, the user's own.

    Under ``torchrun`` every rank runs this: rank 0 chooses folder and seed, evaluates, saves, tracks and reports.

    :param arguments: the command line after the verb
    :return: the exit code
    """
    parser = _parser()
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        print("\n--- RL Zoo's options (for --track and --wandb-*, those above apply) ---\n")
    options, zoo_arguments = parser.parse_known_args(arguments)
    zoo_options = _zoo_options(arguments)
    if distributed.launched():
        zoo_arguments += _join_ranks(zoo_options, parser)
    run = _run_to_go_on_with(options.resume, zoo_options.log_folder, parser)
    if run is not None:
        # begun again by torchrun: the command line is the same
        arguments = [*run.arguments, *(without_resume(arguments) if options.resume is not None else ())]
        options, zoo_arguments = parser.parse_known_args(arguments)
    if options.eval_final < 0:
        parser.error(f"--eval-final must be a number of episodes >= 0, got {options.eval_final}")
    if options.checkpoint_every < 0:
        parser.error(f"--checkpoint-every must be a number of updates >= 0, got {options.checkpoint_every}")
    if options.wandb_video_freq < 0:
        parser.error(f"--wandb-video-freq must be a number of steps >= 0, got {options.wandb_video_freq}")
    defaults = ["--algo", "reinforce"]
    if _zoo_options(arguments).algo == "reinforce":
        defaults += ["--conf-file", str(config_file())]
    tracker = _tracker(options, parser) if options.track and distributed.rank() == 0 else None

    exit_code = 1
    try:
        with _silent(distributed.rank() > 0):
            experiment = _run_zoo(
                [*defaults, *zoo_arguments], tracker, arguments, run, options.checkpoint_every, options.wandb_video_freq
            )
        lines, exit_code = [], 0
        if experiment is not None and experiment.stopped_by:  # type: ignore[attr-defined]
            lines, exit_code = _how_to_go_on(experiment), 128 + experiment.stopped_by[0]  # type: ignore[attr-defined]
        elif experiment is not None:
            lines = _results(experiment, tracker, options.eval_final)
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


def _parser() -> argparse.ArgumentParser:
    # no abbreviations: `--eval` would take the zoo's `--eval-freq` away
    parser = argparse.ArgumentParser(prog="sb3-reinforce train", add_help=False, allow_abbrev=False)
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
    parser.add_argument(
        "--wandb-video-freq",
        metavar="N",
        type=int,
        default=0,
        help="film an episode every N steps (default: 0, never)",
    )
    parser.add_argument("-tags", "--wandb-tags", metavar="TAG", nargs="+", default=[], help="labels of the run")
    return parser


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


def _run_zoo(
    zoo_arguments: list[str],
    tracker: WandbCallback | None,
    arguments: Sequence[str],
    run: Run | None,
    checkpoint_every: int,
    video_freq: int = 0,
) -> "ExperimentManager | None":
    """
    Run ``rl_zoo3.train`` in this process.

    :param zoo_arguments: its command line
    :param tracker: callback to put beside the zoo's own; in a hyperparameter search its settings serve the trials' own
    :param arguments: our own command line, to be kept with the checkpoints
    :param run: the run to go on with; None: a new one
    :param checkpoint_every: number of updates from one checkpoint to the next; 0: none
    :param video_freq: steps from one video to the next; 0: no videos
    :return: the experiment, if it saved a model (a hyperparameter search does not)
    """
    register()
    from rl_zoo3 import ALGOS, exp_manager
    from stable_baselines3.common.callbacks import ProgressBarCallback

    from sb3_reinforce import REINFORCE

    saved: list[ExperimentManager] = []

    class OurExperimentManager(exp_manager.ExperimentManager):
        """The zoo's, with our callbacks, able to go on, known to us once it saved its model, one folder for all ranks."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.checkpoint: RunCheckpoint | None = None
            self.stopped_by: list[int] = []
            if run is not None:
                self.save_path, self.params_path = str(run.folder), str(run.folder / self.env_name)
                self.continue_training = True

        def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
            if run is not None and run.hyperparams is not None:
                return copy.deepcopy(run.hyperparams), copy.deepcopy(run.hyperparams)
            return super().read_hyperparameters()

        def create_log_folder(self) -> None:
            if distributed.rank() == 0:
                super().create_log_folder()
            self.save_path, self.params_path = distributed.broadcast((self.save_path, self.params_path))

        def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
            if distributed.rank() > 0:
                return
            if run is None:
                super()._save_config(saved_hyperparams)
            if self.checkpoint is not None:
                kept = [*without_resume(arguments), "--seed", str(self.seed)]
                write_run(Run(Path(self.save_path), kept, plain_hyperparams(saved_hyperparams), distributed.launch_id()))

        def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> "VecEnv":
            # Monitor's files are numbered over all ranks; on another machine there may be no such folder
            first = distributed.rank() * n_envs
            no_log = no_log or not os.path.isdir(self.save_path)
            there = [] if run is None or eval_env or no_log else monitor_files(run.folder)[first : first + n_envs]

            def make_vec_env(*args: Any, **kwargs: Any) -> "VecEnv":
                kwargs["monitor_kwargs"] = {**(kwargs["monitor_kwargs"] or {}), "override_existing": not there}
                kwargs["start_index"] = first
                return original_make_vec_env(*args, **kwargs)

            original_make_vec_env = exp_manager.make_vec_env
            with _replaced(exp_manager, "make_vec_env", make_vec_env), keyboard_left_to_us():
                env = super().create_envs(n_envs, eval_env, no_log)
            # Monitor counts seconds from the start that its file names
            for index, file in enumerate(there):
                env.env_method("set_wrapper_attr", "t_start", started_at(file), indices=index)
            return env

        def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: "VecEnv") -> "BaseAlgorithm":
            if run is None:
                return super()._load_pretrained_agent(hyperparams, env)
            if not run.checkpoints.is_dir():  # on another machine: learn() begins with what rank 0 has
                return ALGOS[self.algo](env=env, seed=self.seed, device=self.device, **hyperparams)
            model = REINFORCE.resume(run.checkpoints, env, device=None if self.device == "auto" else self.device)
            print(f"Going on from {model._checkpoint}, at {model.num_timesteps} of {self.n_timesteps} steps")
            return model

        def learn(self, model: "BaseAlgorithm") -> None:
            if self.checkpoint is not None and model.unfinished == "bootstrap":  # type: ignore[attr-defined]
                print('No checkpoints: with unfinished="bootstrap" a run cannot go on exactly')
                self.callbacks.remove(self.checkpoint)
                self.checkpoint = None
            if self.checkpoint is None:
                super().learn(model)
                return
            model.num_timesteps = distributed.broadcast(model.num_timesteps)
            kwargs = {} if self.log_interval == -1 else {"log_interval": None if self.log_interval < 0 else self.log_interval}
            # an agent given by -i has played before, but not in this run
            played = 0 if run is None else model.num_timesteps
            try:
                with stopped_by_signals(self.checkpoint) as self.stopped_by:
                    model.learn(
                        self.n_timesteps - played,
                        callback=self.callbacks,
                        reset_num_timesteps=run is None,
                        **kwargs,  # type: ignore[arg-type]
                    )
                self.stopped_by = [number for numbers in distributed.gather(self.stopped_by) for number in numbers]
            except Exception as error:
                if self.checkpoint.newest is not None:
                    error.add_note("\n".join(_how_to_go_on(self)))
                raise
            finally:
                for callback in self.callbacks:
                    if isinstance(callback, ProgressBarCallback) and hasattr(callback, "pbar"):
                        callback.on_training_end()
                with suppress(EOFError, OSError):  # workers that died cannot be told to close
                    assert model.env is not None
                    model.env.close()

        def create_callbacks(self) -> None:
            # in steps of all ranks
            self.save_freq, self.eval_freq = (
                max(freq // distributed.world_size(), 1) if freq > 0 else freq for freq in (self.save_freq, self.eval_freq)
            )
            if distributed.rank() > 0:
                self.show_progress, self.save_freq, self.eval_freq = False, -1, -1
                self.callbacks = [c for c in self.callbacks if distributed.callbacks_of_this_rank(c) is not None]
            super().create_callbacks()
            if checkpoint_every and not self.optimize_hyperparameters and issubclass(ALGOS[self.algo], REINFORCE):
                self.checkpoint = RunCheckpoint(Path(self.save_path), checkpoint_every)
                self.callbacks.append(self.checkpoint)
            if tracker is None:
                return
            tracker.config.setdefault("env_id", str(self.env_name.gym_id))
            if self.optimize_hyperparameters:
                # the zoo takes callbacks of trials by their names, and makes them anew for each trial
                own = self.specified_callbacks
                own = list(own) if isinstance(own, list) else [own]
                self.specified_callbacks = [*own, f"{__name__}.{tracker_of_trial.__name__}"]
            else:
                if video_freq:
                    tracker.video_env, tracker.video_freq = self._video_env(), video_freq
                self.callbacks.append(tracker)

        def _video_env(self) -> "VecEnv":
            own = self.eval_env_kwargs
            self.eval_env_kwargs = {**own, "render_mode": "rgb_array"}
            try:
                return self.create_envs(1, eval_env=True, no_log=True)
            finally:
                self.eval_env_kwargs = own

        def objective(self, trial: "optuna.Trial") -> float:
            if tracker is None:
                return super().objective(trial)
            study = tracker.group or self.study_name or f"{self.algo}-{self.env_name.gym_id}"
            with _tracked_trial(tracker, trial, study):
                return super().objective(trial)

        def save_trained_model(self, model: "BaseAlgorithm") -> None:
            if distributed.rank() > 0:
                return
            super().save_trained_model(model)
            saved.append(self)

    # rl_zoo3.train keeps its manager to itself, but takes the class from exp_manager each time it is run
    with _replaced(exp_manager, "ExperimentManager", OurExperimentManager):
        with _replaced(sys, "argv", ["sb3-reinforce train", *zoo_arguments]):
            runpy.run_module("rl_zoo3.train", run_name="__main__")
    return saved[-1] if saved else None


# The trial that runs in this thread: the zoo runs several at once in threads (--n-jobs).
_running = threading.local()


@contextmanager
def _tracked_trial(tracker: WandbCallback, trial: "optuna.Trial", study: str) -> Iterator[None]:
    """
    A W&B run for one trial of a hyperparameter search.

    A trial that is pruned is a finished run with ``trial/pruned`` in its summary; one pruned because it has failed is a failed
    run.

    :param tracker: whose project, mode and so on the run takes over
    :param trial: what the zoo is about to try
    :param study: the runs' group
    """
    import optuna

    _running.trial, _running.study, _running.tracker = trial, study, None
    _running.settings = {
        **{name: getattr(tracker, name) for name in ("project", "entity", "mode", "tags", "config")},
        "verbose": 0,
        "finish_at_end": False,
    }
    ended_by: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        if _running.tracker is not None:
            pruned = isinstance(ended_by, optuna.exceptions.TrialPruned)
            _running.tracker.log_summary({"trial/pruned": int(pruned)})
            cause = ended_by.__cause__ if pruned and ended_by is not None else ended_by
            _running.tracker.finish(exit_code_of(cause))


def tracker_of_trial() -> WandbCallback:
    """:return: the tracker of the trial that runs in this thread; the zoo calls this by its name"""
    _running.tracker = trial_callback(_running.trial, _running.study, **_running.settings)
    return _running.tracker


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _how_to_go_on(experiment: Any) -> list[str]:
    newest = experiment.checkpoint.newest
    if newest is None:
        return ["Stopped; nothing was saved to go on from."]
    return [
        f"Saved:   {relative(newest)}",
        f"Go on:   {command('sb3-reinforce')} train --resume {relative(Path(experiment.save_path))}",
    ]


def _results(experiment: "ExperimentManager", tracker: WandbCallback | None, n_episodes: int) -> list[str]:
    score = evaluate_saved(experiment, n_episodes) if n_episodes > 0 else None
    if tracker is not None and score is not None:
        tracker.log_summary({"eval/final_mean_reward": score.mean, "eval/final_std_reward": score.std})
    return report_lines(experiment, score, draw_learning_curve(experiment, score), tracker)
