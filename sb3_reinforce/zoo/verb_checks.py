"""``check_VERB`` completes the parsed arguments of one of RL Zoo's commands, or raises a ValueError that names the cure."""

import argparse
import difflib
import importlib
import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import rl_zoo3.import_envs  # noqa: F401  registers more environments
from rl_zoo3.utils import get_model_path, get_trained_models
from stable_baselines3.common.monitor import load_results

from sb3_reinforce.running.trust import CURE, UntrustedError, unpickle
from sb3_reinforce.zoo.patches import absolute_output_folder, add_config_env_kwargs


def has_display() -> bool:
    """:return: whether windows can be shown"""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_env_id(env_id: str, packages: Sequence[str] = ()) -> None:
    """Refuse an environment that is not registered, by itself or by one of the packages."""
    module, _, name = env_id.rpartition(":")
    for package in filter(None, [*packages, module]):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ValueError(f"{package}, which is to register environments, cannot be imported: {error}") from error
    if name not in gym.registry:
        nearest = difflib.get_close_matches(name, gym.registry, n=1, cutoff=0.0)[0]
        raise ValueError(f"{name!r} is no registered environment, did you mean {nearest!r}?")


def check_model(options: argparse.Namespace) -> None:
    """Refuse an unknown environment, or one without such a model."""
    check_env_id(options.env.gym_id, getattr(options, "gym_packages", ()))
    if "rl-trained-agents" in options.folder and hasattr(options, "reward_log"):
        return  # enjoy downloads a model that is missing there
    run_folder = _run_folder(options, options.load_best, options.load_checkpoint, options.load_last_checkpoint)
    add_config_env_kwargs(options, run_folder)


def _run_folder(options: argparse.Namespace, *which: Any) -> str:
    """:raises ValueError: if there is no such model in it"""
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


def check_enjoy(options: argparse.Namespace) -> None:
    """Refuse a missing model; do not render without a display."""
    check_model(options)
    if not options.no_render and not has_display():
        print("No display: playing without rendering (`sb3-reinforce record-video` films)")
        options.no_render = True


def check_record_training(options: argparse.Namespace) -> None:
    """Refuse a run without any model, and an output folder with other files, which RL Zoo would delete."""
    check_env_id(options.env.gym_id)
    final, best, last_checkpoint = (False, None, False), (True, None, False), (False, None, True)
    for which in (best, last_checkpoint, final):
        try:
            _run_folder(options, *which)
            break
        except ValueError:
            if which == final:
                raise
    if options.output_folder is None:
        return
    absolute_output_folder(options)
    folder = Path(options.output_folder)
    if folder.exists() and not (folder.is_dir() and all(file.suffix in (".mp4", ".gif") for file in folder.iterdir())):
        raise ValueError(f"-o must be a new folder, or one with videos alone, because RL Zoo empties it, got {folder}")


def check_push(options: argparse.Namespace) -> None:
    """Refuse a missing model, and a video without the package that makes it."""
    check_model(options)
    if not options.no_render and find_spec("moviepy") is None:
        raise ValueError('the video needs moviepy: pip install "sb3-reinforce[video]", or --no-render')


def check_benchmark(options: argparse.Namespace) -> None:
    """Refuse a folder without models; take no models from the Hub without ``--hub``."""
    options.no_hub = options.no_hub or not options.hub
    rule = f"--log-dir must be a folder with runs of train, got {options.log_dir}"
    if not os.path.isdir(options.log_dir):
        raise ValueError(rule)
    models = get_trained_models(options.log_dir)
    if options.no_hub and not models:
        raise ValueError(f"{rule}, which has none")
    for _, env_id in models.values():
        if ":" in env_id and not options.trust:
            raise ValueError(f"{options.log_dir} has a run of {env_id}, which imports a module: {CURE}")


def _runs(folder: str, algo: str, env: str, file: str) -> list[Path]:
    """:return: the runs that the zoo's plots take as those of an environment, and that have a file"""
    return sorted(path.parent for path in Path(folder, algo.lower()).glob(f"*/{file}") if env in path.parent.name)


def check_plot_train(options: argparse.Namespace) -> None:
    """Refuse an environment without runs, and runs with too few episodes."""
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


def check_all_plots(options: argparse.Namespace) -> None:
    """Refuse an environment without evaluations; say which runs the zoo will leave out."""
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


def check_plot_file(options: argparse.Namespace) -> None:
    """Refuse a file that is not from all-plots, and comparisons of fewer than two runs."""
    rule = "-i must name a file that `sb3-reinforce all-plots -o` has written"
    if not options.input:
        raise ValueError(rule)
    path = Path(options.input if options.input.endswith(".pkl") else f"{options.input}.pkl")
    try:
        for file in [] if options.trust else [path, *map(Path, options.merge)]:
            unpickle(file.read_bytes())
    except UntrustedError as error:
        raise ValueError(f"{rule}, and {file} {error}: {CURE}") from None
    try:
        results = pickle.loads(path.read_bytes())
        del results["results_table"]
        n_runs = {env: {key: np.size(value["last_evals"]) for key, value in found.items()} for env, found in results.items()}
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{rule}, got {path}") from error

    def kept(names: Sequence[str], skip: Sequence[str], keep: Sequence[str]) -> list[str]:
        return [name for name in names if name not in skip and (not keep or name in keep)]

    # the zoo uses the first environment's names for all
    keys = kept([*next(iter(n_runs.values()), ())], options.skip_keys, options.keep_keys)
    for env in kept([*n_runs], options.skip_envs, options.keep_envs):
        for key in keys:
            if n_runs[env].get(key, 0) < 2:
                raise ValueError(
                    f"a comparison needs two runs on each environment, {key} has {n_runs[env].get(key, 0)} on {env}: "
                    "train with more seeds, or leave it out by --skip-keys or --skip-envs"
                )
