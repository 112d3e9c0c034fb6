"""A search's study: its storage, whether it fits the search, and its results."""

import io
import json
import shlex
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import optuna.storages.journal
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from torch import nn

from sb3_reinforce.running.files import write_atomically
from sb3_reinforce.tracking.settings import holds_secret
from sb3_reinforce.zoo.search_space import Range
from sb3_reinforce.zoo.usage import UsageError, relative, shell_line

# the zoo takes a storage with this ending as a journal, any other as a database's address
JOURNAL = ".log"


def open_study(storage: str, study_name: str, create: bool) -> optuna.Study:
    """:raises UsageError: if ``storage``, a journal's file or a database's address, or the study in it cannot be opened"""
    where: optuna.storages.JournalStorage | str = storage
    if storage.endswith(JOURNAL):
        journal = Path(storage)
        if not create and not journal.is_file():  # Optuna would make an empty one
            raise UsageError(f"--storage {storage}: there is no such journal")
        try:
            _check_journal(journal)
            journal.parent.mkdir(parents=True, exist_ok=True)
            where = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
        except OSError as error:
            raise UsageError(f"--storage {storage} cannot be used: {error.strerror}") from error
    elif "://" not in storage:
        raise UsageError(
            f"--storage must be a journal's file, whose name ends in {JOURNAL}, or a database's address such as "
            f"sqlite:///study.db, got {storage!r}"
        )
    try:
        if create:
            return optuna.create_study(storage=where, study_name=study_name, load_if_exists=True, direction="maximize")
        return optuna.load_study(storage=where, study_name=study_name)
    except KeyError as error:
        known = ", ".join(sorted(optuna.get_all_study_names(where))) or "none"
        raise UsageError(f"--study-name {study_name!r} is not in {storage}, which has: {known}") from error
    except Exception as error:  # whatever a database's driver raises
        raise UsageError(f"--storage {storage} cannot be used: {error}") from error


def _check_journal(journal: Path) -> None:
    """:raises UsageError: if the file exists and is not Optuna's, which would append to it"""
    with suppress(FileNotFoundError), journal.open(errors="replace") as file:
        line = file.readline()
        with suppress(ValueError, TypeError):
            if not line or "op_code" in json.loads(line):
                return
        raise UsageError(f"--storage {journal} must be a journal that Optuna has written, or a new file: name another")


def params_of_trial(study: optuna.Study, number: int) -> dict[str, Any]:
    """:return: the values that a trial tried; trials count from 0"""
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise UsageError(f"--trial-id must be one of the {len(trials)} trials of {study.study_name!r}, from 0, got {number}")
    return dict(trials[number].params)


def check_ranges(study: optuna.Study, space: Mapping[str, Range]) -> None:
    """:raises UsageError: if a study's trials were drawn from other ranges than the search's"""
    now: dict[str, BaseDistribution] = {
        name: FloatDistribution(low=values[0], high=values[1], log=True)
        if isinstance(values, tuple)
        else CategoricalDistribution(values)
        for name, values in space.items()
    }
    for trial in study.get_trials(deepcopy=False):
        for name, before in trial.distributions.items():
            if now.get(name) != before:
                raise UsageError(
                    f"--study-name {study.study_name!r} has searched {name} in {_range(before)}, now it would be "
                    f"{_range(now[name]) if name in now else 'left as it is'}: choose another --study-name"
                )


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return str(list(distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution), "Optuna has no other"
    return f"{distribution.low:g} to {distribution.high:g}{', log' if distribution.log else ''}"


class Results:
    """The results of a search so far, those of all its workers."""

    def __init__(self, study: optuna.Study, folder: Path):
        self.study, self.folder = study, folder
        self.trials = study.get_trials(deepcopy=False)
        self.n_finished, self.n_pruned, self.n_failed = (
            sum(trial.state == state for trial in self.trials)
            for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        )

    def nothing(self) -> str:
        """:return: a line that says why there is no best trial"""
        reasons = [trial.user_attrs["error"] for trial in self.trials if "error" in trial.user_attrs]
        return (
            f"No trial of {self.study.study_name!r} has finished ({self.n_pruned} pruned, {self.n_failed} failed), so "
            f"there is no best one.{f' Last error: {reasons[-1]}' if reasons else ''}"
        )

    def write_config(self, env_id: str, entry: Mapping[str, Any]) -> Path:
        """Write the best trial's hyperparameters as a config for ``train --conf-file``."""
        best = self.study.best_trial
        header = (
            f"# Trial {best.number}, the best of {self.n_finished} finished ones of the study {self.study.study_name}: "
            f"mean return {best.value:.6g}\n# {time.strftime('%Y-%m-%d')}; to train with it: sb3-reinforce "
            f"{shlex.join(['train', '--env', env_id, '--conf-file', relative(self.folder / 'best.yml')])}\n"
        )
        body = yaml.safe_dump({env_id: {key: entry[key] for key in sorted(entry)}}, sort_keys=False)
        return self._write("best.yml", (header + body).encode(), mode=0o600 if holds_secret(entry) else 0o666)

    def draw(self) -> list[Path]:
        """:return: Optuna's plots, as PNG; none where matplotlib is not installed"""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
        except ImportError:
            return []
        from optuna.visualization import matplotlib as plots

        drawn = []
        for name, plot in (("history", plots.plot_optimization_history), ("importances", plots.plot_param_importances)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # optuna.visualization.matplotlib calls itself experimental
                try:
                    figure: Any = plot(self.study).figure
                except (ValueError, RuntimeError):  # importances of a single trial, or of equal results
                    continue
            FigureCanvasAgg(figure)
            picture = io.BytesIO()
            figure.savefig(picture, dpi=100, bbox_inches="tight")
            drawn.append(self._write(f"{name}.png", picture.getvalue()))
        return drawn

    def _write(self, name: str, content: bytes, mode: int = 0o666) -> Path:
        write_atomically(self.folder / name, content, mode)
        return self.folder / name

    def lines(self, env_id: str, algo: str, config: Path, pictures: list[Path], storage: str) -> list[str]:
        """:return: best trial, its config, plots, the study and the next command"""
        best = self.study.best_trial
        again = ["train", *([] if algo == "reinforce" else ["--algo", algo]), "--env", env_id]
        return [
            f"Best trial: {best.number}, mean return {best.value:.6g}; {self.n_finished} finished, {self.n_pruned} pruned, "
            f"{self.n_failed} failed",
            f"Config:     {relative(config)}",
            f"Plots:      {', '.join(map(relative, pictures)) or 'none'}",
            f"Study:      {self.study.study_name} in {storage}",
            f"Next:       {shell_line([*again, '--conf-file', relative(config), '-P', '--eval-final', '100'])}",
        ]


def plain_entry(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :return: hyperparameters for a YAML file: ``policy_kwargs``, which may hold classes, as text that the zoo evaluates
    :raises UsageError: if they hold other objects
    """
    entry = {
        key: _as_python(value) if key == "policy_kwargs" and not isinstance(value, str) else value
        for key, value in hyperparams.items()
    }
    try:
        yaml.safe_dump(entry)
    except yaml.YAMLError as error:
        raise UsageError(f"the best trial is written as YAML, which cannot hold {error.args[-1]}") from error
    return entry


def _as_python(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={_as_python(item)}' for key, item in value.items())})"
    if isinstance(value, type) and hasattr(nn, value.__name__):
        return f"nn.{value.__name__}"
    return repr(value)
