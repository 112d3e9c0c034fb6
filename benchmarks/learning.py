"""
Learning, with the default arguments or the settings of zoo_configs/reinforce.yml: 100 deterministic episodes per seed.

Of the model after training, and of the best one of 20 evaluations during training (20 episodes each, as RL Zoo's
``best_model.zip``), which then plays 100 episodes of its own.

    python benchmarks/learning.py --env CartPole-v1 Acrobot-v1 LunarLander-v3 --seeds 10 --jobs 2
    python benchmarks/learning.py --table

Each seed's row goes to benchmarks/results/learning.csv as soon as it is there; seeds that have one are not run again.
``--table`` prints the rows of each environment as one line of Markdown. Rows of settings that have changed since stay in the
file, but are in no table; new settings take new seeds, by default those above the old ones.
"""

import argparse
import csv
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization
from torch import nn  # noqa: F401  named in policy_kwargs of configs

from sb3_reinforce import REINFORCE

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "zoo_configs" / "reinforce.yml"
RESULTS = ROOT / "benchmarks" / "results" / "learning.csv"
N_EVALUATIONS = 20
# Score to reach, over 100 deterministic episodes
GOALS = {"CartPole-v1": 475, "Acrobot-v1": -100, "LunarLander-v3": 200}
# Steps of those trained with the default arguments and a single environment; the others with the config's settings
DEFAULT_ARGUMENTS = {"CartPole-v1": 98_900, "Acrobot-v1": 298_900}


def settings_of(env_id: str, config: Path = CONFIG) -> dict[str, Any]:
    """
    :return: an environment's entry of a config, that of its last earlier version, or the default one; code evaluated
    :raises ValueError: if the config has none of these
    """
    entries = yaml.safe_load(config.read_text())
    names = [f"{env_id[:-1]}{version}" for version in range(int(env_id[-1]), -1, -1)] + ["default"]
    entry = next((entries[name] for name in names if name in entries), None)
    if entry is None:
        raise ValueError(f"env must be one of {config.name}, got {env_id}: choose among {', '.join(entries)}")
    return {
        key: eval(value) if key in ("normalize", "policy_kwargs") and isinstance(value, str) else value
        for key, value in entry.items()
    }


def described(settings: dict[str, Any]) -> str:
    """:return: settings on one line, for a CSV file"""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def make_envs(
    env_id: str,
    n_envs: int,
    n_eval_envs: int,
    normalize: Any,
    gamma: float,
    seed: int,
    env_kwargs: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    """
    :param normalize: arguments of VecNormalize, True for none of them; None or False: no VecNormalize
    :param seed: of training; the environments of the evaluation have others than any in training or of another seed's
        evaluation: one draw of easy starts would otherwise lift all seeds at once, and the maximum over training with them
    :param env_kwargs: of gymnasium.make
    :return: the environments of training and of evaluation
    """
    env: Any = make_vec_env(env_id, n_envs, env_kwargs=env_kwargs)
    if normalize is not None and normalize is not False:
        env = VecNormalize(env, gamma=gamma, **(normalize if isinstance(normalize, dict) else {}))
    return env, make_eval_env(env_id, n_eval_envs, normalize, 1_000_000 + n_eval_envs * seed, env_kwargs)


def make_eval_env(env_id: str, n_envs: int, normalize: Any, seed: int, env_kwargs: dict[str, Any] | None = None) -> Any:
    """:return: environments of an evaluation; statistics and rewards stay as they are"""
    env: Any = make_vec_env(env_id, n_envs, seed=seed, env_kwargs=env_kwargs)
    if normalize is not None and normalize is not False:
        kwargs = normalize if isinstance(normalize, dict) else {}
        env = VecNormalize(env, training=False, **{**kwargs, "norm_reward": False})
    return env


def train_and_evaluate(
    env_id: str, settings: dict[str, Any], seed: int, n_eval_episodes: int = 100, best: bool = False
) -> tuple[list[float], int, float, list[float]]:
    """
    :param settings: an entry of the config, its strings evaluated
    :param best: whether to look for the best model during training, too
    :return: scores of deterministic episodes after training, environment steps and seconds of training, and the scores of
        the best model
    """
    th.set_num_threads(1)
    settings = dict(settings)
    n_envs, n_timesteps = settings.pop("n_envs", 1), int(settings.pop("n_timesteps"))
    policy, normalize = settings.pop("policy"), settings.pop("normalize", None)
    env, eval_env = make_envs(env_id, n_envs, 1, normalize, settings.get("gamma", 0.99), seed)
    model = REINFORCE(policy, env, seed=seed, device="cpu", **settings)
    keeper = KeepBest(env_id, n_timesteps // N_EVALUATIONS // n_envs, normalize, seed) if best else None
    start = time.time()
    model.learn(n_timesteps, callback=keeper)
    seconds = time.time() - start
    sync_envs_normalization(env, eval_env)
    scores = score_of(model, eval_env, n_eval_episodes)
    best_scores = keeper.scores(model, n_eval_episodes) if keeper else []
    return scores, model.num_timesteps, seconds, best_scores


def score_of(model: REINFORCE, eval_env: Any, n_episodes: int) -> list[float]:
    return evaluate_policy(model, eval_env, n_eval_episodes=n_episodes, return_episode_rewards=True)[0]  # type: ignore[return-value]


class KeepBest(EvalCallback):
    """Keeps parameters and normalisation of the best evaluation so far, in memory."""

    def __init__(self, env_id: str, every: int, normalize: Any, seed: int) -> None:
        eval_env = make_eval_env(env_id, 1, normalize, seed=2_000_000 + seed)
        super().__init__(eval_env, n_eval_episodes=20, eval_freq=every, verbose=0, warn=False, callback_on_new_best=Keep())

    def scores(self, model: REINFORCE, n_episodes: int) -> list[float]:
        """:return: scores of the best model, which replaces the one given, on episodes that it was not chosen by"""
        assert isinstance(self.callback_on_new_best, Keep)
        model.set_parameters(self.callback_on_new_best.parameters)
        if isinstance(self.eval_env, VecNormalize):
            self.eval_env.obs_rms = self.callback_on_new_best.obs_rms
        return score_of(model, self.eval_env, n_episodes)


class Keep(BaseCallback):
    def _on_step(self) -> bool:
        self.parameters = deepcopy(self.model.get_parameters())
        self.obs_rms = deepcopy(getattr(self.model.get_vec_normalize_env(), "obs_rms", None))
        return True


def settings_of_now(env_id: str) -> dict[str, Any]:
    """:return: the default arguments with a number of steps, or the config's settings"""
    if env_id in DEFAULT_ARGUMENTS:
        return {"n_envs": 1, "n_timesteps": DEFAULT_ARGUMENTS[env_id], "policy": "MlpPolicy"}
    return settings_of(env_id)


def run(env_id: str, seed: int) -> dict[str, Any]:
    """Train once and evaluate: one row."""
    settings = settings_of_now(env_id)
    scores, steps, seconds, best = train_and_evaluate(env_id, settings, seed, best=True)
    return {
        "env": env_id, "seed": seed, "mean": round(float(np.mean(scores)), 2), "std": round(float(np.std(scores)), 2),
        "best_mean": round(float(np.mean(best)), 2), "best_std": round(float(np.std(best)), 2),
        "steps": steps, "seconds": round(seconds, 1), "goal": GOALS.get(env_id, ""),
        "settings": described(settings), "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def in_parallel(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], n_processes: int) -> Iterator[Any]:
    """:return: results of the jobs, in the order in which they are done; each has a process of its own and starts afresh"""
    with ProcessPoolExecutor(n_processes, max_tasks_per_child=1) as pool:
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                yield future.result()
        except BaseException:  # one has failed, or Ctrl-C: those that wait would be played for nobody
            pool.shutdown(cancel_futures=True)
            raise


def versions() -> str:
    """:return: of the packages, and the commit where there is one"""
    packages = [f"{name} {version(name)}" for name in ("sb3-reinforce", "stable-baselines3", "gymnasium", "torch")]
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        commit = ["commit", subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()]
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        commit = []
    return " ".join([*packages, *commit])


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def split_by_settings(
    rows: Sequence[dict[str, str]], settings_of_row: Callable[[dict[str, str]], str | None]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """
    :param settings_of_row: what a run of such a row would have now
    :return: the rows with the settings of now, and the others
    """
    parts: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for row in rows:
        parts[row["settings"] != settings_of_row(row)].append(row)
    return parts


def learning_rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """:return: the rows of runs with the settings of now, and the others"""
    rows = read_rows(RESULTS)
    now = {env_id: described(settings_of_now(env_id)) for env_id in {row["env"] for row in rows}}
    return split_by_settings(rows, lambda row: now[row["env"]])


def first_new_seed(now: Sequence[dict[str, str]], others: Sequence[dict[str, str]]) -> int:
    """
    :param now: rows of one task and agent with the settings of now
    :param others: those with other settings
    :return: the lowest seed of the former, and where there is none the one above the latter
    """
    seeds = [int(row["seed"]) for row in now]
    return min(seeds) if seeds else max((int(row["seed"]) + 1 for row in others), default=0)


def seed_taken(run: str, path: Path, settings: str) -> str:
    """:return: an error's message: rows of other settings stay, so those of now take other seeds"""
    return f"seeds must be new where the settings are, got {run}: {path} has it with {settings}; choose others by --first-seed"


def save_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Append to a CSV file, at once, so that nothing is lost if the run is stopped."""
    if not rows:  # of a curve: a run shorter than its first evaluation
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if not path.exists():
        path.parent.mkdir(exist_ok=True, parents=True)
        writer.writeheader()
    writer.writerows(rows)
    with path.open("a", newline="") as file:
        file.write(text.getvalue())


def table() -> str:
    """One line per environment, over its seeds."""
    lines = [
        "| environment | seeds | steps | mean of the seeds' scores | std | lowest | seeds at the goal | seconds | "
        "best model: mean | lowest | seeds at the goal |",
        "| --- " * 11 + "|",
    ]
    rows = learning_rows()[0]
    for env_id in sorted({row["env"] for row in rows}):
        own = [row for row in rows if row["env"] == env_id]
        scores, best = (np.array([float(row[key]) for row in own]) for key in ("mean", "best_mean"))
        goal = [
            f"{(of >= float(own[0]['goal'])).sum()} of {len(own)} at {own[0]['goal']}" if own[0]["goal"] else ""
            for of in (scores, best)
        ]
        seeds = sorted(int(row["seed"]) for row in own)
        lines.append(
            f"| {env_id} | {seeds[0]}-{seeds[-1]} | at most {max(int(row['steps']) for row in own):,} | {scores.mean():.1f} | "
            f"{scores.std():.1f} | {scores.min():.1f} | {goal[0]} | {np.median([float(row['seconds']) for row in own]):.0f} | "
            f"{best.mean():.1f} | {best.min():.1f} | {goal[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(GOALS))
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, metavar="SEED", help="default: of the rows, or above those of old settings")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="print what has been measured, and run nothing")
    args = parser.parse_args()
    if not args.table:
        now, others = learning_rows()
        jobs = []
        for env_id in args.env:
            first = args.first_seed
            if first is None:
                first = first_new_seed(*([row for row in rows if row["env"] == env_id] for rows in (now, others)))
            jobs += [(env_id, first + seed) for seed in range(args.seeds)]
        for row in others:
            if (row["env"], int(row["seed"])) in jobs:
                parser.error(seed_taken(f"{row['env']}, seed {row['seed']}", RESULTS, row["settings"]))
        done = {(row["env"], int(row["seed"])) for row in now}
        jobs = [job for job in jobs if job not in done]
        for row in in_parallel(run, jobs, args.jobs):
            save_rows(RESULTS, row)
            print(f"{row['env']} seed {row['seed']}: {row['mean']} +- {row['std']} after {row['steps']} steps, "
                  f"{row['seconds']} s; best {row['best_mean']}", flush=True)  # fmt: skip
    print(table())


if __name__ == "__main__":
    main()
