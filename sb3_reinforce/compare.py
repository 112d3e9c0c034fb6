"""Which baseline leaves the least gradient variance here? Measured on the same episodes of one frozen policy."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.arguments import check_count, with_checked_spaces
from sb3_reinforce.baselines import BASELINES, Baseline, checked_prediction, make_baseline
from sb3_reinforce.episode_gradients import episode_gradients
from sb3_reinforce.episodes import Episodes, join_episodes
from sb3_reinforce.estimate import bootstraps, state_weights, values_of_rollout, with_scores
from sb3_reinforce.observations import map_arrays
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.returns import RETURNS
from sb3_reinforce.rollout.recording import Rollout
from sb3_reinforce.running.env_queries import env_name
from sb3_reinforce.running.normalization import frozen_statistics
from sb3_reinforce.scores import Scores
from sb3_reinforce.tables import ShownAsTable, Table
from sb3_reinforce.update.chunk_size import chunk_size_of
from sb3_reinforce.update.likelihood import predict_values, value_only_parameters, values_of
from sb3_reinforce.update.steps import Steps, join_steps, sequences_of, steps_of

# From the cheapest to the dearest: the advice is the first of those that cannot be told apart.
BY_COST = ("none", "moving_average", "leave_one_out", "per_step", "value", "optimal", "greedy")
ROUNDING = 1e-9  # of a variance relative to none: what is below is 0
# V is fitted in rounds, since returns that are bootstrapped change with it.
VALUE_FIT_ROUNDS, VALUE_FIT_STEPS, VALUE_FIT_BATCH, VALUE_FIT_RATE = 10, 50, 256, 1e-2


@dataclass(frozen=True)
class BaselineVariance:
    """
    The gradient's variance under one baseline.

    :param name: of the baseline
    :param variance: trS, the trace of the covariance of one episode's gradient
    :param relative: trS over that of ``none`` on the same episodes
    :param low: lower end of the bootstrap interval of ``relative``, 95 %
    :param high: upper end
    """

    name: str
    variance: float
    relative: float
    low: float
    high: float


@dataclass(frozen=True)
class BaselineComparison(ShownAsTable):
    """
    What :func:`compare_baselines` has measured. ``print`` shows table and advice, a notebook the same as HTML.

    :param rows: one per baseline, ``none`` first
    :param advice: one sentence
    :param title: what was measured: policy, environment, episodes
    """

    rows: list[BaselineVariance]
    advice: str
    title: str

    def _table(self) -> Table:
        rows = [(row.name, f"{row.variance:.4g}", f"{row.relative:.3f} ({row.low:.3f} - {row.high:.3f})") for row in self.rows]
        return Table(self.title, ("baseline", "variance", "relative to none (95 % interval)"), rows, self.advice)

    def plot(self, path: str | Path) -> None:
        """
        Draw the table as a PNG.

        :param path: file to write
        :raises ModuleNotFoundError: if matplotlib is not installed
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # without pyplot: neither a display nor the user's own figures are touched
        figure = Figure(figsize=(7, 0.45 * len(self.rows) + 1.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        rows = self.rows[::-1]
        numbers = np.array([(row.relative, row.low, row.high) for row in rows])
        is_zero = numbers < ROUNDING
        zero = 10 ** np.floor(np.log10(numbers[~is_zero].min()) - 1)  # where 0 stands: a decade below the lowest number
        numbers[is_zero] = zero
        relative = numbers[:, 0]
        errors = np.abs(numbers[:, 1:].T - relative)
        axes.errorbar(relative, range(len(rows)), xerr=errors, fmt="o", color="tab:blue", ecolor="black", capsize=3)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.axvline(1.0, color="gray", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: "0" if is_zero.any() and x <= zero else f"{x:g}")
        axes.set_xlabel("variance of the gradient, relative to no baseline (95 % interval)")
        axes.set_title(self.title.replace("; ", "\n"), fontsize="medium")
        axes.grid(axis="x", which="both", alpha=0.3)
        figure.savefig(path, dpi=150)


class _Recorder(Baseline):
    """b = 0, and everything that any baseline needs of a rollout is computed."""

    needs = frozenset({"values", "greedy"})

    def predict(self, episodes: Episodes) -> th.Tensor:
        return th.zeros_like(episodes.returns)


@dataclass(frozen=True)
class _Played:
    """
    What a probe has played in several rollouts.

    :param episodes: all of them, independent of each other
    :param steps: theirs
    :param rewards: theirs, shape [S], float64
    :param rollouts: each with its observations
    """

    episodes: Episodes
    steps: Steps
    rewards: th.Tensor
    rollouts: list[tuple[Rollout, Any]]

    def episodes_with(self, probe: REINFORCE, bootstrap: bool) -> Episodes:
        """:return: the episodes with V as it is now, whether or not gamma V(s_T) is added at time limits"""
        values = values_of(probe.policy, self.steps, len(self.rewards), chunk_size_of(probe))
        return replace(self.episodes, returns=self.returns(probe, bootstrap), values=values)

    def returns(self, probe: REINFORCE, bootstrap: bool) -> th.Tensor:
        """:return: R of each step, shape [S]"""
        last_values = None
        if bootstrap:
            chunk_size = chunk_size_of(probe)
            last_values = th.cat(
                [values_of_rollout(of, probe.policy, seen, chunk_size, False)[1] for of, seen in self.rollouts]
            )
        return RETURNS[probe.returns](self.rewards, self.episodes.lengths, probe.gamma, last_values)


def compare_baselines(
    env: str | VecEnv,
    model: OnPolicyAlgorithm | None = None,
    n_episodes: int = 100,
    baselines: Sequence[str | Baseline] = tuple(BASELINES),
    seed: int = 0,
    n_bootstrap: int = 2000,
) -> BaselineComparison:
    """
    The variance of the policy gradient under every baseline, on the same episodes of a frozen policy.

    Two batches of ``n_episodes`` are played, and the greedy policy's episodes from the same resets. The first batch is
    the past: ``moving_average`` and a baseline of your own are updated by it, and V is fitted to it unless the model has
    learned one. The second is measured: per baseline trS of g_i = sum_t gamma^(c t) grad log pi (R - b), all episodes in
    one batch (in smaller batches, baselines computed from other episodes are noisier). Intervals: 95 % by bootstrap over the
    episodes, with the mean gradient held fixed.

    Each baseline gets the returns that training with it would use: at a time limit, gamma V(s_T) is added for ``value`` and
    every other that needs V (unless the model has ``truncation="terminal"``), and nothing for the rest. There the error of V
    is a bias, so the mean gradients differ. The variances can still be compared: each is about its own mean.

    :param env: id of an environment, of which 8 are made, or a VecEnv; statistics of ``VecNormalize`` are frozen meanwhile
    :param model: whose policy and gamma to take (of a REINFORCE also ``returns``, ``discount_state``, ``truncation``); None: a
        new REINFORCE
    :param n_episodes: at least 4 and a multiple of the number of environments; rounded up to one
    :param baselines: names or Baseline objects (which are copied, and numbered where several are of one class); ``none`` is
        always measured
    :param seed: of environments and actions
    :param n_bootstrap: resamples
    :return: table, advice and picture
    :raises ValueError: for an unknown baseline, another policy's spaces, numbers out of range
    """
    check_count("n_episodes", n_episodes)
    check_count("n_bootstrap", n_bootstrap)
    if n_episodes < 4:
        raise ValueError(f"n_episodes must be >= 4, to have a variance with an interval, got {n_episodes}")
    named: dict[str, Baseline] = {}
    for baseline in ("none", *baselines):
        name = baseline if isinstance(baseline, str) else type(baseline).__name__
        n_same = 0 if isinstance(baseline, str) else sum(given.split()[0] == name for given in named)
        named[f"{name} {n_same + 1}" if n_same else name] = copy.deepcopy(make_baseline(baseline))
    vec_env = make_vec_env(env, min(8, n_episodes), wrapper_class=with_checked_spaces) if isinstance(env, str) else env
    name_of_env = env if isinstance(env, str) else env_name(env)
    n_rounds = -(-n_episodes // vec_env.num_envs)
    with frozen_statistics(vec_env):
        probe = _probe(vec_env, model, seed)
        past = _play(probe, n_rounds)
        learned = _has_learned_values(model)
        if not learned:
            _fit_values(probe, past, seed)
        present = _play(probe, n_rounds)
    if isinstance(env, str):
        vec_env.close()
    lengths = present.episodes.lengths
    discount = state_weights(present.episodes, probe.gamma, probe.discount_state)
    scores = Scores(probe.policy, present.steps, probe.chunk_size)

    advantages = []
    bootstrap = {name: bootstraps(baseline, probe.returns, probe.truncation) for name, baseline in named.items()}
    played = {how: [batch.episodes_with(probe, how) for batch in (past, present)] for how in set(bootstrap.values())}
    for name, baseline in named.items():
        past_episodes, episodes = played[bootstrap[name]]
        if "scores" in baseline.needs:
            episodes = with_scores(episodes, scores, discount)
        else:
            baseline.update(past_episodes)
        advantages.append(episodes.returns - checked_prediction(baseline, episodes))
    weights = discount * th.stack(advantages)
    first = episode_gradients(scores, lengths, weights)
    second = episode_gradients(scores, lengths, weights, first.mean.float())
    assert second.along is not None
    # abs(g_i - gbar)^2 of each episode and baseline
    distances = (first.squares - 2 * second.along + first.mean.square().sum(1).cpu()).clamp(min=0.0).numpy()
    kind = "a new policy" if model is None else f"the given {type(model).__name__}"
    value = "V as the model has learned it" if learned else "V fitted to other episodes"
    at_limits = any(rollout.last_observations for rollout, _ in present.rollouts)
    bootstrapped = [name for name in named if bootstrap[name] and at_limits]
    if bootstrapped:
        value += f"; gamma V is added at time limits for {', '.join(bootstrapped)}"
    title = f"{name_of_env}: {len(lengths)} episodes of {kind}; {value}"
    return _compared(list(named), distances, title, seed, n_bootstrap, bootstrapped)


def _probe(env: VecEnv, model: OnPolicyAlgorithm | None, seed: int) -> REINFORCE:
    """A REINFORCE with the model's policy that plays one episode per environment and rollout."""
    own: dict[str, Any] = {}
    policy: Any = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    if is_image_space(env.observation_space):
        policy = "CnnPolicy"
    if model is not None:
        policy = type(model.policy)
        own = dict(policy_kwargs=model.policy_kwargs, gamma=model.gamma, device=model.device, use_sde=model.use_sde)
        own["sde_sample_freq"] = model.sde_sample_freq
        if model.observation_space != env.observation_space or model.action_space != env.action_space:
            raise ValueError(
                "model and env must have the same spaces, got "
                f"{model.observation_space} and {model.action_space} of the model, {env.observation_space} and "
                f"{env.action_space} of the environment: wrap it as for training"
            )
    if isinstance(model, REINFORCE):
        own.update(returns=model.returns, discount_state=model.discount_state, max_episode_steps=model.max_episode_steps)
        own.update(chunk_size=model.chunk_size, bptt_steps=model.bptt_steps, truncation=model.truncation)
    probe = REINFORCE(policy, env, n_episodes=env.num_envs, baseline=_Recorder(), seed=seed, **own)
    if model is not None:
        probe.policy.load_state_dict(model.policy.state_dict())
    probe._warned_of_discarded_steps = True  # of no interest here
    probe._setup_learn(1)
    return probe


def _has_learned_values(model: OnPolicyAlgorithm | None) -> bool:
    if model is None or model.num_timesteps == 0:
        return False
    return "values" in model._baseline.needs if isinstance(model, REINFORCE) else True


def _play(probe: REINFORCE, n_rounds: int) -> _Played:
    """One episode of each environment per round."""
    callback = ConvertCallback(None)
    callback.init_callback(probe)
    env, buffer = probe.env, probe.rollout_buffer
    assert env is not None
    parts, steps, rewards, rollouts = [], [], [], []
    for _ in range(n_rounds):
        probe.collect_rollouts(env, callback, buffer, probe.n_steps)
        # The buffer is used again by the next rollout.
        parts.append(replace(probe.batch.episodes, observations=map_arrays(th.clone, probe.batch.episodes.observations)))
        sequences = sequences_of(probe.policy, parts[-1].lengths, probe.bptt_steps)
        steps.append(steps_of(buffer, parts[-1], sequences))
        rewards.append(th.as_tensor(buffer.rewards[:, 0], dtype=th.float64))
        rollouts.append((probe.rollout, parts[-1].observations))
    episodes = join_episodes(parts, [env.num_envs] * n_rounds)
    return _Played(episodes, join_steps(steps, episodes), th.cat(rewards), rollouts)


def _fit_values(probe: REINFORCE, past: _Played, seed: int) -> None:
    """Least squares of V on the returns, by Adam over the value network's own parameters."""
    parameters = value_only_parameters(probe.policy)
    optimizer = th.optim.Adam(parameters, lr=VALUE_FIT_RATE)
    rng = np.random.default_rng(seed)
    for _ in range(VALUE_FIT_ROUNDS):
        returns = past.returns(probe, probe._keeps_last_observations()).float().to(probe.device)
        for _ in range(VALUE_FIT_STEPS):
            rows = _random_rows(past.steps, min(VALUE_FIT_BATCH, len(returns)), rng)
            loss = (predict_values(probe.policy, past.steps.at(rows, probe.device)) - returns[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward(inputs=parameters)
            optimizer.step()


def _random_rows(steps: Steps, n: int, rng: np.random.Generator) -> np.ndarray:
    """n random rows; for a policy with memory, random episodes of n rows or more together."""
    if steps.sequences is None:
        return rng.integers(len(steps.actions), size=n)
    lengths = steps.sequences.lengths
    order = rng.permutation(len(lengths))
    return steps.sequences.rows_of(order[: np.searchsorted(np.cumsum(lengths[order]), n) + 1])


def _compared(
    names: list[str], distances: np.ndarray, title: str, seed: int, n_bootstrap: int, bootstrapped: list[str]
) -> BaselineComparison:
    """
    :param names: of K baselines, ``none`` first
    :param distances: abs(g_i - gbar)^2, shape [N, K]
    :param bootstrapped: those of them with which V is added at time limits
    """
    n = len(distances)
    resampled = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap) @ distances
    relative = distances.sum(0) / distances[:, 0].sum()
    low, high = np.quantile(resampled / resampled[:, :1], [0.025, 0.975], axis=0)
    rows = [
        BaselineVariance(name, *map(float, (distances[:, k].sum() / (n - 1), relative[k], low[k], high[k])))
        for k, name in enumerate(names)
    ]
    unbiased = [name for name in names if name != "mean"]
    best = min(unbiased, key=lambda name: relative[names.index(name)])
    # Not told apart from the best: in more than 2.5 % of the resamples it is as good.
    as_good = [b for b in unbiased if np.mean(resampled[:, names.index(b)] <= resampled[:, names.index(best)]) > 0.025]
    advised = min({*as_good, best}, key=lambda name: BY_COST.index(name) if name in BY_COST else len(BY_COST))
    row = rows[names.index(advised)]
    if advised == "none":
        advice = "Advice: no baseline has clearly less variance here than none."
    else:
        also = f", which is not clearly beaten by the lowest, {best}" if advised != best else ", the lowest"
        advice = (
            f'Advice: baseline="{advised}" leaves {100 * row.relative:.0f} % of the variance ({100 * row.low:.0f} to '
            f"{100 * row.high:.0f} %){also}"
        )
        exact = row.relative < ROUNDING
        advice += "." if exact else f": as many episodes tell about {1 / row.relative:.1f} times as much."
    if advised in bootstrapped:
        advice += " The error of V at time limits is its bias."
    return BaselineComparison(rows, advice, title)
