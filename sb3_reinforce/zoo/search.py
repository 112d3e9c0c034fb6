"""A hyperparameter search: RL Zoo's, with ranges checked, each trial normalised and tracked as its own, results as files."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import optuna
from gymnasium import spaces
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.policies import as_class, is_recurrent_class
from sb3_reinforce.tracking.callback import WandbCallback, trial_callback
from sb3_reinforce.tracking.run import exit_code_of
from sb3_reinforce.tracking.settings import masked_text
from sb3_reinforce.zoo.disk import no_room_in_one_line
from sb3_reinforce.zoo.experiment import Experiment, private_files
from sb3_reinforce.zoo.patches import replaced
from sb3_reinforce.zoo.quiet import BEST_TRIAL, asks_for_more, without_lines
from sb3_reinforce.zoo.search_space import Range, search_space, suggest
from sb3_reinforce.zoo.study import Results, check_ranges, plain_entry
from sb3_reinforce.zoo.usage import UsageError


class Search(Experiment):
    """RL Zoo's search. Trials leave no files, and may run in threads, where neither signals nor modules may be changed."""

    def create_log_folder(self) -> None:
        """Make none: the study has a folder of its own."""

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        return super().create_envs(n_envs, eval_env, no_log=True)

    def create_callbacks(self) -> None:
        super().create_callbacks()
        if self.plan.tracker is not None:
            self.plan.tracker.config.setdefault("env_id", str(self.env_name.gym_id))
            # the zoo imports the callbacks of trials by their names, and makes them anew for each trial
            given = self.specified_callbacks
            self.specified_callbacks = [*(given if isinstance(given, list) else [given]), f"{__name__}.tracker_of_trial"]

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        hyperparams = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        self.normalization = can_normalize(env.observation_space)
        if self.algo == "reinforce":
            # an error in the config is one of every trial, and reported before the first
            self._memory = is_recurrent_class(as_class(hyperparams["policy"]))
            first = {name: values[0] for name, values in search_space(self.n_envs, False, self._memory).items()}
            REINFORCE(env=env, device=self.device, **{**hyperparams, **HYPERPARAMS_CONVERTER[self.algo](first)})
        return hyperparams

    def _space(self) -> dict[str, Range]:
        return search_space(self.n_envs, self.normalization, self._memory)

    def hyperparameters_optimization(self) -> None:
        with self._shown_as_a_bar():
            self._search()

    def _search(self) -> None:
        if self.algo not in HYPERPARAMS_SAMPLER:
            raise UsageError(f"RL Zoo has no search space for {self.algo}; it has for {', '.join(HYPERPARAMS_SAMPLER)}")
        self._plain_entry = plain_entry(self.entry)
        self.study = self._study(create=True)
        if self.algo == "reinforce":
            check_ranges(self.study, self._space())
        self._plots = not self.no_optim_plots
        self.no_optim_plots = True  # of the zoo, which would open a browser
        self._failures: list[Exception] = []  # Optuna does not raise all those of threads
        try:
            # private: the zoo pickles the study with its storage
            with private_files(self.storage), no_room_in_one_line():
                super().hyperparameters_optimization()
        except ValueError:
            if Results(self.study, Path()).n_finished:
                raise
            # the zoo asks for the best trial, and there is none
            if self._failures:
                raise self._failures[0] from None
        self.plan.finished = self

    @contextmanager
    def _shown_as_a_bar(self) -> Iterator[None]:
        """Without ``-v``: a bar with the best trial so far, instead of a line for each trial with all that it tried."""
        if asks_for_more(self.plan.arguments):
            yield
            return
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        shown = partialmethod(optuna.Study.optimize, show_progress_bar=self.max_total_trials is None)
        try:
            with replaced(optuna.Study, "optimize", shown), without_lines(BEST_TRIAL):
                yield
        finally:
            optuna.logging.set_verbosity(before)

    def outcome(self) -> tuple[list[str], int]:
        """:return: lines about the best trial, written as a config; the exit code: 1 if no trial has finished"""
        results = Results(self.study, Path(self.log_path) / self.study.study_name.replace("/", "-"))
        if results.n_finished == 0:
            return [results.nothing()], 1
        trial = self.study.best_trial
        best = self._converted(trial.params, f"trial {trial.number}")
        env_id = self.env_name.gym_id
        with no_room_in_one_line():
            config = results.write_config(env_id, {**self._plain_entry, **best})
            pictures = results.draw() if self._plots else []
        return results.lines(env_id, self.algo, config, pictures, self.storage or ""), 0

    def objective(self, trial: optuna.Trial) -> float:
        this = self._normalizing_as(trial) if self.algo == "reinforce" else self
        tracker = self.plan.tracker
        try:
            with nullcontext() if tracker is None else _tracked(trial, tracker, tracker.group or str(self.study_name)):
                return super(Search, this).objective(trial)
        except optuna.TrialPruned as pruned:
            if pruned.__cause__ is not None:
                trial.set_user_attr("error", masked_text(str(pruned.__cause__)))
            raise
        except Exception as error:
            self._failures.append(error)
            raise

    def _normalizing_as(self, trial: optuna.Trial) -> "Search":
        """:return: a copy (trials may run in parallel) whose environments are normalised as the trial asks, by its gamma"""
        hyperparams = HYPERPARAMS_CONVERTER[self.algo](suggest(trial, self._space()))
        this = copy.copy(self)
        if "normalize" in hyperparams:
            this.normalize, this.normalize_kwargs = bool(hyperparams["normalize"]), hyperparams["normalize"] or {}
        this.normalize_kwargs = {**this.normalize_kwargs, "gamma": hyperparams["gamma"]}
        return this


def can_normalize(space: spaces.Space) -> bool:
    """:return: whether VecNormalize is of use for such observations: for numbers that are not an image's"""
    if isinstance(space, spaces.Dict):
        return all(map(can_normalize, space.spaces.values()))
    return isinstance(space, spaces.Box) and not is_image_space(space)


# The trial that runs in this thread: with --n-jobs the zoo runs several at once.
_running = threading.local()


@contextmanager
def _tracked(trial: optuna.Trial, tracker: WandbCallback, study: str) -> Iterator[None]:
    """Track a trial as a W&B run with the tracker's settings. A trial that was pruned because it failed is a failed run."""
    settings = {name: getattr(tracker, name) for name in ("project", "entity", "mode", "tags", "config")}
    _running.make_tracker = partial(trial_callback, trial, study, verbose=0, finish_at_end=False, **settings)
    _running.tracker = None
    ended_by: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        if _running.tracker is not None:
            pruned = isinstance(ended_by, optuna.TrialPruned)
            _running.tracker.log_summary({"trial/pruned": int(pruned)})
            _running.tracker.finish(exit_code_of(ended_by.__cause__ if pruned and ended_by else ended_by))


def tracker_of_trial() -> WandbCallback:
    """:return: a tracker of the trial that runs in this thread; RL Zoo calls this by its name"""
    _running.tracker = _running.make_tracker()
    return _running.tracker
