"""Resume a run from a checkpoint: the model at once, callbacks and random numbers when ``learn`` starts."""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.running import ranks
from sb3_reinforce.running.callbacks import callbacks_by_name
from sb3_reinforce.running.checkpoint_file import (
    ROLLOUT_BUFFERS,
    CheckpointError,
    checkpoints_in,
    describe_env,
    installed_libraries,
    read_parts,
)
from sb3_reinforce.running.training_state import (
    set_all_statistics,
    set_callback_state,
    set_evaluation_random_state,
    set_logger_state,
    set_model_state,
    set_random_state,
)
from sb3_reinforce.running.trust import UntrustedError
from sb3_reinforce.version import __version__

Algorithm = TypeVar("Algorithm", bound=OnPolicyAlgorithm)


class OtherRanksError(CheckpointError):
    """A checkpoint of a run on another number of ranks."""


@dataclass(frozen=True)
class ResumedState:
    """The training state that ``learn`` restores when its callbacks have started, and the checkpoint that it was read from."""

    path: Path
    state: Mapping[str, Any]

    def restore(self, model: OnPolicyAlgorithm, callback: BaseCallback, total_timesteps: int) -> int:
        """
        Restore callbacks, logger and random numbers. The environments were reset for the rollout to come.

        :return: number of updates done already, for the log
        """
        state = self.state
        callbacks = callbacks_by_name(callback)
        restoring = (("callbacks", set_callback_state), ("evaluation", set_evaluation_random_state))
        for part, restore in restoring:
            for name, saved in state[part].items():
                try:
                    if name in callbacks:
                        restore(callbacks[name], saved)
                except Exception as error:  # whatever a callback of the user's, or a forged value, leads to
                    raise CheckpointError(f"{self.path}: the state of {name} cannot be restored: {error!r}") from error
        counters = {"n_calls", "num_timesteps", "n_updates_seen"}
        missing = [name for name, saved in state["callbacks"].items() if name not in callbacks and set(saved) - counters]
        if missing and ranks.rank() == 0:  # the other ranks lack what only rank 0 has
            warnings.warn(
                f"the checkpoint has the state of {', '.join(missing)}, which this learn() was not given",
                stacklevel=3,
            )
        if model.num_timesteps >= total_timesteps:
            # No rollout follows for the reset that has just been made: undo it.
            set_all_statistics(model.env, state["model"])
            vars(model)["_n_rollouts"], model._last_obs = state["model"]["attributes"]["_n_rollouts"], None
        set_logger_state(model, state["model"])
        set_random_state(model, state["random"])
        return int(state["iteration"])


def resume(
    cls: type[Algorithm],
    path: str | Path,
    env: GymEnv | str,
    device: th.device | str | None,
    other_ranks: bool,
    trust: bool = False,
) -> tuple[Algorithm, ResumedState]:
    """
    See :meth:`ResumableAlgorithm.resume`.

    :return: the model, and what ``learn`` is to restore
    :raises CheckpointError: if there is no checkpoint, none can be read, or it is of another run
    """
    path = Path(path)
    env = cls._wrap_env(maybe_make_env(env, 0), verbose=0)
    if not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"path must be a folder with checkpoints or one of them, got {path}, which does not exist")
        return _resume_from(cls, path, env, device, other_ranks, trust)
    candidates = checkpoints_in(path)
    reasons = []
    for candidate in candidates:
        try:
            resumed = _resume_from(cls, candidate, env, device, other_ranks, trust)
        except OtherRanksError:  # an older one of as many ranks is not what the user wants
            raise
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}. Training resumes from {candidate}, which is older", stacklevel=3)
        return resumed
    if not candidates:
        raise CheckpointError(f"path must be a folder with checkpoints, got {path}, which has none: start the run anew")
    raise CheckpointError(f"none of the checkpoints in {path} can be used: {'; '.join(reasons)}")


def _resume_from(
    cls: type[Algorithm], path: Path, env: VecEnv, device: th.device | str | None, other_ranks: bool, trust: bool
) -> tuple[Algorithm, ResumedState]:
    data, manifest, state = read_parts(path)
    # A launched rank takes its own GPU, not rank 0's
    saved = manifest["device"].partition(":")[0] if ranks.launched() else manifest["device"]
    device = ranks.start(device or saved)
    own = _own_settings(path, state, other_ranks)
    n_envs = env.num_envs if other_ranks else own.get("n_envs", manifest["env"].get("n_envs"))
    _check_same_run(cls, path, manifest, n_envs, env)
    # What is known here is not read from the file.
    known: dict[str, Any] = {"observation_space": env.observation_space, "action_space": env.action_space}
    try:
        if manifest["policy"] is not None:
            known["policy_class"] = cls.policy_aliases[manifest["policy"]]
        if manifest["rollout_buffer"] is not None:
            known["rollout_buffer_class"] = ROLLOUT_BUFFERS[manifest["rollout_buffer"]]
        model = cls.load(io.BytesIO(data), env, device, known, trust=trust)  # type: ignore[call-arg]
        set_model_state(model, state["model"])
        names: tuple[str, ...] = getattr(cls, "own_of_each_rank", ())
        vars(model).update({name: own[name] for name in names if name in own}, n_envs=env.num_envs)
        set_random_state(model, state["random"])
        model._check_training()  # type: ignore[attr-defined]
    except UntrustedError as error:  # not passed over for an older one: whoever resumes should know
        raise UntrustedError(f"{path}: {error}") from None
    except Exception as error:
        raise CheckpointError(f"{path} could not be loaded: {type(error).__name__}: {error}") from error
    return model, ResumedState(path.resolve(), state)


def _own_settings(path: Path, state: Mapping[str, Any], other_ranks: bool) -> Mapping[str, Any]:
    """
    :return: this rank's settings in the first run; rank 0's if there were fewer ranks; none in a file before December 2026
    :raises OtherRanksError: unless there are as many ranks as in the first run, or other numbers are allowed
    """
    settings: Sequence[Mapping[str, Any]] = state.get("ranks", ())
    n_ranks, rank = ranks.world_size(), ranks.rank()
    if settings and len(settings) != n_ranks and not other_ranks:
        raise OtherRanksError(
            f"{path} is of a run on {len(settings)} rank{'s' if len(settings) > 1 else ''}, got {n_ranks}: start as many as "
            "then, or resume with other_ranks=True (on the command line: --other-ranks), with batches of another size and "
            "other random numbers"
        )
    return settings[rank if rank < len(settings) else 0] if settings else {}


def _check_same_run(cls: type[OnPolicyAlgorithm], path: Path, manifest: Mapping[str, Any], n_envs: int, env: VecEnv) -> None:
    """:raises CheckpointError: if the checkpoint is of another algorithm, version or environment"""
    algorithm = f"{cls.__module__}.{cls.__qualname__}"
    if manifest["algorithm"] != algorithm:
        raise CheckpointError(f"{path} is of another algorithm: it was saved by {manifest['algorithm']}, not by {algorithm}")
    if manifest["sb3_reinforce"] != __version__:
        raise CheckpointError(
            f"{path} is of another version: it was saved by sb3-reinforce {manifest['sb3_reinforce']}, this is {__version__}: "
            "install that one to resume, or start a new run with its parameters: REINFORCE.load(file, env=env)"
        )
    saved, given = {**manifest["env"], "n_envs": n_envs}, describe_env(env)
    for name in given:
        if name == "id" and None in (saved.get("id"), given["id"]):
            continue
        if name not in saved or saved[name] != given[name]:
            raise CheckpointError(
                f"{path} is of another environment: {name} was {saved.get(name)}, got {given[name]}: give an environment "
                "made and wrapped as in the first run"
            )
    libraries = installed_libraries()
    if others := [
        f"{name} {old} (now {now})" for name, now in libraries.items() if (old := manifest["libraries"].get(name)) != now
    ]:
        warnings.warn(f"{path} was saved with {', '.join(others)}: the run may differ in the last digits", stacklevel=5)
