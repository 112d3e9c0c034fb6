"""Try something in a process of its own, in an empty folder and with a time limit, and say in a word how it ended."""

import contextlib
import hashlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_reinforce import REINFORCE

SECONDS = 60  # the time limit of a case
FORK = multiprocessing.get_context("fork")

# Outcomes that are as they should be; all others are faults
TRAINED, CLEAR, TOLD, SAME, OLDER = "trained", "clear error", "warned, then trained", "same bits", "older checkpoint, warned"
GOOD = (TRAINED, CLEAR, TOLD, SAME, OLDER)


@dataclass
class Case:
    """A fault: its kind, what it is in words, and a function that tries it and returns the outcome."""

    kind: str
    what: str
    run: Callable[[], str]


@dataclass(frozen=True)
class Raised:
    """An error: whether it is of the types for bad input, its type and text."""

    bad_input: bool
    text: str


def in_child(function: Callable[[], Any], seconds: float = SECONDS, **environment: str) -> Callable[[], Any]:
    """
    Start a function in a forked process, in an empty folder.

    :return: a function that waits for its result: what it returned, what it raised, "hung", or "died: code"
    """
    receiver, sender = FORK.Pipe(duplex=False)

    def body() -> None:
        os.environ.update(environment)
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
            os.chdir(folder)
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            try:
                sender.send(function())
            except BaseException as error:
                bad_input = isinstance(error, ValueError | FileNotFoundError)
                bad_input |= isinstance(error, TypeError) and "argument" in str(error)  # one that does not exist
                sender.send(Raised(bad_input, f"{type(error).__name__}: {error}"))
            os.chdir("/")
        os._exit(0)

    process = FORK.Process(target=body, daemon=True)
    process.start()
    started = time.monotonic()

    def result() -> Any:
        left = max(0.0, seconds - (time.monotonic() - started))
        try:
            found = receiver.recv() if receiver.poll(left) else "hung"
        except EOFError:
            process.join(1)
            found = f"died: {process.exitcode}"
        process.kill()
        return found

    return result


def outcome_of(found: Any, *names: str) -> str:
    """:return: the outcome of a case, from what :func:`in_child` found; an error is clear if it says one of the names"""
    if isinstance(found, Raised):
        return CLEAR if found.bad_input and (not names or any(name in found.text for name in names)) else found.text
    return str(found)


def trains(make: Callable[[], REINFORCE], steps: int = 60) -> str:
    """:return: "trained", or "warned, then trained" """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make().learn(steps)
    return TOLD if any(issubclass(warning.category, UserWarning) for warning in caught) else TRAINED


def bits(model: REINFORCE) -> str:
    """:return: a hash of parameters, optimisers and counters"""
    digest = hashlib.sha256(repr((model.num_timesteps, model._n_updates)).encode())
    for values in model.get_parameters().values():
        for key, value in sorted(flat(values)):
            digest.update(key.encode() + (value.numpy().tobytes() if isinstance(value, th.Tensor) else repr(value).encode()))
    return digest.hexdigest()


def flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """:return: the leaves of nested dicts and lists, with their paths"""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list | tuple) else None
    if pairs is None:
        yield name, values
    else:
        for key, value in pairs:
            yield from flat(value, f"{name}/{key}")


def command(line: str, codes: tuple[int, ...] = (1, 2)) -> str:
    """:return: the outcome of a command line, which must end with one of these codes and without a traceback"""
    from sb3_reinforce.zoo.cli import main

    sys.argv = ["sb3-reinforce", *line.split()]
    said = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    text = said.getvalue()
    if code not in codes or "Traceback" in text:
        return f"exit code {code}: {text[-300:]}"
    return CLEAR if code else TOLD if any(issubclass(w.category, UserWarning) for w in caught) else TRAINED
