"""Model files: whether one is whole, and what of another algorithm's model can be taken over."""

import io
import pathlib
import zipfile
from typing import Any


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """:raises ValueError: if there is a file and it is torn or no saved model"""
    if isinstance(path, (str, pathlib.Path)):
        file = pathlib.Path(path)
        file = file if file.is_file() else file.with_name(file.name + ".zip")
        if not file.is_file():
            return  # SB3's own FileNotFoundError
    else:
        file = path  # type: ignore[assignment]
    try:
        with zipfile.ZipFile(file) as archive:
            torn = archive.testzip()
            if torn is None and {"data", "policy.pth"} <= set(archive.namelist()):
                return
        reason = "it has no saved policy" if torn is None else f"its part {torn} is damaged"
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        reason = str(error)
    finally:
        if not isinstance(path, (str, pathlib.Path)):
            path.seek(0)
    raise ValueError(f"{path} must be a whole model file made by save(): {reason}; take another copy of it")


def same_optimizer_kind(saved: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether two optimiser state dicts have the same hyperparameters, and so come from the same class."""
    # A state without groups is damaged: torch says so when it is loaded.
    return "param_groups" not in saved or set(saved["param_groups"][0]) == set(own["param_groups"][0])
