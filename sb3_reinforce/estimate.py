"""
From a rollout to the estimator's terms: returns R, baseline b, and the advantages gamma^(c t) (R - b) that weight the scores.

``REINFORCE._finish_rollout`` puts them together; a baseline may use the episodes of all ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.baselines import BASELINES, Baseline, GreedyBaseline, NoBaseline, ValueBaseline, at_same_step
from sb3_reinforce.episodes import Episodes, join_episodes
from sb3_reinforce.observations import map_arrays, map_pairs, stack_observations
from sb3_reinforce.policies import is_recurrent
from sb3_reinforce.returns import RETURNS
from sb3_reinforce.rollout.frames import packed_frames
from sb3_reinforce.rollout.greedy import GreedyEpisodes
from sb3_reinforce.rollout.recording import Rollout
from sb3_reinforce.rollout.totals import Totals
from sb3_reinforce.scores import Scores
from sb3_reinforce.update.likelihood import values_of
from sb3_reinforce.update.steps import Steps, sequences_of, steps_of


@dataclass(frozen=True)
class Batch:
    """
    The terms of one update: S steps of N episodes of this rank, in the order of the rollout buffer.

    :param episodes: this rank's
    :param all_episodes: what the baseline has seen: those of all ranks, if it uses other episodes
    :param baseline: b of each step, reward units, shape [S]
    :param weights: gamma^(c t) of each step, shape [S]
    :param advantages: gamma^(c t) (R - b), or with R - b normalised over all ranks' steps, shape [S]
    :param divisor: D
    :param sizes: steps of each rank
    """

    episodes: Episodes
    all_episodes: Episodes
    baseline: th.Tensor
    weights: th.Tensor
    advantages: th.Tensor
    divisor: float
    sizes: Sequence[int]

    @property
    def n_steps(self) -> int:
        """S."""
        return len(self.weights)


def state_weights(episodes: Episodes, gamma: float, discount_state: bool) -> th.Tensor:
    """:return: gamma^(c t) of each step, shape [S], float64"""
    return gamma ** episodes.steps.double() if discount_state else th.ones_like(episodes.returns)


def divisor_of(totals: Totals, loss_reduction: Literal["episode", "step"] | None, n_episodes: int | None) -> float:
    """:return: D, the number of episodes or of steps of all ranks; see the arguments of REINFORCE"""
    if (loss_reduction or ("step" if n_episodes is None else "episode")) == "episode":
        return totals.sum("n_episodes")
    # Fixed before the rollout where it can be: dividing by the steps that happened to be played is a ratio estimator.
    return totals.sum("planned_steps" if n_episodes is None else "n_steps")


def bootstraps(baseline: Baseline, returns: str, truncation: str | None) -> bool:
    """:return: whether gamma V(s_T) is added at time limits, by the arguments of REINFORCE"""
    return truncation != "terminal" and returns == "reward_to_go" and "values" in baseline.needs


def make_episodes(
    rollout: Rollout,
    policy: ActorCriticPolicy,
    baseline: Baseline,
    returns: Literal["reward_to_go", "episode"],
    gamma: float,
    discount_state: bool,
    fixed_count: bool,
    chunk_size: int | None,
    bptt_steps: int | None = None,
    greedy: GreedyEpisodes | None = None,
    sampled_values: Sequence[np.ndarray] = (),
) -> Episodes:
    """
    Returns of a rollout, and what else the baseline needs of it. The rollout's buffer gets returns and values.

    :param policy: the policy that played, before it learns from this rollout
    :param baseline: the baseline in use
    :param fixed_count: whether the number of episodes was fixed before the rollout
    :param bptt_steps: steps after which the gradient through a policy's memory is cut; None: never
    :param greedy: the greedy policy's episodes, where they are needed
    :param sampled_values: V(s) of each step, shape [n_envs], if the sampler has computed it
    """
    buffer, needs = rollout.buffer, baseline.needs
    # Those of this package look at no observation: stacked frames need not be laid out for them. By exact type, see below.
    lays_out = type(baseline) not in BASELINES.values() or is_recurrent(policy)
    observations: Any = None if lays_out else packed_frames(buffer)
    if observations is None:
        observations = map_arrays(lambda array: th.as_tensor(array[:, 0]), buffer.observations)
    of_all = "values" in needs and not sampled_values
    values, last_values = values_of_rollout(rollout, policy, observations, chunk_size, of_all)
    if "values" in needs and sampled_values:
        values = th.as_tensor(rollout.laid_out(sampled_values), dtype=th.float64)
    rewards = th.as_tensor(buffer.rewards[:, 0], dtype=th.float64)
    step_returns = RETURNS[returns](rewards, rollout.lengths, gamma, last_values)
    buffer.returns[:, 0] = step_returns.numpy()
    if values is not None:
        buffer.values[:, 0] = values.numpy()
    greedy_returns = None
    if greedy is not None:
        of_greedy = RETURNS[returns](greedy.rewards, greedy.lengths, gamma)
        greedy_returns = at_same_step(of_greedy, greedy.lengths, rollout.lengths)
    episodes = Episodes(
        returns=step_returns,
        lengths=rollout.lengths,
        env_indices=rollout.env_indices,
        fixed_count=fixed_count,
        values=values,
        observations=observations,
        first_steps=rollout.first_steps,
        greedy_returns=greedy_returns,
    )
    if "scores" in needs:
        scores = Scores(policy, steps_of(buffer, episodes, sequences_of(policy, episodes.lengths, bptt_steps)), chunk_size)
        episodes = with_scores(episodes, scores, state_weights(episodes, gamma, discount_state))
    return episodes


def values_of_rollout(
    rollout: Rollout, policy: ActorCriticPolicy, observations: Any, chunk_size: int | None, of_all: bool
) -> tuple[th.Tensor | None, th.Tensor]:
    """
    :param observations: of all S steps
    :param of_all: whether V of the steps is needed
    :return: V of each step, shape [S], where it is needed; and of each episode V behind its last step, shape [N]: 0 behind a
        terminal state, else V of the last observation
    """
    last = rollout.last_observations
    keys = rollout.episodes[["env_index", "end"]].tolist()
    continued = [i for i, key in enumerate(keys) if key in last]
    last_values = th.zeros(len(keys), dtype=th.float64)
    stacked = stack_observations([last[keys[i]] for i in continued], observations) if continued else None
    n_steps = rollout.n_steps
    if not is_recurrent(policy):
        if continued:
            last_values[continued] = values_of(policy, Steps(observations=stacked), len(continued), chunk_size)
        return values_of(policy, Steps(observations=observations), n_steps, chunk_size) if of_all else None, last_values

    if not (of_all or continued):
        return None, last_values
    # With memory, the last observation is one step more of its episode.
    lengths, ends = rollout.lengths.numpy(), rollout.lengths.cumsum(0).numpy()
    rows = np.insert(np.arange(n_steps), ends[continued], n_steps + np.arange(len(continued)))
    longer = lengths.copy()
    longer[continued] += 1
    if continued:
        observations = map_pairs(lambda a, b: th.cat([a, b])[rows], observations, stacked)
    steps = Steps(observations=observations, sequences=sequences_of(policy, longer))
    values = values_of(policy, steps, len(rows), chunk_size)
    last_values[continued] = values[th.as_tensor(rows >= n_steps)]
    return values[th.as_tensor(rows < n_steps)], last_values


def with_scores(episodes: Episodes, scores: Scores, weights: th.Tensor) -> Episodes:
    """:return: the same episodes, with X.S and abs(S)^2 of each, for weights gamma^(c t) of their steps"""
    blocks = scores.of_episodes(episodes.lengths, th.stack([weights, weights * episodes.returns]))
    # [n, 2, P] each: S and X. Of these only two scalars per episode are kept.
    products = th.cat([(block[:, :1] * block).sum(2, dtype=th.float64).cpu() for block in blocks])
    return replace(episodes, score_squares=products[:, 0], score_products=products[:, 1])


def needed_by_other_ranks(baseline: Baseline, episodes: Episodes) -> Episodes | None:
    """
    :param baseline: the baseline in use
    :param episodes: this rank's
    :return: what of them the other ranks need for their b; None if b depends on its own step alone
    """
    # By exact type, because a subclass may look at all episodes.
    if type(baseline) in (NoBaseline, ValueBaseline, GreedyBaseline):
        return None
    return replace(episodes, observations=None) if type(baseline) in BASELINES.values() else episodes


def join_ranks(episodes: Episodes, totals: Totals) -> tuple[Episodes, slice]:
    """
    :param episodes: this rank's
    :param totals: of all ranks; the results in it are their episodes, or None where b needs no others
    :return: what the baseline predicts from, and which of its steps are this rank's
    """
    parts: list[Episodes] = [report.result for report in totals.reports if report.result is not None]
    if len(parts) < 2:
        return episodes, slice(None)
    return join_episodes(parts, totals.n_envs), totals.own_steps


def normalized(advantages: th.Tensor, n: int, mean: float, squares: float) -> th.Tensor:
    """:return: (A - mean(A)) / std(A), for n values with this mean and sum of squared deviations; as they are for n = 1"""
    return advantages if n == 1 else (advantages - mean) / (math.sqrt(squares / (n - 1)) + 1e-8)
