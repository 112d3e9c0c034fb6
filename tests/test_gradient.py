"""
The expected update, read off the parameters after one SGD step, is the exact gradient.

Variants that are known to be wrong are tested too: each must be detected.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_reinforce.reinforce
from sb3_reinforce import REINFORCE, Baseline
from sb3_reinforce.rollout.sampling import TorchSampler
from sb3_reinforce.rollout.spans import Spans
from sb3_reinforce.rollout.streams import ACTOR, stream_seed
from tests.envs import (
    LARGER,
    MDP,
    SMALL,
    MDPEnv,
    ScriptedEnv,
    Trajectory,
    baseline_of,
    expected_change,
    logits,
    one_update,
    script_probability,
    scripted_sampler,
    scripts_by_episodes,
    scripts_by_steps,
    tabular_model,
)

ESTIMATORS = [
    dict(returns="reward_to_go", discount_state=False),
    dict(returns="reward_to_go", discount_state=True),
    dict(returns="episode"),
]
UNBIASED = ["none", "leave_one_out", "per_step", "moving_average", "value", "optimal"]
OF_OTHERS = ("leave_one_out", "per_step", "optimal")


def expected_update(monkeypatch: Any, n_envs: int, mdp: MDP = SMALL, **kwargs: Any) -> tuple[th.Tensor, REINFORCE]:
    """The exact expectation of the update over all batches that the MDP can produce, and the model."""
    env = DummyVecEnv([lambda: ScriptedEnv(mdp)] * n_envs)
    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", scripted_sampler(env))
    model = tabular_model(env, **kwargs)
    if kwargs.get("baseline") == "moving_average":
        baseline_of(model).average = 0.7  # as if from earlier batches
    if model.n_episodes is None:
        per_env = list(scripts_by_steps(mdp, model.n_steps))
    else:
        per_env = list(scripts_by_episodes(mdp, model.n_episodes // n_envs))
    log_policy = logits(model).log_softmax(dim=1)
    return expected_change(model, env, mdp, log_policy, per_env), model


def exact(model: REINFORCE) -> th.Tensor:
    discounted = model.discount_state or model.returns == "episode"
    return SMALL.exact_gradient(logits(model), model.gamma, discounted)


def test_exact_gradient_is_that_of_the_enumerated_return():
    """Dynamic programming and autograd through the probability of every trajectory give the same gradient."""
    weights = th.tensor([[0.4, -0.3], [0.2, 0.9]], dtype=th.float64, requires_grad=True)
    log_policy, gamma = weights.log_softmax(dim=1), 0.8
    expected_return = sum(
        trajectory.env_probability
        * th.exp(log_policy[trajectory.states, trajectory.actions].sum())
        * sum(gamma**t * reward for t, reward in enumerate(trajectory.rewards))
        for trajectory in SMALL.trajectories()
    )
    th.testing.assert_close(
        SMALL.exact_gradient(weights, gamma, discount_state=True), th.autograd.grad(expected_return, weights)[0]
    )


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: "-".join(map(str, e.values())))
@pytest.mark.parametrize("baseline", UNBIASED)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_n_episodes_is_exact(monkeypatch, estimator, baseline, n_envs):
    expected, model = expected_update(monkeypatch, n_envs, n_episodes=2, baseline=baseline, **estimator)
    th.testing.assert_close(expected, exact(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: "-".join(map(str, e.values())))
@pytest.mark.parametrize(("baseline", "n_envs"), [(b, n) for b in UNBIASED for n in (1, 2) if n == 2 or b not in OF_OTHERS])
def test_n_steps_has_the_exact_direction(monkeypatch, estimator, baseline, n_envs):
    """
    Wald's identity: E[sum over the episodes] = E[number of episodes] * gradient, so dividing by the fixed
    n_steps * n_envs only scales it. The expected number is sum over scripts of P(script) * len(script).
    """
    expected, model = expected_update(monkeypatch, n_envs, n_steps=2, baseline=baseline, **estimator)
    log_policy = logits(model).log_softmax(dim=1)
    n_episodes = sum(script_probability(s, log_policy) * len(s) for s in scripts_by_steps(SMALL, 2))
    th.testing.assert_close(expected, exact(model) * n_episodes / 2, atol=1e-6, rtol=0)


def test_three_episodes_of_one_environment(monkeypatch):
    """With N = 3 the leave-one-out mean is over two episodes, and per_step meets a t that only one of them reaches."""
    for baseline in OF_OTHERS:
        expected, model = expected_update(monkeypatch, 1, n_episodes=3, baseline=baseline)
        th.testing.assert_close(expected, exact(model), atol=1e-6, rtol=0)


class TwiceResetEnv(ScriptedEnv):
    """Plays ``greedy``, the greedy policy's episode, instead of the script after every second seeded reset."""

    greedy: Trajectory | None = None
    is_greedy = True

    @property
    def trajectory(self) -> Trajectory:
        return self.greedy if self.is_greedy and self.greedy else super().trajectory

    def reset(self, *, seed=None, options=None):
        self.is_greedy ^= seed is not None
        return super().reset(seed=seed, options=options)


def expected_greedy_update(monkeypatch: Any, n_envs: int, replays: bool = False, **kwargs: Any) -> tuple[th.Tensor, REINFORCE]:
    """
    The exact expectation with the greedy baseline: over all batches and, with one environment, all greedy episodes. With
    two, each environment has one greedy episode. ``replays``: the greedy episode is the sampled one again, which is wrong.
    """
    env = DummyVecEnv([lambda: TwiceResetEnv(SMALL)] * n_envs)
    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", scripted_sampler(env))
    model = tabular_model(env, baseline="greedy", n_episodes=n_envs, **kwargs)
    log_policy = logits(model).log_softmax(dim=1)
    best = log_policy.argmax(1).tolist()
    greedy = [t for t in SMALL.trajectories() if t.actions == [best[s] for s in t.states]]
    assert sum(t.env_probability for t in greedy) == pytest.approx(1.0)
    played = [[(t, t.env_probability) for t in greedy]] if n_envs == 1 else [[(greedy[0], 1.0)], [(greedy[-1], 1.0)]]
    expected = th.zeros(SMALL.n_states, SMALL.n_actions, dtype=th.float64)
    for partners in itertools.product(*played):
        for scripts in itertools.product(scripts_by_episodes(SMALL, 1), repeat=n_envs):
            probability = float(np.prod([script_probability(script, log_policy) for script in scripts]))
            for scripted, script, (partner, partner_probability) in zip(env.envs, scripts, partners, strict=True):
                probability *= partner_probability
                scripted.unwrapped.script, scripted.unwrapped.greedy = script, None if replays else partner
            expected += probability * one_update(model)
    return expected, model


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: "-".join(map(str, e.values())))
@pytest.mark.parametrize("n_envs", [1, 2])
def test_greedy_is_exact(monkeypatch, estimator, n_envs):
    expected, model = expected_greedy_update(monkeypatch, n_envs, **estimator)
    th.testing.assert_close(expected, exact(model), atol=1e-6, rtol=0)


def test_detects_a_greedy_episode_that_is_the_sampled_one(monkeypatch):
    """Then R - b is always 0."""
    expected, model = expected_greedy_update(monkeypatch, 1, replays=True)
    assert expected.abs().max() == 0
    assert exact(model).abs().max() > 0.05


def cosine(a: th.Tensor, b: th.Tensor) -> float:
    return float(th.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


# --- wrong variants ---------------------------------------------------------------------------------------------


class FittedBeforeUse(Baseline):
    """A value baseline that is fitted to the returns before it predicts them: each state's mean return in this batch."""

    def predict(self, episodes):
        states = episodes.observations.argmax(dim=1)
        sums = th.zeros(2, dtype=th.float64).index_add_(0, states, episodes.returns)
        return (sums / th.bincount(states, minlength=2).clamp(min=1))[states]


def test_detects_a_value_baseline_fitted_before_use(monkeypatch):
    expected, model = expected_update(monkeypatch, 1, n_episodes=2, baseline=FittedBeforeUse())
    assert (expected - exact(model)).abs().max() > 0.05


def test_detects_a_mean_that_includes_its_own_sample(monkeypatch):
    """With N = 2 and equal lengths, R_i - mean = (R_i - R_j) / 2: half the step of leave-one-out."""
    expected, model = expected_update(monkeypatch, 1, n_episodes=2, baseline="mean", returns="episode")
    assert (expected - exact(model)).abs().max() > 0.05
    assert float(expected.norm() / exact(model).norm()) == pytest.approx(0.5, abs=0.2)


def test_detects_a_ratio_divisor(monkeypatch):
    """Divided by the random number of few episodes even the direction is wrong; with a fixed divisor it is right."""
    # Action 0 ends the episode; continuing pays less at each step. Batches of short episodes have many of them, so a large
    # divisor: the ratio estimator undervalues them so much that here it points the other way.
    mdp = MDP([[[0, 0], [0, 1]], [[0, 0], [1, 0]]], rewards=[[3, 2], [1, -1]], start=[1, 0], horizon=3)
    ratio, model = expected_update(monkeypatch, 1, mdp, n_steps=3, loss_reduction="episode")
    fixed, _ = expected_update(monkeypatch, 1, mdp, n_steps=3, loss_reduction="step")
    truth = mdp.exact_gradient(logits(model), model.gamma, discount_state=False)
    assert cosine(fixed, truth) == pytest.approx(1.0, abs=1e-6)
    assert cosine(ratio, truth) < 0


def test_detects_a_dropped_last_reward(monkeypatch):
    def without_last_reward(rewards, lengths, gamma, last_values=None):
        rewards = rewards.clone()
        rewards[lengths.cumsum(0) - 1] = 0.0
        return sb3_reinforce.returns.reward_to_go(rewards, lengths, gamma, last_values)

    monkeypatch.setitem(sb3_reinforce.returns.RETURNS, "reward_to_go", without_last_reward)
    expected, model = expected_update(monkeypatch, 1, n_episodes=2)
    assert (expected - exact(model)).abs().max() > 0.05


class FirstToFinish(Spans):
    """Takes the first ``n_episodes`` that end in any environment: those are the short ones."""

    def __init__(self, n_steps, n_episodes, *others):
        super().__init__(n_steps, n_episodes, *others)
        self.quota = n_episodes  # any environment may play them all

    @property
    def ended(self):
        return super().ended[: self.quota]

    def continues(self, row):
        return super().continues(row) and len(self.ended) < self.quota


# --- sampled by the real loop and streams -------------------------------------------------------------------------


def assert_within(samples: list[th.Tensor], truth: th.Tensor, standard_errors: float) -> None:
    stacked = th.stack(samples)
    error = (stacked.mean(0) - truth) / (stacked.std(0) / len(stacked) ** 0.5)
    assert error.abs().max() < standard_errors, f"off by {error.abs().max():.1f} standard errors"


def sampled_updates(n_updates: int, n_envs: int = 1, **kwargs: Any) -> tuple[list[th.Tensor], REINFORCE]:
    env = DummyVecEnv([lambda: MDPEnv(LARGER)] * n_envs)
    model = tabular_model(env, **kwargs)
    return [one_update(model) for _ in range(n_updates)], model


@pytest.mark.parametrize("use_torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("returns", ["reward_to_go", "episode"])
def test_sampled_gradient(monkeypatch, returns, use_torch):
    """10,000 episodes on two environments, played by the real samplers: the mean is within 4 standard errors."""
    if use_torch:
        monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", lambda policy, _, rng, __: TorchSampler(policy, rng))
    updates, model = sampled_updates(1250, n_envs=2, n_episodes=8, baseline="leave_one_out", returns=returns)
    truth = LARGER.exact_gradient(logits(model), model.gamma, returns == "episode")
    assert_within(updates, truth, 4.0)


def test_sampled_gradient_with_the_greedy_baseline():
    """
    Greedy and sampled episodes share the reset and the environment's random numbers, but not the actor's. The mean of 4,000
    episodes is within 4 standard errors.
    """
    updates, model = sampled_updates(1000, n_envs=4, n_episodes=4, baseline="greedy")
    assert_within(updates, LARGER.exact_gradient(logits(model), model.gamma, False), 4.0)


def test_sampled_gradient_with_n_steps(monkeypatch):
    """Some 10,000 episodes on three environments, n_steps=6: the gradient times E[episodes] / (n_steps * n_envs)."""
    n_episodes = []
    train = REINFORCE.train
    monkeypatch.setattr(REINFORCE, "train", lambda self: (n_episodes.append(len(self.rollout.spans)), train(self))[1])
    updates, model = sampled_updates(1500, n_envs=3, n_steps=6, baseline="value")
    truth = LARGER.exact_gradient(logits(model), model.gamma, False)
    # The standard error of the mean count is 1 % of it, far less than that of the gradient.
    assert_within(updates, np.mean(n_episodes) / 18 * truth, 4.0)


def test_detects_an_actor_that_shares_the_environments_stream(monkeypatch):
    """gymnasium's reset(seed=s) is default_rng(s): an actor with the same seed draws the environment's numbers."""
    monkeypatch.setattr(sb3_reinforce.episodic, "stream_seed", lambda seed, rollout, _: stream_seed(seed, rollout, ACTOR))
    updates, model = sampled_updates(5000, n_episodes=2)
    with pytest.raises(AssertionError, match="off by"):
        assert_within(updates, LARGER.exact_gradient(logits(model), model.gamma, False), 4.0)


def test_independent_streams_pass_where_the_shared_one_fails():
    updates, model = sampled_updates(5000, n_episodes=2)
    assert_within(updates, LARGER.exact_gradient(logits(model), model.gamma, False), 4.0)


def test_detects_first_to_finish(monkeypatch):
    monkeypatch.setattr(sb3_reinforce.episodic, "Spans", FirstToFinish)
    updates, model = sampled_updates(2500, n_envs=4, n_episodes=4)
    with pytest.raises(AssertionError, match="off by"):
        assert_within(updates, LARGER.exact_gradient(logits(model), model.gamma, False), 4.0)
