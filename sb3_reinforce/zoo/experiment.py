"""RL Zoo's experiment with what is ours: it can go on, is kept as it goes, is tracked, and searches as a study."""

import copy
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from pprint import pprint
from typing import TYPE_CHECKING, Any, ClassVar

import optuna
import yaml
from gymnasium import spaces
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.preprocessing import is_image_space

from sb3_reinforce import REINFORCE, distributed
from sb3_reinforce.tracking.callback import WandbCallback, trial_callback
from sb3_reinforce.tracking.run import exit_code_of
from sb3_reinforce.zoo.checkpoints import (
    Run,
    RunCheckpoint,
    keyboard_left_to_us,
    monitor_files,
    plain_hyperparams,
    started_at,
    stopped_by_signals,
    without_resume,
    write_run,
)
from sb3_reinforce.zoo.config import UsageError, check_entry, read_entry
from sb3_reinforce.zoo.mends import replaced
from sb3_reinforce.zoo.report import command, relative
from sb3_reinforce.zoo.search_space import complete_sample, search_space, suggest
from sb3_reinforce.zoo.study import Results, check_ranges, open_study, params_of_trial, plain_entry

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv


@dataclass
class Plan:
    """
    What the command line asks for beyond RL Zoo's options, and what came of it.

    :param arguments: our own command line, to be kept with the checkpoints
    :param tracker: callback to put beside the zoo's own; in a hyperparameter search its settings serve the trials' own
    :param run: the run to go on with; None: a new one
    :param checkpoint_every: number of updates from one checkpoint to the next; 0: none
    :param video_freq: steps from one video to the next; 0: no videos
    :param conf_file_given: whether the user names a config
    :param sampled: values by the names of the search space, as a W&B sweep gives them
    :param trained: the experiment, once it has saved its model
    :param found: of a search, the lines about what it has found
    :param found_nothing: whether no trial has finished
    """

    arguments: Sequence[str]
    tracker: WandbCallback | None = None
    run: Run | None = None
    checkpoint_every: int = 0
    video_freq: int = 0
    conf_file_given: bool = False
    sampled: dict[str, Any] | None = None
    trained: "Experiment | None" = None
    found: Sequence[str] = ()
    found_nothing: bool = False


class Experiment(exp_manager.ExperimentManager):
    """RL Zoo's, with our callbacks, able to go on, known to us once it saved its model, one folder for all ranks."""

    plan: ClassVar[Plan]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoint: RunCheckpoint | None = None
        self.stopped_by: list[int] = []
        self.created_folder: str | None = None
        # steps that the agent given by -i has played before this run
        self.first_step = 0
        if self.plan.run is not None:
            run = self.plan.run
            self.save_path, self.params_path = str(run.folder), str(run.folder / self.env_name)
            self.continue_training, self.first_step = True, run.first_step

    # --------------------------------------------------------------------------------------------- hyperparameters

    def setup_experiment(self) -> "tuple[BaseAlgorithm, dict[str, Any]] | None":
        try:
            return super().setup_experiment()
        except BaseException as error:
            if self.created_folder is not None:  # without a model it would be in the way of those that look for the newest
                shutil.rmtree(self.created_folder, ignore_errors=True)
            if isinstance(error, ValueError) and not isinstance(error, UsageError):  # from a constructor
                raise UsageError(f"{error} (hyperparameters from {self._source()})") from error
            raise

    def _source(self) -> str:
        """:return: where the hyperparameters come from"""
        file = str(self._config_of_pretrained() or self.config)
        return f"{file} and -params" if self.custom_hyperparams else file

    def _config_of_pretrained(self) -> Path | None:
        """:return: what the agent given by -i was trained with, if that is known and the user gives no other config"""
        file = Path(self.trained_agent).parent / self.env_name / "config.yml"
        return file if self.trained_agent and not self.plan.conf_file_given and file.is_file() else None

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the zoo reads them, but what is wrong is named, trial 0 counts, ``-i`` brings its own, and so does a sweep."""
        run = self.plan.run
        if run is not None and run.hyperparams is not None:
            return copy.deepcopy(run.hyperparams), copy.deepcopy(run.hyperparams)
        own = self._config_of_pretrained()
        print(f"Loading hyperparameters from: {self._source()}")
        parts = {str(own or self.config): _saved_entry(own) if own else self._read_entry()}
        if self.trial_id is not None:
            parts[f"trial {self.trial_id}"] = self._converted(
                params_of_trial(self._study(create=False), self.trial_id), f"trial {self.trial_id}"
            )
        if self.plan.sampled is not None:
            sampled = self.plan.sampled
            if self.algo == "reinforce":
                sampled = complete_sample(sampled, parts[str(own or self.config)])
            parts["--sampled"] = self._converted(sampled, "--sampled")
        parts["-params"] = self.custom_hyperparams or {}
        entry: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, part in parts.items():
            entry |= part
            sources |= dict.fromkeys(part, source)
        check_entry(self.algo, entry, lambda key: sources.get(key, self._source()))
        if "env_kwargs" in entry and self.env_kwargs:  # the command line's
            entry["env_kwargs"] = self.env_kwargs
        self.entry = {key: copy.deepcopy(entry[key]) for key in sorted(entry)}
        print("Hyperparameters (those being tuned will be replaced):")
        pprint(self.entry)
        return entry, OrderedDict(copy.deepcopy(self.entry))  # as the zoo saves it

    def _read_entry(self) -> dict[str, Any]:
        return read_entry(self.config, self.env_name.gym_id, self._is_atari)

    def _study(self, create: bool) -> optuna.Study:
        assert self.storage is not None, "train() gives it a default"
        assert self.study_name is not None, "train() gives it a default"
        return open_study(self.storage, self.study_name, create)

    def _converted(self, params: dict[str, Any], source: str) -> dict[str, Any]:
        """:return: sampled values as a config has them"""
        try:
            return plain_entry(HYPERPARAMS_CONVERTER[self.algo](params))
        except KeyError as error:
            raise UsageError(f"{source}: {error} is nothing that the search of {self.algo} knows, got {params}") from error

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if distributed.rank() > 0:
            return
        if self.plan.run is None:
            super()._save_config(saved_hyperparams)
        if self.checkpoint is not None:
            kept = [*without_resume(self.plan.arguments), "--seed", str(self.seed)]
            hyperparams = plain_hyperparams(saved_hyperparams)
            write_run(Run(Path(self.save_path), kept, hyperparams, distributed.launch_id(), self.first_step))

    # ------------------------------------------------------------------------------- folder, environments, callbacks

    def create_log_folder(self) -> None:
        if self.optimize_hyperparameters:  # trials keep nothing, the study has a folder of its own
            return
        if distributed.rank() == 0:
            there = os.path.exists(self.save_path)
            try:
                super().create_log_folder()
            except OSError as error:
                raise UsageError(f"the run's folder {self.save_path} cannot be made: {error.strerror}") from error
            self.created_folder = None if there else self.save_path
        self.save_path, self.params_path = distributed.broadcast((self.save_path, self.params_path))

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> "VecEnv":
        if self.optimize_hyperparameters:
            # no files, and trials may run in threads, where neither signals nor a module's names are to be changed
            return super().create_envs(n_envs, eval_env, no_log=True)
        # Monitor's files are numbered over all ranks; on another machine there may be no such folder
        first = distributed.rank() * n_envs
        no_log = no_log or not os.path.isdir(self.save_path)
        run = self.plan.run
        there = [] if run is None or eval_env or no_log else monitor_files(run.folder)[first : first + n_envs]

        def make_vec_env(*args: Any, **kwargs: Any) -> "VecEnv":
            kwargs["monitor_kwargs"] = {**(kwargs["monitor_kwargs"] or {}), "override_existing": not there}
            kwargs["start_index"] = first
            return original_make_vec_env(*args, **kwargs)

        original_make_vec_env = exp_manager.make_vec_env
        with replaced(exp_manager, "make_vec_env", make_vec_env), keyboard_left_to_us():
            env = super().create_envs(n_envs, eval_env, no_log)
        # Monitor counts seconds from the start that its file names
        for index, file in enumerate(there):
            env.env_method("set_wrapper_attr", "t_start", started_at(file), indices=index)
        return env

    def _maybe_normalize(self, env: "VecEnv", eval_env: bool) -> "VecEnv":
        """VecNormalize takes a Box or a Dict of them: what else is observed stays as it is, rewards are normalised."""
        space = env.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
        boxes = [key for key, part in parts.items() if isinstance(part, spaces.Box)]
        if self.normalize and len(boxes) < len(parts) and self.normalize_kwargs.get("norm_obs", True):
            if boxes:
                self.normalize_kwargs.setdefault("norm_obs_keys", boxes)
            else:
                print(f"Observations of {self.env_name} are not normalised, which is for Box: {space}")
                self.normalize_kwargs["norm_obs"] = False
        return super()._maybe_normalize(env, eval_env)

    def create_callbacks(self) -> None:
        # in steps of all ranks
        self.save_freq, self.eval_freq = (
            max(freq // distributed.world_size(), 1) if freq > 0 else freq for freq in (self.save_freq, self.eval_freq)
        )
        if distributed.rank() > 0:
            self.show_progress, self.save_freq, self.eval_freq = False, -1, -1
            self.callbacks = [c for c in self.callbacks if distributed.callbacks_of_this_rank(c) is not None]
        super().create_callbacks()
        plan = self.plan
        if plan.checkpoint_every and not self.optimize_hyperparameters and issubclass(ALGOS[self.algo], REINFORCE):
            self.checkpoint = RunCheckpoint(Path(self.save_path), plan.checkpoint_every)
            self.callbacks.append(self.checkpoint)
        if plan.tracker is None:
            return
        plan.tracker.config.setdefault("env_id", str(self.env_name.gym_id))
        if self.optimize_hyperparameters:
            # the zoo takes callbacks of trials by their names, and makes them anew for each trial
            own = self.specified_callbacks
            own = list(own) if isinstance(own, list) else [own]
            self.specified_callbacks = [*own, f"{__name__}.{tracker_of_trial.__name__}"]
        else:
            if plan.video_freq:
                plan.tracker.video_env, plan.tracker.video_freq = self._video_env(), plan.video_freq
            self.callbacks.append(plan.tracker)

    def _video_env(self) -> "VecEnv":
        own = self.eval_env_kwargs
        self.eval_env_kwargs = {**own, "render_mode": "rgb_array"}
        try:
            return self.create_envs(1, eval_env=True, no_log=True)
        finally:
            self.eval_env_kwargs = own

    # ---------------------------------------------------------------------------------------------------- training

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: "VecEnv") -> "BaseAlgorithm":
        run = self.plan.run
        if run is not None and not run.checkpoints.is_dir():  # on another machine: learn() begins with what rank 0 has
            return ALGOS[self.algo](env=env, seed=self.seed, device=self.device, **hyperparams)
        try:
            if run is None:
                model = super()._load_pretrained_agent(hyperparams, env)
            else:
                model = REINFORCE.resume(run.checkpoints, env, device=None if self.device == "auto" else self.device)
        except ValueError as error:
            raise UsageError(f"{f'-i {self.trained_agent}' if run is None else f'--resume {run.folder}'}: {error}") from error
        if run is None:
            self.first_step = model.num_timesteps
            statistics = Path(self.trained_agent).parent / self.env_name / "vecnormalize.pkl"
            if self.normalize and not statistics.is_file():
                print(f"There is no {statistics}: VecNormalize starts afresh, on what the agent was not trained with")
        start = self.trained_agent if run is None else model._checkpoint  # type: ignore[attr-defined]
        print(f"Going on from {start}, at {model.num_timesteps} of {self.first_step + self.n_timesteps} steps")
        return model

    def learn(self, model: "BaseAlgorithm") -> None:
        if self.checkpoint is not None and model.unfinished == "bootstrap":  # type: ignore[attr-defined]
            print('No checkpoints: with unfinished="bootstrap" a run cannot go on exactly')
            self.callbacks.remove(self.checkpoint)
            self.checkpoint = None
        if self.checkpoint is None:
            # the zoo would have an agent given by -i begin again at step 0
            go_on = partialmethod(type(model).learn, reset_num_timesteps=not self.continue_training)
            with replaced(type(model), "learn", go_on):
                super().learn(model)
            return
        model.num_timesteps = distributed.broadcast(model.num_timesteps)
        kwargs = {} if self.log_interval == -1 else {"log_interval": None if self.log_interval < 0 else self.log_interval}
        try:
            with stopped_by_signals(self.checkpoint) as self.stopped_by:
                model.learn(
                    self.first_step + self.n_timesteps - model.num_timesteps,
                    callback=self.callbacks,
                    reset_num_timesteps=not self.continue_training,
                    **kwargs,  # type: ignore[arg-type]
                )
            self.stopped_by = [number for numbers in distributed.gather(self.stopped_by) for number in numbers]
        except Exception as error:
            if self.checkpoint.newest is not None:
                error.add_note("\n".join(how_to_go_on(self)))
            raise
        finally:
            for callback in self.callbacks:
                if isinstance(callback, ProgressBarCallback) and hasattr(callback, "pbar"):
                    callback.on_training_end()
            with suppress(EOFError, OSError):  # workers that died cannot be told to close
                assert model.env is not None
                model.env.close()

    def save_trained_model(self, model: "BaseAlgorithm") -> None:
        if distributed.rank() > 0:
            return
        super().save_trained_model(model)
        self.plan.trained = self

    # ------------------------------------------------------------------------------------------------------ search

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: "VecEnv"
    ) -> dict[str, Any]:
        hyperparams = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        self._can_normalize = _can_normalize(env.observation_space)
        if self.optimize_hyperparameters and self.algo == "reinforce":
            # what is wrong with the config is wrong with every trial, and said now
            first = {name: values[0] for name, values in search_space(self.n_envs, normalization=False).items()}
            REINFORCE(env=env, device=self.device, **{**hyperparams, **HYPERPARAMS_CONVERTER[self.algo](first)})
        return hyperparams

    def hyperparameters_optimization(self) -> None:
        if self.algo not in HYPERPARAMS_SAMPLER:
            raise UsageError(f"RL Zoo has no search space for {self.algo}; it has for {', '.join(HYPERPARAMS_SAMPLER)}")
        entry = plain_entry(self.entry)
        study = self._study(create=True)
        if self.algo == "reinforce":
            check_ranges(study, search_space(self.n_envs, self._can_normalize))
        plots = not self.no_optim_plots
        self.no_optim_plots = True  # of the zoo, which would open a browser
        self._failures: list[Exception] = []  # of trials in threads Optuna does not raise all
        try:
            super().hyperparameters_optimization()
        except ValueError:
            if Results(study, Path()).n_finished:
                raise
            # the zoo has asked for the best trial, and there is none
            if self._failures:
                raise self._failures[0] from None
        results = Results(study, Path(self.log_path) / study.study_name.replace("/", "-"))
        if results.n_finished == 0:
            self.plan.found_nothing, self.plan.found = True, [results.nothing()]
            return
        best = self._converted(study.best_trial.params, f"trial {study.best_trial.number}")
        config = results.write_config(self.env_name.gym_id, {**entry, **best})
        pictures = results.draw() if plots else []
        self.plan.found = results.lines(self.env_name.gym_id, self.algo, config, pictures, self.storage or "")

    def objective(self, trial: "optuna.Trial") -> float:
        this = self._normalizing_as(trial) if self.algo == "reinforce" else self
        try:
            if self.plan.tracker is None:
                return super(Experiment, this).objective(trial)
            with _tracked_trial(self.plan.tracker, trial, self.plan.tracker.group or str(self.study_name)):
                return super(Experiment, this).objective(trial)
        except optuna.TrialPruned as pruned:
            if pruned.__cause__ is not None:
                trial.set_user_attr("error", str(pruned.__cause__))
            raise
        except Exception as error:
            self._failures.append(error)
            raise

    def _normalizing_as(self, trial: "optuna.Trial") -> "Experiment":
        """
        :param trial: one of REINFORCE's
        :return: a copy (trials may run in parallel) whose environments are normalised as the trial asks, by its gamma
        """
        hyperparams = HYPERPARAMS_CONVERTER[self.algo](suggest(trial, search_space(self.n_envs, self._can_normalize)))
        this = copy.copy(self)
        if "normalize" in hyperparams:
            this.normalize, this.normalize_kwargs = bool(hyperparams["normalize"]), hyperparams["normalize"] or {}
        this.normalize_kwargs = {**this.normalize_kwargs, "gamma": hyperparams["gamma"]}
        return this


def _saved_entry(file: Path) -> dict[str, Any]:
    """:return: what the zoo has saved beside a model; it holds Python objects, and is read as the zoo itself reads it"""
    return dict(yaml.load(file.read_text(), Loader=yaml.UnsafeLoader))


def _can_normalize(space: spaces.Space) -> bool:
    """:return: whether VecNormalize takes such observations, images apart"""
    if isinstance(space, spaces.Dict):
        return all(_can_normalize(part) for part in space.spaces.values())
    return isinstance(space, spaces.Box) and not is_image_space(space)


def how_to_go_on(experiment: Experiment) -> list[str]:
    """:return: two lines about a run that was stopped"""
    assert experiment.checkpoint is not None
    newest = experiment.checkpoint.newest
    if newest is None:
        return ["Stopped; nothing was saved to go on from."]
    return [
        f"Saved:   {relative(newest)}",
        f"Go on:   {command('sb3-reinforce')} train --resume {relative(Path(experiment.save_path))}",
    ]


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
