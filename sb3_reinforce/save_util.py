"""Model files: whether one is whole, and what of another algorithm's model can be taken over."""

import io
import pathlib
import zipfile
from typing import Any

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


def same_optimizer_kind(saved: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether two optimiser state dicts have the same hyperparameters, and so come from the same class."""
    # A state without groups is damaged: torch says so when it is loaded.
    return "param_groups" not in saved or set(saved["param_groups"][0]) == set(own["param_groups"][0])
