"""
What mujoco_tasks.py and classic.py share: train agents on tasks and seeds, keep each evaluation, make tables and curves.

An agent is an algorithm with a config file. A run's rows go to two CSV files as soon as the run is done, and are not run
again: one row per run (``NAME_runs.csv``) and one per evaluation during training (``NAME_curves.csv``). Every table and
picture is made of these files alone.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import rl_zoo3
import torch as th
from learning import (
    CONFIG,
    N_EVALUATIONS,
    ROOT,
    described,
    in_parallel,
    make_envs,
    read_rows,
    save_rows,
    settings_of,
    versions,
)
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_reinforce import REINFORCE

RESULTS = ROOT / "benchmarks" / "results"
SCHEDULES = ("learning_rate", "clip_range")
WHOLE_EPISODES = 0.98  # of the steps at hand: the last rollout is played to the end of its episodes


@dataclass(frozen=True)
class Agent:
    """An algorithm and the file with its settings, ours or one of RL Zoo's."""

    algorithm: Any
    config: Path

    def settings(self, suite: "Suite", env_id: str) -> dict[str, Any]:
        """:return: the config's, but no more steps than the suite has; RL Zoo's algorithms get all of these"""
        settings, steps = settings_of(env_id, self.config), suite.steps[env_id]
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
    :param results: folder of the CSV files
    :param pictures: folder of the learning curves
    """

    name: str
    steps: dict[str, int]
    n_eval_episodes: int
    n_final_episodes: int
    published: dict[str, dict[str, float]]
    compares: Literal["maximum", "final"]
    results: Path = RESULTS
    pictures: Path = ROOT / "docs"

    def path(self, part: str) -> Path:
        return self.results / f"{self.name}_{part}"

    def rows(self, part: str = "runs.csv") -> list[dict[str, str]]:
        return read_rows(self.path(part))


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
    n_timesteps = int(settings.pop("n_timesteps"))
    # each environment of the evaluation plays one episode
    env, eval_env = make_envs(env_id, n_envs, n_eval_episodes, normalize, settings.get("gamma", 0.99), seed)
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


def run(suite: Suite, env_id: str, agent_name: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Train and evaluate once.

    :return: the run's row and those of its curve
    """
    agent = AGENTS[agent_name]
    settings = agent.settings(suite, env_id)
    every = suite.steps[env_id] // N_EVALUATIONS
    model, eval_env, curve, seconds = train(agent.algorithm, env_id, settings, seed, every, suite.n_eval_episodes)
    final, _ = evaluate_policy(model, eval_env, n_eval_episodes=suite.n_final_episodes, return_episode_rewards=True)
    key = {"env": env_id, "agent": agent_name, "seed": seed}
    row = {
        **key, "final": round(float(np.mean(final)), 2), "final_std": round(float(np.std(final)), 2),
        "steps": model.num_timesteps, "seconds": round(seconds, 1), "settings": described(settings), "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    return row, [{**key, "step": step, "mean": round(mean, 2)} for step, mean in curve]


def check_settings(suite: Suite) -> None:
    """:raises ValueError: if what has been measured was measured with other settings than those of now"""
    rows = suite.rows()
    now = {key: described(AGENTS[key[1]].settings(suite, key[0])) for key in {(row["env"], row["agent"]) for row in rows}}
    for row in rows:
        settings = now[row["env"], row["agent"]]
        if row["settings"] != settings:
            raise ValueError(
                f"{suite.path('runs.csv')} must be of the settings as they are now, got {row['env']}, {row['agent']}, seed "
                f"{row['seed']} with {row['settings']} instead of {settings}: remove its rows, or give another --results"
            )


# ------------------------------------------------------------------------------------------------- tables and pictures


def curves(suite: Suite, env_id: str, agent: str) -> tuple[np.ndarray, np.ndarray]:
    """:return: steps [K] and the mean score of each evaluation, [seeds, K]; those that all seeds have"""
    by_seed: dict[str, dict[int, float]] = {}  # a run that was stopped before its own row was there has left these twice
    for row in suite.rows("curves.csv"):
        if (row["env"], row["agent"]) == (env_id, agent):
            by_seed.setdefault(row["seed"], {})[int(row["step"])] = float(row["mean"])
    length = min((len(points) for points in by_seed.values()), default=0)
    points = np.array([list(points.items())[:length] for points in by_seed.values()]).reshape(len(by_seed), length, 2)
    return points[0, :, 0] if len(points) else np.zeros(0), points[:, :, 1]


def finals(suite: Suite, env_id: str, agent: str) -> np.ndarray:
    """:return: score after training of each seed"""
    return np.array([float(row["final"]) for row in suite.rows() if (row["env"], row["agent"]) == (env_id, agent)])


def interquartile_mean(scores: np.ndarray) -> tuple[float, float, float]:
    """:return: interquartile mean over seeds and its 95 % interval by stratified bootstrap (Agarwal et al. 2021)"""
    from rliable import library, metrics

    np.random.seed(0)  # rliable draws from here, whatever its random_state; the same rows are to give the same table
    point, interval = library.get_interval_estimates(
        {"agent": scores[:, None]}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
    )
    return float(point["agent"][0]), float(interval["agent"][0, 0]), float(interval["agent"][1, 0])


def table(suite: Suite) -> str:
    """
    One line per task and agent: the maximum over training of the seeds' mean, as Tianshou reports it, with their standard
    deviation there; after training mean, standard deviation, interquartile mean and its interval; the published results.
    """
    lines = [
        f"| task | agent | seeds | steps | maximum over training | after it: mean | IQM (95 %) | seconds | "
        f"{' | '.join(suite.published)} |",
        "| --- " * (8 + len(suite.published)) + "|",
    ]
    for env_id in suite.steps:
        for agent in AGENTS:
            own = [row for row in suite.rows() if (row["env"], row["agent"]) == (env_id, agent)]
            if not own:
                continue
            scores, (_, points) = finals(suite, env_id, agent), curves(suite, env_id, agent)
            best = points.mean(0).argmax()
            seeds = sorted(int(row["seed"]) for row in own)
            maximum, after, iqm = f"{points.mean(0)[best]:.1f}", f"{scores.mean():.1f}", ""
            if len(own) > 1:
                maximum += f" +- {points[:, best].std():.1f}"
                after += f" +- {scores.std():.1f}"
                iqm = "{:.1f} ({:.1f} to {:.1f})".format(*interquartile_mean(scores))
            lines.append(
                f"| {env_id} | {agent} | {', '.join(map(str, seeds))} | {max(int(row['steps']) for row in own):,} | "
                f"{maximum} | {after} | {iqm} | {np.median([float(row['seconds']) for row in own]):.0f} | "
                f"{' | '.join(str(scores_of.get(env_id, '')) for scores_of in suite.published.values())} |"
            )
    return "\n".join(lines)


def comparison(suite: Suite) -> str:
    """One line per agent of ours and published result: on how many tasks ours is at or above it, and on which it is not."""
    lines = []
    for agent in (OURS, REUSE):
        ours = {}
        for env_id in sorted({row["env"] for row in suite.rows() if row["agent"] == agent}):
            maximum = suite.compares == "maximum"
            ours[env_id] = curves(suite, env_id, agent)[1].mean(0).max() if maximum else finals(suite, env_id, agent).mean()
        for name, scores_of in suite.published.items() if ours else ():
            below = [env_id for env_id, score in ours.items() if score < scores_of[env_id]]
            lines.append(
                f"{agent} against {name}: at or above on {len(ours) - len(below)} of {len(ours)} tasks; "
                f"below: {', '.join(below) or 'none'}"
            )
    return "\n".join(lines)


def plot(suite: Suite) -> Path:
    """:return: the picture's file: learning curves by task, mean over seeds and their standard deviation as a band"""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = {env_id: {agent: curves(suite, env_id, agent) for agent in AGENTS} for env_id in suite.steps}
    env_ids = [env_id for env_id, of_agents in measured.items() if any(len(points) for _, points in of_agents.values())]
    n_columns = 3
    n_rows = -(-len(env_ids) // n_columns)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(4 * n_columns, 2.8 * n_rows), squeeze=False)
    for axis in axes.flat[len(env_ids) :]:
        axis.axis("off")
    for axis, env_id in zip(axes.flat, env_ids, strict=False):
        for color, (agent, (steps, points)) in enumerate(measured[env_id].items()):
            if len(points):
                mean, std = points.mean(0), points.std(0)
                axis.plot(steps, mean, color=f"C{color}", label=agent)
                axis.fill_between(steps, mean - std, mean + std, color=f"C{color}", alpha=0.2, linewidth=0)
        for line, (name, scores) in zip((":", "--", "-."), suite.published.items(), strict=False):
            if env_id in scores:
                axis.axhline(scores[env_id], color="gray", linestyle=line, linewidth=1, label=name)
        n_seeds = [str(len(points)) for _, points in measured[env_id].values() if len(points)]
        axis.set_title(f"{env_id}, seeds: {', '.join(n_seeds)}")
        axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:,.0f}k")
        axis.grid(alpha=0.3)
    figure.supxlabel("environment steps")
    figure.supylabel("return of deterministic episodes")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))  # 0.3 inches for the legend
    entries = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="upper center", ncols=len(entries), fontsize="small", frameon=False)
    path = suite.pictures / f"{suite.name}.png"
    figure.savefig(path, dpi=100)
    return path


def main(suite: Suite, description: str | None, argv: Sequence[str] | None = None) -> None:
    """The command line of a suite: run what is missing, then print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(suite.steps), choices=list(suite.steps), metavar="ENV")
    parser.add_argument("--agents", nargs="+", default=[OURS], choices=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--collect", action="store_true", help="run nothing: table and picture of what has been measured")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="of CSV files and picture, to measure everything anew")
    args = parser.parse_args(argv)
    if args.results is not None:
        suite = replace(suite, results=args.results, pictures=args.results)
    try:
        check_settings(suite)
        for env_id in args.env:
            for agent in args.agents:
                AGENTS[agent].settings(suite, env_id)
    except ValueError as error:
        parser.error(str(error))
    if args.collect and not suite.rows():
        parser.error(f"nothing has been measured: there is no {suite.path('runs.csv')}")
    if not args.collect:
        done = {(row["env"], row["agent"], int(row["seed"])) for row in suite.rows()}
        jobs = [(env_id, agent, seed) for seed in range(args.seeds) for agent in args.agents for env_id in args.env]
        jobs = [job for job in jobs if job not in done]
        for number, (row, points) in enumerate(in_parallel(partial(run, suite), jobs, args.jobs), start=1):
            save_rows(suite.path("curves.csv"), *points)
            save_rows(suite.path("runs.csv"), row)
            print(f"{number}/{len(jobs)} {row['env']} {row['agent']} seed {row['seed']}: {row['final']} +- "
                  f"{row['final_std']} after {row['steps']} steps, {row['seconds']} s", flush=True)  # fmt: skip
    print(table(suite))
    print(comparison(suite))
    print(plot(suite))
