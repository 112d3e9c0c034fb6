"""
How noisy the gradient is, and which baseline makes it less so.

Everything is made of g_i = sum_t gamma^(c t) grad log pi(a_it|s_it) (R_it - b_it), the policy gradient of episode i: no
entropy term, not clipped, in evaluation mode, with the parameters that played. Their mean over N episodes estimates the
gradient. What is kept of them are sums over the episodes, so that memory does not grow with their number.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.arguments import check_count, check_fraction
from sb3_reinforce.baselines import BASELINES, Baseline, Episodes, checked_prediction, join_episodes, make_baseline
from sb3_reinforce.buffers import map_arrays
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.scores import Scores
from sb3_reinforce.training_state import frozen_statistics


@dataclass
class EpisodeGradients:
    """
    What is kept of K vectors g_i for each of N episodes. Of several processes: add ``total``, join the others.

    :param total: sum_i g_i, shape [K, P], float64
    :param squares: abs(g_i)^2, shape [N, K], float64
    :param along: g_i along K given directions, shape [N, K], float64; None if none were given
    """

    total: th.Tensor
    squares: th.Tensor
    along: th.Tensor | None

    @property
    def count(self) -> int:
        """N."""
        return len(self.squares)

    @property
    def mean(self) -> th.Tensor:
        """gbar, shape [K, P]."""
        return self.total / self.count

    @property
    def variance(self) -> th.Tensor:
        """trS = sum_i abs(g_i - gbar)^2 / (N - 1), the trace of the covariance of an episode's gradient, shape [K]."""
        about_zero = self.squares.sum(0) - self.mean.square().sum(1).cpu() * self.count
        return about_zero.clamp(min=0.0) / (self.count - 1)

    @property
    def mean_square(self) -> th.Tensor:
        """G2 = abs(gbar)^2 - trS / N, an unbiased estimate of abs(E[g])^2, shape [K]."""
        return self.mean.square().sum(1).cpu() - self.variance / self.count


def episode_gradients(
    scores: Scores, lengths: th.Tensor, weights: th.Tensor, directions: th.Tensor | None = None
) -> EpisodeGradients:
    """
    :param scores: of the policy at all S steps
    :param lengths: steps of each of N episodes, shape [N]
    :param weights: K times gamma^(c t) (R - b), shape [K, S]
    :param directions: K directions, or one for all, shape [K, P] or [P]
    :return: of the vectors sum_t weight_kt grad log pi(a_it|s_it)
    """
    total: Any = 0.0
    squares, along = [], []
    for block in scores.of_episodes(lengths, weights):
        total = total + block.sum(0, dtype=th.float64)
        squares.append(block.square().sum(2, dtype=th.float64).cpu())
        if directions is not None:
            along.append((block * directions).sum(2, dtype=th.float64).cpu())
    return EpisodeGradients(total, th.cat(squares), th.cat(along) if along else None)


class GradientDiagnostics(BaseCallback):
    """
    Logs how noisy the policy gradient is, every so many updates, through the model's logger with the row of that update.

    With g_i the policy gradient of episode i and gbar their mean over N episodes (N >= 2, else nothing is logged):

    - ``gradient/variance``: trS = sum_i abs(g_i - gbar)^2 / (N - 1)
    - ``gradient/noise_scale``: trS / G2 in episodes, G2 = abs(gbar)^2 - trS / N, both averaged over the updates measured
      before dividing: how many episodes it takes until signal and noise are equal. Left out while the averaged G2 is not
      above 0: then the gradient cannot be told from zero. Source: McCandlish et al. (2018), "An Empirical Model of
      Large-Batch Training", appendix A
    - ``gradient/snr``: N G2 / trS, from the same averages; below 1 an update is mostly noise
    - ``gradient/variance_reduction``: trS without a baseline over trS with the one in use, on the same episodes
    - ``gradient/fisher_trace``: mean over the steps of abs(grad log pi)^2; over evenly spaced ones for a large policy
    - ``gradient/score_mean_z``: t-statistic of the episodes' scores along one random direction, the same in all updates.
      E[score] = 0, so it should look like a standard normal number; with few episodes its tails are Student's

    Training is not changed by it: nothing random is drawn that training would draw. With several optimiser steps per batch
    all this is of the first one.

    :param every_n_updates: from one measurement to the next; the first update is measured
    :param decay: share of the past in the averages of trS and G2, in [0, 1)
    :param verbose: Verbosity level: 0 for no output
    :raises ValueError: if the arguments are out of range, or the model is no REINFORCE
    """

    # REINFORCE need not call it at each step.
    needs_steps = False

    def __init__(self, every_n_updates: int = 20, decay: float = 0.9, verbose: int = 0):
        super().__init__(verbose)
        check_count("every_n_updates", every_n_updates)
        check_fraction("decay", decay)
        if decay == 1.0:
            raise ValueError("decay must be below 1, got 1: nothing new would enter the averages")
        self.every_n_updates, self.decay = every_n_updates, decay
        self.n_rollouts = 0
        # Averages of trS and G2: only their quotient counts, so what they start from need not be made up for
        self._variance = self._mean_square = 0.0
        self._direction: th.Tensor | None = None
        self._warned = False

    def _init_callback(self) -> None:
        if not isinstance(self.model, REINFORCE):
            raise ValueError(
                f"GradientDiagnostics needs a REINFORCE, whose batches are whole episodes, got {type(self.model).__name__}"
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if (self.n_rollouts - 1) % self.every_n_updates == 0:
            assert isinstance(self.model, REINFORCE)
            for name, value in self.measure(self.model).items():
                self.logger.record(f"gradient/{name}", value)

    def measure(self, model: REINFORCE) -> dict[str, float]:
        """
        :param model: after a rollout and before its update
        :return: the metrics without their prefix; what cannot be computed is left out
        """
        episodes = model._episodes
        n = len(episodes.lengths)
        if n < 2:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "GradientDiagnostics logs nothing of a batch of one episode, which has no variance (said once): raise "
                    "n_steps or n_episodes",
                    stacklevel=2,
                )
            return {}
        scores = Scores(model, episodes.observations, actions_of(model))
        if self._direction is None or len(self._direction) != scores.n_parameters:
            direction = th.randn(scores.n_parameters, generator=th.Generator().manual_seed(0))
            self._direction = (direction / direction.norm()).to(model.device)

        discount = model._state_weights(episodes)
        used = th.as_tensor(model.rollout_buffer.advantages.reshape(-1), dtype=th.float64)
        plain, reduced = discount * episodes.returns, discount * (episodes.returns - model._baseline_values)
        # Normalised advantages have another scale, which the reduction must not show.
        weights = th.stack([used, plain, th.ones_like(used)] + ([reduced] if model.normalize_advantage else []))
        gradients = episode_gradients(scores, episodes.lengths, weights, self._direction)
        variances = gradients.variance.tolist()
        variance, mean_square = variances[0], float(gradients.mean_square[0])
        self._variance = self.decay * self._variance + (1 - self.decay) * variance
        self._mean_square = self.decay * self._mean_square + (1 - self.decay) * mean_square
        metrics = {"variance": variance, "fisher_trace": scores.mean_square_norm()}
        if self._mean_square > 0:
            metrics["noise_scale"] = self._variance / self._mean_square
        if self._variance > 0:
            metrics["snr"] = n * self._mean_square / self._variance
        with_baseline = variances[3 if model.normalize_advantage else 0]
        if with_baseline > 0:
            metrics["variance_reduction"] = variances[1] / with_baseline
        assert gradients.along is not None
        along = gradients.along[:, 2]
        spread = float(along.std())
        if spread > 0:
            metrics["score_mean_z"] = float(along.mean()) / (spread / n**0.5)
        return metrics


def actions_of(model: REINFORCE) -> th.Tensor:
    """:return: the actions of the rollout buffer, float, shape [S, action dimensions]"""
    return th.as_tensor(model.rollout_buffer.actions.reshape(model._batch.n_steps, -1), dtype=th.float32)


# --- which baseline? ------------------------------------------------------------------------------------------------

# From the cheapest to the dearest: of those that cannot be told apart the first is advised.
BY_COST = ("none", "moving_average", "leave_one_out", "per_step", "value", "optimal", "greedy")
VALUE_FIT_STEPS, VALUE_FIT_BATCH, VALUE_FIT_RATE = 500, 256, 1e-2


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
class BaselineComparison:
    """
    What :func:`compare_baselines` has measured. ``print`` shows the table and the advice.

    :param rows: one per baseline, ``none`` first
    :param advice: one sentence
    :param title: what was measured: policy, environment, episodes
    """

    rows: list[BaselineVariance]
    advice: str
    title: str

    def __str__(self) -> str:
        head = f"{'baseline':<16} {'variance':>12}   relative to none (95 % interval)"
        lines = [
            f"{row.name:<16} {row.variance:>12.4g}   {row.relative:>8.3f} ({row.low:.3f} - {row.high:.3f})"
            for row in self.rows
        ]
        return "\n".join([self.title, head, *lines, self.advice])

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
        relative = np.array([row.relative for row in rows])
        errors = np.abs(np.array([[row.low for row in rows], [row.high for row in rows]]) - relative)
        axes.errorbar(relative, [row.name for row in rows], xerr=errors, fmt="o", color="tab:blue", ecolor="black", capsize=3)
        axes.axvline(1.0, color="gray", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_xlabel("variance of the gradient, relative to no baseline (95 % interval)")
        axes.set_title(self.title.replace("; ", "\n"), fontsize="medium")
        axes.grid(axis="x", which="both", alpha=0.3)
        figure.savefig(path, dpi=150)


class _Recorder(Baseline):
    """b = 0, and everything that any baseline needs of a rollout is computed."""

    needs = frozenset({"values", "greedy"})

    def predict(self, episodes: Episodes) -> th.Tensor:
        return th.zeros_like(episodes.returns)


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
    one batch (in smaller batches, baselines made of other episodes are noisier). Intervals: 95 % by bootstrap over the
    episodes, with the mean gradient held fixed.

    For all alike a time limit ends the sum (``truncation="terminal"``). Where most episodes end by one, returns fall towards
    it, which ``per_step`` and ``greedy`` see and V(s) cannot; training with ``baseline="value"`` bootstraps there instead.

    :param env: id of an environment, of which 8 are made, or a VecEnv; statistics of ``VecNormalize`` are frozen meanwhile
    :param model: whose policy and gamma to take (and ``returns``, ``discount_state`` of a REINFORCE); None: a new REINFORCE
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
    vec_env = make_vec_env(env, min(8, n_episodes)) if isinstance(env, str) else env
    env_name = env if isinstance(env, str) else _env_name(env)
    n_rounds = -(-n_episodes // vec_env.num_envs)
    with frozen_statistics(vec_env):
        probe = _probe(vec_env, model, seed)
        past, _ = _play(probe, n_rounds)
        learned = _has_learned_values(model)
        if not learned:
            _fit_values(probe, past, seed)
        episodes, actions = _play(probe, n_rounds)
    if isinstance(env, str):
        vec_env.close()
    if any("scores" in baseline.needs for baseline in named.values()):
        episodes = probe._with_scores(episodes, actions)
    past, episodes = _with_values(probe, past), _with_values(probe, episodes)

    advantages = []
    for baseline in named.values():
        if "scores" not in baseline.needs:
            baseline.update(past)
        advantages.append(episodes.returns - checked_prediction(baseline, episodes))
    weights = probe._state_weights(episodes) * th.stack(advantages)
    scores = Scores(probe, episodes.observations, actions)
    first = episode_gradients(scores, episodes.lengths, weights)
    second = episode_gradients(scores, episodes.lengths, weights, first.mean.float())
    assert second.along is not None
    # abs(g_i - gbar)^2 of each episode and baseline
    distances = (first.squares - 2 * second.along + first.mean.square().sum(1).cpu()).clamp(min=0.0).numpy()
    kind = "a new policy" if model is None else f"the given {type(model).__name__}"
    value = "V as the model has learned it" if learned else "V fitted to other episodes"
    if learned and (not isinstance(model, REINFORCE) or model._bootstraps_truncated()):
        value += " (bootstrapped at time limits, which end the sum here)"
    title = f"{env_name}: {len(episodes.lengths)} episodes of {kind}; {value}"
    return _compared(list(named), distances, title, seed, n_bootstrap)


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
        own.update(chunk_size=model.chunk_size)
    probe = REINFORCE(policy, env, n_episodes=env.num_envs, baseline=_Recorder(), truncation="terminal", seed=seed, **own)
    if model is not None:
        probe.policy.load_state_dict(model.policy.state_dict())
    probe._warned_of_discarded_steps = True  # of no interest here
    probe._setup_learn(1)
    return probe


def _env_name(env: VecEnv) -> str:
    spec = env.get_attr("spec", 0)[0] if env.has_attr("spec") else None
    return getattr(spec, "id", None) or type(env.unwrapped).__name__


def _has_learned_values(model: OnPolicyAlgorithm | None) -> bool:
    if model is None or model.num_timesteps == 0:
        return False
    return "values" in model._baseline.needs if isinstance(model, REINFORCE) else True


def _play(probe: REINFORCE, n_rounds: int) -> tuple[Episodes, th.Tensor]:
    """Rollouts as one batch of independent episodes, and their actions, shape [S, action dimensions]."""
    callback = ConvertCallback(None)
    callback.init_callback(probe)
    env = probe.env
    assert env is not None
    parts, actions = [], []
    for _ in range(n_rounds):
        probe.collect_rollouts(env, callback, probe.rollout_buffer, probe.n_steps)
        # The buffer is used again by the next rollout.
        parts.append(replace(probe._episodes, observations=map_arrays(th.clone, probe._episodes.observations)))
        actions.append(actions_of(probe).clone())
    return join_episodes(parts, [env.num_envs] * n_rounds), th.cat(actions)


def _with_values(probe: REINFORCE, episodes: Episodes) -> Episodes:
    return replace(episodes, values=probe._values_of(episodes.observations, len(episodes.returns)))


def _fit_values(probe: REINFORCE, episodes: Episodes, seed: int) -> None:
    """Least squares of V on the returns, by Adam over the value network's own parameters."""
    optimizer = th.optim.Adam(probe._value_parameters, lr=VALUE_FIT_RATE)
    rng = np.random.default_rng(seed)
    returns = episodes.returns.float().to(probe.device)
    for _ in range(VALUE_FIT_STEPS):
        rows = th.as_tensor(rng.integers(len(returns), size=min(VALUE_FIT_BATCH, len(returns))))
        observations = map_arrays(lambda array, rows=rows: array[rows].to(probe.device), episodes.observations)
        loss = (probe.policy.predict_values(observations).flatten() - returns[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward(inputs=probe._value_parameters)
        optimizer.step()


def _compared(names: list[str], distances: np.ndarray, title: str, seed: int, n_bootstrap: int) -> BaselineComparison:
    """
    :param names: of K baselines, ``none`` first
    :param distances: abs(g_i - gbar)^2, shape [N, K]
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
        exact = row.relative < 1e-9  # but for rounding
        advice += "." if exact else f": as many episodes tell about {1 / row.relative:.1f} times as much."
    return BaselineComparison(rows, advice, title)
