"""Files: written whole or not at all; whether a model file is whole, and what of another algorithm's file can be loaded."""

import io
import os
import pathlib
import warnings
import zipfile
from contextlib import suppress
from typing import Any

import torch as th
from stable_baselines3.common.save_util import load_from_zip_file

MODEL_PARTS = {"data", "policy.pth", "policy.optimizer.pth"}


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """:raises ValueError: if there is a file and it is torn or no saved model"""
    file: Any = path
    if isinstance(path, (str, pathlib.Path)):
        file = pathlib.Path(path)
        file = file if file.exists() else file.with_name(file.name + ".zip")
        if not file.exists():
            return  # SB3's own FileNotFoundError
    try:
        with zipfile.ZipFile(file) as archive:
            torn, missing = archive.testzip(), MODEL_PARTS - set(archive.namelist())
        reason = f"its part {torn} is damaged" if torn else f"it has no {min(missing)}" if missing else None
    except Exception as error:  # zipfile raises what the damaged byte leads to, NotImplementedError among others
        reason = str(error)
    if not isinstance(file, pathlib.Path):
        file.seek(0)
    if reason:
        raise ValueError(f"{path} must be a whole model file made by save(): {reason}; take another copy of it")


def with_value_optimizer_inside(parameters: dict[str, Any]) -> dict[str, Any]:
    """
    Put the state of the value optimiser into that of the policy's optimiser, where torch's ``load_state_dict`` ignores it.

    Under a name of its own, A2C and PPO would refuse it: they have no such attribute.
    """
    if "value_optimizer" in parameters:
        parameters["policy.optimizer"]["value_optimizer"] = parameters.pop("value_optimizer")
    return parameters


def parameters_to_load(given: str | dict[str, Any], own: dict[str, Any], device: th.device | str) -> dict[str, Any]:
    """
    Parameters for ``set_parameters``, where they may come from another algorithm.

    :param given: a file, or what ``get_parameters`` of some algorithm returned
    :param own: states of the model's networks and optimisers: its state of an optimiser is kept if the other algorithm has
        none, or has one of another class (a warning says so)
    :return: a state per network and optimiser, by name
    """
    if isinstance(given, dict):
        params = dict(given)
    else:
        check_model_file(given)
        params = load_from_zip_file(given, device=device, load_data=False)[1]
    optimizer = params.get("policy.optimizer", {})
    if "value_optimizer" in optimizer:  # else at the top: in files from before December 2026
        params["policy.optimizer"] = {key: value for key, value in optimizer.items() if key != "value_optimizer"}
        params["value_optimizer"] = optimizer["value_optimizer"]
    if "value_optimizer" in own:
        params.setdefault("value_optimizer", own["value_optimizer"])
    else:
        params.pop("value_optimizer", None)
    for name in ("policy.optimizer", "value_optimizer"):
        if name in params and name in own and not _same_optimizer_kind(params[name], own[name]):
            params[name] = own[name]
            warnings.warn(f"the saved state of {name} belongs to another class of optimiser and was not loaded", stacklevel=3)
    return params


def _same_optimizer_kind(saved: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether two optimiser state dicts have the same hyperparameters, and so come from the same class."""
    if "param_groups" not in saved:
        return True  # a damaged state: torch says so when it is loaded
    mine, theirs = own["param_groups"][0], saved["param_groups"][0]
    decoupled = "decoupled_weight_decay"  # all that tells AdamW's from Adam's
    return set(theirs) == set(mine) and theirs.get(decoupled) == mine.get(decoupled)


def write_atomically(path: pathlib.Path, data: bytes, mode: int = 0o666) -> None:
    """
    Write a file so that it is whole or not there at all, whenever the process is killed. Its folder is made if missing.

    Its bytes are on the disk before its name, so that after a power cut, too, either this file or the one before is whole.

    :param mode: permissions, less the umask
    :raises OSError: if it cannot be written; what was there before is then still there
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
