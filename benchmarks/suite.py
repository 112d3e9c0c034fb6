"""
What mujoco_tasks.py and classic.py share: train agents on tasks and seeds, keep each evaluation, make tables and curves.

An agent is an algorithm with a config file. A run's rows go to two CSV files as soon as the run is done, and are not run
again: one row per run (``NAME_runs.csv``) and one per evaluation during training (``NAME_curves.csv``). Every table and
picture is made of these files alone. Rows of settings that have changed since stay in them, but are in no table or picture.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import rl_zoo3
import style
import torch as th
from learning import (
    CONFIG,
    N_EVALUATIONS,
    ROOT,
    described,
    first_new_seed,
    in_parallel,
    make_envs,
    read_rows,
    save_rows,
    seed_taken,
    settings_of,
    split_by_settings,
    versions,
)
from matplotlib.ticker import MaxNLocator
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_reinforce import REINFORCE

RESULTS = ROOT / "benchmarks" / "results"
SCHEDULES = ("learning_rate", "clip_range")
N_RESAMPLES = 2000
FEW_SEEDS = 5  # fewer are drawn one by one
NICE = [1, 2, 2.5, 5, 10]  # distances of ticks, times a power of ten
WHOLE_EPISODES = 0.98  # of the steps at hand: the last rollout is played to the end of its episodes


@dataclass(frozen=True)
class Agent:
    """An algorithm and the file with its settings, ours or one of RL Zoo's."""

    algorithm: Any
    config: Path

    def settings(self, suite: "Suite", task: str) -> dict[str, Any]:
        """:return: the config's, but no more steps than the suite has; RL Zoo's algorithms get all of these"""
        settings, steps = settings_of(env_id_of(task), self.config), suite.steps[task]
        if task in suite.variants:
            settings["env_kwargs"] = suite.variants[task]
        if self.algorithm is REINFORCE:
            if settings["n_timesteps"] > steps:
                settings["n_timesteps"] = int(WHOLE_EPISODES * steps)
            return settings
        settings["n_timesteps"] = steps
        for key in SCHEDULES:
            if isinstance(settings.get(key), str):
                settings[key] = LinearSchedule(float(settings[key].removeprefix("lin_")), 0.0, 1.0)
        return settings


OURS = "REINFORCE"
REUSE = "REINFORCE, reuse"  # each batch is used several times
OF_ZOO = Path(rl_zoo3.__file__).parent / "hyperparams"
AGENTS = {
    OURS: Agent(REINFORCE, CONFIG),
    REUSE: Agent(REINFORCE, CONFIG.with_name("reinforce_reuse.yml")),
    "A2C": Agent(A2C, OF_ZOO / "a2c.yml"),
    "PPO": Agent(PPO, OF_ZOO / "ppo.yml"),
}


@dataclass(frozen=True)
class Suite:
    """
    Tasks and what is to be beaten on them.

    :param name: of the files
    :param steps: training steps by task
    :param n_eval_episodes: episodes of each evaluation during training
    :param n_final_episodes: episodes of the evaluation after it
    :param published: others' results, by name: a score by task
    :param compares: what of ours they are to be compared with: ``"maximum"`` over training of the seeds' mean, or ``"final"``
    :param variants: of tasks named ``"ENV_ID (what differs)"``, the arguments of gymnasium.make. They have rows of their own
        and are part of no comparison
    :param bounds: lowest and highest possible return by task, where the axis is to show both
    :param results: folder of the CSV files
    :param pictures: folder of the learning curves
    """

    name: str
    steps: dict[str, int]
    n_eval_episodes: int
    n_final_episodes: int
    published: dict[str, dict[str, float]]
    compares: Literal["maximum", "final"]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    results: Path = RESULTS
    pictures: Path = ROOT / "docs"

    def path(self, part: str) -> Path:
        return self.results / f"{self.name}_{part}"

    def rows(self, part: str = "runs.csv") -> list[dict[str, str]]:
        return read_rows(self.path(part))


def env_id_of(task: str) -> str:
    return task.partition(" (")[0]


def train(
    algorithm: Any, env_id: str, settings: dict[str, Any], seed: int, every: int, n_eval_episodes: int
) -> tuple[Any, Any, list[tuple[int, float]], float]:
    """
    Train, and evaluate as it goes.

    :param settings: an entry of a config
    :param every: environment steps from one evaluation to the next
    :return: the model, environments of an evaluation of it, (step, mean return) of each evaluation, and seconds
    """
    th.set_num_threads(1)
    settings = dict(settings)
    n_envs, policy, normalize = settings.pop("n_envs", 1), settings.pop("policy"), settings.pop("normalize", False)
    n_timesteps, env_kwargs = int(settings.pop("n_timesteps")), settings.pop("env_kwargs", None)
    # each environment of the evaluation plays one episode
    env, eval_env = make_envs(env_id, n_envs, n_eval_episodes, normalize, settings.get("gamma", 0.99), seed, env_kwargs)
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:  # without one, EvalCallback keeps no evaluations
        evaluation = EvalCallback(
            eval_env,
            n_eval_episodes=n_eval_episodes,
            eval_freq=max(every // n_envs, 1),
            log_path=folder,
            verbose=0,
            warn=False,
        )
        model = algorithm(policy, env, seed=seed, device="cpu", **settings).learn(n_timesteps, callback=evaluation)
    seconds = time.time() - start
    sync_envs_normalization(env, eval_env)
    curve = [
        (step, float(np.mean(scores)))
        for step, scores in zip(evaluation.evaluations_timesteps, evaluation.evaluations_results, strict=True)
    ]
    return model, eval_env, curve, seconds


def run(suite: Suite, task: str, agent_name: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Train and evaluate once.

    :return: the run's row and those of its curve
    """
    agent = AGENTS[agent_name]
    settings = agent.settings(suite, task)
    every = suite.steps[task] // N_EVALUATIONS
    env_id = env_id_of(task)
    model, eval_env, curve, seconds = train(agent.algorithm, env_id, settings, seed, every, suite.n_eval_episodes)
    final, _ = evaluate_policy(model, eval_env, n_eval_episodes=suite.n_final_episodes, return_episode_rewards=True)
    key = {"env": task, "agent": agent_name, "seed": seed}
    row = {
        **key, "final": round(float(np.mean(final)), 2), "final_std": round(float(np.std(final)), 2),
        "steps": model.num_timesteps, "seconds": round(seconds, 1), "settings": described(settings), "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    return row, [{**key, "step": step, "mean": round(mean, 2)} for step, mean in curve]


def rows_of(rows: Sequence[dict[str, str]], task: str, agent: str) -> list[dict[str, str]]:
    return [row for row in rows if (row["env"], row["agent"]) == (task, agent)]


def split_rows(suite: Suite) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """:return: the rows of runs with the settings of now, and the others"""
    known = {(row["env"], row["agent"]) for row in suite.rows() if row["env"] in suite.steps and row["agent"] in AGENTS}
    now = {(task, agent): described(AGENTS[agent].settings(suite, task)) for task, agent in known}
    return split_by_settings(suite.rows(), lambda row: now.get((row["env"], row["agent"])))


def first_seeds(suite: Suite, tasks: Sequence[str], agents: Sequence[str]) -> dict[tuple[str, str], int]:
    """:return: by task and agent, that of the rows with the settings of now, else the one above all others"""
    parts = split_rows(suite)
    return {
        (task, agent): first_new_seed(*(rows_of(rows, task, agent) for rows in parts)) for task in tasks for agent in agents
    }


def check_settings(suite: Suite, jobs: Sequence[tuple[str, str, int]]) -> None:
    """:raises ValueError: if the seed of a job has been run with other settings than those of now"""
    for row in split_rows(suite)[1]:
        if (row["env"], row["agent"], int(row["seed"])) in jobs:
            run = f"{row['env']}, {row['agent']}, seed {row['seed']}"
            raise ValueError(f"{seed_taken(run, suite.path('runs.csv'), row['settings'])}, or another --results")


# ------------------------------------------------------------------------------------------------- tables and pictures


@dataclass(frozen=True)
class Runs:
    """
    All runs of an agent on a task with the settings of now.

    :param seeds: in ascending order
    :param final: score after training of each
    :param n_steps: of the longest
    :param seconds: their median
    :param steps: of the evaluations that all of them have, [K]
    :param curves: mean score of each evaluation, [seeds, K]
    """

    seeds: list[int]
    final: np.ndarray
    n_steps: int
    seconds: float
    steps: np.ndarray
    curves: np.ndarray

    @property
    def maximum(self) -> np.ndarray:
        """Score of each seed at the evaluation where their mean is highest, as Tianshou reports it."""
        return self.curves[:, self.curves.mean(0).argmax()]

    def to_the_end(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: steps and curves with the last model's score, where training went on after the last evaluation"""
        if len(self.steps) and self.n_steps - self.steps[-1] <= 0.01 * self.n_steps:
            return self.steps, self.curves
        return np.append(self.steps, self.n_steps), np.column_stack([self.curves, self.final])


def measured(suite: Suite) -> dict[tuple[str, str], Runs]:
    """:return: by task and agent, in the order of both, those that have runs"""
    curves: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in suite.rows("curves.csv"):
        points, step = curves.setdefault((row["env"], row["agent"], row["seed"]), []), int(row["step"])
        if points and step <= points[-1][0]:  # those before are of a run that was stopped before its own row was there
            points.clear()
        points.append((step, float(row["mean"])))
    rows, found = split_rows(suite)[0], {}
    for task, agent in [(task, agent) for task in suite.steps for agent in AGENTS]:
        own = sorted(rows_of(rows, task, agent), key=lambda row: int(row["seed"]))
        if not own:
            continue
        lines = [curves.get((task, agent, row["seed"]), []) for row in own]
        length = min(map(len, lines))
        evaluations = np.array([line[:length] for line in lines]).reshape(len(own), length, 2)
        found[task, agent] = Runs(
            seeds=[int(row["seed"]) for row in own],
            final=np.array([float(row["final"]) for row in own]),
            n_steps=max(int(row["steps"]) for row in own),
            seconds=float(np.median([float(row["seconds"]) for row in own])),
            steps=evaluations[0, :, 0],
            curves=evaluations[:, :, 1],
        )
    return found


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """:return: the mean of the middle half of all scores, as an array of one number"""
    from rliable import metrics

    return np.array([metrics.aggregate_iqm(scores)])


def with_interval(statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> tuple[float, float, float]:
    """
    :param statistic: of one or several agents' scores, an array of one number
    :param scores: [seeds, tasks] of each agent
    :return: the statistic and its 95 % interval by stratified bootstrap over seeds (Agarwal et al. 2021)
    """
    from rliable import library

    np.random.seed(0)  # rliable draws from here, whatever its random_state; the same rows are to give the same table
    given = {"agent": scores[0] if len(scores) == 1 else scores}
    point, interval = library.get_interval_estimates(given, statistic, reps=N_RESAMPLES)
    return float(point["agent"][0]), float(interval["agent"][0, 0]), float(interval["agent"][1, 0])


def table(suite: Suite) -> str:
    """
    One line per task and agent: the maximum over training of the seeds' mean, as Tianshou reports it, with their standard
    deviation there; of the last model mean, standard deviation, lowest seed, interquartile mean and its interval; the
    published results.
    """
    lines = [
        f"| task | agent | seeds | steps | maximum over training | last model: mean | lowest seed | IQM (95 %) | seconds | "
        f"{' | '.join(suite.published)} |",
        "| --- " * (9 + len(suite.published)) + "|",
    ]
    for (task, agent), runs in measured(suite).items():
        maximum, after, iqm = f"{runs.maximum.mean():.1f}", f"{runs.final.mean():.1f}", ""
        if len(runs.seeds) > 1:
            maximum += f" +- {runs.maximum.std():.1f}"
            after += f" +- {runs.final.std():.1f}"
            iqm = "{:.1f} ({:.1f} to {:.1f})".format(*with_interval(interquartile_mean, runs.final[:, None]))
        lines.append(
            f"| {task} | {agent} | {ranges(runs.seeds)} | {runs.n_steps:,} | {maximum} | {after} | {runs.final.min():.1f} | "
            f"{iqm} | {runs.seconds:.0f} | "
            f"{' | '.join(str(scores_of.get(env_id_of(task), '')) for scores_of in suite.published.values())} |"
        )
    return "\n".join(lines)


def ranges(seeds: list[int]) -> str:
    """:return: ascending seeds in words: ``"0-4, 7"``"""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return ", ".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)


def left_out(suite: Suite) -> str:
    """One line per task and agent that has rows of other settings than those of now."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for row in split_rows(suite)[1]:
        seeds.setdefault((row["env"], row["agent"]), []).append(int(row["seed"]))
    return "\n".join(
        f"left out, as measured with other settings: {task}, {agent}, seeds {ranges(sorted(set(of)))}"
        for (task, agent), of in seeds.items()
    )


def comparison(suite: Suite) -> str:
    """One line per agent of ours and published result: on how many tasks ours is at or above it, and on which it is not."""
    lines, runs = [], measured(suite)
    for agent in (OURS, REUSE):
        ours = {
            task: (own.maximum if suite.compares == "maximum" else own.final).mean()
            for (task, agent_), own in runs.items()
            if agent_ == agent and task not in suite.variants
        }
        for name, scores_of in suite.published.items() if ours else ():
            below = [task for task, score in ours.items() if score < scores_of[task]]
            lines.append(
                f"{agent} against {name}: at or above on {len(ours) - len(below)} of {len(ours)} tasks; "
                f"below: {', '.join(below) or 'none'}"
            )
    return "\n".join(lines)


def draw_task(axes: Any, suite: Suite, task: str, runs: dict[tuple[str, str], Runs]) -> None:
    """
    One panel of learning curves: mean over seeds with their standard deviation as a band, or each of few seeds as a thin
    line. Variants of the task are dashed, published results are horizontal lines in the colour of their algorithm.
    """
    low, high = suite.bounds.get(task, (None, None))
    for (name, agent), own in runs.items():
        if env_id_of(name) == task:
            steps, curves = own.to_the_end()
            color, mean = style.COLOURS[agent], curves.mean(0)
            label = agent if name == task else f"{agent} {name.removeprefix(task).strip()}"
            axes.plot(steps, mean, "-" if name == task else "--", color=color, label=label, zorder=3)
            if len(own.seeds) < FEW_SEEDS:
                axes.plot(steps, curves.T, color=color, linewidth=0.5, alpha=0.6)
            elif name == task:
                std = curves.std(0)
                axes.fill_between(
                    steps,
                    np.clip(mean - std, low, high),
                    np.clip(mean + std, low, high),
                    color=color,
                    alpha=0.2,
                    linewidth=0,
                )
    for line, (name, scores) in zip((":", "--", "-."), suite.published.items(), strict=False):
        if task in scores:
            color = next((style.COLOURS[agent] for agent in ("A2C", "PPO") if agent in name), style.GRAY)
            axes.axhline(scores[task], color=color, linestyle=line, linewidth=1.1, label=name)
    axes.set_title(task, fontsize="small" if len(task) > 25 else None)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=NICE))
    axes.xaxis.set_major_formatter(style.short_number)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=NICE))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    if low is not None and high is not None:
        axes.set_ylim(low - 0.03 * (high - low), high + 0.05 * (high - low))
        axes.set_yticks(np.linspace(low, high, 3))


def one_legend(figure: Any, panels: Iterable[Any], last: Collection[str] = (), n_columns: int = 4) -> None:
    """One entry per label of all panels, above them; some labels come last."""
    entries = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = sorted(entries, key=lambda label: label in last)
    lines = [entries[label] for label in labels]
    figure.legend(lines, labels, loc="outside upper center", ncols=min(n_columns, len(labels)))


def plot(suite: Suite) -> Path:
    """:return: the picture's file: learning curves by task"""
    runs = measured(suite)
    tasks = list(dict.fromkeys(env_id_of(task) for task, _ in runs))
    n_columns = 3
    n_rows = -(-len(tasks) // n_columns)
    figure = style.new_figure(1.75 * n_rows + 0.7)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes in panels[len(tasks) :]:
        axes.axis("off")
    for axes, task in zip(panels, tasks, strict=False):
        draw_task(axes, suite, task, runs)
    one_legend(figure, panels, suite.published)
    figure.supxlabel("environment steps", fontsize="medium")
    at_the_end = f" ({suite.n_final_episodes} at the end)" * (suite.n_final_episodes != suite.n_eval_episodes)
    figure.supylabel(f"return of {suite.n_eval_episodes} deterministic episodes{at_the_end}", fontsize="medium")
    return style.save(figure, suite.pictures / f"{suite.name}.png")


def main(suite: Suite, description: str | None, argv: Sequence[str] | None = None) -> Suite:
    """
    The command line of a suite: run what is missing, then print the table and draw the curves.

    :return: the suite with the folder that was asked for
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(suite.steps), choices=list(suite.steps), metavar="ENV")
    parser.add_argument("--agents", nargs="+", default=[OURS], choices=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--first-seed", type=int, metavar="SEED",
        help="to run, of every agent; default: per task and agent that of its rows, or above those of old settings",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--collect", action="store_true", help="run nothing: table and picture of what has been measured")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="of CSV files and picture, to measure everything anew")
    args = parser.parse_args(argv)
    if args.results is not None:
        suite = replace(suite, results=args.results, pictures=args.results)
    try:
        for task in args.env:
            for agent in args.agents:
                AGENTS[agent].settings(suite, task)
        if not args.collect:
            first = first_seeds(suite, args.env, args.agents)
            if args.first_seed is not None:
                first = dict.fromkeys(first, args.first_seed)
            jobs = [(task, agent, seed + number) for number in range(args.seeds) for (task, agent), seed in first.items()]
            check_settings(suite, jobs)
    except ValueError as error:
        parser.error(str(error))
    if args.collect and not suite.rows():
        parser.error(f"nothing has been measured: there is no {suite.path('runs.csv')}")
    if not args.collect:
        done = {(row["env"], row["agent"], int(row["seed"])) for row in suite.rows()}
        jobs = [job for job in jobs if job not in done]
        for number, (row, points) in enumerate(in_parallel(partial(run, suite), jobs, args.jobs), start=1):
            save_rows(suite.path("curves.csv"), *points)
            save_rows(suite.path("runs.csv"), row)
            print(f"{number}/{len(jobs)} {row['env']} {row['agent']} seed {row['seed']}: {row['final']} +- "
                  f"{row['final_std']} after {row['steps']} steps, {row['seconds']} s", flush=True)  # fmt: skip
    print(*filter(None, (table(suite), comparison(suite), left_out(suite), str(plot(suite)))), sep="\n")
    return suite
