"""
Agents over all tasks of a suite, by the measures of Agarwal et al. (2021), "Deep RL at the Edge of the Statistical Precipice".

A score is that of the last model, normalised: 0 is a random policy and 1 the mean of PPO's seeds, so that 1 on every task
says "as good as PPO". The means over tasks are of tasks on which both agents have runs. ``rliable`` asks for as many seeds
on each of an agent's tasks, so these are the first ones, as many as its task with the fewest has; two agents may have
different numbers. A probability of improvement on a single task takes all seeds.
"""

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import style
import suite as suites
from learning import save_rows
from suite import AGENTS, OURS, Runs, Suite, interquartile_mean, measured, one_legend, with_interval

PEERS = ("PPO", "A2C")
N_RANDOM = 100  # episodes of the random policy
Scores = dict[tuple[str, str], np.ndarray]


def measure_random(suite: Suite) -> None:
    """Play what is missing in ``NAME_random.csv``: mean return of a policy that draws its actions uniformly, by task."""
    known = {row["env"] for row in suite.rows("random.csv")}
    for task in [task for task in suite.steps if task not in known and task not in suite.variants]:
        env, scores = gym.make(task), []
        env.action_space.seed(0)
        for seed in range(N_RANDOM):
            env.reset(seed=seed)
            score, ended = 0.0, False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                score, ended = score + float(reward), terminated or truncated
            scores.append(score)
        row = {"env": task, "mean": f"{np.mean(scores):.2f}", "std": f"{np.std(scores):.2f}", "episodes": N_RANDOM}
        save_rows(suite.path("random.csv"), row)


def normalised(suite: Suite, runs: dict[tuple[str, str], Runs]) -> Scores:
    """:return: by task and agent (score - random) / (PPO's mean - random) of each seed, on tasks where PPO is above random"""
    random = {row["env"]: float(row["mean"]) for row in suite.rows("random.csv")}
    ppo = {task: own.final.mean() for (task, agent), own in runs.items() if agent == "PPO"}
    return {
        (task, agent): (own.final - random[task]) / (ppo[task] - random[task])
        for (task, agent), own in runs.items()
        if task in random and task in ppo and ppo[task] > random[task]
    }


def matrix(scores: Scores, agent: str, tasks: list[str]) -> np.ndarray:
    """:return: scores [seeds, tasks], as many seeds as the task with the fewest has"""
    n = min(len(scores[task, agent]) for task in tasks)
    return np.stack([scores[task, agent][:n] for task in tasks], axis=1)


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """
    :param x: scores [seeds, tasks]
    :param y: another agent's, of other seeds
    :return: P(X > Y) + P(X = Y) / 2 of a seed of each, the mean over tasks, as an array of one number
    """
    return np.array([np.mean((x[:, None] > y) + 0.5 * (x[:, None] == y))])


def tasks_of(scores: Scores, *agents: str) -> list[str]:
    """:return: the tasks on which all of these agents have scores"""
    return [task for task in dict.fromkeys(task for task, _ in scores) if all((task, agent) in scores for agent in agents)]


def table(suite: Suite) -> str:
    """One line per agent over all tasks, and one per task with the probabilities of improvement; empty without PPO's runs."""
    runs = measured(suite)
    scores = normalised(suite, runs)
    agents = [agent for agent in AGENTS if tasks_of(scores, agent, "PPO")]
    if not agents:
        return ""
    lines = [
        "| agent | tasks | seeds | IQM (95 %) | PPO's IQM there | better than PPO | better than A2C | seconds per run |",
        "| --- " * 8 + "|",
    ]
    for agent in agents:
        tasks = tasks_of(scores, agent, "PPO")
        own, ppo = matrix(scores, agent, tasks), matrix(scores, "PPO", tasks)
        seconds = np.mean([runs[task, agent].seconds for task in tasks])
        lines.append(
            f"| {agent} | {len(tasks)} | {len(own)} | {shown(interquartile_mean, own)} | "
            f"{interquartile_mean(ppo)[0]:.2f} | {' | '.join(better(scores, agent, peer) for peer in PEERS)} | {seconds:.0f} |"
        )
    pairs = [(agent, peer) for agent in agents for peer in PEERS if agent not in PEERS and tasks_of(scores, agent, peer)]
    lines += ["", f"| task | {' | '.join(f'{agent} better than {peer}' for agent, peer in pairs)} |"]
    lines.append("| --- " * (1 + len(pairs)) + "|")
    for task in dict.fromkeys(task for task, _ in scores):
        cells = [f"{on_task(scores, task, *pair):.2f}" if task in tasks_of(scores, *pair) else "" for pair in pairs]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def on_task(scores: Scores, task: str, agent: str, peer: str) -> float:
    """:return: the probability that a seed of the agent ends above one of the peer on this task"""
    return float(improvement(scores[task, agent][:, None], scores[task, peer][:, None])[0])


def better(scores: Scores, agent: str, peer: str) -> str:
    """:return: the mean over tasks of the probability of improvement with its interval; empty for an agent and itself"""
    tasks = tasks_of(scores, agent, peer)
    if agent == peer or not tasks:
        return ""
    return shown(improvement, matrix(scores, agent, tasks), matrix(scores, peer, tasks))


def shown(statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> str:
    """:return: the statistic with its interval; without one where no agent has a second seed to draw"""
    if max(map(len, scores)) == 1:
        return f"{statistic(*scores)[0]:.2f}"
    return "{:.2f} ({:.2f} to {:.2f})".format(*with_interval(statistic, *scores))


def draw(suite: Suite) -> Path | None:
    """:return: the picture of profiles and probabilities of improvement, on the tasks that both REINFORCE and PPO have run"""
    from rliable import library

    scores = normalised(suite, measured(suite))
    tasks = tasks_of(scores, OURS, "PPO")
    if not tasks:
        return None
    agents = [agent for agent in AGENTS if tasks_of(scores, agent, OURS, "PPO") == tasks]
    figure = style.new_figure(3.0)
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    taus = np.linspace(0, 2, 81)
    np.random.seed(0)
    matrices = {agent: matrix(scores, agent, tasks) for agent in agents}
    profiles, intervals = library.create_performance_profile(matrices, taus, reps=suites.N_RESAMPLES)
    for agent in agents:
        left.plot(taus, profiles[agent], color=style.COLOURS[agent], label=agent)
        left.fill_between(taus, *intervals[agent], color=style.COLOURS[agent], alpha=0.15, linewidth=0)
    left.set(
        xlim=(0, 2), ylim=(0, 1.02), xlabel="score: 0 as a random policy, 1 as PPO's mean", ylabel="runs above this score"
    )
    left.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    left.set_title(f"performance profile, {len(tasks)} tasks")
    for peer, marker, shift in zip(PEERS, "oD", (-0.12, 0.12), strict=True):
        shared = [task for task in tasks if (task, peer) in scores]
        x = [on_task(scores, task, OURS, peer) for task in shared]
        places = [tasks.index(task) + shift for task in shared]
        right.plot(x, places, marker, color=style.COLOURS[peer], label=f"better than {peer}")
    right.axvline(0.5, color=style.GRAY, linestyle="--", linewidth=1)
    right.set(xlim=(-0.03, 1.03), ylim=(len(tasks) - 0.5, -0.5), xlabel="probability")
    right.set_yticks(range(len(tasks)), tasks)
    right.set_title("REINFORCE is better")
    one_legend(figure, (left, right), n_columns=6)
    return style.save(figure, suite.pictures / "profiles.png")
