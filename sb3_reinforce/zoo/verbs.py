"""RL Zoo's commands other than train: run in this process, with REINFORCE registered, our defaults and one-line errors."""

import argparse
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import errors as hub_errors

from sb3_reinforce.zoo import register, verb_checks
from sb3_reinforce.zoo.patches import RunId, patched, registered_children, replaced
from sb3_reinforce.zoo.quiet import asks_for_more, quiet_moviepy, without_lines
from sb3_reinforce.zoo.trust import files_read
from sb3_reinforce.zoo.usage import errors_in_one_line, refuse

# The Hub refuses, or cannot be reached. The base class of both comes from the HTTP library, of which there have been three.
HUB_ERROR: type[Exception] = getattr(hub_errors, "HTTPError", hub_errors.HfHubHTTPError)


class ZooVerb(NamedTuple):
    """One of RL Zoo's commands."""

    module: str  # rl_zoo3.<module> does the work
    check: Callable[[argparse.Namespace], None]  # refuses parsed arguments by a ValueError, or completes them
    example: str  # a command line, for --help
    adds: str = ""  # differences from RL Zoo, for --help
    # put in front of the user's options: of an option given twice the last counts
    defaults: tuple[str, ...] = ("--algo", "reinforce", "-f", "logs")
    needs: tuple[str, str] | None = None  # a package that must be installed, and our extra that brings it
    options: tuple[tuple[str, dict[str, Any]], ...] = ()  # our own, as arguments of add_argument
    repeats: str = ""  # lines that this command prints again and again; shown by -v
    repeats_of_others: str = ""  # those of the commands that it starts


_PNG = (
    "--png",
    {
        "metavar": "FOLDER",
        "type": Path,
        "help": "write figures as PNG into this folder, no windows (default without a display: logs/plots, or plots in -f)",
    },
)
_TRUST: tuple[str, dict[str, Any]] = (
    "--trust",
    {"action": "store_true", "help": "run code that files of the runs may hold: for files that you would run as a program"},
)
_GYM_PACKAGES: dict[str, Any] = {
    "metavar": "PACKAGE",
    "nargs": "+",
    "default": [],
    "help": "packages to import, which register environments",
}
_OF_PLOTS: dict[str, Any] = {"needs": ("seaborn", "plots"), "options": (_PNG,)}
ZOO_VERBS = {
    "enjoy": ZooVerb(
        "enjoy",
        verb_checks.check_enjoy,
        "sb3-reinforce enjoy --env CartPole-v1 --load-best",
        "Does not render where there is no display. -v shows each episode.",
        repeats=r"Episode (Reward:|Length) .*",  # but for Atari's, of which RL Zoo prints no mean
        options=(_TRUST,),
    ),
    "benchmark": ZooVerb(
        "benchmark",
        verb_checks.check_benchmark,
        "sb3-reinforce benchmark -n 5000",
        "No models from the Hub without --hub.\n"
        "A model with results in --benchmark-dir is not played again: delete its folder there after training anew.",
        defaults=("--log-dir", "logs"),
        options=(("--hub", {"action": "store_true", "help": "all models of sb3 on the Hub, too"}), _TRUST),
        repeats=r"|\d+/\d+|\d+ timesteps|\d+ Episodes",
        repeats_of_others=r"Loading .*",
    ),
    "plot-train": ZooVerb(
        "plots.plot_train",
        verb_checks.check_plot_train,
        "sb3-reinforce plot-train -e CartPole-v1 --png plots",
        "One curve of training returns per run.",
        defaults=("-a", "reinforce", "-f", "logs"),
        **_OF_PLOTS,
    ),
    "all-plots": ZooVerb(
        "plots.all_plots",
        verb_checks.check_all_plots,
        "sb3-reinforce all-plots -e CartPole-v1 -a reinforce a2c --no-million -o results --png plots",
        "Evaluations over steps, mean of the seeds and a band of one standard error; a table; with -o a file for plot-file.",
        defaults=("-a", "reinforce", "-f", "logs"),
        **_OF_PLOTS,
    ),
    "plot-file": ZooVerb(
        "plots.plot_from_file",
        verb_checks.check_plot_file,
        "sb3-reinforce plot-file -i results --no-million --png plots",
        "Draws the file of all-plots -o: curves with bands, bars, with --rliable intervals over environments.",
        defaults=(),
        needs=("seaborn", "plots"),
        options=(_PNG, _TRUST),
    ),
    "record-video": ZooVerb(
        "record_video",
        verb_checks.check_model,
        "sb3-reinforce record-video --env CartPole-v1 -n 500 --load-best",
        "Needs no display (MuJoCo: through EGL).",
        needs=("moviepy", "video"),
        options=(_TRUST,),
    ),
    "record-training": ZooVerb(
        "record_training",
        verb_checks.check_record_training,
        "sb3-reinforce record-training --env CartPole-v1 -n 500 -o videos",
        "One video of all checkpoints (train --save-freq), the final and the best model.\n"
        "Needs neither a display nor an installed ffmpeg.",
        needs=("moviepy", "video"),
        repeats_of_others=r"(Loading|Saving video to) .*",
        options=(_TRUST,),
    ),
    "push": ZooVerb(
        "push_to_hub",
        verb_checks.check_push,
        "sb3-reinforce push --env CartPole-v1 -orga YOUR_NAME",
        "The model card's commands are ours.\n"
        "Log in first: `hf auth login`, or HF_TOKEN. A copy of what was uploaded stays in the folder hub.",
        options=(_TRUST,),
    ),
    "pull": ZooVerb(
        "load_from_hub",
        verb_checks.check_environment,
        "sb3-reinforce pull --env CartPole-v1 -orga YOUR_NAME",
        "Downloads files and reads none. `enjoy` runs no code of theirs without --trust.",
    ),
}


def run(name: str, arguments: Sequence[str], main: Callable[[Sequence[str]], int]) -> int:
    """
    :param main: runs a command line of ours, for the commands that RL Zoo starts in turn
    :return: the exit code: 0, or 2 for a command line that cannot be run
    """
    verb = ZOO_VERBS[name]
    if verb.needs is not None and find_spec(verb.needs[0]) is None:
        return refuse(f'needs {verb.needs[0]}: pip install "sb3-reinforce[{verb.needs[1]}]"', name)
    parsed: list[argparse.Namespace] = []
    trust, more = "--trust" in arguments, asks_for_more(arguments)

    def parse_args(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        """Add our help, our options and our check to the zoo's parser, which is complete by now."""
        parser.prog = f"sb3-reinforce {name}"
        parser.description = f"RL Zoo's {verb.module.rpartition('.')[2]}. {verb.adds}"
        if verb.defaults:
            parser.description += f"\nDefaults here: {' '.join(verb.defaults)}"
        parser.epilog = f"example: {verb.example}"
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        for option, settings in verb.options:
            parser.add_argument(option, **settings)
        known = parser._option_string_actions
        if "--gym-packages" not in known and not verb.module.startswith("plots."):
            parser.add_argument("--gym-packages", **_GYM_PACKAGES)
        if "--exp-id" in known:
            known["--exp-id"].type = RunId
        options = parse_whole_names(parser, *args, **kwargs)
        verb.check(options)
        if hasattr(options, "png") and options.png is None and not verb_checks.has_display():
            folders = getattr(options, "exp_folders", None) or [getattr(options, "exp_folder", "logs")]
            options.png = Path(folders[0], "plots")
        parsed.append(options)
        return options

    def child(command: Sequence[str]) -> int:
        with nullcontext() if more else without_lines(re.compile(verb.repeats_of_others)):
            return main([*command, *(["--trust"] if trust else []), *(["-v"] if more else [])])

    register()
    try:
        figures = _figures(parsed) if verb.module.startswith("plots.") else nullcontext()
        argv = [f"sb3-reinforce {name}", *verb.defaults, *arguments]
        # the commands that it starts read the same files
        children = registered_children(child)
        patches = (children, patched(verb.module), files_read(trust), figures, errors_in_one_line(name))
        films = verb.module in ("record_video", "push_to_hub")
        silence = () if more else (without_lines(re.compile(verb.repeats)), quiet_moviepy() if films else nullcontext())
        with ExitStack() as stack, warnings.catch_warnings():
            for patch in (*patches, *silence):
                stack.enter_context(patch)
            # the zoo's package imports its plots
            warnings.filterwarnings("ignore", "'rl_zoo3.* found in sys.modules", RuntimeWarning)
            # what is to be drawn, or played in several processes, is played in single environments
            warnings.filterwarnings("ignore", "vectorize leaves", UserWarning)
            parse_whole_names = argparse.ArgumentParser.parse_args
            with replaced(argparse.ArgumentParser, "parse_args", parse_args), replaced(sys, "argv", argv):
                runpy.run_module(f"rl_zoo3.{verb.module}", run_name="__main__")
    except HUB_ERROR as wrong:
        status = getattr(getattr(wrong, "response", None), "status_code", None)
        cure = "; log in by `hf auth login` or HF_TOKEN" if status in (401, 403) else ""
        return refuse(f"Hugging Face Hub: {wrong}{cure}", name)
    except (ValueError, AssertionError, OSError) as wrong:  # the zoo's own ways to refuse
        if not str(wrong):
            raise
        return refuse(wrong, name)
    return 0


@contextmanager
def _figures(parsed: Sequence[argparse.Namespace]) -> Iterator[None]:
    """Write figures to files instead of windows, if the arguments, which are parsed inside, have ``--png``."""
    from matplotlib import pyplot as plt  # optional: the extra `plots`

    def save(folder: Path) -> None:
        for number in plt.get_fignums():
            figure = plt.figure(number)
            folder.mkdir(parents=True, exist_ok=True)
            name = str(figure.get_label()) or f"figure {number}"
            path = folder / f"{name.replace(' ', '-').replace('/', '-')}.png"
            figure.savefig(path, dpi=150)
            plt.close(figure)
            print(f"Figure: {path}")

    def show(*args: Any, **kwargs: Any) -> None:
        if parsed[0].png is None:
            original(*args, **kwargs)
        else:
            save(parsed[0].png)

    original = plt.show
    with replaced(plt, "show", show):
        yield
    if parsed[0].png is not None:
        save(parsed[0].png)  # all-plots --no-display
