"""The policy step: the loss that it descends, its minibatches, and which parameters and statistics it changes."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.update import likelihood
from sb3_reinforce.update.likelihood import kl_terms, log_probs_of
from tests.envs import (
    LARGER,
    BatchNormDropout,
    MDPEnv,
    RewardListEnv,
    collect,
    one_update,
    parameters,
    policy_step,
    rows_of,
    tabular_model,
)

SMALL_NET = dict(net_arch=[8])


def collected(**kwargs) -> REINFORCE:
    """A tabular model with a rollout in its buffer, ready for a policy step."""
    return collect(tabular_model(DummyVecEnv([lambda: MDPEnv(LARGER)]), **kwargs))


def change(model: REINFORCE, rows=None, several_steps: bool = False) -> th.Tensor:
    """The change of the parameters by a policy step on these rows, by default all. The parameters are then restored."""
    before = parameters(model)
    policy_step(model, rows, several_steps)
    moved = parameters(model) - before
    nn.utils.vector_to_parameters(before, model.policy.parameters())
    return moved


@pytest.mark.parametrize("several_steps", [False, True])
def test_chunk_size_changes_nothing(several_steps):
    """Gradients of chunks add up to that of the whole batch: the same parameters after three updates, to 1e-6."""
    extra = dict(n_epochs=2, batch_size=50, value_batch_size=33) if several_steps else {}
    results = []
    for chunk_size in (None, 7):
        model = REINFORCE(
            "MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=60, seed=0, chunk_size=chunk_size, ent_coef=0.01,
            learning_rate=1e-3, policy_kwargs=dict(net_arch=[8], optimizer_class=th.optim.SGD), **extra,
        ).learn(300)  # fmt: skip
        results.append(parameters(model))
    th.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kwargs", [{}, dict(discount_state=True, baseline="leave_one_out"), dict(ent_coef=0.1)])
def test_clipped_ratio_starts_at_the_policy_gradient(kwargs):
    """At the sampling parameters the gradient of the importance ratio is that of A log pi."""
    model = collected(n_episodes=4, **kwargs)
    model.rollout_buffer.log_probs[:, 0] = log_probs_of(model.policy, rows_of(model))
    expected = change(model)
    assert expected.abs().max() > 0.01
    th.testing.assert_close(change(model, several_steps=True), expected, atol=1e-6, rtol=0)


def test_clipped_ratio_by_hand():
    """
    One step, ratio r = e^0.5 = 1.65 > 1.2: a positive advantage is clipped and moves nothing; a negative one takes
    min(A r, A 1.2) = A r, whose gradient is r A grad log pi.
    """
    model = collected(n_episodes=1, gamma=0.0)
    rows = slice(0, 1)
    buffer = model.rollout_buffer
    buffer.advantages[0] = 1.0
    score = change(model, rows)
    buffer.log_probs[:, 0] = log_probs_of(model.policy, rows_of(model)) - 0.5
    th.testing.assert_close(change(model, rows, several_steps=True), th.zeros_like(score))
    buffer.advantages[0] = -1.0
    th.testing.assert_close(change(model, rows, several_steps=True), -np.exp(0.5) * score, atol=1e-5, rtol=1e-5)


def test_minibatches_estimate_the_full_batch_loss():
    """The steps of all minibatches, each from the same parameters, average to the step on the whole batch."""
    model = collected(n_episodes=6)
    n_steps = model.batch.n_steps
    minibatches = [rows for rows, _ in rows_of(model).minibatches(5, np.random.default_rng(0))]
    assert sorted(np.concatenate(minibatches)) == list(range(n_steps))
    average = sum(len(rows) * change(model, rows) for rows in minibatches) / n_steps
    th.testing.assert_close(average, change(model), atol=1e-6, rtol=0)


def test_loss_reduction_only_divides():
    """n_episodes: "episode" divides by 4, "step" by the steps played; n_steps: by episodes, or by n_steps * n_envs."""
    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3])] * 2)
    divisors = {}
    for batch in (dict(n_episodes=4), dict(n_steps=4)):
        for reduction in ("episode", "step", None):
            model = tabular_model(env, loss_reduction=reduction, **batch)
            one_update(model)
            divisors[(*batch, reduction)] = model.batch.divisor
    assert divisors == {
        ("n_episodes", "episode"): 4, ("n_episodes", "step"): 12, ("n_episodes", None): 4,
        ("n_steps", "episode"): 4, ("n_steps", "step"): 8, ("n_steps", None): 8,
    }  # fmt: skip


def test_normalize_advantage():
    model = tabular_model(DummyVecEnv([lambda: MDPEnv(LARGER)]), n_episodes=6, normalize_advantage=True)
    one_update(model)
    advantages = model.rollout_buffer.advantages.flatten()
    assert advantages.mean() == pytest.approx(0.0, abs=1e-6)
    assert advantages.std(ddof=1) == pytest.approx(1.0, abs=1e-5)


def test_gradient_clipping():
    """With learning rate 1, SGD's step is as long as the gradient, or max_grad_norm where the gradient is longer."""
    lengths = {}
    for max_grad_norm in (None, 0.01):
        model = collected(n_episodes=4, max_grad_norm=max_grad_norm)
        lengths[max_grad_norm] = change(model).norm().item()
    assert lengths[None] > 0.05
    assert lengths[0.01] == pytest.approx(0.01, rel=1e-4)


def test_ent_coef_by_hand():
    """Rewards of 0 leave only the entropy's gradient, times ent_coef / D, here of one-step softmax with logits (1, 0)."""
    env = DummyVecEnv([lambda: RewardListEnv([0.0])])
    model = tabular_model(env, n_episodes=4, ent_coef=0.3)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([1.0, 0.0]))
    before = model.policy.action_net.bias.detach().clone()
    collect(model).train()
    # dH / d logit_k = -p_k (log p_k + H); four steps, D = 4 episodes
    p = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    expected = -0.3 * p * (np.log(p) - (p * np.log(p)).sum())
    np.testing.assert_allclose((model.policy.action_net.bias - before).detach(), expected, atol=1e-6)


def test_entropy_gradient_without_closed_form():
    """
    tanh of a Gaussian has no entropy in closed form. With one action dimension and mean 0 its derivative is
    d H / d log_std = 1 - E[2 z tanh(z)], z = std * eps, negative here. A mean of -log pi has the expected gradient 0.
    """

    class OneStep(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.ones(1, np.float32), {}

        def step(self, action):
            return np.ones(1, np.float32), 0.0, True, False, {}

    policy_kwargs = dict(net_arch=[], squash_output=True, log_std_init=0.3, optimizer_class=th.optim.SGD)
    model = REINFORCE(
        "MlpPolicy", DummyVecEnv([OneStep]), use_sde=True, sde_sample_freq=1, baseline="none", n_steps=20_000,
        ent_coef=1.0, learning_rate=1.0, max_grad_norm=None, policy_kwargs=policy_kwargs, seed=0,
    )  # fmt: skip
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.zero_()
    before = model.policy.log_std.item()
    model.learn(1)
    z = np.exp(before) * np.random.default_rng(0).standard_normal(10**6)
    expected = 1 - np.mean(2 * z * np.tanh(z))
    assert expected < -0.1
    assert model.policy.log_std.item() - before == pytest.approx(expected, abs=0.06)


class Bandit(gym.Env):
    """One step; the observation is 1, the reward is the action received."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)
    received: list[float] = []  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.received.append(float(action[0]))
        return np.ones(1, np.float32), float(action[0]), True, False, {}


def test_gaussian_gradient_with_clipped_actions():
    """
    The environment gets the action clipped to its bounds; the score is that of the action as it was drawn. Then
    d E[clip(mu + eps)] / d mu = P(|mu + eps| < 0.5), here for mu = 0.3 and unit variance, from 20,000 episodes.
    """
    env = DummyVecEnv([Bandit])
    model = REINFORCE(
        "MlpPolicy", env, n_episodes=20_000, baseline="leave_one_out", learning_rate=1.0, max_grad_norm=None, seed=0,
        policy_kwargs=dict(net_arch=[], optimizer_class=th.optim.SGD), device="cpu",
    )  # fmt: skip
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.fill_(0.3)
    Bandit.received.clear()
    model.learn(1)
    drawn = model.rollout_buffer.actions.flatten()
    np.testing.assert_allclose(Bandit.received[: len(drawn)], np.clip(drawn, -0.5, 0.5))
    assert np.abs(drawn).max() > 2
    normal = th.distributions.Normal(0.3, 1.0)
    expected = float(normal.cdf(th.tensor(0.5)) - normal.cdf(th.tensor(-0.5)))
    per_episode = model.rollout_buffer.advantages.flatten() * (drawn - 0.3)
    standard_error = per_episode.std() / len(drawn) ** 0.5
    assert abs(model.policy.action_net.bias.item() - 0.3 - expected) < 4 * standard_error


@pytest.mark.parametrize("learn_features", [False, True])
def test_the_score_of_gsde(learn_features):
    """SB3's score stops at the features that the standard deviation is computed from; with learn_features it does not."""
    model = REINFORCE("MlpPolicy", "Pendulum-v1", use_sde=True, sde_sample_freq=1, seed=0, policy_kwargs=SMALL_NET)
    policy = model.policy.double()
    policy.action_dist.learn_features = learn_features
    observation, action = th.tensor([[0.6, -0.8, 1.0]], dtype=th.float64), th.tensor([[0.7]], dtype=th.float64)
    weight = policy.mlp_extractor.policy_net[0].weight

    def log_prob() -> th.Tensor:
        return policy.action_dist.proba_distribution(*of_observation()).log_prob(action).sum()

    def of_observation():
        latent = policy.mlp_extractor.forward_actor(policy.features_extractor(observation))
        return policy.action_net(latent), policy.log_std, latent

    score = th.autograd.grad(log_prob(), weight)[0][0, 0].item()
    at = []
    for step in (1e-6, -1e-6):
        with th.no_grad():
            weight[0, 0] += step
            at.append(log_prob().item())
            weight[0, 0] -= step
    slope = (at[0] - at[1]) / 2e-6
    assert abs(slope) > 1e-3
    assert (score == pytest.approx(slope, rel=1e-4)) == learn_features


def test_train_and_eval_mode():
    """The policy plays and predicts in evaluation mode, which leaves the running statistics alone; it learns in train mode."""
    kwargs = dict(net_arch=[8], features_extractor_class=BatchNormDropout)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, policy_kwargs=kwargs, baseline="none")
    extractor = model.policy.features_extractor
    extractor.modes.clear()
    statistics = extractor.layers[0].running_mean.clone()
    model._setup_learn(10**6)
    collect(model)
    assert not any(extractor.modes)
    assert th.equal(extractor.layers[0].running_mean, statistics)
    model.train()
    assert any(extractor.modes)
    after = extractor.layers[0].running_mean.clone()
    assert not th.equal(after, statistics)
    model.predict(model.env.reset())
    assert th.equal(extractor.layers[0].running_mean, after)


def test_frozen_parameters_stay():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    model.policy.mlp_extractor.requires_grad_(False)
    before = model.policy.mlp_extractor.policy_net[0].weight.clone()
    model.learn(16)
    assert th.equal(before, model.policy.mlp_extractor.policy_net[0].weight)
    model.policy.value_net.requires_grad_(False)
    model.learn(16)


def test_kl_of_some_rows(monkeypatch):
    """Where this rank has half of all rows, and 8 of all are to do: 4 of its own, each once, and every time the same."""
    model = collected(n_episodes=6)
    model.rollout_buffer.log_probs[:, 0] = np.linspace(-3, 0, model.batch.n_steps)
    rows = rows_of(model)
    all_terms = kl_terms(model.policy, rows)
    monkeypatch.setattr(likelihood, "KL_ROWS", 8)
    rows.n_total = 2 * rows.n_rows
    some = kl_terms(model.policy, rows)
    assert len(some) == len(np.unique(some)) == 4
    assert np.isin(some, all_terms).all()
    np.testing.assert_array_equal(kl_terms(model.policy, rows), some)
