"""The settings that are kept with a run: what decides its result, and no secret."""

import inspect
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce.running.normalization import wrappers

MASK = "***"
# Arguments of the constructor that are objects, or do not affect the result
_NOT_IN_CONFIG = {"self", "policy", "env", "verbose", "tensorboard_log", "_init_setup_model"}
# Words in the name of a secret (`key` alone and `api_key`, but not `keyboard` or `monkey`)
_SECRET_NAME = re.compile(
    r"(?:^|[^a-zA-Z0-9])(?:key|apikey|token|secret|password|passwd|pwd|credentials?|auth|bearer)(?:$|[^a-zA-Z0-9])", re.I
)
_SECRET_VALUE = re.compile(
    r"""
    (?<![A-Za-z0-9/])(?!ENVIRONMENT)(?:sk|pk|rk|hf|gh[opsur]|github_pat|glpat|xox[abprs]|wandb_v\d|local|npm|pypi|AKIA|ASIA|AIza|ya29)[-_.]?[A-Za-z0-9_\-]{16,}(?![A-Za-z0-9_\-/])
    | eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]+)+          # a JSON web token
    | (?<![A-Za-z0-9])[0-9a-fA-F]{32,}(?![A-Za-z0-9])  # W&B's keys, and others in hexadecimal digits
    | (?<![A-Za-z0-9+/_\-])(?!ENVIRONMENT)
      (?=[A-Za-z+/_\-]*\d)(?=[A-Z\d+/_\-]*[a-z])(?=[a-z\d+/_\-]*[A-Z])[A-Za-z0-9+_\-]{32,}={0,2}
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    """.replace(
        # the id of an environment, or the name of a run's folder, may be as long
        "ENVIRONMENT",
        r"[A-Za-z0-9_\-]+-v\d+(?:_\d+)?(?:_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?(?![A-Za-z0-9_\-])",
    ),
    re.X,
)
# User and password in an address; to the last @, as a password may have one, or a slash
_URL_PASSWORD = re.compile(r"""(?<=://)[^\s"'<>]+(?=@)""")
# A name and its value: in an address's query, or quoted as in Python and JSON. KeyError: 'x' is no secret.
_NAMED_VALUE = re.compile(
    r"""
    (?P<head>[?&](?P<query>[\w-]+)=)[^&\s"'#]+
    | (?P<before>(?P<name>[\w-]+)(?<!Error)['"]?\s*[=:]\s*)(?P<quote>['"]).*?(?P=quote)
    """,
    re.X,
)


def masked_text(text: str) -> str:
    """
    :return: the text with ``***`` for what looks like a key, for user and password in an address, and for values that have
        the name of a secret
    """

    def mask(found: re.Match[str]) -> str:
        if not has_secret_name(found["query"] or found["name"]):
            return found[0]
        return f"{found['head']}{MASK}" if found["query"] else f"{found['before']}{found['quote']}{MASK}{found['quote']}"

    return _NAMED_VALUE.sub(mask, _URL_PASSWORD.sub(MASK, _SECRET_VALUE.sub(MASK, text)))


def holds_secret(value: Any) -> bool:
    """:return: whether a setting, or one inside it, would be masked"""
    return MASK in repr(as_setting(value))


def has_secret_name(name: str) -> bool:
    """:return: whether a setting or an option of this name holds a secret, such as ``--api-key``"""
    spread = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return _SECRET_NAME.search(spread.replace("_", "-")) is not None


def masked_command(arguments: Sequence[str]) -> list[str]:
    """:return: a command line's words, with ``***`` for what looks like a key, or follows an option named like a secret"""
    shown: list[str] = []
    mask_next = False
    for word in arguments:
        is_option = word.startswith("-") and not re.fullmatch(r"-[\d.eE+-]+", word)
        name, separator, _ = word.partition("=") if is_option or "=" in word else word.partition(":")
        if mask_next and not is_option:
            shown.append(MASK)
            mask_next = False
        elif separator and has_secret_name(name):
            shown.append(f"{name}{separator}{MASK}")
        else:
            shown.append(masked_text(word))
            mask_next = is_option and has_secret_name(word)
    return shown


def model_settings(model: BaseAlgorithm) -> dict[str, Any]:
    """:return: the settings that decide a result: arguments, environment, versions, git commit, command; secrets masked"""
    arguments = {
        name: getattr(model, name)
        for name in inspect.signature(type(model)).parameters
        if name not in _NOT_IN_CONFIG and hasattr(model, name)
    }
    settings = {
        "algo": type(model).__name__,
        "policy": model.policy_class.__name__,
        **arguments,
        "device": str(model.device),
        **_environment(model),
        "n_envs": model.n_envs,
    }
    return {**as_setting(settings), "versions": versions(), "git_commit": _git_commit(), "command": command_line()}


def command_line() -> str:
    """:return: how this program was started, secrets masked"""
    program = Path(sys.argv[0] if sys.argv else "")
    # `python -m package` leaves the path of its __main__.py
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, *masked_command(sys.argv[1:])])


def as_setting(value: Any) -> Any:
    """A setting as W&B can keep it: numbers, None, strings with keys masked, containers of them; else its name or repr."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, Mapping):
        return {
            str(key): MASK if isinstance(item, str) and has_secret_name(str(key)) else as_setting(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [as_setting(item) for item in value]
    # without the object's address, which would differ between runs of the same setting
    return getattr(value, "__name__", None) or masked_text(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))


def _environment(model: BaseAlgorithm) -> dict[str, Any]:
    """:return: ``env_id`` and ``env_kwargs`` if known, else the spaces; the wrappers' classes, the outermost first"""
    if model.env is None:
        return {}
    env = model.env.unwrapped
    found: dict[str, Any] = {"vec_env": [type(each).__name__ for each in (*wrappers(model.env), env)]}
    # of environments in this process only: a worker of SubprocVecEnv would die of a spec that cannot be pickled
    spec = env.envs[0].spec if isinstance(env, DummyVecEnv) else None
    if spec is not None:
        found |= {"env_id": spec.id, "env_kwargs": spec.kwargs}
    else:
        found |= {"observation_space": str(env.observation_space), "action_space": str(env.action_space)}
    normalize = model.get_vec_normalize_env()
    if isinstance(normalize, VecNormalize):
        names = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
        found["vec_normalize"] = {name: getattr(normalize, name) for name in names}
    return found


def versions() -> dict[str, str]:
    """:return: the versions of this package, of the libraries below it and of Python"""
    found = {}
    for library in ("sb3-reinforce", "stable-baselines3", "gymnasium", "torch", "numpy"):
        with suppress(PackageNotFoundError):  # run from a checkout that was not installed
            found[library] = version(library)
    return found | {"python": platform.python_version()}


def _git_commit() -> str | None:
    """:return: the commit of the working directory; None outside a repository, before its first commit, or without git"""
    try:
        answer = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
