"""The results of a training run: the saved model's score, the learning curve, and five lines about them."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce.tracking import WandbCallback
from sb3_reinforce.tracking.runs import evaluations_of
from sb3_reinforce.tracking.settings import masked_command

# Few: a mean of 100 episodes shows what the policy can do tens of thousands of steps late.
SMOOTHING_WINDOW = 10
# Okabe and Ito's, which the colour-blind can tell apart
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"


class Score(NamedTuple):
    """Undiscounted return of the policy: mean and standard deviation over the episodes played."""

    mean: float
    std: float
    n_episodes: int
    deterministic: bool = True

    def __str__(self) -> str:
        kind = "deterministic" if self.deterministic else "stochastic"
        return f"{self.mean:.1f} +- {self.std:.1f} over {self.n_episodes} {kind} episodes"


def model_file(experiment: ExperimentManager) -> Path:
    """:return: the zip file in which RL Zoo saves the final model"""
    return Path(experiment.save_path) / f"{experiment.env_name}.zip"


def evaluate_saved(experiment: ExperimentManager, n_episodes: int) -> Score:
    """Play the saved model, loaded from its file, with the wrappers and statistics saved beside it."""
    hyperparams, stats_path = get_saved_hyperparams(experiment.params_path, test_mode=True)
    env = create_test_env(
        experiment.env_name.gym_id,
        n_envs=min(8, n_episodes),
        stats_path=stats_path,
        # other environments than those of training, where SB3 counts up from the seed
        seed=int(np.random.SeedSequence([experiment.seed, 1]).generate_state(1)[0] % 2**31),
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=experiment.eval_env_kwargs or experiment.env_kwargs,
        vec_env_cls=DummyVecEnv,
    )
    model = ALGOS[experiment.algo].load(model_file(experiment), device=experiment.device)
    deterministic = experiment.deterministic_eval  # False for Atari and MiniGrid, where it may stand still for ever
    mean, std = evaluate_policy(model, env, n_eval_episodes=n_episodes, deterministic=deterministic)
    env.close()
    return Score(cast(float, mean), cast(float, std), n_episodes, deterministic)


def episodes_of(run_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """:return: for each episode, in order of their ends: steps of all episodes up to and including it; its return"""
    episodes = load_results(str(run_folder))
    return episodes["l"].to_numpy(np.int64).cumsum(), episodes["r"].to_numpy(np.float64)


def learning_curve(experiment: ExperimentManager, score: Score | None) -> str:
    """:return: where the learning curve is, or why there is none: the trained model is saved, whatever happens here"""
    try:
        return relative(draw_learning_curve(experiment, score))
    except ImportError:
        return 'not drawn: pip install "sb3-reinforce[plots]"'
    except Exception as error:  # Monitor's files may be torn, or gone
        return f"not drawn: {error or type(error).__name__}"


def draw_learning_curve(experiment: ExperimentManager, score: Score | None) -> Path:
    """
    :return: a PNG of training returns over environment steps, with the evaluations and the score
    :raises ImportError: without matplotlib
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    steps, returns = episodes_of(Path(experiment.save_path))
    # without pyplot: neither a display nor the user's own figures are touched
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    last = pd.Series(returns).rolling(SMOOTHING_WINDOW, min_periods=1)
    axes.fill_between(steps, last.min(), last.max(), alpha=0.2, color=BLUE, linewidth=0)
    axes.plot(steps, last.mean(), color=BLUE, label=f"last {SMOOTHING_WINDOW} training episodes, mean and range")
    evaluations = evaluations_of(Path(experiment.save_path))
    if evaluations is not None:
        steps, means, _ = evaluations
        axes.plot(steps, means, "o-", markersize=4, color=ORANGE, label="evaluations")
    if score is not None:
        axes.axhline(score.mean, linestyle="--", color=GREEN, label=f"saved model: {score.mean:.1f}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k, 1M
    axes.set_xlim(left=0)
    axes.set_xlabel("environment steps in finished episodes")
    axes.set_ylabel("return of an episode")
    axes.set_title(f"{experiment.algo.upper()} on {experiment.env_name.gym_id}, seed {experiment.seed}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    path = Path(experiment.save_path) / "learning_curve.png"
    figure.savefig(path, dpi=150)
    return path


def report_lines(
    experiment: ExperimentManager,
    arguments: Sequence[str],
    score: Score | None,
    curve: str,
    tracker: WandbCallback | None,
) -> list[str]:
    """:return: score, model, learning curve, W&B run and the next command"""
    if tracker is None:
        run = "not tracked, add --track"
    elif tracker.run_url is not None:
        run = tracker.run_url
    elif tracker.run_dir is None or not tracker.run_dir.is_dir():
        run = "none was kept"
    else:
        run = f"{relative(tracker.run_dir)} (shown by: {command('wandb')} leet {relative(tracker.run_dir)})"
    again = f"{command('sb3-reinforce')} train"
    if experiment.algo == "reinforce":
        following = f"the same without a baseline: {again} {without_baseline(arguments)}"
    else:
        following = f"REINFORCE for comparison: {again} --env {experiment.env_name.gym_id} -P"
    return [
        f"Score:          {score or 'not evaluated, add --eval-final 100'}",
        f"Model:          {relative(model_file(experiment))}",
        f"Learning curve: {curve}",
        f"W&B run:        {run}",
        f"Next:           {following}",
    ]


def without_baseline(arguments: Sequence[str]) -> str:
    """:return: a command line of training, quoted for a shell, secrets masked, with ``baseline="none"`` in ``-params``"""
    words = [shlex.quote(word) for word in masked_command(arguments)]
    if not {"-params", "--hyperparams"} & set(words):
        words.append("-params")
    last = max(number for number, word in enumerate(words) if word in ("-params", "--hyperparams"))
    end = next((number for number in range(last + 1, len(words)) if words[number].startswith("-")), len(words))
    words.insert(end, "\"baseline:'none'\"")
    return " ".join(words)


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
