"""What the command line says: refusals in one line, with exit code 2; commands and paths as a shell takes them."""

import argparse
import difflib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# What needs torch is imported late: `sb3-reinforce --help` must not wait for it
USAGE_ERROR = 2
# Taken before anything replaces it: a command may run a second one inside, which must not meet the first one's options.
_PARSE_ARGS = argparse.ArgumentParser.parse_args


class UsageError(ValueError):
    """A request on the command line, or in a file named there, that cannot be carried out."""

    exit_code = USAGE_ERROR


def refuse(message: object, verb: str = "") -> int:
    """
    Print what is wrong, in one line, with secrets masked.

    :param message: an error, or words about it
    :param verb: the command that refuses
    :return: the exit code
    """
    from sb3_reinforce.tracking.settings import masked_text

    print(f"sb3-reinforce{verb and f' {verb}'}: error: {masked_text(' '.join(str(message).split()))}", file=sys.stderr)
    return USAGE_ERROR


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the list of all options before it."""

    def error(self, message: str) -> NoReturn:
        from sb3_reinforce.tracking.settings import masked_text

        self.exit(USAGE_ERROR, masked_text(f"{self.prog}: error: {message}\n"))


@contextmanager
def errors_in_one_line(verb: str, ours: Sequence[str] = ()) -> Iterator[None]:
    """
    Inside, every parser refuses in one line that names the nearest option of the verb, and knows ``-v``.

    :param ours: options that the parser does not know
    """
    from sb3_reinforce.zoo.patches import replaced
    from sb3_reinforce.zoo.quiet import add_verbose

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        unknown = [word for word in message.split() if word.startswith("--")] if message.startswith("unrecognized") else []
        options = [option for option in (*ours, *parser._option_string_actions) if option.startswith("--")]
        nearest = [[o for o in options if o.startswith(w)] or difflib.get_close_matches(w, options, n=1) for w in unknown]
        meant = "".join(f", did you mean {matches[0]}?" for matches in nearest if matches)
        extra = message.removeprefix("unrecognized arguments: ")
        if extra != message and not extra.startswith("-") and "--env" in options:
            meant = f", did you mean --env {extra.split(' ')[0]}?"
        sys.exit(refuse(f"{message}{meant or ';'} `sb3-reinforce {verb} --help` lists the options", verb))

    def parse_args(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        parser.allow_abbrev = False  # our own look at the zoo's options finds whole names only
        add_verbose(parser)
        return _PARSE_ARGS(parser, *args, **kwargs)

    with replaced(argparse.ArgumentParser, "error", error), replaced(argparse.ArgumentParser, "parse_args", parse_args):
        yield


def shell_line(words: Sequence[str]) -> str:
    """:return: a command of ours as it can be pasted into a shell"""
    return shlex.join([command("sb3-reinforce"), *words])


def relative(path: Path) -> str:
    """:return: the path relative to the working directory, if it is below that"""
    path = path.absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def command(name: str) -> str:
    """:return: the name of one of our commands if the shell finds it, else its path: its environment may not be activated"""
    here = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not here.is_file() or (found is not None and Path(found).samefile(here)):
        return name
    return relative(here)
