"""
``TrainingCheckpoint`` and ``resume``: stop a training run at any moment, and go on as if it had never stopped.

A checkpoint is one zip file: a model file of Stable-Baselines3, which ``REINFORCE.load`` reads as any other, and beside its
parts ``training.json`` and ``training.npz`` (numbers, texts and arrays: no pickle) and ``manifest.json`` with a checksum of
each part.
"""

import hashlib
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_reinforce import distributed
from sb3_reinforce.arguments import check_count
from sb3_reinforce.save_util import write_atomically
from sb3_reinforce.training_state import (
    VEC_NORMALIZE_SETTINGS,
    callback_state,
    callbacks_by_name,
    changed,
    evaluation_random_state,
    from_json,
    model_state,
    plain,
    random_state,
    set_callback_state,
    set_evaluation_random_state,
    set_logger_state,
    set_model_state,
    set_random_state,
    set_statistics,
    to_json,
    wrappers,
)

if TYPE_CHECKING:
    from sb3_reinforce.reinforce import REINFORCE

AnyREINFORCE = TypeVar("AnyREINFORCE", bound="REINFORCE")

# Raised whenever a checkpoint of before could be misread.
FORMAT = 2
MANIFEST, TRAINING, ARRAYS = "manifest.json", "training.json", "training.npz"
LIBRARIES = ("stable-baselines3", "gymnasium", "torch", "numpy")
# Attributes that resume makes anew or has from TRAINING: left out, they need not be pickled.
NOT_SAVED = (
    "_last_obs", "_last_original_obs", "_last_episode_starts", "_steps_into_episode", "ep_info_buffer", "ep_success_buffer",
    "lr_schedule", "_value_lr_schedule", "_ent_coef_schedule", "_clip_range_schedule",
    "_target_kl_schedule",
)  # fmt: skip
ROLLOUT_BUFFERS: dict[str, type[RolloutBuffer]] = {"RolloutBuffer": RolloutBuffer, "DictRolloutBuffer": DictRolloutBuffer}


class CheckpointError(ValueError):
    """A checkpoint that a run cannot go on from: the message has its name and the reason."""


class TrainingCheckpoint(BaseCallback):
    """
    Saves a training run into a folder, so that :meth:`REINFORCE.resume` goes on as if it had never stopped::

        model = REINFORCE("MlpPolicy", env, seed=0)
        model.learn(1_000_000, callback=TrainingCheckpoint("run"))
        # after a crash, in another process
        model = REINFORCE.resume("run", env)
        model.learn(1_000_000 - model.num_timesteps, reset_num_timesteps=False, callback=TrainingCheckpoint("run"))

    A checkpoint is taken after an update and its log row, before the next rollout seeds and resets the environments: every
    ``every_n_updates`` updates, after the last one, and after the last one before an error (or Ctrl-C) that ends ``learn``.
    It appears in the folder all at once or not at all. What cannot be written (a full disk) is warned about, training goes
    on, and the checkpoints before it stay. Each is a model file, too: ``REINFORCE.load(checkpoint.newest)``.

    Callbacks are saved with it: what ``state_dict()`` of a callback returns, to be given to its ``load_state_dict``, or, where
    it has none, those of its attributes that are numbers, texts, arrays or collections of them and have changed since
    training started (counters, best scores, but not its settings).

    :param path: folder of this run's checkpoints, made if it is not there; another run needs another one
    :param every_n_updates: number of updates from one checkpoint to the next
    :param keep: how many of the newest ones to keep
    :param verbose: 2 prints the name of each checkpoint
    :raises ValueError: for numbers below 1; when training starts: with ``unfinished="bootstrap"``, whose environments run on
        across updates, with another algorithm, or if the folder has checkpoints that the model was not resumed from
    """

    def __init__(self, path: str | Path, every_n_updates: int = 10, keep: int = 3, verbose: int = 0):
        super().__init__(verbose)
        check_count("every_n_updates", every_n_updates)
        check_count("keep", keep)
        self.path = Path(path)
        self.every_n_updates = every_n_updates
        self.keep = keep
        #: the newest checkpoint of this run that was written, or that it was resumed from
        self.newest: Path | None = None
        #: whether this process writes: with several, one does, and all resume
        self.writes = True
        self._stop_asked = False
        self._n_updates_seen = 0
        self._root: BaseCallback = self
        self._at_start: dict[str, dict[str, Any]] = {}
        self._boundary: dict[str, Any] | None = None
        self._n_updates_taken = 0

    def can_resume(self) -> bool:
        """:return: whether the folder has checkpoints, for :meth:`REINFORCE.resume`"""
        return bool(checkpoints_in(self.path))

    def stop(self) -> None:
        """
        Ask ``learn`` to finish the update in progress, save, and return. Safe to be called by a signal handler::

            signal.signal(signal.SIGTERM, lambda *_: checkpoint.stop())
        """
        self._stop_asked = True

    def state_dict(self) -> dict[str, Any]:
        """:return: when the next checkpoint is due"""
        return {"n_updates_seen": self._n_updates_seen}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """:param state_dict: what :meth:`state_dict` returned"""
        self._n_updates_seen = state_dict["n_updates_seen"]

    def _init_callback(self) -> None:
        self.writes = self.writes and distributed.rank() == 0
        unfinished = getattr(self.model, "unfinished", None)
        if unfinished is None:
            raise ValueError(
                f"TrainingCheckpoint saves runs of REINFORCE, got {type(self.model).__name__}: use CheckpointCallback"
            )
        if unfinished == "bootstrap":
            raise ValueError(
                'TrainingCheckpoint needs unfinished="finish", got unfinished="bootstrap": there the environments run on '
                "across updates, and their state cannot be saved; SB3's CheckpointCallback saves the model alone"
            )

    def _on_training_start(self) -> None:
        self._stop_asked = False
        self._boundary = None
        resumed_from: Path | None = self.model._checkpoint  # type: ignore[attr-defined]
        there = checkpoints_in(self.path)
        self.newest = None
        if there and (resumed_from is None or resumed_from.parent != self.path.resolve()):
            raise ValueError(
                f"path must be a folder without checkpoints of another run, got {self.path} with {there[0].name}: go on from "
                "them by REINFORCE.resume(path, env) and learn(..., reset_num_timesteps=False), or choose another folder"
            )
        if resumed_from is not None and there:
            self.newest = resumed_from
            # What resume found damaged, or the user passed over: not to be taken for what this run will write.
            for path in there if self.writes else []:
                if _steps_of(path) > _steps_of(resumed_from):
                    _try(f"{path} could not be renamed", partial(os.replace, path, f"{path}.old"))
        for leftover in self.path.glob(".checkpoint_*.tmp") if self.writes else []:
            _try(f"{leftover} could not be removed", leftover.unlink)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._write_boundary()

    def begin(self, root: BaseCallback) -> None:
        """
        Called by ``learn`` when all callbacks have started.

        :param root: the callback that ``learn`` calls
        """
        self._root = root
        self._n_updates_taken = self.model._n_updates
        self._at_start = {name: callback_state(callback) for name, callback in callbacks_by_name(root).items()}

    def update_ended(self, iteration: int) -> bool:
        """
        Called by ``learn`` after each update and its log row.

        :param iteration: number of updates of this run
        :return: False if training is to stop here
        """
        self._n_updates_seen += 1
        self._take_boundary(iteration)
        if self._stop_asked or self._n_updates_seen % self.every_n_updates == 0:
            self._write_boundary()
        return not self._stop_asked

    def _take_boundary(self, iteration: int) -> None:
        callbacks = callbacks_by_name(self._root)
        states = {name: callback_state(each) for name, each in callbacks.items()}
        for name, each in callbacks.items():
            if not hasattr(each, "state_dict"):
                states[name] = changed(self._at_start.get(name, {}), states[name])
        random_states = {name: evaluation_random_state(each) for name, each in callbacks.items()}
        model: REINFORCE = self.model  # type: ignore[assignment]
        # All that the next rollout may change is copied now: should it fail, this boundary can still be written.
        self._boundary = {
            "iteration": iteration,
            "model": model_state(model),
            "random": random_state(model),
            "callbacks": {name: state for name, state in states.items() if state},
            "evaluation": {name: state for name, state in random_states.items() if state},
        }
        self._n_updates_taken = self.model._n_updates

    def failed(self, iteration: int) -> None:
        """
        Called by ``learn`` when an error ends it: the state behind the last whole update is written.

        :param iteration: number of updates of this run, the one begun included
        """
        if self.model._n_updates > self._n_updates_taken:  # the error came behind the update: while its row was written
            self._take_boundary(iteration)
        self._write_boundary()

    def _write_boundary(self) -> None:
        """Write the last boundary, unless that was done: at once or not at all."""
        boundary = self._boundary
        if boundary is None or not self.writes:
            return
        path = self.path / f"checkpoint_{boundary['model']['attributes']['num_timesteps']}_steps.zip"

        def write() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(path, checkpoint_bytes(self.model, boundary))  # type: ignore[arg-type]
            self.newest = self.model._checkpoint = path.resolve()  # type: ignore[attr-defined]

        if not _try(f"the checkpoint {path} could not be written, training goes on without it", write):
            return
        self._boundary = None
        if self.verbose >= 2:
            print(f"Saved {path}")
        for old in checkpoints_in(self.path)[self.keep :]:
            _try(f"the old checkpoint {old} could not be removed", old.unlink)


# ---------------------------------------------------------------------------------------------------------- in learn


def begin_learning(model: "REINFORCE", callback: BaseCallback, total_timesteps: int) -> int:
    """
    Called by ``learn`` when all callbacks have started and the first rollout has not: put back what only now can be.

    :param model: the model
    :param callback: the callback that ``learn`` calls
    :param total_timesteps: where training ends
    :return: number of updates done already, for the log; 0 unless the run was resumed
    """
    for checkpoint in _checkpoints(callback):
        checkpoint.begin(callback)
    state, model._resumed = model._resumed, None
    if state is None:
        return 0
    callbacks = callbacks_by_name(callback)
    for name, saved in state["callbacks"].items():
        if name in callbacks:
            set_callback_state(callbacks[name], saved)
    for name, saved in state["evaluation"].items():
        if name in callbacks:
            set_evaluation_random_state(callbacks[name], saved)
    counters = {"n_calls", "num_timesteps", "n_updates_seen"}
    missing = [name for name, saved in state["callbacks"].items() if name not in callbacks and set(saved) - counters]
    if missing and distributed.rank() == 0:  # the other ranks lack what only rank 0 has
        warnings.warn(
            f"the checkpoint has the state of {', '.join(missing)}, which this learn() was not given",
            stacklevel=3,
        )
    if model.num_timesteps >= total_timesteps:
        # No rollout follows for the reset that has just been made: it did not happen.
        set_statistics(model.env, state["model"])
        model._n_rollouts, model._last_obs = state["model"]["attributes"]["_n_rollouts"], None
    set_logger_state(model, state["model"])
    set_random_state(model, state["random"])
    return int(state["iteration"])


def update_ended(callback: BaseCallback, iteration: int) -> bool:
    """
    :param callback: the callback that ``learn`` calls
    :param iteration: number of updates of this run
    :return: False if training is to stop here
    """
    goes_on = [checkpoint.update_ended(iteration) for checkpoint in _checkpoints(callback)]
    return all(goes_on)


def learning_failed(callback: BaseCallback, iteration: int) -> None:
    """
    :param callback: the callback that ``learn`` calls
    :param iteration: number of updates of this run, the one begun included
    """
    for checkpoint in _checkpoints(callback):
        checkpoint.failed(iteration)


def _checkpoints(callback: BaseCallback) -> list[TrainingCheckpoint]:
    return [each for each in callbacks_by_name(callback).values() if isinstance(each, TrainingCheckpoint)]


# ------------------------------------------------------------------------------------------------------------ files


def checkpoints_in(folder: str | Path) -> list[Path]:
    """
    :param folder: of a :class:`TrainingCheckpoint`
    :return: the checkpoints in it, the newest first, good or not
    """
    found = (path for path in Path(folder).glob("checkpoint_*_steps.zip") if re.fullmatch(r"checkpoint_\d+_steps", path.stem))
    return sorted(found, key=_steps_of, reverse=True)


def _steps_of(path: Path) -> int:
    numbers = re.fullmatch(r"checkpoint_(\d+)_steps\.zip", path.name)
    return int(numbers[1]) if numbers else 0


def checkpoint_bytes(model: "REINFORCE", state: dict[str, Any]) -> bytes:
    """
    :param model: the model, whose networks and optimisers are saved
    :param state: plain values, to be saved beside them
    :return: a checkpoint file
    """
    file = io.BytesIO()
    model.save(file, exclude=NOT_SAVED)
    arrays: dict[str, np.ndarray] = {}
    training = json.dumps(to_json(state, arrays))
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(TRAINING, training)
        archive.writestr(ARRAYS, packed.getvalue())
        sums = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
        archive.writestr(MANIFEST, json.dumps({**_description(model), "sha256": sums}, indent=1))
    return file.getvalue()


def read_parts(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """
    Read a checkpoint and check it against its manifest. Nothing of it is executed.

    :param path: the file
    :return: the whole file, its manifest, and the plain values that were saved beside the networks
    :raises CheckpointError: if it is torn, damaged, no checkpoint, or of another format
    """
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if MANIFEST not in names:
                raise CheckpointError(f"it has no {MANIFEST}: torn, or a model file, which load() reads")
            manifest = json.loads(archive.read(MANIFEST))
            if manifest.get("format") != FORMAT:
                raise CheckpointError(f"it has the format {manifest.get('format')}, this version reads {FORMAT}")
            sums = manifest["sha256"]
            if sorted(names) != sorted([*sums, MANIFEST]):
                raise CheckpointError("its parts are not those of its manifest")
            for name, expected in sums.items():
                if hashlib.sha256(archive.read(name)).hexdigest() != expected:
                    raise CheckpointError(f"its part {name} is damaged")
            with np.load(io.BytesIO(archive.read(ARRAYS)), allow_pickle=False) as arrays:
                state = from_json(json.loads(archive.read(TRAINING)), dict(arrays))
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no checkpoint to go on from: {error}") from None
    except Exception as error:  # zipfile, json and numpy raise what the damaged byte leads to
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is no checkpoint to go on from: it is torn or damaged ({reason})") from error
    return data, manifest, state


def _description(model: "REINFORCE") -> dict[str, Any]:
    """What a run must have in common with the one that it goes on from."""
    from sb3_reinforce import __version__

    names = {policy: name for name, policy in model.policy_aliases.items()}
    return {
        "format": FORMAT,
        "algorithm": f"{type(model).__module__}.{type(model).__qualname__}",
        "sb3_reinforce": __version__,
        "libraries": {library: installed_version(library) for library in LIBRARIES},
        "policy": names.get(model.policy_class),
        "rollout_buffer": next((name for name, kind in ROLLOUT_BUFFERS.items() if kind is model.rollout_buffer_class), None),
        "device": str(model.device),
        "env": describe_env(model.env),
    }


def describe_env(env: VecEnv | None) -> dict[str, Any]:
    """
    :param env: an environment as a model has it
    :return: what can be told about it from here, in plain values
    """
    assert env is not None, "a model that is trained has an environment"
    inside = getattr(env.unwrapped, "envs", None)  # of SubprocVecEnv: elsewhere
    spec = getattr(inside[0] if inside else env.unwrapped, "spec", None)
    return {
        "id": None if spec is None else spec.id,
        "n_envs": env.num_envs,
        "observation_space": _describe_space(env.observation_space),
        "action_space": _describe_space(env.action_space),
        "wrappers": [type(wrapper).__name__ for wrapper in wrappers(env)],
        "VecNormalize": [
            {name: _plain_setting(getattr(wrapper, name)) for name in VEC_NORMALIZE_SETTINGS}
            for wrapper in wrappers(env)
            if isinstance(wrapper, VecNormalize)
        ],
    }


def _plain_setting(value: Any) -> Any:
    """As it is once it was written as JSON and read again."""
    return list(value) if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else plain(value)


def _describe_space(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return str({key: _describe_space(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box):  # its text leaves out the middle of long bounds
        bounds = hashlib.sha256(space.low.tobytes() + space.high.tobytes()).hexdigest()[:8]
        return f"{space} (bounds {bounds})"
    return str(space)


def _try(consequence: str, action: Callable[[], Any]) -> bool:
    """Do what a full disk, a read-only folder or an object that cannot be saved may prevent; a warning says so then."""
    try:
        action()
    except Exception as error:
        warnings.warn(f"{consequence}: {type(error).__name__}: {error}", stacklevel=4)
        return False
    return True


# ----------------------------------------------------------------------------------------------------------- resume


def resume(cls: type[AnyREINFORCE], path: str | Path, env: GymEnv | str, device: th.device | str | None) -> AnyREINFORCE:
    """See :meth:`REINFORCE.resume`."""
    path = Path(path)
    env = cls._wrap_env(maybe_make_env(env, 0), verbose=0)
    if not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"path must be a folder with checkpoints or one of them, got {path}, which does not exist")
        return _resume_from(cls, path, env, device)
    candidates = checkpoints_in(path)
    reasons = []
    for candidate in candidates:
        try:
            model = _resume_from(cls, candidate, env, device)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}. Training goes on from {candidate}, which is older", stacklevel=3)
        return model
    if not candidates:
        raise CheckpointError(f"path must be a folder with checkpoints, got {path}, which has none: start the run anew")
    raise CheckpointError(f"none of the checkpoints in {path} can be used: {'; '.join(reasons)}")


def _resume_from(cls: type[AnyREINFORCE], path: Path, env: VecEnv, device: th.device | str | None) -> AnyREINFORCE:
    data, manifest, state = read_parts(path)
    _check_same_run(cls, path, manifest, env)
    # Whatever is known here is not unpickled; what is left are objects that the user passed to the constructor.
    known: dict[str, Any] = {"observation_space": env.observation_space, "action_space": env.action_space}
    if manifest["policy"] is not None:
        known["policy_class"] = cls.policy_aliases[manifest["policy"]]
    if manifest["rollout_buffer"] is not None:
        known["rollout_buffer_class"] = ROLLOUT_BUFFERS[manifest["rollout_buffer"]]
    try:
        model = cls.load(io.BytesIO(data), env=env, device=device or manifest["device"], custom_objects=known)
        set_model_state(model, state["model"])
        set_random_state(model, state["random"])
    except Exception as error:
        raise CheckpointError(f"{path} could not be loaded: {type(error).__name__}: {error}") from error
    model._resumed, model._checkpoint = state, path.resolve()
    return model


def _check_same_run(cls: type["REINFORCE"], path: Path, manifest: Mapping[str, Any], env: VecEnv) -> None:
    """:raises CheckpointError: if the checkpoint is of another algorithm, version or environment"""
    from sb3_reinforce import __version__

    algorithm = f"{cls.__module__}.{cls.__qualname__}"
    if manifest["algorithm"] != algorithm:
        raise CheckpointError(f"{path} is of another algorithm: it was saved by {manifest['algorithm']}, not by {algorithm}")
    if manifest["sb3_reinforce"] != __version__:
        raise CheckpointError(
            f"{path} is of another version: it was saved by sb3-reinforce {manifest['sb3_reinforce']}, this is {__version__}: "
            "install that one to go on, or start a new run with its parameters: REINFORCE.load(file, env=env)"
        )
    saved, given = manifest["env"], describe_env(env)
    for name in saved:
        if name == "id" and None in (saved["id"], given["id"]):
            continue
        if saved[name] != given[name]:
            raise CheckpointError(
                f"{path} is of another environment: {name} was {saved[name]}, got {given[name]}: give an environment made and "
                "wrapped as in the first run"
            )
    libraries = {library: installed_version(library) for library in LIBRARIES}
    if others := [
        f"{name} {old} (now {libraries[name]})" for name, old in manifest["libraries"].items() if old != libraries[name]
    ]:
        warnings.warn(f"{path} was saved with {', '.join(others)}: going on may differ in the last digits", stacklevel=5)
