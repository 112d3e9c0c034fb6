"""Measures the bias that a baseline adds: the mean gradient of many batches of a small MDP against the exact one."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch as th

from sb3_reinforce.baselines import Baseline, Episodes, at_same_step, checked_prediction, make_baseline
from sb3_reinforce.returns import RETURNS, steps_in_episode
from sb3_reinforce.tables import ShownAsTable, Table


@dataclass(frozen=True)
class Trajectory:
    """A possible episode, and the probability of all that the environment draws in it."""

    states: list[int]
    actions: list[int]
    rewards: list[float]
    env_probability: float


class MDP:
    """
    A small MDP with random episode lengths.

    :param transitions: P[s, a, s'], shape [S, A, S]; an episode terminates with the probability that is missing from 1
    :param rewards: r(s, a), shape [S, A]
    :param start: distribution of s_0, shape [S]
    :param horizon: number of steps after which an episode is truncated
    """

    def __init__(self, transitions: Any, rewards: Any, start: Any, horizon: int):
        self.transitions, self.rewards = np.asarray(transitions, float), np.asarray(rewards, float)
        self.start, self.horizon = np.asarray(start, float), horizon
        self.n_states, self.n_actions = self.rewards.shape

    def trajectories(self) -> list[Trajectory]:
        """:return: all possible episodes"""
        found: list[Trajectory] = []

        def extend(states: list[int], actions: list[int], rewards: list[float], probability: float) -> None:
            for action in range(self.n_actions):
                following = self.transitions[states[-1], action]
                acts, rews = [*actions, action], [*rewards, float(self.rewards[states[-1], action])]
                ends = 1.0 if len(acts) == self.horizon else 1.0 - following.sum()
                if ends > 1e-12:
                    found.append(Trajectory(states, acts, rews, probability * ends))
                if len(acts) < self.horizon:
                    for state in np.flatnonzero(following):
                        extend([*states, int(state)], acts, rews, probability * following[state])

        for state in np.flatnonzero(self.start):
            extend([int(state)], [], [], float(self.start[state]))
        return found

    def exact_gradient(self, logits: th.Tensor, gamma: float, discount_state: bool) -> th.Tensor:
        """
        sum_t gamma^(c t) E[grad log pi(a_t|s_t) Q_t(s_t, a_t)] by dynamic programming.

        :param logits: of the softmax policy, shape [S, A]
        :param discount_state: c; True gives the gradient of the expected discounted return
        :return: gradient with respect to the logits, shape [S, A], float64
        """
        logits = logits.detach().double().requires_grad_()
        policy = logits.softmax(dim=1).detach()
        transitions, rewards = th.as_tensor(self.transitions), th.as_tensor(self.rewards)
        values = [th.zeros(self.n_states, dtype=th.float64)]
        action_values = []
        for _ in range(self.horizon):  # backwards in time
            action_values.append(rewards + gamma * transitions @ values[-1])
            values.append((policy * action_values[-1]).sum(1))
        visits, objective = th.as_tensor(self.start), th.zeros((), dtype=th.float64)
        for t, q in enumerate(reversed(action_values)):
            score_weight = visits[:, None] * policy * q * (gamma**t if discount_state else 1.0)
            objective = objective + (score_weight * logits.log_softmax(dim=1)).sum()
            visits = th.einsum("s,sa,sat->t", visits, policy, transitions)
        return th.autograd.grad(objective, logits)[0]


# One to four steps, rewards of both signs, and an action that pays but ends the episode
CHECKED = MDP(
    transitions=[
        [[0.3, 0.3, 0.1], [0.1, 0.2, 0.3]],
        [[0.2, 0.5, 0.2], [0.4, 0.0, 0.2]],
        [[0.1, 0.1, 0.6], [0.2, 0.0, 0.0]],
    ],
    rewards=[[1.0, 0.0], [-1.0, 0.5], [2.0, 3.0]],
    start=[0.6, 0.4, 0.0],
    horizon=4,
)
LOGITS = th.tensor([[0.3, -0.3], [-0.6, 0.4], [0.0, 0.9]], dtype=th.float64)
VALUES = th.tensor([2.5, 1.0, 4.0], dtype=th.float64)  # a V(s), for baselines that need one


@dataclass(frozen=True)
class BiasReport(ShownAsTable):
    """
    The result of :func:`check_unbiased`, per component of the gradient: [states, actions]. ``print`` and notebooks show it.

    :param gradient: the exact gradient
    :param bias: mean of the estimates minus the exact gradient
    :param standard_error: of that mean
    :param n_batches: number of estimates
    """

    gradient: th.Tensor
    bias: th.Tensor
    standard_error: th.Tensor
    n_batches: int

    @property
    def in_standard_errors(self) -> th.Tensor:
        """The bias in standard errors: approximately standard normal if there is none."""
        return self.bias / self.standard_error

    @property
    def largest(self) -> float:
        """The largest absolute bias of a component, in standard errors."""
        return float(self.in_standard_errors.abs().max())

    @property
    def relative(self) -> float:
        """abs(bias) / abs(gradient). Without bias it tends to 0 as the number of batches grows."""
        return float(self.bias.norm() / self.gradient.norm())

    def _table(self) -> Table:
        numbers = th.stack([self.gradient, self.bias, self.standard_error, self.in_standard_errors])
        rows = [
            (f"state {s}, action {a}", f"{g:.4f}", f"{b:.4f}", f"{error:.4f}", f"{z:.1f}")
            for s, state in enumerate(numbers.permute(1, 2, 0).tolist())
            for a, (g, b, error, z) in enumerate(state)
        ]
        verdict = "no bias is seen" if self.largest < 4.0 else "BIASED"
        title = (
            f"{verdict}: at most {self.largest:.1f} standard errors, {100 * self.relative:.1f} % of the gradient "
            f"({self.n_batches:,} batches)"
        )
        return Table(title, ("component", "gradient", "bias", "standard error", "bias in standard errors"), rows)


def check_unbiased(
    baseline: str | Baseline,
    n_episodes: int = 4,
    n_steps: int | None = None,
    n_envs: int = 2,
    returns: Literal["reward_to_go", "episode"] = "reward_to_go",
    discount_state: bool = False,
    gamma: float = 0.8,
    n_batches: int = 10_000,
    seed: int = 0,
) -> BiasReport:
    """
    Measure the bias of the gradient estimate with a baseline on a small MDP, in standard errors.

    Draws batches of episodes of an MDP with three states, two actions and one to four steps, and compares the mean of
    ``sum (R - b) grad log pi`` over the batches with the exact gradient with respect to the logits of a softmax policy. The
    baseline sees one batch after the other, ``predict`` then ``update``, as in REINFORCE. Observations are one-hot states,
    float32, shape [S, 3]; ``values`` come from a fixed V.

    ``print(check_unbiased(MyBaseline()))`` tells. Below 4 standard errors no bias is seen. Above, b depends on the step's
    own action, on what comes after it, or on the number of episodes.

    :param baseline: a name, or a Baseline object, which is copied
    :param n_episodes: episodes per batch
    :param n_steps: replaces ``n_episodes``: each environment plays until the end of the episode that contains this step
    :param n_envs: number of environments
    :param returns: as in REINFORCE
    :param discount_state: as in REINFORCE
    :param gamma: discount factor
    :param n_batches: number of batches, at least 2
    :param seed: seed of the draws
    :return: bias and standard errors
    :raises ValueError: if the baseline is unknown, cannot be used in such batches, or does not return one finite number per
        step without gradient; if numbers are out of range, or ``discount_state`` would count gamma twice
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be a number in [0, 1], got {gamma!r}")
    if n_batches < 2:
        raise ValueError(f"n_batches must be >= 2, got {n_batches}: 10,000 show a bias of a few per cent")
    if min(n_episodes, n_envs, 1 if n_steps is None else n_steps) < 1 or returns not in RETURNS:
        raise ValueError(
            "n_episodes, n_steps and n_envs must be >= 1 and returns 'reward_to_go' or 'episode', got "
            f"n_episodes={n_episodes}, n_steps={n_steps}, n_envs={n_envs}, returns={returns!r}"
        )
    if discount_state and returns == "episode":
        raise ValueError('discount_state=True is for returns="reward_to_go", as in REINFORCE, got returns="episode"')
    if n_episodes % n_envs and n_steps is None:
        raise ValueError(f"n_episodes must be a multiple of n_envs, got n_episodes={n_episodes} and n_envs={n_envs}")
    baseline = copy.deepcopy(make_baseline(baseline))
    rng = np.random.default_rng(seed)
    known = _Enumerated(returns, gamma, discount_state)
    estimates = []
    for _ in range(n_batches):
        if n_steps is None:
            drawn, envs = known.draw(rng, n_episodes), np.arange(n_episodes) * n_envs // n_episodes
        else:
            by_env = [known.draw_steps(rng, n_steps) for _ in range(n_envs)]
            drawn, envs = np.concatenate(by_env), np.repeat(np.arange(n_envs), [len(own) for own in by_env])
        episodes, scores = known.episodes(drawn, envs, n_steps is None, rng if "greedy" in baseline.needs else None)
        estimates.append(scores.T @ (episodes.returns - checked_prediction(baseline, episodes)))
        baseline.update(episodes)
    # By Wald's identity the expected sum over the episodes is their expected number times the gradient.
    expected_number = n_episodes if n_steps is None else n_envs * known.expected_number(n_steps)
    stacked = th.stack(estimates).view(n_batches, *LOGITS.shape) / expected_number
    truth = CHECKED.exact_gradient(LOGITS, gamma, discount_state or returns == "episode")
    return BiasReport(truth, stacked.mean(0) - truth, stacked.std(0) / n_batches**0.5, n_batches)


class _Enumerated:
    """All trajectories of the MDP, laid end to end, with returns, scores and probabilities. Arguments as in REINFORCE."""

    def __init__(self, returns: str, gamma: float, discount_state: bool):
        trajectories = CHECKED.trajectories()
        self.lengths = th.tensor([len(trajectory.actions) for trajectory in trajectories])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.states = th.tensor([state for trajectory in trajectories for state in trajectory.states])
        actions = th.tensor([action for trajectory in trajectories for action in trajectory.actions])
        rewards = th.tensor([r for trajectory in trajectories for r in trajectory.rewards], dtype=th.float64)
        self.returns = RETURNS[returns](rewards, self.lengths, gamma)
        policy = LOGITS.softmax(dim=1)
        # Score of a softmax policy with respect to its logits: one-hot action minus pi, in the row of the state
        scores = th.zeros(len(actions), *LOGITS.shape, dtype=th.float64)
        scores[th.arange(len(actions)), self.states] = th.eye(LOGITS.shape[1], dtype=th.float64)[actions] - policy[self.states]
        weights = gamma ** steps_in_episode(self.lengths).double() if discount_state else th.ones_like(rewards)
        self.scores = weights[:, None] * scores.flatten(1)
        environment = np.array([trajectory.env_probability for trajectory in trajectories])
        episode_of = th.arange(len(trajectories)).repeat_interleave(self.lengths)
        log_probs = th.zeros(len(trajectories), dtype=th.float64).index_add(0, episode_of, policy.log()[self.states, actions])
        self.cumulated = np.cumsum(environment * log_probs.exp().numpy())
        greedy_actions = policy.argmax(1).tolist()
        is_greedy = np.array([t.actions == [greedy_actions[state] for state in t.states] for t in trajectories])
        self.first_states = self.states[self.starts].numpy()
        # Cumulated probabilities of the greedy policy's trajectories, for each first state
        self.greedy_cumulated = {
            int(state): np.cumsum(environment * is_greedy * (self.first_states == state))
            for state in np.unique(self.first_states)
        }

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Indices of n trajectories, drawn from the policy."""
        return np.searchsorted(self.cumulated, rng.random(n) * self.cumulated[-1], side="right")

    def draw_steps(self, rng: np.random.Generator, n_steps: int) -> np.ndarray:
        """Indices of trajectories, up to and including the first that ends at or after step ``n_steps``."""
        drawn = self.draw(rng, n_steps)  # enough, as each has at least one step
        return drawn[: np.searchsorted(np.cumsum(self.lengths.numpy()[drawn]), n_steps) + 1]

    def expected_number(self, n_steps: int) -> float:
        """Expected number of episodes of one environment: m(k) = 1 + sum_l P(length l) m(k - l), and 0 for k <= 0."""
        probability = np.bincount(self.lengths.numpy(), np.diff(self.cumulated, prepend=0.0))
        m = [0.0]
        for k in range(1, n_steps + 1):
            m.append(1.0 + sum(p * m[max(k - length, 0)] for length, p in enumerate(probability) if length > 0))
        return m[-1]

    def episodes(
        self, drawn: np.ndarray, env_indices: np.ndarray, fixed_count: bool, greedy: np.random.Generator | None
    ) -> tuple[Episodes, th.Tensor]:
        """The batch as the baseline sees it, and the weighted scores of its steps, shape [S, states * actions]."""
        lengths, rows = self._rows(drawn)
        returns, scores = self.returns[rows], self.scores[rows]
        episode_of = th.arange(len(drawn)).repeat_interleave(lengths)
        zeros = th.zeros(len(drawn), scores.shape[1], dtype=th.float64)
        sums, products = zeros.index_add(0, episode_of, scores), zeros.index_add(0, episode_of, returns[:, None] * scores)
        greedy_returns = None
        if greedy is not None:
            # For each episode one of the greedy policy from the same first state
            tables = [self.greedy_cumulated[state] for state in self.first_states[drawn]]
            partners = np.array([np.searchsorted(t, greedy.random() * t[-1], side="right") for t in tables])
            partner_lengths, partner_rows = self._rows(partners)
            greedy_returns = at_same_step(self.returns[partner_rows], partner_lengths, lengths)
        return Episodes(
            returns=returns,
            lengths=lengths,
            env_indices=th.as_tensor(env_indices),
            fixed_count=fixed_count,
            values=VALUES[self.states[rows]],
            observations=th.eye(len(VALUES))[self.states[rows]],
            first_steps=th.zeros_like(lengths),
            score_squares=sums.square().sum(1),
            score_products=(sums * products).sum(1),
            greedy_returns=greedy_returns,
        ), scores

    def _rows(self, drawn: np.ndarray) -> tuple[th.Tensor, th.Tensor]:
        lengths = self.lengths[drawn]
        return lengths, self.starts[drawn].repeat_interleave(lengths) + steps_in_episode(lengths)
