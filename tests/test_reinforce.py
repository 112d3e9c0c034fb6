"""The algorithm as a Stable-Baselines3 user meets it: order, counting, updates, saving, callbacks, spaces."""

import io
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from torch import nn

import sb3_reinforce.reinforce
from sb3_reinforce import REINFORCE, Baseline
from sb3_reinforce.update.likelihood import log_probs_of
from tests.envs import LARGER, MDPEnv, NoCallback, RewardListEnv, one_update, policy_step, rows_of, tabular_model

SMALL_NET = dict(net_arch=[8])


def parameters(model) -> th.Tensor:
    return nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


# --- one iteration -------------------------------------------------------------------------------------------------


class Listener(BaseCallback):
    """Writes down what happens, in order."""

    def __init__(self, happened: list):
        super().__init__()
        self.happened = happened

    def _on_rollout_start(self):
        self.happened.append("rollout start")

    def _on_step(self):
        assert {"new_obs", "rewards", "dones", "infos", "actions", "clipped_actions", "n_steps", "env"} <= set(self.locals)
        return True

    def _on_rollout_end(self):
        self.happened.append("rollout end")
        assert np.isfinite(self.model.rollout_buffer.advantages).all()


class Recorder(Baseline):
    def __init__(self, happened: list):
        self.happened = happened

    def predict(self, episodes):
        self.happened.append("predict")
        return th.zeros_like(episodes.returns)

    def update(self, episodes):
        self.happened.append("update")


def test_order_of_an_iteration(monkeypatch):
    """Collect, predict, on_rollout_end, policy step, baseline update, logs."""
    happened: list[str] = []
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8, baseline=Recorder(happened), seed=0)
    step = model.policy.optimizer.step
    monkeypatch.setattr(model.policy.optimizer, "step", lambda: (happened.append("policy step"), step())[1])
    monkeypatch.setattr(model, "dump_logs", lambda iteration: happened.append("logs"))
    model.learn(1, callback=Listener(happened))
    assert happened == ["rollout start", "predict", "rollout end", "policy step", "update", "logs"]


def test_value_baseline_predicts_before_it_is_fitted():
    """The values of the rollout are those of the network as it was, not those that the update leaves behind."""
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, n_value_epochs=20, policy_kwargs=SMALL_NET)
    model._setup_learn(10**6)
    callback = NoCallback()
    callback.init_callback(model)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    observations, values = th.as_tensor(model.rollout_buffer.observations[:, 0]), model.rollout_buffer.values[:, 0].copy()
    np.testing.assert_allclose(model.policy.predict_values(observations).detach().numpy()[:, 0], values, atol=1e-5)
    model.train()
    assert np.abs(model.policy.predict_values(observations).detach().numpy()[:, 0] - values).max() > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_the_two_optimisers_move_parameters_of_their_own(monkeypatch, shared):
    """The policy step leaves the value's own parameters alone, the fit leaves all others; none is left out."""

    class Extractor(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 5)
            self.linear = nn.Linear(4, 5)

        def forward(self, observations):
            return self.linear(observations)

    policy_kwargs = dict(net_arch=[8], features_extractor_class=Extractor, share_features_extractor=shared)
    model = REINFORCE("MlpPolicy", "CartPole-v1", learning_rate=1e-3, n_steps=32, seed=0, policy_kwargs=policy_kwargs)
    names = {parameter: name for name, parameter in model.policy.named_parameters()}
    of_value = {names[parameter] for parameter in model._value_fit.parameters}
    expected = {f"{module}.{part}" for module in ("mlp_extractor.value_net.0", "value_net") for part in ("weight", "bias")}
    if not shared:
        expected |= {"vf_features_extractor.linear.weight", "vf_features_extractor.linear.bias"}
    assert of_value == expected

    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    changed = lambda: {n for n, p in model.policy.named_parameters() if not th.equal(p, before[n])}  # noqa: E731
    fit = model._value_fit
    monkeypatch.setattr(fit, "fit", lambda *_: None)
    model.learn(1)
    assert changed() == set(before) - of_value
    monkeypatch.undo()
    after_policy = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    fit.fit(rows_of(model), np.random.default_rng(0), residual=1.0, learning_rate=1e-3, n_epochs=1, batch_size=None)
    assert {n for n, p in model.policy.named_parameters() if not th.equal(p, after_policy[n])} == of_value


def test_value_fit_begins_with_the_mean_of_the_returns():
    """With next to no learning rate: after one update the mean of V over the batch is the mean of R."""
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu", value_learning_rate=1e-12).learn(1)
    buffer = model.rollout_buffer
    assert abs(buffer.values.mean() - buffer.returns.mean()) > 5
    with th.no_grad():
        values = model.policy.predict_values(th.as_tensor(buffer.observations))
    assert values.mean().item() == pytest.approx(buffer.returns.mean(), abs=1e-3)


def test_value_network_is_fitted_to_the_returns():
    """Returns of [1, 1] with gamma 0.5 are 1.5 and 1: after many fits V is them, whatever the policy does."""
    env = DummyVecEnv([lambda: RewardListEnv([1, 1])])
    model = REINFORCE("MlpPolicy", env, n_steps=20, gamma=0.5, seed=0, value_learning_rate=1e-2, n_value_epochs=500)
    model.learn(1)
    values = model.policy.predict_values(th.tensor([[0.0, 0.0], [1.0, 1.0]])).flatten()
    np.testing.assert_allclose(values.detach(), [1.5, 1.0], atol=0.05)


def test_counting_and_metrics():
    env = make_vec_env("Pendulum-v1", 3, seed=0)
    model = REINFORCE("MlpPolicy", env, n_steps=250, n_epochs=2, batch_size=300, seed=0)
    model.set_logger(configure(None, []))
    model.dump_logs = lambda iteration: None  # keep the row
    model.learn(1)
    row = model.logger.name_to_value
    # episodes of 200 steps: two each, all used
    assert model.num_timesteps == 1200
    assert row["rollout/n_episodes"] == 6
    assert row["rollout/discarded_steps"] == 0
    assert row["rollout/truncated_fraction"] == 1.0
    assert len(model.ep_info_buffer) == 6
    assert row["rollout/ep_return_mean"] == pytest.approx(np.mean([info["r"] for info in model.ep_info_buffer]))
    assert row["train/n_updates"] == 2
    assert row["train/std"] == pytest.approx(1.0, abs=0.1)
    expected = (
        "policy_gradient_loss entropy_loss grad_norm approx_kl learning_rate clip_fraction value_loss explained_variance"
    )
    assert {f"train/{name}" for name in expected.split()} <= set(row)


def test_episodes_of_waiting_environments_are_not_counted():
    """Environment 0 ends five episodes while the other plays its one: only the first is used and counted."""
    env = DummyVecEnv([lambda: Monitor(RewardListEnv([1.0])), lambda: Monitor(RewardListEnv([2.0] * 5))])
    model = REINFORCE("MlpPolicy", env, n_episodes=2, seed=0)
    with pytest.warns(UserWarning, match="4 of 10 steps of a rollout were played by environments that waited"):
        model.learn(1)
    assert model.num_timesteps == 10
    assert sorted(info["r"] for info in model.ep_info_buffer) == [1.0, 10.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(1, reset_num_timesteps=False)  # said once


# --- the loss -------------------------------------------------------------------------------------------------------


def test_equals_a2c(monkeypatch):
    """
    With unfinished="bootstrap", truncation="bootstrap" and one step on the batch, the change of the policy is that of
    A2C with gae_lambda=1 on the same rollout. The episodes are truncated after 7 steps, so both kinds of value count.
    """
    kwargs = dict(
        learning_rate=0.1,
        n_steps=16,
        gamma=0.9,
        ent_coef=0.02,
        policy_kwargs=dict(net_arch=[8], optimizer_class=th.optim.SGD),
        device="cpu",
    )
    make_env = lambda: make_vec_env(lambda: MDPEnv(LARGER), 2, seed=1)  # noqa: E731
    a2c = A2C("MlpPolicy", make_env(), use_rms_prop=False, max_grad_norm=1e9, vf_coef=0.0, gae_lambda=1.0, **kwargs)
    ours = REINFORCE(
        "MlpPolicy", make_env(), baseline="value", unfinished="bootstrap", truncation="bootstrap",
        max_grad_norm=None, n_value_epochs=1, **kwargs,
    )  # fmt: skip
    with th.no_grad():
        a2c.policy.value_net.bias.fill_(3.0)  # a value that matters
    ours.policy.load_state_dict(a2c.policy.state_dict())
    before = parameters(a2c)

    class SeedTorch(NoCallback):
        def _on_rollout_start(self):
            th.manual_seed(5)

    def make_sampler(policy, n_envs, rng):
        th.manual_seed(5)
        return lambda obs: policy.get_distribution(th.as_tensor(obs)).get_actions().numpy()

    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", make_sampler)
    a2c.learn(1, callback=SeedTorch())
    ours.learn(1)
    np.testing.assert_array_equal(a2c.rollout_buffer.actions.flatten(), ours.rollout_buffer.actions.flatten())
    policy_only = ("action_net", "mlp_extractor.policy_net")
    for name, parameter in ours.policy.named_parameters():
        if name.startswith(policy_only):
            th.testing.assert_close(parameter, a2c.policy.get_parameter(name), atol=1e-6, rtol=1e-5)
    assert (parameters(a2c) - before).abs().max() > 1e-3


@pytest.mark.parametrize("several_steps", [False, True])
def test_chunk_size_changes_nothing(several_steps):
    """Gradients of chunks add up to that of the whole: the same parameters after three updates, to 1e-6."""
    extra = dict(n_epochs=2, batch_size=50, value_batch_size=33) if several_steps else {}
    results = []
    for chunk_size in (None, 7):
        model = REINFORCE(
            "MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=60, seed=0, chunk_size=chunk_size, ent_coef=0.01,
            learning_rate=1e-3, policy_kwargs=dict(net_arch=[8], optimizer_class=th.optim.SGD), **extra,
        ).learn(300)  # fmt: skip
        results.append(parameters(model))
    th.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)


def collected(**kwargs) -> REINFORCE:
    """A tabular model with a rollout in its buffer, ready for a policy step."""
    model = tabular_model(DummyVecEnv([lambda: MDPEnv(LARGER)]), **kwargs)
    callback = NoCallback()
    callback.init_callback(model)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def change(model: REINFORCE, rows, several_steps: bool) -> th.Tensor:
    """What a policy step on these rows changes; the parameters are put back."""
    before = parameters(model)
    policy_step(model, rows, several_steps)
    moved = parameters(model) - before
    nn.utils.vector_to_parameters(before, model.policy.parameters())
    return moved


@pytest.mark.parametrize("kwargs", [{}, dict(discount_state=True, baseline="leave_one_out"), dict(ent_coef=0.1)])
def test_clipped_ratio_starts_at_the_policy_gradient(kwargs):
    """At the sampling parameters the gradient of the importance ratio is that of A log pi."""
    model = collected(n_episodes=4, **kwargs)
    model.rollout_buffer.log_probs[:, 0] = log_probs_of(model.policy, rows_of(model))
    whole = slice(0, model.batch.n_steps)
    expected = change(model, whole, several_steps=False)
    assert expected.abs().max() > 0.01
    th.testing.assert_close(change(model, whole, several_steps=True), expected, atol=1e-6, rtol=0)


def test_clipped_ratio_by_hand():
    """
    One step, ratio r = e^0.5 = 1.65 > 1.2: a positive advantage is clipped and moves nothing; a negative one takes
    min(A r, A 1.2) = A r, whose gradient is r A grad log pi.
    """
    model = collected(n_episodes=1, gamma=0.0)
    rows = slice(0, 1)
    buffer = model.rollout_buffer
    buffer.advantages[0] = 1.0
    score = change(model, rows, several_steps=False)
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
    average = sum(len(rows) * change(model, rows, several_steps=False) for rows in minibatches) / n_steps
    whole = change(model, slice(0, n_steps), several_steps=False)
    th.testing.assert_close(average, whole, atol=1e-6, rtol=0)


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


def test_entropy_gradient_without_closed_form():
    """
    tanh of a Gaussian has no entropy in closed form. Of one action dimension and mean 0 the entropy falls with
    d H / d log_std = 1 - E[2 z eps tanh(z)], z = std * eps; a mean of -log pi would have an expected gradient of 0.
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


def test_schedules_are_read_at_the_present_progress():
    model = REINFORCE(
        "MlpPolicy", "CartPole-v1", n_steps=50, learning_rate="lin_1e-2", value_learning_rate=LinearSchedule(0.1, 0.0, 1.0),
        ent_coef=lambda progress: 0.01 * progress, clip_range="lin_0.3", n_epochs=2,
    )  # fmt: skip
    read: dict[str, set[float]] = {}
    for name in ("ent_coef", "clip_range"):
        schedule = getattr(model, f"_{name}_schedule")
        spy = lambda progress, n=name, s=schedule: (read.setdefault(n, set()).add(progress), s(progress))[1]  # noqa: E731
        setattr(model, f"_{name}_schedule", spy)
    model.learn(1)
    model._current_progress_remaining = 0.25
    model.train()
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.25)
    assert model.value_optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)
    assert read == {"ent_coef": {0.0, 0.25}, "clip_range": {0.0, 0.25}}
    # the last episodes run beyond the end, where a schedule must not turn negative
    model._update_current_progress_remaining(300, 200)
    assert model._current_progress_remaining == 0.0


def test_an_argument_assigned_in_training_counts():
    """As A2C's ent_coef, which callbacks anneal; and an assigned schedule function stays."""

    class Assign(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.ent_coef, self.model.learning_rate, self.model.value_learning_rate = 0.25, "lin_0.5", 0.125

    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, n_epochs=2, seed=0)
    model.learn(1, Assign())
    assert model._ent_coef_schedule(0.5) == 0.25
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.5 * model._current_progress_remaining
    assert model.value_optimizer.param_groups[0]["lr"] == 0.125
    model.lr_schedule = lambda _: 1e-5
    model.clip_range = 0.05
    model.learn(1)
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-5
    assert model._clip_range_schedule(1.0) == 0.05
    model.ent_coef = -1
    with pytest.raises(ValueError, match="ent_coef must be finite and >= 0 throughout training, got -1"):
        model.learn(1)


def test_ent_coef_by_hand():
    """Zero rewards leave the entropy alone: its gradient times ent_coef / D, from a one-step softmax with logits (1, 0)."""
    env = DummyVecEnv([lambda: RewardListEnv([0.0])])
    model = tabular_model(env, n_episodes=4, ent_coef=0.3)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([1.0, 0.0]))
    before = model.policy.action_net.bias.detach().clone()
    callback = NoCallback()
    callback.init_callback(model)
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    model.train()
    # dH / d logit_k = -p_k (log p_k + H); four steps, D = 4 episodes
    p = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    expected = -0.3 * p * (np.log(p) - (p * np.log(p)).sum())
    np.testing.assert_allclose((model.policy.action_net.bias - before).detach(), expected, atol=1e-6)


def test_gradient_clipping():
    """Under SGD the step has the length learning_rate * max_grad_norm where the gradient is longer, else its own."""
    lengths = {}
    for max_grad_norm in (None, 0.01):
        model = collected(n_episodes=4, max_grad_norm=max_grad_norm)
        lengths[max_grad_norm] = change(model, slice(0, model.batch.n_steps), several_steps=False).norm().item()
    assert lengths[None] > 0.05
    assert lengths[0.01] == pytest.approx(0.01, rel=1e-4)


class Bandit(gym.Env):
    """One step; the observation is 1, the reward is what ``pay`` says of the action received."""

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
    The environment gets the action clipped to its bounds, the score is of the action as it was drawn: then
    d E[clip(mu + eps)] / d mu = P(|mu + eps| < 0.5), here for mu = 0.3 and unit variance, by 20,000 episodes.
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
    """As SB3 has it, the network does not learn by the standard deviation that is made of it; with learn_features it does."""
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


# --- what an A2C user does ---------------------------------------------------------------------------------------


class SpacesEnv(gym.Env):
    """Ends after 5 steps; whatever spaces."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert np.shape(action) == self.action_space.shape
        self.t += 1
        return self.observation_space.sample(), float(np.sum(action)), self.t == 5, False, {}


OBSERVATION_SPACES = [
    spaces.Box(-1, 1, (3,), np.float64),
    spaces.Box(-1, 1, (2, 3), np.float32),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2,), np.float32)),
    spaces.Box(0, 255, (3, 36, 36), np.uint8),
]
ACTION_SPACES = [
    spaces.Box(-1, 1, (2, 2), np.float32),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(4),
]


@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES, ids=str)
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_spaces(observation_space, action_space):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = DummyVecEnv([lambda: SpacesEnv(observation_space, action_space)] * 2)
    model = REINFORCE(policy, env, n_steps=8, seed=0, policy_kwargs=SMALL_NET, truncation="bootstrap", unfinished="bootstrap")
    before = parameters(model)
    model.learn(40)
    assert not th.equal(before, parameters(model))
    assert model.predict(env.reset())[0].shape == (2, *action_space.shape)


@pytest.mark.parametrize(
    ("policy", "env", "kwargs"),
    [
        ("CnnPolicy", FakeImageEnv, dict(chunk_size=3)),
        ("MultiInputPolicy", SimpleMultiObsEnv, {}),
        ("MlpPolicy", lambda: gym.make("Pendulum-v1"), dict(use_sde=True, sde_sample_freq=4)),
        (
            "MlpPolicy",
            lambda: gym.make("Pendulum-v1"),
            dict(use_sde=True, policy_kwargs=dict(squash_output=True, full_std=False), ent_coef=0.01, n_epochs=2),
        ),
    ],
)
def test_policies(policy, env, kwargs):
    model = REINFORCE(policy, env(), learning_rate=1e-3, n_steps=16, seed=0, **kwargs)
    before = parameters(model)
    model.learn(16)
    assert not th.equal(before, parameters(model))


@pytest.mark.parametrize("kind", ["normalize", "stack", "subproc"])
def test_vec_env_wrappers(kind):
    vec_env_class = SubprocVecEnv if kind == "subproc" else DummyVecEnv
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=vec_env_class)
    env = {"normalize": VecNormalize, "stack": lambda e: VecFrameStack(e, 3), "subproc": lambda e: e}[kind](env)
    model = REINFORCE("MlpPolicy", env, n_steps=16, seed=0).learn(100)
    assert model._n_updates > 1
    assert evaluate_policy(model, env, 2, warn=False)[0] > 0
    env.close()


class Counting(gym.Env):
    """Observation t of the episode is t, a whole number; the time limit is 4."""

    action_space = spaces.Discrete(2)

    def __init__(self, dtype, as_dict):
        whole = spaces.Box(0, 100, (2,), dtype)
        self.as_dict = as_dict
        self.observation_space = spaces.Dict(a=whole, b=spaces.MultiBinary(2)) if as_dict else whole

    def _observation(self):
        a = np.full(2, self.t, self.observation_space["a"].dtype if self.as_dict else self.observation_space.dtype)
        return {"a": a, "b": np.ones(2, np.int8)} if self.as_dict else a

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), 1.0, False, self.t == 4, {}


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_whole_numbers_that_vec_normalize_makes_floats(dtype, as_dict):
    """What the policy saw is what the gradient is computed on: (t - 1) / 2, not cut to whole numbers."""
    env = VecNormalize(
        DummyVecEnv([lambda: Counting(dtype, as_dict)]), norm_reward=False, norm_obs_keys=["a"] * as_dict or None
    )
    env.training, obs_rms = False, env.obs_rms["a"] if as_dict else env.obs_rms
    obs_rms.mean, obs_rms.var = np.full(2, 1.0), np.full(2, 4.0)
    model = REINFORCE("MultiInputPolicy" if as_dict else "MlpPolicy", env, n_episodes=1, seed=0, gamma=0.5)
    callback = NoCallback()
    _, callback = model._setup_learn(10, callback)
    assert model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    observations = model.rollout_buffer.observations
    observations = observations["a"] if as_dict else observations
    np.testing.assert_allclose(observations[:, 0, 0], [-0.5, 0, 0.5, 1])
    # behind the time limit, too: R_3 = 1 + gamma V(s_4)
    last = {"a": th.full((1, 2), 1.5), "b": th.ones(1, 2)} if as_dict else th.full((1, 2), 1.5)
    with th.no_grad():
        value = model.policy.predict_values(last).item()
    assert model.rollout_buffer.returns[3, 0] == pytest.approx(1 + 0.5 * value, rel=1e-5)
    model.train()


@pytest.mark.parametrize(("norm_reward", "monitor"), [(True, True), (True, False), (False, False)])
def test_episode_returns_are_the_environments_own(norm_reward, monitor):
    make = lambda: Monitor(RewardListEnv([100.0] * 5)) if monitor else RewardListEnv([100.0] * 5)  # noqa: E731
    env = VecNormalize(DummyVecEnv([make]), norm_reward=norm_reward)
    model = REINFORCE("MlpPolicy", env, n_episodes=1, seed=0).learn(20, log_interval=100)
    logged = model.logger.name_to_value.get("rollout/ep_return_mean")
    assert logged == (500 if monitor or not norm_reward else None)  # what only VecNormalize has seen is not known


class BatchNormDropout(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 4)
        self.layers = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.modes: list[bool] = []

    def forward(self, observations):
        self.modes.append(self.training)
        return self.layers(observations)


def test_train_and_eval_mode():
    """Playing and predicting in evaluation mode, which leaves the running statistics alone; updating in train mode."""
    kwargs = dict(net_arch=[8], features_extractor_class=BatchNormDropout)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, policy_kwargs=kwargs, baseline="none")
    extractor = model.policy.features_extractor
    extractor.modes.clear()
    statistics = extractor.layers[0].running_mean.clone()
    model._setup_learn(10**6)
    callback = NoCallback()
    callback.init_callback(model)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert not any(extractor.modes)
    assert th.equal(extractor.layers[0].running_mean, statistics)
    model.train()
    assert any(extractor.modes)
    after = extractor.layers[0].running_mean.clone()
    assert not th.equal(after, statistics)
    model.predict(model.env.reset())
    assert th.equal(extractor.layers[0].running_mean, after)


@pytest.mark.parametrize("kwargs", [{}, dict(n_epochs=2, batch_size=20), dict(n_episodes=4, baseline="per_step")])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_two_runs_with_one_seed_are_equal_to_the_bit(env_id, kwargs):
    first, second = (
        REINFORCE("MlpPolicy", make_vec_env(env_id, 2), n_steps=50, seed=3, policy_kwargs=SMALL_NET, **kwargs).learn(1000)
        for _ in range(2)
    )
    assert th.equal(parameters(first), parameters(second))
    other = REINFORCE("MlpPolicy", make_vec_env(env_id, 2), n_steps=50, seed=4, policy_kwargs=SMALL_NET, **kwargs)
    assert not th.equal(parameters(first), parameters(other.learn(1000)))


def test_without_a_seed_torchs_own_seed_counts():
    def trained():
        th.manual_seed(7)
        env = make_vec_env("CartPole-v1", 1, seed=5)
        return parameters(REINFORCE("MlpPolicy", env, n_steps=50, policy_kwargs=SMALL_NET).learn(200))

    assert th.equal(trained(), trained())


def test_learn_again():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    model.learn(30)
    steps = model.num_timesteps
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps >= steps + 30
    model.learn(30)
    assert 30 <= model.num_timesteps < steps + 30
    assert model._n_rollouts == model._n_updates  # the streams go on: no rollout is played twice


class StopAfter(BaseCallback):
    def __init__(self, n_steps):
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self):
        return self.n_calls < self.n_steps


def test_a_callback_stops_in_the_middle_of_a_rollout():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0)
    before = parameters(model)
    model.learn(10_000, callback=StopAfter(10))
    assert model.num_timesteps == 10
    assert th.equal(before, parameters(model))
    model.learn(100, reset_num_timesteps=False)  # and it can go on
    assert model.num_timesteps >= 110


def test_a_dropped_rollout_leaves_no_hole():
    """
    unfinished="bootstrap", stopped at step 2 of [1, 2, 3, 4, 5]: the next learn() starts at a reset, because the steps
    before the stop are not in its rollout.
    """
    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3, 4, 5])])
    model = REINFORCE("MlpPolicy", env, n_steps=4, unfinished="bootstrap", seed=0)
    model.learn(100, callback=StopAfter(2))
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.observations[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(model.rollout_buffer.episode_starts[:, 0], [1, 0, 0, 0])
    # and without a stop it goes on where it was, t = 4
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.observations[:, 0], [4, 0, 1, 2])


def test_ctrl_c_leaves_no_hole():
    """As above, but interrupted in the middle of an episode."""

    class CtrlC(BaseCallback):
        def _on_step(self):
            if self.n_calls == 2:
                raise KeyboardInterrupt
            return True

    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3, 4, 5])])
    model = REINFORCE("MlpPolicy", env, n_steps=4, unfinished="bootstrap", seed=0)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=CtrlC())
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.observations[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(model.rollout_buffer.episode_starts[:, 0], [1, 0, 0, 0])


def test_a_learn_without_a_rollout_leaves_no_reset_behind():
    """learn(0) has reset the environment; who has played with it since must not be believed to have not."""
    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3])])
    model = REINFORCE("MlpPolicy", env, n_episodes=1, seed=0).learn(0)
    env.step(np.array([0]))
    model.learn(1, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.rollout_buffer.rewards[:, 0], [1, 2, 3])


def test_environments_are_reset_once_per_rollout():
    resets = []

    class Counts(RewardListEnv):
        def reset(self, *, seed=None, options=None):
            resets.append((seed is not None, options))
            return super().reset(seed=seed, options=options)

    env = DummyVecEnv([lambda: Counts([1.0] * 3)])
    env.set_options({"difficulty": 2})
    REINFORCE("MlpPolicy", env, n_episodes=1, seed=0).learn(6)
    # each rollout: a seeded reset, and DummyVecEnv's own after the episode; the options reach the first
    assert resets == [(True, {"difficulty": 2}), (False, None), (True, None), (False, None)]


def test_frozen_parameters_stay():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    model.policy.mlp_extractor.requires_grad_(False)
    before = model.policy.mlp_extractor.policy_net[0].weight.clone()
    model.learn(16)
    assert th.equal(before, model.policy.mlp_extractor.policy_net[0].weight)
    model.policy.value_net.requires_grad_(False)
    model.learn(16)


def test_a_policy_that_masks_its_actions():
    """Logits of -inf where the observation's mask is 0: nothing but NaN for a mask of zeros, which no state has."""
    from stable_baselines3.common.policies import MultiInputActorCriticPolicy

    class Masked(gym.Env):
        observation_space = spaces.Dict(mask=spaces.MultiBinary(3), x=spaces.Box(-1, 1, (2,), np.float32))
        action_space = spaces.Discrete(3)

        def _observation(self):
            return {"mask": np.array([1, 0, 1], np.int8), "x": np.zeros(2, np.float32)}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self._observation(), {}

        def step(self, action):
            assert action != 1
            self.t += 1
            return self._observation(), 1.0, self.t == 4, False, {}

    class MaskedPolicy(MultiInputActorCriticPolicy):
        def get_distribution(self, obs):
            distribution = super().get_distribution(obs)
            logits = distribution.distribution.logits.masked_fill(obs["mask"] == 0, -th.inf)
            return distribution.proba_distribution(logits)

    REINFORCE(MaskedPolicy, DummyVecEnv([Masked]), n_steps=40, seed=0).learn(40)


def test_value_fit_leaves_shared_batch_norm_alone():
    kwargs = dict(net_arch=[8], features_extractor_class=BatchNormDropout)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, policy_kwargs=kwargs, n_value_epochs=7)
    model.learn(1)
    assert model.policy.features_extractor.layers[0].num_batches_tracked == 1  # the policy step


def test_sb3_callbacks(tmp_path):
    env = make_vec_env("CartPole-v1", 2)
    model = REINFORCE("MlpPolicy", env, n_steps=32, seed=0)
    model.learn(
        2000,
        callback=[
            EvalCallback(
                make_vec_env("CartPole-v1", 1), eval_freq=100, n_eval_episodes=2, log_path=str(tmp_path),
                best_model_save_path=str(tmp_path), verbose=0,
            ),
            CheckpointCallback(200, str(tmp_path / "checkpoints")),
            StopTrainingOnMaxEpisodes(10),
        ],
    )  # fmt: skip
    assert model.num_timesteps < 2000
    assert (tmp_path / "best_model.zip").exists()
    assert (tmp_path / "evaluations.npz").exists()


def test_logs(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32, seed=0, tensorboard_log=str(tmp_path))
    model.learn(64)
    assert (tmp_path / "REINFORCE_1").is_dir()
    model.set_logger(configure(str(tmp_path / "files"), ["csv", "json"]))
    model.learn(200, reset_num_timesteps=False)
    rows = (tmp_path / "files" / "progress.csv").read_text().splitlines()
    assert {"train/policy_gradient_loss", "rollout/ep_return_mean", "rollout/ep_rew_mean"} <= set(rows[0].split(","))
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert int(last["train/n_updates"]) == model._n_updates  # the row of the last update is there, and is its own


# --- save and load ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["none", "moving_average", "value"])
def test_save_and_load_go_on_alike(tmp_path, baseline):
    """A loaded model plays the rollout and makes the update that the saved one would have made: same seed, same bits."""
    make_env = lambda: make_vec_env("CartPole-v1", 2)  # noqa: E731
    model = REINFORCE("MlpPolicy", make_env(), n_steps=40, seed=1, baseline=baseline, policy_kwargs=SMALL_NET).learn(300)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", make_env())
    assert th.equal(parameters(model), parameters(loaded))
    assert loaded.baseline == baseline
    assert loaded._baseline.state_dict() == model._baseline.state_dict()
    model.learn(300, reset_num_timesteps=False)
    loaded.learn(300, reset_num_timesteps=False)
    assert th.equal(parameters(model), parameters(loaded))


def test_save_to_a_buffer_and_custom_objects():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, learning_rate="lin_1e-3").learn(16)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = REINFORCE.load(file, custom_objects={"learning_rate": 0.5}, n_steps=7)
    assert loaded.n_steps == 7
    assert loaded.lr_schedule(1.0) == 0.5
    assert loaded.predict(np.zeros(4, np.float32))[0].shape == ()


def test_load_with_another_number_of_environments(tmp_path):
    model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 2), n_episodes=4, baseline="leave_one_out").learn(16)
    model.save(tmp_path / "model.zip")
    loaded = REINFORCE.load(tmp_path / "model.zip", make_vec_env("CartPole-v1", 4))
    loaded.learn(16)
    assert loaded.rollout.n_envs == 4
    # loading for evaluation is never refused; training with a number that does not divide is
    three = REINFORCE.load(tmp_path / "model.zip", make_vec_env("CartPole-v1", 3))
    with pytest.raises(ValueError, match="n_episodes must be a multiple of the number of environments"):
        three.learn(16)


@pytest.mark.parametrize("other_class", [A2C, PPO])
def test_weights_of_other_algorithms(tmp_path, other_class):
    other = other_class("MlpPolicy", "CartPole-v1", seed=1).learn(10)
    other.save(tmp_path / "other.zip")
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.set_parameters(other.get_parameters())
        assert th.equal(parameters(model), parameters(other))
        model.set_parameters(str(tmp_path / "other.zip"))
    # A2C's RMSprop state cannot serve Adam
    assert any("another class of optimiser" in str(w.message) for w in caught) == (other_class is A2C)
    model.learn(16)
    assert not th.equal(parameters(model), parameters(other))


def test_adam_stays_adam():
    """AdamW's state has Adam's keys, and would bring its weight decay."""
    policy_kwargs = dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.5))
    other = REINFORCE("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs)
    model = REINFORCE("MlpPolicy", "CartPole-v1")
    with pytest.warns(UserWarning, match="another class of optimiser"):
        model.set_parameters(other.get_parameters())
    for optimizer in (model.policy.optimizer, model.value_optimizer):
        assert optimizer.param_groups[0]["weight_decay"] == 0


def test_user_baseline_is_saved(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, baseline=sb3_reinforce.baselines.MovingAverageBaseline(0.3))
    model.learn(50)
    model.save(tmp_path / "model.zip")
    loaded = REINFORCE.load(tmp_path / "model.zip")
    assert loaded._baseline.decay == 0.3
    assert loaded._baseline.average == model._baseline.average != 0


def test_rollout_buffer_class():
    from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

    class Own(RolloutBuffer):
        def __init__(self, *args, colour, **kwargs):
            super().__init__(*args, **kwargs)
            self.colour = colour

    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, rollout_buffer_class=Own, rollout_buffer_kwargs=dict(colour=3))
    model.learn(16)
    assert model.rollout_buffer.colour == 3
    assert model.rollout_buffer.size() >= 16
    data = next(model.rollout_buffer.get(8))
    assert data.observations.shape == (8, 4)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        REINFORCE("MlpPolicy", "CartPole-v1", rollout_buffer_kwargs=dict(colour=3))
    with pytest.raises(AssertionError, match="must be used with Dict obs space only"):
        REINFORCE("MlpPolicy", "CartPole-v1", rollout_buffer_class=DictRolloutBuffer)


def test_freeze_normalization_after():
    """Rollouts that begin behind it, and their resets, leave the statistics alone; VecNormalize itself stays as it was."""
    env, other = (VecNormalize(make_vec_env("Pendulum-v1", 2, env_kwargs={"max_episode_steps": 10})) for _ in range(2))
    model = REINFORCE("MlpPolicy", env, n_steps=10, freeze_normalization_after=30, seed=0, device="cpu")
    # Rollouts of 20 steps: those from 0 and 20 on count, and the two observations of the reset before each.
    model.learn(40)
    assert env.obs_rms.count == pytest.approx(2 * (2 + 20) + 1e-4)
    before = [value.copy() for value in (env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var)]
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == 80
    assert env.obs_rms.count == pytest.approx(2 * (2 + 20) + 1e-4)
    for then, now in zip(before, (env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var), strict=True):
        np.testing.assert_array_equal(then, now)
    assert env.training
    # a new environment is reset before its first rollout
    model.set_env(other)
    model.learn(20, reset_num_timesteps=False)
    assert other.obs_rms.count == pytest.approx(1e-4)
    # counted anew
    model.learn(20)
    assert other.obs_rms.count > 20
