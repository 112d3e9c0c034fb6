"""RL Zoo's experiment, with hyperparameters read and checked by us; ``training`` and ``search`` build on it."""

import argparse
import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pprint import pprint
from typing import Any, ClassVar

import gymnasium as gym
import optuna
import yaml
from gymnasium import spaces
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.arguments import with_checked_spaces
from sb3_reinforce.running.trust import UntrustedError
from sb3_reinforce.tracking.callback import WandbCallback
from sb3_reinforce.tracking.settings import as_setting, holds_secret
from sb3_reinforce.vec_env.convert import vectorized
from sb3_reinforce.zoo.checkpoints import SavedRun
from sb3_reinforce.zoo.config import check_entry, read_entry
from sb3_reinforce.zoo.disk import no_room_in_one_line
from sb3_reinforce.zoo.images import images_in, observation_space, settings_for_images
from sb3_reinforce.zoo.search_space import complete_sample
from sb3_reinforce.zoo.study import open_study, params_of_trial, plain_entry
from sb3_reinforce.zoo.trust import check_config
from sb3_reinforce.zoo.usage import UsageError


@contextmanager
def private_files(*values: Any) -> Iterator[None]:
    """Inside, new files are readable by their owner alone, if the values that they will hold have a secret among them."""
    if not holds_secret(values):
        yield
        return
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@dataclass
class Plan:
    """What the command line asks for beyond RL Zoo's options."""

    arguments: Sequence[str]  # our own command line, which is saved with the checkpoints
    options: argparse.Namespace  # its values
    run: SavedRun | None  # the run to resume; None: a new one
    tracker: WandbCallback | None  # in a search each trial has its own, with this one's settings
    finished: "Experiment | None" = None


def _wrapped_and_checked(wrap: Callable[[gym.Env], gym.Env] | None, env: gym.Env) -> gym.Env:
    """:raises UnsupportedSpaceError: before DummyVecEnv, which fails with spaces that it cannot store"""
    return with_checked_spaces(env if wrap is None else wrap(env))


def _split_vectorize(wrappers: Any) -> tuple[dict[str, Any] | None, list[Any] | None]:
    """:return: the arguments of ``vectorize``, if it is the first of the ``vec_env_wrapper``; the other wrappers"""
    first, *others = wrappers if isinstance(wrappers, list) and wrappers else [wrappers]
    path, kwargs = next(iter(first.items())) if isinstance(first, dict) and len(first) == 1 else (first, {})
    if path in ("sb3_reinforce.vec_env.vectorize", "sb3_reinforce.vec_env.convert.vectorize"):
        return dict(kwargs or {}), others or None
    return None, wrappers


class Experiment(exp_manager.ExperimentManager):
    """RL Zoo's experiment, whose errors name where a hyperparameter comes from."""

    plan: ClassVar[Plan]  # of a subclass made for one run, because RL Zoo calls the constructor

    def outcome(self) -> tuple[list[str], int]:
        """:return: lines about the results, and the exit code"""
        raise NotImplementedError

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        try:
            with no_room_in_one_line():
                return super().setup_experiment()
        except UsageError:
            raise
        except UntrustedError as error:
            raise UsageError(error) from error
        except ValueError as error:  # from a constructor
            raise UsageError(f"{error} (hyperparameters from {self._source()})") from error

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[Any, ...]:
        vectorize_kwargs = None
        if self.vec_env_class is DummyVecEnv:
            vectorize_kwargs, hyperparams["vec_env_wrapper"] = _split_vectorize(hyperparams.get("vec_env_wrapper"))
        if vectorize_kwargs is None and "AtariWrapper" in str(hyperparams.get("env_wrapper")) and find_spec("cv2") is None:
            raise UsageError('AtariWrapper needs OpenCV: pip install "sb3-reinforce[atari]"')
        hyperparams, wrap, *others = super()._preprocess_hyperparams(hyperparams)
        if self.vec_env_class is DummyVecEnv and issubclass(ALGOS[self.algo], REINFORCE):
            wrap = partial(_wrapped_and_checked, wrap)
        if vectorize_kwargs is not None:  # before single environments are made: there may be hundreds
            self.vec_env_class = partial(vectorized, **vectorize_kwargs)  # type: ignore[assignment]
        if self._eval_env_kwargs_args is None:  # the zoo evaluates without the config's
            self.eval_env_kwargs = self.env_kwargs
        # YAML has lists, and Monitor adds them to tuples
        self.monitor_kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in self.monitor_kwargs.items()}
        return hyperparams, wrap, *others

    def _source(self) -> str:
        """:return: where the hyperparameters come from"""
        file = str(self._config_of_pretrained() or self.config)
        return f"{file} and -params" if self.custom_hyperparams else file

    def _config_of_pretrained(self) -> Path | None:
        """:return: the config of the agent given by -i, if it is beside the agent and the user gives no other"""
        file = Path(self.trained_agent).parent / self.env_name / "config.yml"
        return file if self.trained_agent and self.plan.options.conf_file is None and file.is_file() else None

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the zoo reads them, but errors are named, trial 0 counts, and ``-i``, ``--resume`` and a sweep give theirs."""
        run, trust = self.plan.run, self.plan.options.trust
        if run is not None and run.hyperparams is not None:
            if not trust:
                check_config(run.hyperparams, f"--resume {run.folder}")
            self.entry = copy.deepcopy(run.hyperparams)
            return copy.deepcopy(run.hyperparams), copy.deepcopy(run.hyperparams)
        saved = self._config_of_pretrained()
        print(f"Loading hyperparameters from: {self._source()}")
        name = ""
        if saved is None:
            name, config = read_entry(self.config, self.env_name.gym_id, self._is_atari)
        else:  # it holds Python objects, and is read as the zoo itself reads it
            config = dict(yaml.load(saved.read_text(), Loader=yaml.UnsafeLoader))
        if not trust and (saved is not None or run is not None):
            check_config(config, self._source())
        parts = {str(saved or self.config): config}
        if self.trial_id is not None:
            source = f"trial {self.trial_id}"
            parts[source] = self._converted(params_of_trial(self._study(create=False), self.trial_id), source)
        sampled = self.plan.options.sampled
        if sampled is not None:
            sampled = complete_sample(sampled, config) if self.algo == "reinforce" else sampled
            parts["--sampled"] = self._converted(sampled, "--sampled")
        parts["-params"] = self.custom_hyperparams or {}
        entry: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, part in parts.items():
            entry |= part
            sources |= dict.fromkeys(part, source)
        check_entry(self.algo, entry, lambda key: sources.get(key, self._source()))
        if name == "default" and issubclass(ALGOS[self.algo], REINFORCE):
            space = observation_space(self.env_name.gym_id, entry, self.env_kwargs)
            chosen, why = settings_for_images(space, self.custom_hyperparams or {})
            entry |= chosen
            if why:
                print(f"{self.env_name.gym_id} shows {why}")
        if "env_kwargs" in entry and self.env_kwargs:  # the command line's
            entry["env_kwargs"] = self.env_kwargs
        self.entry = {key: copy.deepcopy(entry[key]) for key in sorted(entry)}
        if self.verbose > 0:  # config.yml in the run's folder has them
            print("Hyperparameters (those being tuned will be replaced):")
            pprint(as_setting(self.entry))
        return entry, OrderedDict(copy.deepcopy(self.entry))  # as the zoo saves it

    def _study(self, create: bool) -> optuna.Study:
        return open_study(str(self.storage), str(self.study_name), create)  # train() gives both a default

    def _converted(self, params: dict[str, Any], source: str) -> dict[str, Any]:
        """:return: sampled values as hyperparameters in a config"""
        try:
            return plain_entry(HYPERPARAMS_CONVERTER[self.algo](params))
        except KeyError as error:
            raise UsageError(f"{source}: {error} is nothing that the search of {self.algo} knows, got {params}") from error

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """
        Normalise rewards, and of the observations those that VecNormalize supports: a Box, or the Boxes of a Dict. Images stay
        as they are where the policy has convolutions, which divide them by 255 themselves.
        """
        space = env.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
        policy = str(self.entry["policy"])
        images = images_in(space) if "Cnn" in policy or "MultiInput" in policy else []
        boxes = [key for key, part in parts.items() if isinstance(part, spaces.Box) and key not in images]
        if self.normalize and len(boxes) < len(parts) and self.normalize_kwargs.get("norm_obs", True):
            if boxes:
                self.normalize_kwargs.setdefault("norm_obs_keys", boxes)
            else:
                why = f"{policy} takes images as they are" if images else "that is for Box"
                print(f"Observations of {self.env_name} are not normalised, {why}: {space}")
                self.normalize_kwargs["norm_obs"] = False
        return super()._maybe_normalize(env, eval_env)
