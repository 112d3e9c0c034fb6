"""Environments by their names on the command line: ``ID``, or ``PACKAGE:ID`` for one that a package registers."""

import difflib
import importlib
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

import gymnasium as gym

from sb3_reinforce.vec_env.atari import NO_ALE

# Names that ale-py gives: ALE/Pong-v5, PongNoFrameskip-v4, Pong-v4
_ATARI_ID = re.compile(r"ALE/\w+-v\d|\w+NoFrameskip-v[04]|[A-Z]\w+-v[04]")


def import_packages(packages: Sequence[str]) -> None:
    """:raises ValueError: if a package, which is to register environments, cannot be imported"""
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, TypeError, ValueError) as error:  # the last two for a name like "..x"
            raise ValueError(f"{package}, which is to register environments, cannot be imported: {error}") from error


def find_environment(name: str, packages: Sequence[str] = ()) -> str:
    """
    Import the packages, and find the environment that they, or others before, have registered.

    :param name: ``ID`` or ``PACKAGE:ID``
    :return: its ID
    :raises ValueError: if it is not registered; names the nearest one
    """
    package, _, env_id = name.rpartition(":")
    import_packages([*packages, *([package] if package else [])])
    if env_id not in gym.registry:
        with suppress(ImportError):
            importlib.import_module("ale_py")  # registers Atari games
    if env_id not in gym.registry:
        nearest = difflib.get_close_matches(env_id, gym.registry, n=1, cutoff=0.0)[0]
        message = f"{env_id!r} is no registered environment, did you mean {nearest!r}?"
        if _ATARI_ID.fullmatch(env_id) and find_spec("ale_py") is None:
            message = f"{env_id!r} is no registered environment. {NO_ALE}"
        raise ValueError(message)
    return env_id
