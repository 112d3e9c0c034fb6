"""``check_VERB`` completes the parsed arguments of one of RL Zoo's commands, or raises a ValueError that names the cure."""

import argparse
import itertools
import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3.import_envs  # registers more environments
import rl_zoo3.utils
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_trained_models
from stable_baselines3.common.monitor import load_results

from sb3_reinforce.running.trust import CURE, UntrustedError, unpickle
from sb3_reinforce.zoo.environments import find_environment, import_packages
from sb3_reinforce.zoo.patches import absolute_output_folder, add_config_env_kwargs


def has_display() -> bool:
    """:return: whether windows can be shown"""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_environment(options: argparse.Namespace) -> None:
    """Refuse an environment that is not registered, by itself or by a package; of ``PACKAGE:ID`` the ID is left."""
    options.env = EnvironmentName(find_environment(options.env.gym_id, options.gym_packages))


def check_model(options: argparse.Namespace) -> None:
    """Refuse an unknown environment, or one without such a model."""
    check_environment(options)
    if "rl-trained-agents" in options.folder and hasattr(options, "reward_log"):
        return  # enjoy downloads a model that is missing there
    run_folder = _run_folder(options, options.load_best, options.load_checkpoint, options.load_last_checkpoint)
    add_config_env_kwargs(options, run_folder)


def _run_folder(options: argparse.Namespace, *which: Any) -> str:
    """:raises ValueError: if there is no such model in it"""
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            # looked up now, as it is patched
            return rl_zoo3.utils.get_model_path(options.exp_id, options.folder, options.algo, options.env, *which)[2]
    except (AssertionError, ValueError) as error:
        train = f"sb3-reinforce train --algo {options.algo} --env {options.env.gym_id} -f {options.folder}"
        load_best, load_checkpoint, load_last = which
        extra = " --eval-freq N" * load_best + " --save-freq N" * (load_last or load_checkpoint is not None)
        run = Path(options.folder, options.algo, f"{options.env}_{options.exp_id or 'N'}")
        raise ValueError(
            f"{error}; looked for a run {run}: -f names the folder with the runs, --exp-id one of them, "
            f"`{train}{extra}` makes one"
        ) from error


def check_enjoy(options: argparse.Namespace) -> None:
    """Refuse a missing model; do not render without a display."""
    check_model(options)
    if not options.no_render and not has_display():
        print("No display: playing without rendering (`sb3-reinforce record-video` films)")
        options.no_render = True


def check_record_training(options: argparse.Namespace) -> None:
    """Refuse a run without any model, and an output folder with other files, which RL Zoo would delete."""
    check_environment(options)
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
    import_packages(options.gym_packages)
    options.no_hub = options.no_hub or not options.hub
    rule = f"--log-dir must be a folder with runs of train, got {options.log_dir}"
    if not os.path.isdir(options.log_dir):
        raise ValueError(rule)
    models = get_trained_models(options.log_dir)
    if options.no_hub and not models:
        raise ValueError(f"{rule}, which has none: looked for {Path(options.log_dir, 'ALGO', 'RUN', 'ENV', 'args.yml')}")
    for _, env_id in models.values():
        if ":" in env_id and not options.trust:
            raise ValueError(f"{options.log_dir} has a run of {env_id}, which imports a module: {CURE}")


def _runs(folder: str, algo: str, env: str, file: str) -> tuple[list[Path], str]:
    """:return: the runs that the zoo's plots take as those of an environment, and that have a file; what was looked for"""
    top = Path(folder, algo.lower())
    found = sorted({path.parent for path in top.glob(f"*/{file}") if env in path.parent.name})
    return found, str(top / f"*{env}*" / file)


def _names(env_ids: Sequence[str]) -> list[str]:
    """:return: the environments as the folders of their runs name them: ``ALE/Pong-v5`` is ``ALE-Pong-v5``"""
    return [str.__str__(EnvironmentName(env_id)) for env_id in env_ids]


def check_plot_train(options: argparse.Namespace) -> None:
    """Refuse an environment without runs, and runs with too few episodes."""
    options.env = _names(options.env)
    for env in options.env:
        folders, pattern = _runs(options.exp_folder, options.algo, env, "*monitor.csv")
        if not folders:
            raise ValueError(f"no run of {env}: looked for {pattern}, which `sb3-reinforce train` writes")
        longest = max(len(load_results(str(folder))) for folder in folders)
        if longest < options.episode_window:
            raise ValueError(
                f"a mean over --episode-window episodes needs that many, got {options.episode_window}, and no run of {env} "
                f"in {pattern} has more than {longest}: make it smaller"
            )


def check_all_plots(options: argparse.Namespace) -> None:
    """Refuse an environment without evaluations; say which algorithms have none, and which runs the zoo will leave out."""
    if not options.env:
        raise ValueError("-e must name at least one environment")
    options.env = _names(options.env)
    if options.labels and len(options.labels) != len(options.exp_folders):
        raise ValueError(f"-l must have a label for each folder of -f, got {options.labels} for {options.exp_folders}")
    for env in options.env:
        empty = []
        for algo, folder in itertools.product(options.algos, options.exp_folders):
            runs, pattern = _runs(folder, algo, env, "evaluations.npz")
            steps = [each for run in runs if len(each := _evaluated_at(run, options.key)) > 1]
            if not steps:
                empty.append(f"no run of {algo} on {env} with two evaluations or more: looked for {pattern}")
                continue
            if max(each[0] for each in steps) > options.max_timesteps:
                raise ValueError(
                    f"-max must be at least {max(each[0] for each in steps)}, where a run of {algo} on {env} was first "
                    f"evaluated, got {options.max_timesteps}"
                )
            n_longest = sum(len(each) == max(map(len, steps)) for each in steps)
            if n_longest < len(steps) and options.min_timesteps <= 0:
                print(
                    f"{algo} on {env} in {folder}: runs with fewer evaluations than the longest are left out, "
                    f"{n_longest} of {len(steps)} stay; -max {min(each[-1] for each in steps)} would keep all"
                )
        if len(empty) == len(options.algos) * len(options.exp_folders):
            raise ValueError(f"{'; '.join(empty)}; `sb3-reinforce train --eval-freq N` evaluates every N steps")
        for line in empty:
            print(line)


def _evaluated_at(run: Path, key: str) -> np.ndarray:
    """:return: the steps at which a run was evaluated"""
    file = run / "evaluations.npz"
    try:
        evaluations = dict(np.load(file).items())
    except Exception as error:  # NumPy and zipfile raise what the damaged byte leads to
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}): delete it to plot the other runs"
        ) from error
    if not {"timesteps", key} <= set(evaluations):
        raise ValueError(f"-k must be one of {', '.join(evaluations)}, which {file} has, got {key!r}")
    return evaluations["timesteps"]


def check_plot_file(options: argparse.Namespace) -> None:
    """Refuse a file that is not from all-plots, curves without runs, and intervals of fewer than two runs."""
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
    envs = kept([*n_runs], options.skip_envs, options.keep_envs)
    if not keys or not envs:
        raise ValueError(
            f"nothing is left to draw: {path} has the environments {', '.join(n_runs)} and the curves "
            f"{', '.join(next(iter(n_runs.values()), ()))}"
        )
    if options.labels and len(options.labels) != len(keys):
        raise ValueError(f"-l must have a label for each of {', '.join(keys)}, got {', '.join(options.labels)}")
    needed = 2 if options.rliable else 1
    for env in envs:
        for key in keys:
            if n_runs[env].get(key, 0) < needed:
                raise ValueError(
                    f"{'--rliable' if needed == 2 else 'a curve'} needs {needed} run{'s' * (needed - 1)} on each environment, "
                    f"{key} has {n_runs[env].get(key, 0)} on {env}: train with more seeds, or leave it out by --skip-keys or "
                    "--skip-envs"
                )
