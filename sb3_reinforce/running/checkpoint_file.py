"""
A checkpoint is one zip file: a model file of Stable-Baselines3, which ``load`` reads as any other, and beside its parts
``training.pt`` (numbers, texts and arrays: nothing that runs code) and ``manifest.json`` with a checksum of each part.
"""

import hashlib
import io
import json
import re
import zipfile
from collections import deque
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_reinforce.running.normalization import VEC_NORMALIZE_SETTINGS, wrappers
from sb3_reinforce.running.training_state import plain
from sb3_reinforce.version import __version__

# Raised whenever an older checkpoint could be misread.
FORMAT = 3
MANIFEST, TRAINING = "manifest.json", "training.pt"
LIBRARIES = ("stable-baselines3", "gymnasium", "torch", "numpy")
# Attributes that resume makes anew or reads from TRAINING: left out, they need not be pickled.
NOT_SAVED = (
    "_last_obs", "_last_original_obs", "_last_episode_starts", "_steps_into_episode", "ep_info_buffer", "ep_success_buffer",
)  # fmt: skip
ROLLOUT_BUFFERS: dict[str, type[RolloutBuffer]] = {"RolloutBuffer": RolloutBuffer, "DictRolloutBuffer": DictRolloutBuffer}
# What arrays and NumPy's numbers are pickled with, and no code: torch's reader knows none of it by itself. Arrays of objects
# are not among them.
NUMPY_GLOBALS: list[Any] = [
    np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0], bytes,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"},
]  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that a run cannot be resumed from: the message has its name and the reason."""


def checkpoints_in(folder: str | Path) -> list[Path]:
    """
    :param folder: of a :class:`~sb3_reinforce.TrainingCheckpoint`
    :return: the checkpoints in it, the newest first, whole or damaged
    """
    found = (path for path in Path(folder).glob("checkpoint_*_steps.zip") if re.fullmatch(r"checkpoint_\d+_steps", path.stem))
    return sorted(found, key=steps_of, reverse=True)


def steps_of(path: Path) -> int:
    """:return: the number of environment steps that a checkpoint's name has"""
    numbers = re.fullmatch(r"checkpoint_(\d+)_steps\.zip", path.name)
    return int(numbers[1]) if numbers else 0


def checkpoint_bytes(model: OnPolicyAlgorithm, state: dict[str, Any]) -> bytes:
    """
    :param model: the model, whose networks and optimisers are saved
    :param state: plain values, to be saved beside them
    :return: a checkpoint file
    """
    file, training = io.BytesIO(), io.BytesIO()
    schedules = [name for name, value in vars(model).items() if name.endswith("_schedule") and callable(value)]
    model.save(file, exclude=[*NOT_SAVED, *schedules])
    th.save(state, training)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(TRAINING, training.getvalue())
        sums = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
        archive.writestr(MANIFEST, json.dumps({**_description(model), "sha256": sums}, indent=1))
    return file.getvalue()


def read_parts(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """
    Read a checkpoint and check it against its manifest. Nothing in it is executed.

    :param path: the file
    :return: the whole file, its manifest, and the plain values that were saved beside the networks
    :raises CheckpointError: if it is torn, damaged, no checkpoint, or of an unknown format
    """
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if MANIFEST not in names:
                raise CheckpointError(f"it has no {MANIFEST}: torn, or a model file, which load() reads")
            manifest = json.loads(archive.read(MANIFEST))
            if manifest.get("format") not in (2, FORMAT):
                raise CheckpointError(f"it has the format {manifest.get('format')}, this version reads 2 and {FORMAT}")
            sums = manifest["sha256"]
            if sorted(names) != sorted([*sums, MANIFEST]):
                raise CheckpointError("its parts are not those of its manifest")
            for name, expected in sums.items():
                if hashlib.sha256(archive.read(name)).hexdigest() != expected:
                    raise CheckpointError(f"its part {name} is damaged")
            state = _read_format_2(archive) if manifest["format"] == 2 else _read_training(archive.read(TRAINING))
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no checkpoint to resume from: {error}") from None
    except Exception as error:  # zipfile, json and torch raise what the damaged byte leads to
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is no checkpoint to resume from: it is torn or damaged ({reason})") from error
    return data, manifest, state


def _read_training(data: bytes) -> dict[str, Any]:
    with th.serialization.safe_globals(NUMPY_GLOBALS):
        return th.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _read_format_2(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The training state of 0.1.0 until November 2026: JSON with its arrays set apart."""
    with np.load(io.BytesIO(archive.read("training.npz")), allow_pickle=False) as arrays:
        return _from_json(json.loads(archive.read("training.json")), dict(arrays))


def _from_json(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_from_json(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if value["is"] == "tensor":
        return th.as_tensor(arrays[value["name"]])
    if value["is"] == "array":
        return arrays[value["name"]][()]  # without axes: the scalar
    if value["is"] == "dict":
        return {key: _from_json(item, arrays) for key, item in value["items"]}
    items = [_from_json(item, arrays) for item in value["items"]]
    return deque(items, maxlen=value["maxlen"]) if value["is"] == "deque" else tuple(items)


# -------------------------------------------------------------------------------------------------- what run it is of


def _description(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes."""
    names = {policy: name for name, policy in model.policy_aliases.items()}
    return {
        "format": FORMAT,
        "algorithm": f"{type(model).__module__}.{type(model).__qualname__}",
        "sb3_reinforce": __version__,
        "libraries": installed_libraries(),
        "policy": names.get(model.policy_class),
        "rollout_buffer": next((name for name, kind in ROLLOUT_BUFFERS.items() if kind is model.rollout_buffer_class), None),
        "device": str(model.device),
        "env": describe_env(model.env),
    }


def installed_libraries() -> dict[str, str]:
    """:return: versions of the libraries whose numbers a run depends on"""
    return {library: installed_version(library) for library in LIBRARIES}


def describe_env(env: VecEnv | None) -> dict[str, Any]:
    """
    :param env: an environment as a model has it
    :return: what can be told about it from outside, in plain values
    """
    assert env is not None, "a model that is trained has an environment"
    inside = getattr(env.unwrapped, "envs", None)  # of SubprocVecEnv: in other processes
    spec = getattr(inside[0] if inside else env.unwrapped, "spec", None)
    return {
        "id": None if spec is None else spec.id,
        "n_envs": env.num_envs,
        "observation_space": _describe_space(env.observation_space),
        "action_space": _describe_space(env.action_space),
        "wrappers": [type(wrapper).__name__ for wrapper in wrappers(env)],
        "VecNormalize": [
            {name: _as_json(getattr(wrapper, name)) for name in VEC_NORMALIZE_SETTINGS}
            for wrapper in wrappers(env)
            if isinstance(wrapper, VecNormalize)
        ],
    }


def _as_json(value: Any) -> Any:
    """As it is once it was written as JSON and read again."""
    return list(value) if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else plain(value)


def _describe_space(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return str({key: _describe_space(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box):  # its text leaves out the middle of long bounds
        bounds = hashlib.sha256(space.low.tobytes() + space.high.tobytes()).hexdigest()[:8]
        return f"{space} (bounds {bounds})"
    return str(space)
