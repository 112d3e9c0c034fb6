"""The results of a training run: the saved model's score, the learning curve, and the lines about them."""

import re
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

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
from sb3_reinforce.zoo.usage import command, relative, shell_line
from sb3_reinforce.zoo.verb_checks import has_display

if TYPE_CHECKING:
    from sb3_reinforce.zoo.experiment import Experiment, Plan

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


def report_lines(experiment: "Experiment", plan: "Plan", score: Score | None, curve: str, trust: bool) -> list[str]:
    """
    :param plan: its arguments are the command line
    :param trust: whether commands that play the agent need ``--trust``
    :return: score, learning curve, where model and W&B run are, and three next commands
    """
    logs = [str(experiment.log_folder)]
    if plan.tracker is not None and plan.tracker.run_dir is not None and plan.tracker.run_dir.is_dir():
        logs.append(relative(plan.tracker.run_dir.parent))
    watch, what = watch_command(experiment, plan, trust)
    following = {
        what: shell_line(watch),
        "curves of all runs": shell_line(["report", *logs]),
        **compare_command(experiment, plan.arguments),
    }
    width = max(map(len, following))
    return [
        f"Score:          {score or 'not evaluated, add --eval-final 100'}",
        f"Learning curve: {curve}",
        f"Model:          {relative(model_file(experiment))}",
        f"W&B run:        {tracked_run(plan.tracker)}",
        "Next:",
        *(f"  {words:<{width}}  {line}" for words, line in following.items()),
    ]


def tracked_run(tracker: WandbCallback | None) -> str:
    """:return: the address of a W&B run, or where it is and what shows it"""
    if tracker is None:
        return "not tracked, add --track"
    if tracker.run_url is not None:
        return tracker.run_url
    if tracker.run_dir is None or not tracker.run_dir.is_dir():
        return "none was kept"
    folder = relative(tracker.run_dir)
    return f"{folder} (shown by: {shlex.join([command('wandb'), 'leet', folder])})"


def watch_command(experiment: "Experiment", plan: "Plan", trust: bool) -> tuple[list[str], str]:
    """:return: the command that shows how the agent plays, as well as this machine can; what it does"""
    words = [
        "--env",
        experiment.env_name.gym_id,
        "--exp-id",
        Path(experiment.save_path).name.removeprefix(f"{experiment.env_name}_"),
    ]
    if experiment.algo != "reinforce":
        words += ["--algo", experiment.algo]
    if experiment.log_folder != "logs":
        words += ["-f", experiment.log_folder]
    if plan.options.gym_packages:
        words += ["--gym-packages", *plan.options.gym_packages]
    words += ["--trust"] if trust else []
    if has_display():
        return ["enjoy", *words], "watch it play"
    if find_spec("moviepy") is not None:
        return ["record-video", *words], "film it"
    return ["enjoy", "--no-render", *words], "play more episodes"


def compare_command(experiment: "Experiment", arguments: Sequence[str]) -> dict[str, str]:
    """:return: a run to compare this one with, by what differs"""
    if experiment.algo != "reinforce":
        return {"REINFORCE instead": shell_line(["train", "--env", experiment.env_name.gym_id, "-P"])}
    options = last_of_each(arguments)
    params = options.setdefault("-params", ["-params"])
    given = [word for word in params[1:] if word.startswith("baseline:")]
    params[1:] = [word for word in params[1:] if word not in given]
    if any("none" in word for word in given):
        if len(params) == 1:
            del options["-params"]
        what = "with the default baseline"
    else:
        params.append('baseline:"none"')
        what = "without a baseline"
    return {what: shell_line(["train", *masked_command([word for words in options.values() for word in words])])}


def last_of_each(arguments: Sequence[str]) -> dict[str, list[str]]:
    """
    :param arguments: a command line of ``train``; one that resumes a run adds to the run's own
    :return: the options by name with their values; of an option given twice the last counts, as for the parser
    """
    options: dict[str, list[str]] = {}
    name = ""
    for word in arguments:
        if word.startswith("-") and not re.fullmatch(r"-[\d.eE+-]+", word):
            name = word.partition("=")[0]
            name = "-params" if name == "--hyperparams" else name
            options[name] = [word]
        else:
            options.setdefault(name, []).append(word)
    return options
