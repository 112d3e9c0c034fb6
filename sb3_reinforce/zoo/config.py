"""Read and check a config's entry for an environment. Errors name the key and the file."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.utils import get_class_by_name

from sb3_reinforce import REINFORCE
from sb3_reinforce.arguments import check_count
from sb3_reinforce.migration import INSTEAD
from sb3_reinforce.schedules import is_number, make_schedule
from sb3_reinforce.zoo.usage import UsageError

# Keys that the zoo removes from an entry; the rest are the model's arguments
ZOO_KEYS = (
    "callback", "env_kwargs", "env_wrapper", "frame_stack", "monitor_kwargs", "n_envs", "n_timesteps", "noise_std",
    "noise_type", "normalize", "policy", "vec_env_wrapper",
)  # fmt: skip
# Text that the zoo, or REINFORCE, turns into a schedule
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
# Text that the zoo evaluates as Python, in its own module
EVALUATED = ("normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs")
# Monitor's arguments; the others are for files, whose names and contents are those of the run
MONITOR_ARGUMENTS = ("allow_early_resets", "reset_keywords", "info_keywords")
# Dotted paths that the zoo imports; that of a policy has a dot, SB3's own names have none
IMPORTED = ("callback", "env_wrapper", "vec_env_wrapper", "policy")


def read_entry(file: str, env_id: str, is_atari: bool) -> tuple[str, dict[str, Any]]:
    """
    :param file: a YAML or Python file, or an importable module
    :return: name and hyperparameters of the environment's entry, else of ``atari`` if it is one, else of ``default``
    :raises UsageError: if there is none
    """
    entries = _read(file)
    names = [env_id, *(["atari"] if is_atari else []), "default"]
    name = next((name for name in names if name in entries), None)
    if name is None:
        raise UsageError(f"{file} has no entry for {env_id}, and no `default`: add one, or give another --conf-file")
    if not isinstance(entries[name], Mapping):
        raise UsageError(f"{file}: {name} must hold `key: value` lines, got {entries[name]!r}")
    if name != env_id:
        print(f"{env_id} is not in {file}: its entry {name!r} is used")
    return name, dict(entries[name])


def _read(file: str) -> Mapping[str, Any]:
    try:
        if file.endswith((".yml", ".yaml")):
            with open(file) as stream:
                entries = yaml.safe_load(stream)
        elif file.endswith(".py"):
            variables: dict[str, Any] = {}
            exec(Path(file).read_text(), variables)
            entries = variables["hyperparams"]
        else:
            entries = importlib.import_module(file).hyperparams
    except OSError as error:
        raise UsageError(f"--conf-file {file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--conf-file {file} is no YAML: {error}") from error
    except ImportError as error:
        raise UsageError(f"--conf-file must be a .yml file, a .py file or a module, got {file}: {error}") from error
    except (KeyError, AttributeError) as error:
        raise UsageError(f"--conf-file {file} defines no dict `hyperparams`") from error
    if not isinstance(entries, Mapping):
        raise UsageError(f"--conf-file {file} must hold an entry per environment, got {entries!r}")
    return entries


def check_entry(algo: str, entry: Mapping[str, Any], source: Callable[[str], str]) -> None:
    """
    Refuse hyperparameters that are wrong whatever the environment. The rest is left to the algorithm's constructor.

    :param source: the name of a hyperparameter -> where its value comes from
    :raises UsageError: names the key, where it comes from, the value and the cure
    """
    known = {*ZOO_KEYS, *inspect.signature(ALGOS[algo]).parameters} - {"env"}
    missing = [key for key in ("n_timesteps", "policy") if key not in entry]
    for key in [*entry, *missing]:
        try:
            if key in missing:
                raise ValueError(f"{key} is missing")
            if key not in known and key in INSTEAD and issubclass(ALGOS[algo], REINFORCE):
                raise ValueError(f"{algo} has no hyperparameter {key!r}: {INSTEAD[key]}")
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
                raise ValueError(f"{algo} has no hyperparameter {key!r}, did you mean {nearest!r}?")
            _check_value(key, entry[key])
        except ValueError as error:
            raise UsageError(f"{source(key)}: {error}") from error


def _check_value(key: str, value: Any) -> None:
    """:raises ValueError: if the value cannot be right for this key"""
    text = _number_as_text(value)
    if text is not None:
        raise ValueError(f"{key} must be a number, got the text {text!r} (YAML reads 1e-3 as text): write !!float {text}")
    if key in ("n_timesteps", "n_envs"):
        check_count(key, int(value) if isinstance(value, float) and value.is_integer() else value)
    if isinstance(value, str) and key in SCHEDULES:
        make_schedule(key, value)
    if isinstance(value, str) and key in EVALUATED:
        try:
            value = eval(value, vars(exp_manager).copy())
        except Exception as error:
            raise ValueError(f"{key} must be Python, got {value!r} ({error})") from error
    if key == "monitor_kwargs":
        if not isinstance(value, Mapping) or set(value) - set(MONITOR_ARGUMENTS):
            raise ValueError(f"{key} must be a dict with some of {', '.join(MONITOR_ARGUMENTS)}, got {value!r}")
        for name in ("reset_keywords", "info_keywords"):
            if not isinstance(value.get(name, ()), list | tuple):
                raise ValueError(f"{key}: {name} must be a list of names, got {value[name]!r}")
    if key in IMPORTED:
        for item in value if isinstance(value, list) else [value]:
            path = next(iter(item)) if isinstance(item, Mapping) and item else item
            if isinstance(path, str) and (key != "policy" or "." in path):
                try:
                    get_class_by_name(path)
                except (ImportError, AttributeError, ValueError) as error:
                    raise ValueError(
                        f"{key} must be the dotted path of what can be imported, got {path!r} ({error})"
                    ) from error


def _number_as_text(value: Any, outermost: bool = True) -> str | None:
    """:return: the text that was meant as a number, if any; inside of a list or dict "1" may be text, "1e-3" is a number"""
    if isinstance(value, str):
        return value if is_number(value) and (outermost or "e" in value.lower()) else None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((text for item in inner if (text := _number_as_text(item, outermost=False)) is not None), None)
