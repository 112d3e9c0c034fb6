"""RL Zoo's commands other than train: run in this process, with REINFORCE registered, our defaults, errors in one line."""

import argparse
import difflib
import importlib
import os
import pickle
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np

from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.cli import USAGE_ERROR
from sb3_reinforce.zoo.mends import MENDS, add_config_env_kwargs, replaced

LOGS = "logs"
_PARSE_ARGS = argparse.ArgumentParser.parse_args


class ZooVerb(NamedTuple):
    """
    A command of RL Zoo's.

    :param module: ``rl_zoo3.<module>`` does the work
    :param defaults: put in front of the user's arguments: of an option given twice the last counts
    :param check: refuses the parsed arguments by a ValueError, or completes them, before the zoo sees them
    :param adds: what is not as in RL Zoo, for ``--help``
    :param example: a command line, for ``--help``
    :param needs: package to be installed, and our extra that brings it
    :param options: options of our own, as arguments of ``add_argument``
    """

    module: str
    defaults: tuple[str, ...]
    check: Callable[[argparse.Namespace], None]
    adds: str
    example: str
    needs: tuple[str, str] | None = None
    options: tuple[tuple[str, dict[str, Any]], ...] = ()


def run(name: str, arguments: Sequence[str]) -> int:
    """
    Run one of RL Zoo's commands.

    :param name: our name for it
    :param arguments: the command line after the verb
    :return: the exit code: 0, or 2 for what cannot be run
    """
    verb = ZOO_VERBS[name]
    if verb.needs is not None and find_spec(verb.needs[0]) is None:
        return refuse(name, f'needs {verb.needs[0]}: pip install "sb3-reinforce[{verb.needs[1]}]"')
    parsed: list[argparse.Namespace] = []

    def parse_args(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        """The zoo's parser is complete: our help, our options and our check come to it."""
        parser.prog = f"sb3-reinforce {name}"
        parser.description = f"RL Zoo's {verb.module.rpartition('.')[2]}. {verb.adds}"
        parser.epilog = f"example: {verb.example}"
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        for option, settings in verb.options:
            parser.add_argument(option, **settings)
        options = parse_whole_names(parser, *args, **kwargs)
        verb.check(options)
        parsed.append(options)
        return options

    register()
    try:
        with ExitStack() as around:
            for mend in MENDS.get(verb.module, ()):
                around.enter_context(mend())
            if verb.module.startswith("plots."):
                around.enter_context(_figures(parsed))
            around.enter_context(errors_in_one_line(name))
            parse_whole_names = argparse.ArgumentParser.parse_args
            around.enter_context(replaced(argparse.ArgumentParser, "parse_args", parse_args))
            around.enter_context(replaced(sys, "argv", [f"sb3-reinforce {name}", *verb.defaults, *arguments]))
            around.enter_context(warnings.catch_warnings())
            # the zoo's package imports its plots
            warnings.filterwarnings("ignore", "'rl_zoo3.* found in sys.modules", RuntimeWarning)
            runpy.run_module(f"rl_zoo3.{verb.module}", run_name="__main__")
    except hub_error() as wrong:
        status = getattr(getattr(wrong, "response", None), "status_code", None)
        cure = "; log in by `hf auth login` or HF_TOKEN" if status in (401, 403) else ""
        return refuse(name, f"Hugging Face Hub: {wrong}{cure}")
    except (ValueError, AssertionError, OSError) as wrong:  # the zoo's own ways to refuse
        if not str(wrong):
            raise
        return refuse(name, str(wrong))
    return 0


@contextmanager
def errors_in_one_line(name: str) -> Iterator[None]:
    """
    What the zoo's parser refuses is one line, without the list of all options before it, and with the nearest option.

    :param name: the verb
    """

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        unknown = [word for word in message.split() if word.startswith("--")] if message.startswith("unrecognized") else []
        options = [option for option in parser._option_string_actions if option.startswith("--")]
        nearest = [[o for o in options if o.startswith(w)] or difflib.get_close_matches(w, options, n=1) for w in unknown]
        meant = "".join(f", did you mean {matches[0]}?" for matches in nearest if matches)
        sys.exit(refuse(name, f"{message}{meant or ';'} `sb3-reinforce {name} --help` lists the options"))

    def parse_args(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        parser.allow_abbrev = False  # what we look for among the zoo's options is found by its whole name
        return _PARSE_ARGS(parser, *args, **kwargs)

    with replaced(argparse.ArgumentParser, "error", error), replaced(argparse.ArgumentParser, "parse_args", parse_args):
        yield


def refuse(name: str, message: str) -> int:
    """
    :param name: the verb
    :param message: what is wrong, printed in one line
    :return: the exit code
    """
    print(f"sb3-reinforce {name}: error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE_ERROR


def hub_error() -> type[Exception]:
    """:return: what is raised where the Hub refuses or cannot be reached"""
    from huggingface_hub import errors

    # the base class of both comes from the HTTP library, of which there have been three
    return getattr(errors, "HTTPError", errors.HfHubHTTPError)


def has_display() -> bool:
    """:return: whether windows can be shown"""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_env(env_id: str, packages: Sequence[str] = ()) -> None:
    """
    :param env_id: what the user takes for an environment
    :param packages: modules that register environments when they are imported
    :raises ValueError: if there is none of that id
    """
    import rl_zoo3.import_envs  # noqa: F401  registers more of them

    module, _, name = env_id.rpartition(":")
    for package in filter(None, [*packages, module]):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ValueError(f"{package}, which is to register environments, cannot be imported: {error}") from error
    if name not in gym.registry:
        nearest = difflib.get_close_matches(name, gym.registry, n=1, cutoff=0.0)[0]
        raise ValueError(f"{name!r} is no registered environment, did you mean {nearest!r}?")


# --- checks of parsed arguments ---


def _check_model(options: argparse.Namespace) -> None:
    """:raises ValueError: if there is no such environment or no such model"""
    check_env(options.env.gym_id, getattr(options, "gym_packages", ()))
    if "rl-trained-agents" in options.folder and hasattr(options, "reward_log"):
        return  # enjoy downloads what is not in that folder
    run_folder = _run_folder(options, options.load_best, options.load_checkpoint, options.load_last_checkpoint)
    add_config_env_kwargs(options, run_folder)


def _run_folder(options: argparse.Namespace, *which: Any) -> str:
    """:raises ValueError: if there is no such model in it"""
    from rl_zoo3.utils import get_model_path

    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            return get_model_path(options.exp_id, options.folder, options.algo, options.env, *which)[2]
    except (AssertionError, ValueError) as error:
        train = f"sb3-reinforce train --algo {options.algo} --env {options.env.gym_id} -f {options.folder}"
        load_best, load_checkpoint, load_last = which
        extra = " --eval-freq N" * load_best + " --save-freq N" * (load_last or load_checkpoint is not None)
        raise ValueError(
            f"{error}; -f names the folder with the runs, --exp-id one of them, `{train}{extra}` makes one"
        ) from error


def _check_enjoy(options: argparse.Namespace) -> None:
    _check_model(options)
    if not options.no_render and not has_display():
        print("No display: playing without rendering (`sb3-reinforce record-video` films)")
        options.no_render = True


def _check_record_training(options: argparse.Namespace) -> None:
    check_env(options.env.gym_id)
    models = ((False, None, False), (True, None, False), (False, None, True))  # final, best, last checkpoint
    for which in models:
        try:
            _run_folder(options, *which)
            break
        except ValueError:
            if which == models[-1]:
                _run_folder(options, *models[0])
    if options.output_folder is None:
        return
    folder = Path(options.output_folder).absolute()
    if folder.exists() and not (folder.is_dir() and all(file.suffix in (".mp4", ".gif") for file in folder.iterdir())):
        raise ValueError(f"-o must be a new folder, or one with videos alone, because RL Zoo empties it, got {folder}")
    options.output_folder = str(folder)  # ffmpeg takes a relative one as relative to a file in it


def _check_push(options: argparse.Namespace) -> None:
    _check_model(options)
    if not options.no_render and find_spec("moviepy") is None:
        raise ValueError('the video needs moviepy: pip install "sb3-reinforce[video]", or --no-render')


def _check_benchmark(options: argparse.Namespace) -> None:
    from rl_zoo3.utils import get_trained_models

    options.no_hub = options.no_hub or not options.hub
    if not os.path.isdir(options.log_dir):
        raise ValueError(f"--log-dir must be a folder with runs of train, got {options.log_dir}")
    if options.no_hub and not get_trained_models(options.log_dir):
        raise ValueError(f"--log-dir must be a folder with runs of train, got {options.log_dir}, which has none")


def _runs(folder: str, algo: str, env: str, file: str) -> list[Path]:
    """:return: the runs that the zoo's plots take for those of an environment and that have a file"""
    return sorted(path.parent for path in Path(folder, algo.lower()).glob(f"*/{file}") if env in path.parent.name)


def _check_plot_train(options: argparse.Namespace) -> None:
    from stable_baselines3.common.monitor import load_results

    where = f"in {Path(options.exp_folder, options.algo)}"
    for env in options.env:
        folders = {*_runs(options.exp_folder, options.algo, env, "*monitor.csv")}
        if not folders:
            raise ValueError(f"no run of {env} {where}")
        longest = max(len(load_results(str(folder))) for folder in folders)
        if longest < options.episode_window:
            raise ValueError(
                f"a mean over --episode-window episodes needs that many, got {options.episode_window}, and no run of {env} "
                f"{where} has more than {longest}: make it smaller"
            )


def _check_all_plots(options: argparse.Namespace) -> None:
    if not options.env:
        raise ValueError("-e must name at least one environment")
    for env in options.env:
        drawn = False
        for algo in options.algos:
            for folder in options.exp_folders:
                files = [run / "evaluations.npz" for run in _runs(folder, algo, env, "evaluations.npz")]
                steps = [run for run in (np.load(file)["timesteps"] for file in files) if len(run) > 1]
                drawn = drawn or bool(steps)
                n_longest = sum(len(run) == max(map(len, steps)) for run in steps)
                if n_longest < len(steps) and options.min_timesteps <= 0:
                    print(
                        f"{algo} on {env} in {folder}: runs with fewer evaluations than the longest are left out, "
                        f"{n_longest} of {len(steps)} stay; -max {min(run[-1] for run in steps)} would keep all"
                    )
        if not drawn:
            raise ValueError(
                f"no run of {env} with two evaluations or more, for {' or '.join(options.algos)} in "
                f"{' or '.join(options.exp_folders)}: `sb3-reinforce train --eval-freq N` evaluates every N steps"
            )


def _check_plot_file(options: argparse.Namespace) -> None:
    if not options.input:
        raise ValueError("-i must name a file that `sb3-reinforce all-plots -o` has written")
    path = Path(options.input if options.input.endswith(".pkl") else f"{options.input}.pkl")
    try:
        results = pickle.loads(path.read_bytes())
        del results["results_table"]
        n_runs = {env: {key: np.size(value["last_evals"]) for key, value in found.items()} for env, found in results.items()}
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"-i must name a file that `sb3-reinforce all-plots -o` has written, got {path}") from error

    def kept(names: Sequence[str], skip: Sequence[str], keep: Sequence[str]) -> list[str]:
        return [name for name in names if name not in skip and (not keep or name in keep)]

    # the zoo takes the first environment's names for all
    keys = kept([*next(iter(n_runs.values()), ())], options.skip_keys, options.keep_keys)
    for env in kept([*n_runs], options.skip_envs, options.keep_envs):
        for key in keys:
            if n_runs[env].get(key, 0) < 2:
                raise ValueError(
                    f"what is compared needs two runs on each environment, {key} has {n_runs[env].get(key, 0)} on {env}: "
                    "train with more seeds, or leave it out by --skip-keys or --skip-envs"
                )


# --- figures ---


@contextmanager
def _figures(parsed: Sequence[argparse.Namespace]) -> Iterator[None]:
    """
    Figures as files instead of windows, where ``--png`` or the lack of a display asks for that.

    :param parsed: gets the parsed arguments
    """
    from matplotlib import pyplot as plt

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


_MODEL = ("--algo", "reinforce", "-f", LOGS)
_PNG = (
    "--png",
    {
        "metavar": "FOLDER",
        "type": Path,
        "default": None if has_display() else Path("plots"),
        "help": "write the figures as PNG into this folder, no windows (where there is no display: plots)",
    },
)
_TRUST = "A model from the Hub may run code when it is loaded: set TRUST_REMOTE_CODE=True if you trust it."
ZOO_VERBS = {
    "enjoy": ZooVerb(
        "enjoy",
        _MODEL,
        _check_enjoy,
        "Defaults here: --algo reinforce, -f logs; --no-render where there is no display.",
        "sb3-reinforce enjoy --env CartPole-v1 --load-best",
    ),
    "benchmark": ZooVerb(
        "benchmark",
        ("--log-dir", LOGS),
        _check_benchmark,
        "Defaults here: --log-dir logs; no models from the Hub without --hub.\n"
        "A model with results in --benchmark-dir is not played again: delete its folder there after training anew.",
        "sb3-reinforce benchmark -n 5000",
        options=(("--hub", {"action": "store_true", "help": "all models of sb3 on the Hub, too"}),),
    ),
    "plot-train": ZooVerb(
        "plots.plot_train",
        ("-a", "reinforce", "-f", LOGS),
        _check_plot_train,
        "One curve of training returns per run.\nDefaults here: -a reinforce, -f logs.",
        "sb3-reinforce plot-train -e CartPole-v1 --png plots",
        ("seaborn", "plots"),
        (_PNG,),
    ),
    "all-plots": ZooVerb(
        "plots.all_plots",
        ("-a", "reinforce", "-f", LOGS),
        _check_all_plots,
        "Evaluations over steps, mean of the seeds and a band of one standard error; a table; with -o a file for plot-file.\n"
        "Defaults here: -a reinforce, -f logs.",
        "sb3-reinforce all-plots -e CartPole-v1 -a reinforce a2c --no-million -o results --png plots",
        ("seaborn", "plots"),
        (_PNG,),
    ),
    "plot-file": ZooVerb(
        "plots.plot_from_file",
        (),
        _check_plot_file,
        "Draws what all-plots -o has written: curves with bands, bars, with --rliable intervals over environments.",
        "sb3-reinforce plot-file -i results --no-million --png plots",
        ("seaborn", "plots"),
        (_PNG,),
    ),
    "record-video": ZooVerb(
        "record_video",
        _MODEL,
        _check_model,
        "Defaults here: --algo reinforce, -f logs. Needs no display (MuJoCo: through EGL).",
        "sb3-reinforce record-video --env CartPole-v1 -n 500 --load-best",
        ("moviepy", "video"),
    ),
    "record-training": ZooVerb(
        "record_training",
        _MODEL,
        _check_record_training,
        "One video of all checkpoints (train --save-freq), the final and the best model.\n"
        "Defaults here: --algo reinforce, -f logs. Needs neither a display nor an ffmpeg of the system's.",
        "sb3-reinforce record-training --env CartPole-v1 -n 500 -o videos",
        ("moviepy", "video"),
    ),
    "push": ZooVerb(
        "push_to_hub",
        _MODEL,
        _check_push,
        "Defaults here: --algo reinforce, -f logs. The model card's commands are ours.\n"
        "Log in first: `hf auth login`, or HF_TOKEN. A copy of what was uploaded stays in the folder hub.",
        "sb3-reinforce push --env CartPole-v1 -orga YOUR_NAME",
    ),
    "pull": ZooVerb(
        "load_from_hub",
        _MODEL,
        lambda options: check_env(options.env.gym_id),
        f"Defaults here: --algo reinforce, -f logs.\n{_TRUST}",
        "TRUST_REMOTE_CODE=True sb3-reinforce pull --env CartPole-v1 -orga YOUR_NAME",
    ),
}
