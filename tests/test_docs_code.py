"""
The code in README, CONTRIBUTING and docs: Python runs, and every command line is accepted by the parser that will read it.

bash itself splits the command lines, with loops, variables and comments: the commands are replaced by one that writes its
arguments down. So none is run here, and a renamed option, script, extra or target is found.
"""

import argparse
import inspect
import os
import re
import runpy
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.distributed.run
import yaml

from sb3_reinforce import REINFORCE
from sb3_reinforce.running.devices import has_convolutions
from sb3_reinforce.zoo import cli, usage
from tests.test_docs import CHECKOUT, PAGES
from tests.wandb_file import no_account  # noqa: F401

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
NOT_RUN = re.compile(r"^<!-- not run by the tests: ([^\n]+) -->\n```python\n.*?^```$", re.S | re.M)
COMMANDS = ("sb3-reinforce", "python", "torchrun", "make", "pip", "wandb", "hf", "srun", "scontrol")
EXTRAS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# In the text, capitals stand for what the reader fills in
PLACEHOLDER = re.compile(r"\b(VERB|ENV|ID|JSON)\b|<name>|\.\.\.")
WITH_CODE = [*PAGES, CHECKOUT / "docs/results.md", CHECKOUT / "CONTRIBUTING.md"]


class Parsed(BaseException):
    """Raised by a parser that has accepted a command line, in place of carrying it out."""


def lines_of(page: Path) -> list[str]:
    """Blocks of bash (those of sh need what is not ours), and indented lines and code in the text that are commands."""
    text = page.read_text()
    blocks = [code for language, code in BLOCK.findall(text) if language == "bash"]
    names, text = "|".join(COMMANDS), BLOCK.sub("", text)
    others = re.findall(rf"^    ((?:{names}) .*)$", text, re.M) + re.findall(rf"`((?:{names})\s[^`]*)`", text)
    return blocks + [" ".join(line.split()) for line in others if not PLACEHOLDER.search(line)]


def commands_of(lines: list[str], folder: Path) -> list[list[str]]:
    """The arguments of each command that bash would run, the command first."""
    binaries, record = folder / "bin", folder / "record"
    binaries.mkdir()
    for name in COMMANDS:
        stub = binaries / name
        stub.write_text(f'#!/bin/sh\nprintf \'%s\\0\' {name} "$@" "" >> {record}\n')
        stub.chmod(0o755)
    script = "\n".join(["set -e", *lines, "wait"])
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), script
    # an empty argument ends each command
    return [command.split("\0") for command in record.read_text().removesuffix("\0\0").split("\0\0")]


def parse(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Parsed, or fail."""
    name, *arguments = command
    if not arguments:
        return
    if name == "srun":
        parse(arguments, monkeypatch)
    elif name == "torchrun":
        options = torch.distributed.run.get_args_parser().parse_args(arguments)
        parse(["python", *["-m"] * options.module, options.training_script, *options.training_script_args], monkeypatch)
    elif name == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
        assert all(extra in EXTRAS for group in extras for extra in group.split(","))
    elif name == "make":
        assert re.search(rf"^{arguments[0]}:", (CHECKOUT / "Makefile").read_text(), re.M), f"no target {arguments[0]}"
    elif name == "wandb" and arguments[0] != "sync":  # which wants its folder to be there
        from wandb.cli.cli import cli as wandb

        wandb.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    elif name == "sb3-reinforce":
        for option in ("--resume", "-i"):  # their files are there only after training
            if arguments[0] == "train" and option in arguments:
                del arguments[arguments.index(option) : arguments.index(option) + 2]
        assert cli.main(arguments) == 0
    elif name == "python" and arguments[:2] == ["-m", "sb3_reinforce"]:
        parse(["sb3-reinforce", *arguments[2:]], monkeypatch)
    elif name == "python" and arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif name == "python" and "/" in arguments[0]:  # others are not ours
        script = CHECKOUT / arguments[0]
        if "argparse" in script.read_text():
            monkeypatch.syspath_prepend(str(script.parent))
            monkeypatch.setattr(sys, "argv", [str(script), *arguments[1:]])
            runpy.run_path(str(script), run_name="__main__")
            raise AssertionError(f"{script} reads no arguments")


def python_of(page: Path) -> list[str]:
    """The Python blocks of a page, but for those with a reason not to be run."""
    return [code for language, code in BLOCK.findall(NOT_RUN.sub("", page.read_text())) if language == "python"]


@pytest.mark.parametrize("page", [page for page in WITH_CODE if python_of(page)], ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    """All blocks of a page, one after the other. Long training ends after one update; with images, which are slow, at once."""

    def learn_little(model, total_timesteps, *args, **kwargs):
        short = total_timesteps if total_timesteps <= 30_000 else 1
        return learn(model, 0 if has_convolutions(model.policy) else short, *args, **kwargs)

    learn = REINFORCE.learn
    monkeypatch.setattr(REINFORCE, "learn", learn_little)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}  # as in a script: functions travel to other processes by value
    for code in python_of(page):
        exec(compile(code, page.name, "exec"), namespace)


def test_blocks_are_found():
    assert {page.name for page in WITH_CODE if python_of(page)} >= {"README.md", "score_function.md", "sequences.md"}
    assert len([code for page in WITH_CODE for code in python_of(page)]) >= 20
    left_out = [reason for page in WITH_CODE for reason in NOT_RUN.findall(page.read_text())]
    assert len(left_out) <= 3


def test_settings_are_those_of_reinforce():
    """The blocks of YAML are entries of a config."""
    known = set(inspect.signature(REINFORCE).parameters) | {"n_envs", "vec_env_wrapper"}
    blocks = [code for page in WITH_CODE for language, code in BLOCK.findall(page.read_text()) if language == "yaml"]
    assert blocks
    for entries in map(yaml.safe_load, blocks):
        assert not {name for entry in entries.values() for name in entry} - known


@pytest.mark.parametrize("page", [page for page in WITH_CODE if lines_of(page)], ids=lambda page: page.name)
def test_command_lines_are_accepted(page, tmp_path, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def stop(*args, **kwargs):
        parse_args(*args, **kwargs)
        raise Parsed

    commands = commands_of(lines_of(page), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(usage, "_PARSE_ARGS", stop)
    refused = []
    for command in commands:
        said = StringIO()
        try:
            with redirect_stderr(said):
                parse(command, monkeypatch)
        except Parsed:
            pass
        except BaseException as error:
            refused.append((command, repr(error), said.getvalue()))
    assert not refused
