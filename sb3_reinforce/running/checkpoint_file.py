"""
A checkpoint is one zip file: a model file of Stable-Baselines3, which ``load`` reads as any other, and beside its parts
``training.json`` and ``training.npz`` (numbers, texts and arrays: no pickle) and ``manifest.json`` with a checksum of each
part. Not ``torch.save``: to read NumPy's arrays, torch's ``weights_only`` reader must be allowed NumPy's own constructors, by
which a forged file can corrupt memory.
"""

import hashlib
import io
import json
import re
import zipfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_reinforce.policies import name_of
from sb3_reinforce.running import checkpoint_schema
from sb3_reinforce.running.normalization import VEC_NORMALIZE_SETTINGS, wrappers
from sb3_reinforce.running.training_state import copied, plain
from sb3_reinforce.version import __version__

# Raised whenever an older checkpoint could be misread.
FORMAT = 2
MANIFEST, TRAINING, ARRAYS = "manifest.json", "training.json", "training.npz"
# Attributes that resume makes anew or reads from TRAINING: left out, they need not be pickled.
NOT_SAVED = (
    "_last_obs", "_last_original_obs", "_last_episode_starts", "_steps_into_episode", "ep_info_buffer", "ep_success_buffer",
)  # fmt: skip
ROLLOUT_BUFFERS: dict[str, type[RolloutBuffer]] = {"RolloutBuffer": RolloutBuffer, "DictRolloutBuffer": DictRolloutBuffer}


class CheckpointError(ValueError):
    """A checkpoint that a run cannot be resumed from: the message has its name and the reason."""


def checkpoints_in(folder: str | Path) -> list[Path]:
    """:return: the checkpoints in a folder, the newest first, whole or damaged"""
    found = (path for path in Path(folder).glob("checkpoint_*_steps.zip") if re.fullmatch(r"checkpoint_\d+_steps", path.stem))
    return sorted(found, key=steps_of, reverse=True)


def steps_of(path: Path) -> int:
    """:return: the number of environment steps that a checkpoint's name has"""
    numbers = re.fullmatch(r"checkpoint_(\d+)_steps\.zip", path.name)
    return int(numbers[1]) if numbers else 0


@dataclass(frozen=True)
class ModelParts:
    """What a model file holds: attributes of the model, and the state of networks and optimisers."""

    attributes: dict[str, Any]
    parameters: dict[str, Any]

    @classmethod
    def of(cls, model: OnPolicyAlgorithm) -> "ModelParts":
        """:return: what ``model.save`` would write now; no copies"""
        names, tensors = model._get_torch_save_params()
        schedules: Mapping[str, str] = getattr(model, "schedules", {})
        left_out = {*NOT_SAVED, *schedules.values(), *model._excluded_save_params()}
        left_out |= {name.split(".")[0] for name in (*names, *tensors)}
        attributes = {name: value for name, value in vars(model).items() if name not in left_out}
        extra = model._extra_state()  # type: ignore[attr-defined]
        return cls(attributes | {"_saved_state": extra}, model.get_parameters())

    def copy(self) -> "ModelParts":
        """:return: the same, which stays as it is while the model trains on"""
        attributes = {name: _as_the_file_holds_it(value) for name, value in self.attributes.items()}
        return ModelParts(attributes, copied(self.parameters))


def _as_the_file_holds_it(value: Any) -> Any:
    """A copy of an attribute, such as a schedule or a baseline that counts, in an object or in a function's variables."""
    if isinstance(value, (int, float, str, type, np.generic, spaces.Space)) or value is None:
        return value
    try:
        return cloudpickle.loads(cloudpickle.dumps(value))
    except Exception:  # the file cannot hold it, either, and writing it says so
        return value


def checkpoint_bytes(model: OnPolicyAlgorithm, state: dict[str, Any], parts: ModelParts | None = None) -> bytes:
    """
    :param state: plain values that are saved beside the networks
    :param parts: None: those of the model as it is now
    :return: a checkpoint file
    """
    parts = parts or ModelParts.of(model)
    file, packed = io.BytesIO(), io.BytesIO()
    save_to_zip_file(file, data=parts.attributes, params=parts.parameters, pytorch_variables={})
    arrays: dict[str, np.ndarray] = {}
    training = json.dumps(_to_json(state, arrays))
    np.savez(packed, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(TRAINING, training)
        archive.writestr(ARRAYS, packed.getvalue())
        sums = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
        archive.writestr(MANIFEST, json.dumps({**_description(model), "sha256": sums}, indent=1))
    return file.getvalue()


def read_parts(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """
    Read a checkpoint and check it against its manifest. Nothing in it is executed.

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
            found = manifest.get("format") if isinstance(manifest, dict) else None
            if found != FORMAT:
                raise CheckpointError(f"it has the format {found}, this version reads {FORMAT}")
            _fits(checkpoint_schema.MANIFEST, manifest, MANIFEST)
            sums = manifest["sha256"]
            if sorted(names) != sorted([*sums, MANIFEST]):
                raise CheckpointError("its parts are not those of its manifest")
            for name, expected in sums.items():
                if hashlib.sha256(archive.read(name)).hexdigest() != expected:
                    raise CheckpointError(f"its part {name} is damaged")
            with np.load(io.BytesIO(archive.read(ARRAYS)), allow_pickle=False) as arrays:
                state = _from_json(json.loads(archive.read(TRAINING)), dict(arrays))
            _fits(checkpoint_schema.TRAINING, state, TRAINING)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no checkpoint to resume from: {error}") from None
    except Exception as error:  # zipfile, json and numpy raise what the damaged byte leads to
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is no checkpoint to resume from: it is torn or damaged ({reason})") from error
    return data, manifest, state


def _fits(check: checkpoint_schema.Check, value: Any, part: str) -> None:
    try:
        check(value, part)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _to_json(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A plain value as JSON, which alone keeps neither tuples nor deques; its arrays go to ``arrays`` under new names."""
    if isinstance(value, (np.ndarray, np.generic, th.Tensor)):
        name = str(len(arrays))
        arrays[name] = value.numpy() if isinstance(value, th.Tensor) else np.asarray(value)
        return {"is": "tensor" if isinstance(value, th.Tensor) else "array", "name": name}
    if isinstance(value, dict):
        return {"is": "dict", "items": [[key, _to_json(item, arrays)] for key, item in value.items()]}
    if isinstance(value, (list, tuple, deque)):
        items = [_to_json(item, arrays) for item in value]
        if isinstance(value, list):
            return items
        return {"is": "tuple", "items": items} | ({"is": "deque", "maxlen": value.maxlen} if isinstance(value, deque) else {})
    return value


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


def _description(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes."""
    return {
        "format": FORMAT,
        "algorithm": f"{type(model).__module__}.{type(model).__qualname__}",
        "sb3_reinforce": __version__,
        "libraries": installed_libraries(),
        "policy": name_of(model.policy_class),
        "rollout_buffer": next((name for name, kind in ROLLOUT_BUFFERS.items() if kind is model.rollout_buffer_class), None),
        "device": str(model.device),
        "env": describe_env(model.env),
    }


def installed_libraries() -> dict[str, str]:
    """:return: versions of the libraries whose numbers a run depends on"""
    return {library: installed_version(library) for library in checkpoint_schema.LIBRARIES}


def describe_env(env: VecEnv | None) -> dict[str, Any]:
    """:return: what can be told about a model's environment from outside, in plain values"""
    assert env is not None, "a model that is trained has an environment"
    inside = getattr(env.unwrapped, "envs", None)  # of SubprocVecEnv: in other processes
    spec = getattr(inside[0] if inside else env.unwrapped, "spec", None)
    return {
        "id": None if spec is None else spec.id,
        "n_envs": env.num_envs,
        "observation_space": describe_space(env.observation_space),
        "action_space": describe_space(env.action_space),
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


def describe_space(space: spaces.Space) -> str:
    """:return: a text that two spaces share only if they are equal"""
    if isinstance(space, spaces.Dict):
        return str({key: describe_space(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box):  # its text leaves out the middle of long bounds
        bounds = hashlib.sha256(space.low.tobytes() + space.high.tobytes()).hexdigest()[:8]
        return f"{space} (bounds {bounds})"
    return str(space)
