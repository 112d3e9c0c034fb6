"""``sb3-reinforce completion``: a script for bash and zsh with all commands, options, choices and environments as words."""

import argparse
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress

import gymnasium as gym

SCRIPT = """\
# Completion of sb3-reinforce, made by `sb3-reinforce completion`: make it anew after an update.
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_sb3_reinforce() {
  local words="" environments="ENVIRONMENTS"
  case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in
CHOICES
    *) case "${COMP_WORDS[1]}" in
OPTIONS
      esac ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="VERBS"
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _sb3_reinforce sb3-reinforce"""


def completion(main: Callable[[Sequence[str]], int], verbs: Sequence[str], arguments: Sequence[str]) -> int:
    """
    Print the script. Pressing Tab starts no Python: that would take seconds, which torch and RL Zoo need to start.

    :param main: runs a command line of ours
    :param verbs: the names of all commands
    """
    parser = argparse.ArgumentParser(
        prog="sb3-reinforce completion",
        description=__doc__,
        epilog="example: sb3-reinforce completion > ~/.sb3-reinforce-completion; source ~/.sb3-reinforce-completion",
    )
    parser.parse_args(arguments)
    options, choices = [], []
    for verb in verbs:
        names, values = words_of(help_of(main, verb)) if verb != "completion" else ([], {})
        options.append(f'      {verb}) words="{" ".join(names)}" ;;')
        choices += [f'    "{verb} {name}") words="{" ".join(words)}" ;;' for name, words in values.items()]
    parts = {"CHOICES": "\n".join(choices), "OPTIONS": "\n".join(options), "VERBS": " ".join(verbs)}
    parts["ENVIRONMENTS"] = " ".join(sorted(gym.registry))  # those that RL Zoo registers, too
    print(re.sub("ENVIRONMENTS|CHOICES|OPTIONS|VERBS", lambda place: parts[place[0]], SCRIPT))
    return 0


def help_of(main: Callable[[Sequence[str]], int], verb: str) -> str:
    """:return: what ``sb3-reinforce VERB --help`` prints; empty if its extra is not installed"""
    shown = io.StringIO()
    with suppress(SystemExit), redirect_stdout(shown):
        main([verb, "--help"])
    return shown.getvalue()


def words_of(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """
    :param text: an argparse parser's help, with an option or all its names at the beginning of a line
    :return: the options; the words that may follow some of them
    """
    names: list[str] = []
    values: dict[str, list[str]] = {}
    for line in re.findall(r"^  (-.*)", text, re.M):
        head = re.split(r"  +", line)[0]
        found = re.findall(r"(?:^|, )(--?[\w-]+)", head)
        choices = re.search(r"\{(.*?)\}", head)
        names += found
        for name in found:
            if choices is not None:
                values[name] = choices[1].split(",")
            elif "--env" in found:
                values[name] = ["$environments"]
    return names, values
