"""Gradient statistics of bandits against closed forms, and the comparison of baselines."""

import csv
import re

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, Baseline, GradientDiagnostics, compare_baselines
from sb3_reinforce.episode_gradients import EpisodeGradients, episode_gradients
from sb3_reinforce.scores import Scores
from sb3_reinforce.update.likelihood import log_prob_and_entropy
from sb3_reinforce.update.steps import steps_of
from sb3_reinforce.zoo.cli import main
from tests.envs import RewardListEnv, collect, rows_of


class Bandit(gym.Env):
    """One step; the observation is 0, so only the last layer's bias (and log_std) has a score."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, action_space, reward):
        self.action_space, self.reward = action_space, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(self.reward(action)), True, False, {}


# Softmax bandit of three actions: p(a), r(a)
P, R = np.array([0.5, 0.3, 0.2]), np.array([1.0, 4.0, -2.0])
# Gaussian bandit: a = MU + SIGMA eps, r = K a + C
MU, SIGMA, K, C = 0.5, 0.8, 2.0, 3.0


def softmax_bandit(n_episodes: int, **kwargs) -> REINFORCE:
    env = DummyVecEnv([lambda: Bandit(spaces.Discrete(3), lambda a: R[a])])
    model = REINFORCE("MlpPolicy", env, n_episodes=n_episodes, policy_kwargs=dict(net_arch=[]), seed=0, device="cpu", **kwargs)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.as_tensor(np.log(P)))
    return model


def gaussian_bandit(n_episodes: int, **kwargs) -> REINFORCE:
    env = DummyVecEnv([lambda: Bandit(spaces.Box(-100, 100, (1,), np.float32), lambda a: K * a[0] + C)])
    policy_kwargs = dict(net_arch=[], log_std_init=float(np.log(SIGMA)))
    model = REINFORCE("MlpPolicy", env, n_episodes=n_episodes, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)
    with th.no_grad():
        model.policy.action_net.bias.fill_(MU)
    return model


def softmax_truth(b: float) -> dict[str, float]:
    """The score is s_a = e_a - p and g_a = (r_a - b) s_a; all expectations are sums over three actions."""
    scores = np.eye(3) - P
    squares = (scores**2).sum(1)
    mean = (P * R) @ scores
    return {
        "mean_square": float(mean @ mean),
        "variance": float(P @ ((R - b) ** 2 * squares) - mean @ mean),
        "fisher": float(P @ squares),
        "optimal": float(P @ (R * squares) / (P @ squares)),
    }


def gaussian_truth(b: float) -> dict[str, float]:
    """
    The score with respect to mean and log std is (eps / sigma, eps^2 - 1). With m = K MU + C - b and R - b = m + K sigma eps:
    E[g] = (K, 0); E abs(g)^2 = m^2 (1/sigma^2 + 2) + K^2 (E eps^4 + sigma^2 E[eps^2 (eps^2 - 1)^2]), where E eps^4 = 3 and
    E[eps^6 - 2 eps^4 + eps^2] = 15 - 6 + 1 = 10. Fisher: 1/sigma^2 + E (eps^2 - 1)^2 = 1/sigma^2 + 2. Odd moments vanish, so
    the optimal b is the mean reward.
    """
    fisher = 1 / SIGMA**2 + 2
    return {
        "mean_square": K**2,
        "variance": (K * MU + C - b) ** 2 * fisher + K**2 * (3 + 10 * SIGMA**2) - K**2,
        "fisher": fisher,
        "optimal": K * MU + C,
    }


def played(model: REINFORCE) -> REINFORCE:
    """After a rollout, before its update."""
    model._setup_learn(1)
    return collect(model)


@pytest.mark.parametrize(("bandit", "truth"), [(softmax_bandit, softmax_truth), (gaussian_bandit, gaussian_truth)])
def test_bandits_in_closed_form(bandit, truth):
    """12,000 episodes of one step. The tolerances are some 4 standard errors of these heavy-tailed squares."""
    n = 12_000
    model = played(bandit(n, baseline="optimal"))
    expected, without = truth(truth(0.0)["optimal"]), truth(0.0)
    metrics = GradientDiagnostics().measure(model)
    assert model.batch.baseline.mean().item() == pytest.approx(expected["optimal"], rel=0.05)
    assert metrics["variance"] == pytest.approx(expected["variance"], rel=0.1)
    assert metrics["variance_reduction"] == pytest.approx(without["variance"] / expected["variance"], rel=0.1)
    assert metrics["fisher_trace"] == pytest.approx(expected["fisher"], rel=0.05)
    assert metrics["noise_scale"] == pytest.approx(expected["variance"] / expected["mean_square"], rel=0.15)
    assert metrics["snr"] == pytest.approx(n * expected["mean_square"] / expected["variance"], rel=0.15)
    assert abs(metrics["score_mean_z"]) < 4


def test_score_mean_z_is_standard_normal_and_sees_a_wrong_score():
    model = softmax_bandit(400, baseline="none", learning_rate=0.0)
    callback = GradientDiagnostics()
    z = [callback.measure(played(model))["score_mean_z"] for _ in range(50) if model.set_random_seed(_) is None]
    # the mean of 50 standard normals is 0 +- 0.14, their std 1 +- 0.1
    assert abs(np.mean(z)) < 0.6
    assert np.std(z) == pytest.approx(1.0, abs=0.4)
    # actions of a policy that is no longer the one that played: E[score] is not 0
    with th.no_grad():
        model.policy.action_net.bias += th.tensor([1.0, 0.0, -1.0])
    assert abs(callback.measure(model)["score_mean_z"]) > 6


def by_hand(model: REINFORCE) -> tuple[np.ndarray, np.ndarray]:
    """Each episode's gradient with the advantages and with the plain returns, by one backward pass each."""
    parameters = list(model.policy.parameters())
    used, plain, start = [], [], 0
    next(model.rollout_buffer.get(1))
    for length in model.rollout.lengths.tolist():
        data = rows_of(model).samples(slice(start, start + length))
        for vectors, weights in ((used, data.advantages), (plain, data.returns)):
            log_prob = log_prob_and_entropy(model.policy, data)[0]
            gradient = th.autograd.grad((weights * log_prob).sum(), parameters, materialize_grads=True)
            vectors.append(th.cat([g.flatten() for g in gradient]).double().numpy())
        start += length
    return np.array(used), np.array(plain)


@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_definitions(normalize_advantage):
    model = played(
        REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=7, seed=0, device="cpu", normalize_advantage=normalize_advantage)
    )
    metrics = GradientDiagnostics(decay=0.0).measure(model)
    g, plain = by_hand(model)
    n = len(g)
    variance = ((g - g.mean(0)) ** 2).sum() / (n - 1)
    mean_square = (g.mean(0) ** 2).sum() - variance / n
    assert metrics["variance"] == pytest.approx(variance, rel=1e-4)
    assert metrics["snr"] == pytest.approx(n * mean_square / variance, rel=1e-3)
    assert ("noise_scale" in metrics) == (mean_square > 0)
    if mean_square > 0:
        assert metrics["noise_scale"] == pytest.approx(variance / mean_square, rel=1e-3)
    if not normalize_advantage:
        reduction = ((plain - plain.mean(0)) ** 2).sum() / ((g - g.mean(0)) ** 2).sum()
        assert metrics["variance_reduction"] == pytest.approx(reduction, rel=1e-4)
    else:
        # the baseline alone counts, not the scale of normalised advantages
        assert metrics["variance_reduction"] == pytest.approx(
            GradientDiagnostics().measure(played(REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=7, seed=0, device="cpu")))[
                "variance_reduction"
            ]
        )


def test_averages_before_dividing():
    """
    After two rollouts with decay 0.5 the noise scale is (v1/4 + v2/2) / (m1/4 + m2/2), where v is the variance and m the
    squared mean of one rollout; ``snr`` is 10 over that. An average of the quotients would be another number.
    """
    model = softmax_bandit(10, baseline="none")
    averaged, alone = GradientDiagnostics(decay=0.5), GradientDiagnostics(decay=0.0)
    (first, _), (second, metrics) = ((alone.measure(played(model)), averaged.measure(model)) for _ in range(2))
    variance = first["variance"] / 4 + second["variance"] / 2
    mean_square = (first["snr"] * first["variance"] / 4 + second["snr"] * second["variance"] / 2) / 10
    assert metrics["variance"] == second["variance"]  # not averaged
    assert metrics["noise_scale"] == pytest.approx(variance / mean_square)
    assert metrics["noise_scale"] != pytest.approx((first["noise_scale"] + 2 * second["noise_scale"]) / 3, rel=0.01)
    assert metrics["snr"] == pytest.approx(10 * mean_square / variance)


def test_halves_add_up_to_the_whole():
    """Of each half only the sum of the vectors and scalars per episode are needed."""
    model = played(REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=6, seed=0, device="cpu"))
    lengths, steps = model.rollout.lengths, steps_of(model.rollout_buffer, model.batch.episodes)
    weights = th.stack([model.batch.episodes.returns, th.ones(model.batch.n_steps, dtype=th.float64)])
    whole = episode_gradients(Scores(model.policy, steps), lengths, weights)
    cut = int(lengths[:2].sum())
    parts = [
        episode_gradients(Scores(model.policy, steps.at(rows, model.device)), lengths[which], weights[:, rows])
        for rows, which in ((slice(0, cut), slice(0, 2)), (slice(cut, None), slice(2, None)))
    ]
    joined = EpisodeGradients(parts[0].total + parts[1].total, th.cat([p.squares for p in parts]), None)
    th.testing.assert_close(joined.variance, whole.variance, rtol=1e-5, atol=0)
    th.testing.assert_close(joined.mean_square, whole.mean_square, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kwargs", [
    dict(),
    dict(use_sde=True, sde_sample_freq=1),
    dict(baseline="optimal", n_episodes=4, n_epochs=2, batch_size=32),
    dict(policy_kwargs=dict(optimizer_class=th.optim.SGD)),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("seed", [0, None])
def test_training_is_not_changed(kwargs, seed):
    env_id = "Pendulum-v1" if "use_sde" in kwargs else "CartPole-v1"
    weights = []
    for callback in (None, GradientDiagnostics(every_n_updates=1)):
        th.manual_seed(5)
        np.random.seed(5)
        env = make_vec_env(env_id, 1, seed=7)
        model = REINFORCE("MlpPolicy", env, **{"n_steps": 100, "seed": seed, "device": "cpu", **kwargs})
        model.learn(300, callback)
        weights.append(th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    assert th.equal(*weights)


def test_every_n_updates_with_the_row_of_the_update(tmp_path):
    env = DummyVecEnv([lambda: RewardListEnv([1.0, 2.0])])
    model = REINFORCE("MlpPolicy", env, n_episodes=3, seed=0, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callback = GradientDiagnostics(every_n_updates=2)
    model.learn(5 * 6, callback)
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert [row["train/n_updates"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [bool(row["gradient/variance"]) for row in rows] == [True, False, True, False, True]
    assert callback.n_calls == 0  # no call per step


def test_one_episode_has_no_variance():
    env = DummyVecEnv([lambda: RewardListEnv([1.0, 2.0])])
    model = REINFORCE("MlpPolicy", env, n_episodes=1, seed=0, device="cpu")
    words = "logs nothing of a batch of one episode.*raise n_steps or n_episodes"
    with pytest.warns(UserWarning, match=words) as caught:
        model.learn(6, GradientDiagnostics(every_n_updates=1))
    assert len([warning for warning in caught if re.search(words, str(warning.message))]) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(every_n_updates=0), "every_n_updates must be a whole number >= 1, got 0"),
        (dict(decay=1.5), r"decay must be a number in \[0, 1\], got 1.5"),
        (dict(decay=1.0), "decay must be below 1, got 1"),
    ],
)
def test_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GradientDiagnostics(**kwargs)


def test_needs_a_reinforce():
    with pytest.raises(ValueError, match=r"GradientDiagnostics needs a REINFORCE, .* got A2C"):
        A2C("MlpPolicy", "CartPole-v1", device="cpu").learn(10, GradientDiagnostics())


# --- compare_baselines ----------------------------------------------------------------------------------------------


def test_comparison_of_a_bandit():
    """trS with b over trS without it, in closed form: b is the mean reward, the optimal b or the greedy action's reward."""
    model = softmax_bandit(1, baseline="none")
    env = DummyVecEnv([lambda: Bandit(spaces.Discrete(3), lambda a: R[a])] * 100)
    comparison = compare_baselines(env, model, n_episodes=3000, n_bootstrap=500)
    rows = {row.name: row for row in comparison.rows}
    none = softmax_truth(0.0)["variance"]
    assert rows["none"].variance == pytest.approx(none, rel=0.1)
    assert (rows["none"].relative, rows["none"].low, rows["none"].high) == pytest.approx((1, 1, 1))
    mean = float(P @ R)
    for name, b in dict(
        leave_one_out=mean, moving_average=mean, per_step=mean, value=mean, optimal=softmax_truth(0)["optimal"], greedy=R[0]
    ).items():
        expected = softmax_truth(b)["variance"] / none
        assert rows[name].low * 0.97 < expected < rows[name].high * 1.03, name
        assert rows[name].relative == pytest.approx(expected, abs=0.05), name
    assert 'Advice: baseline="' in str(comparison)


def test_comparison_leaves_model_and_statistics_alone():
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    model = REINFORCE("MlpPolicy", env, seed=0, n_steps=64, device="cpu").learn(200)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    count, steps, training = env.obs_rms.count, model.num_timesteps, env.training
    comparison = compare_baselines(env, model, n_episodes=8, baselines=["mean", "value", "greedy"], n_bootstrap=50)
    assert [row.name for row in comparison.rows] == ["none", "mean", "value", "greedy"]
    assert comparison.title.endswith("; V as the model has learned it")
    assert (env.obs_rms.count, model.num_timesteps, env.training) == (count, steps, training)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    again = compare_baselines(env, model, n_episodes=8, baselines=["mean", "value", "greedy"], n_bootstrap=50)
    assert again == comparison


@pytest.mark.parametrize(
    ("rewards", "truncated", "truncation", "relative"),
    [
        # V(s_t) = 2 + t and gamma = 0.5. R = 1 + 2/2, 2 without V; with V(s_2) = 4 behind the limit R - V = 1 + 4/2 - 2, 4 - 3
        ([1.0, 2.0], True, None, 1 / 4),
        # R = 3 without V; R - V = 3 + 3/2 - 2 with it, and 3 - 2 where the episode has ended or V is not to be added
        ([3.0], True, None, 2.5**2 / 9),
        ([3.0], False, None, 1 / 9),
        ([3.0], True, "terminal", 1 / 9),
    ],
)
def test_comparison_adds_v_at_time_limits_as_training_does(rewards, truncated, truncation, relative):
    """R - b is the same number at all steps, so that the variance is exactly its square times that of the score."""
    env = DummyVecEnv([lambda: RewardListEnv(rewards, truncated)] * 2)
    policy_kwargs = dict(net_arch=[])
    model = REINFORCE("MlpPolicy", env, gamma=0.5, truncation=truncation, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    with th.no_grad():
        model.policy.value_net.weight.fill_(0.5)  # both parts of the observation are t
        model.policy.value_net.bias.fill_(2.0)
    model.num_timesteps = 1  # V counts as learned
    comparison = compare_baselines(env, model, n_episodes=20, baselines=["value"], n_bootstrap=2)
    assert comparison.rows[1].relative == pytest.approx(relative, rel=1e-5)
    added = truncated and truncation is None
    assert comparison.title.endswith("; gamma V is added at time limits for value") is added
    assert comparison.advice.endswith("The error of V at time limits is its bias.") is added


def test_comparison_fits_v_to_bootstrapped_returns():
    """A reward of 1 at each step of an observation that never changes is worth V = 1 / (1 - gamma) = R, without any noise."""

    class Alike(RewardListEnv):
        def _observation(self):
            return np.ones(2, np.float32)

    env = DummyVecEnv([lambda: Alike([1.0, 1.0, 1.0], truncated=True)] * 2)
    model = REINFORCE("MlpPolicy", env, gamma=0.5, seed=0, device="cpu")
    comparison = compare_baselines(env, model, n_episodes=8, baselines=["value", "leave_one_out"], n_bootstrap=2)
    assert "V fitted to other episodes; gamma V is added at time limits for value" in comparison.title
    # R = 1.75, 1.5, 1 without V
    _, value, mean = (row.relative for row in comparison.rows)
    assert value < 1e-3 < mean


def test_comparison_with_a_baseline_that_leaves_nothing(monkeypatch):
    """All episodes reach the time limit, so the return is a function of t and no variance is left; the advice says 0 %."""
    env = make_vec_env("CartPole-v1", 2, env_kwargs={"max_episode_steps": 5})
    model = REINFORCE("MlpPolicy", env, seed=0, truncation="terminal", device="cpu").learn(50)
    comparison = compare_baselines(env, model, n_episodes=8, baselines=["per_step"], n_bootstrap=50)
    assert comparison.title.endswith("; V as the model has learned it")
    assert comparison.advice == 'Advice: baseline="per_step" leaves 0 % of the variance (0 to 0 %), the lowest.'
    figure_module, figures = pytest.importorskip("matplotlib.figure"), []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    comparison.plot("picture.png")
    axes = figures[0].axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.1, 1.0]  # per_step and none
    assert [axes.xaxis.get_major_formatter()(x, 0) for x in (0.1, 1.0, 10.0)] == ["0", "1", "10"]


class Constant(Baseline):
    def __init__(self, b: float):
        self.b = b

    def predict(self, episodes):
        return th.full_like(episodes.returns, self.b)


def test_comparison_of_two_settings_of_one_baseline():
    baselines = ["none", Constant(0.0), Constant(10.0), "mean"]
    comparison = compare_baselines("CartPole-v1", n_episodes=8, baselines=baselines, n_bootstrap=50)
    assert [row.name for row in comparison.rows] == ["none", "Constant", "Constant 2", "mean"]
    none, zero, ten, _ = (row.variance for row in comparison.rows)
    assert none == zero != ten


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(n_episodes=3), "n_episodes must be >= 4, .* got 3"),
        (dict(n_episodes=0), "n_episodes must be a whole number >= 1, got 0"),
        (dict(n_bootstrap=0), "n_bootstrap must be a whole number >= 1, got 0"),
        (dict(baselines=["critic"]), "baseline must be one of 'none', .* got 'critic'"),
    ],
)
def test_comparison_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        compare_baselines("CartPole-v1", **kwargs)


def test_comparison_refuses_another_environment():
    model = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(ValueError, match="model and env must have the same spaces"):
        compare_baselines("Pendulum-v1", model)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    REINFORCE("MlpPolicy", env, seed=0, n_steps=32, device="cpu").learn(64).save("model.zip")
    (tmp_path / "CartPole-v1").mkdir()
    env.save("CartPole-v1/vecnormalize.pkl")
    assert main(["compare-baselines", "--env", "CartPole-v1", "--model", "model.zip", "--episodes", "8"]) == 0
    out = capsys.readouterr().out
    assert "Observations and rewards as in CartPole-v1/vecnormalize.pkl" in out
    assert "8 episodes of the given REINFORCE" in out
    assert (tmp_path / "logs/baselines-CartPole-v1.png").stat().st_size > 5000
    assert main(["compare-baselines", "--env", "CartPole-v1", "--model", "no.zip"]) == 2
    assert "no.zip" in capsys.readouterr().err
