"""``TrainingCheckpoint``: saves a run between two updates, so that it can be stopped at any moment and resumed."""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_reinforce.arguments import check_count
from sb3_reinforce.running import ranks
from sb3_reinforce.running.callbacks import callbacks_by_name
from sb3_reinforce.running.checkpoint_file import ModelParts, checkpoint_bytes, checkpoints_in, steps_of
from sb3_reinforce.running.claims import Claim, FolderInUseError, claim
from sb3_reinforce.running.files import write_atomically
from sb3_reinforce.running.training_state import (
    callback_state,
    changed,
    evaluation_random_state,
    model_state,
    plain,
    random_state,
    without_settings,
)


class TrainingCheckpoint(BaseCallback):
    """
    Saves a training run into a folder, so that :meth:`REINFORCE.resume` continues as if it had never stopped::

        model = REINFORCE("MlpPolicy", env, seed=0)
        model.learn(1_000_000, callback=TrainingCheckpoint("run"))
        # after a crash, in another process
        model = REINFORCE.resume("run", env)
        model.learn(1_000_000 - model.num_timesteps, reset_num_timesteps=False, callback=TrainingCheckpoint("run"))

    A checkpoint is taken after an update and its log row, before the next rollout seeds and resets the environments: every
    ``every_n_updates`` updates, after the last one, and after the last one before an error (or Ctrl-C) that ends ``learn``.
    It appears in the folder all at once or not at all. What cannot be written (a full disk) is warned about, training
    continues, and the checkpoints before it stay. Each is a model file, too: ``REINFORCE.load(checkpoint.newest)``.

    Callbacks are saved with it: what ``state_dict()`` of a callback returns, for its ``load_state_dict``, or, where it has
    none, those of its attributes that are numbers, texts, arrays or collections of them and have changed since training
    started (counters, best scores, but not its settings).

    :param path: folder of this run's checkpoints, made if it is not there; another run needs another one
    :param every_n_updates: number of updates from one checkpoint to the next
    :param keep: how many of the newest ones to keep
    :param verbose: 2 prints the name of each checkpoint
    :raises ValueError: for numbers below 1; when training starts: with ``unfinished="bootstrap"``, whose environments keep
        running across updates, with another algorithm, if the folder has checkpoints that the model was not resumed from, or
        if another process trains in it
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
        #: whether this process writes: of several processes one does, and all resume
        self.writes = True
        self._stop_asked = False
        self._n_updates_seen = 0
        self._root: BaseCallback = self
        self._at_start: dict[str, dict[str, Any]] = {}
        self._boundary: tuple[dict[str, Any], ModelParts] | None = None
        self._n_updates_taken = 0
        self._claim: Claim | None = None

    def can_resume(self) -> bool:
        """:return: whether the folder has checkpoints, for :meth:`REINFORCE.resume`"""
        return bool(checkpoints_in(self.path))

    def stop(self) -> None:
        """
        Ask ``learn`` to finish the update in progress, save, and return. A signal handler may call it::

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
        self.writes = self.writes and ranks.rank() == 0
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
        if self.writes:
            try:
                self._claim = claim(self.path)
            except FolderInUseError as error:
                raise FolderInUseError(f"path {error}") from None
        resumed_from: Path | None = self.model.newest_checkpoint  # type: ignore[attr-defined]
        there = checkpoints_in(self.path)
        self.newest = None
        if there and (resumed_from is None or resumed_from.parent != self.path.resolve()):
            raise ValueError(
                f"path must be a folder without checkpoints of another run, got {self.path} with {there[0].name}: resume that "
                "run by REINFORCE.resume(path, env) and learn(..., reset_num_timesteps=False), or choose another folder"
            )
        if resumed_from is not None and there:
            self.newest = resumed_from
            # Damaged ones, or ones that the user passed over: not to be taken for what this run will write
            for path in there if self.writes else []:
                if steps_of(path) > steps_of(resumed_from):
                    _try(f"{path} could not be renamed", partial(os.replace, path, f"{path}.old"))
        for leftover in self.path.glob(".checkpoint_*.tmp") if self.writes else []:
            _try(f"{leftover} could not be removed", leftover.unlink)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._write_boundary()
        self._claim = None

    def begin(self, root: BaseCallback) -> None:
        """See :class:`~sb3_reinforce.running.callbacks.UpdateListener`."""
        self._root = root
        self._n_updates_taken = self._algorithm._n_updates
        self._at_start = {name: callback_state(callback) for name, callback in callbacks_by_name(root).items()}

    def update_ended(self, iteration: int) -> bool:
        """See :class:`~sb3_reinforce.running.callbacks.UpdateListener`."""
        self._n_updates_seen += 1
        self._take_boundary(iteration)
        if self._stop_asked or self._n_updates_seen % self.every_n_updates == 0:
            self._write_boundary()
        if self._boundary is not None:  # not written yet, and until it is the model trains on
            self._boundary = (self._boundary[0], self._boundary[1].copy())
        return not self._stop_asked

    def failed(self, iteration: int) -> None:
        """Write the state behind the last whole update."""
        if self._algorithm._n_updates > self._n_updates_taken:  # the error came after the update, while its row was written
            self._take_boundary(iteration)
        self._write_boundary()
        self._claim = None

    @property
    def _algorithm(self) -> OnPolicyAlgorithm:
        assert isinstance(self.model, OnPolicyAlgorithm), "checked when training started"
        return self.model

    def _take_boundary(self, iteration: int) -> None:
        """Note all that the next rollout may change: copies, but for the parts of the model."""
        if not self.writes:
            return
        callbacks = callbacks_by_name(self._root)
        states = {name: callback_state(each) for name, each in callbacks.items()}
        for name, each in callbacks.items():
            if not hasattr(each, "state_dict"):
                states[name] = without_settings(each, changed(self._at_start.get(name, {}), states[name]))
        random_states = {name: evaluation_random_state(each) for name, each in callbacks.items()}
        state = {
            "iteration": iteration,
            "ranks": plain(self._algorithm._settings_of_ranks),  # type: ignore[attr-defined]
            "model": model_state(self._algorithm),
            "random": random_state(self._algorithm),
            "callbacks": {name: state for name, state in states.items() if state},
            "evaluation": {name: state for name, state in random_states.items() if state},
        }
        self._boundary = (state, ModelParts.of(self._algorithm))
        self._n_updates_taken = self._algorithm._n_updates

    def _write_boundary(self) -> None:
        """Write the last boundary, unless that was done already."""
        if self._boundary is None:
            return
        state, parts = self._boundary
        path = self.path / f"checkpoint_{state['model']['attributes']['num_timesteps']}_steps.zip"

        def write() -> None:
            write_atomically(path, checkpoint_bytes(self._algorithm, state, parts))
            self.newest = self.model.newest_checkpoint = path.resolve()  # type: ignore[attr-defined]

        if not _try(f"the checkpoint {path} could not be written, training goes on without it", write):
            return
        self._boundary = None
        if self.verbose >= 2:
            print(f"Saved {path}")
        for old in checkpoints_in(self.path)[self.keep :]:
            _try(f"the old checkpoint {old} could not be removed", old.unlink)


def _try(consequence: str, action: Callable[[], Any]) -> bool:
    """Do what a full disk, a read-only folder or an object that cannot be saved may prevent; a warning says so then."""
    try:
        action()
    except Exception as error:
        warnings.warn(f"{consequence}: {type(error).__name__}: {error}", stacklevel=4)
        return False
    return True
