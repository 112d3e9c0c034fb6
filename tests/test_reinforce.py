"""REINFORCE as a Stable-Baselines3 user meets it: order of events, counting, seeds, schedules, callbacks, logs."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule

import sb3_reinforce.reinforce
from sb3_reinforce import REINFORCE, Baseline
from tests.envs import LARGER, MDPEnv, NoCallback, parameters, seeds_of

SMALL_NET = dict(net_arch=[8])


class Listener(BaseCallback):
    """Notes what happens, in order."""

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


def test_equals_a2c(monkeypatch):
    """
    With unfinished="bootstrap", truncation="bootstrap" and one step on the batch, the policy changes as in A2C with
    gae_lambda=1 on the same rollout. The episodes are truncated after 7 steps, so both kinds of bootstrap value count.
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
        a2c.policy.value_net.bias.fill_(3.0)  # large enough to matter
    ours.policy.load_state_dict(a2c.policy.state_dict())
    before = parameters(a2c)

    class SeedTorch(NoCallback):
        def _on_rollout_start(self):
            th.manual_seed(5)

    def make_sampler(policy, n_envs, rng, with_values):
        th.manual_seed(5)

        def sample(obs, masks=None):
            return policy.get_distribution(th.as_tensor(obs)).get_actions().numpy()

        sample.start_episodes, sample.values = lambda starts: None, ()
        return sample

    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", make_sampler)
    a2c.learn(1, callback=SeedTorch())
    ours.learn(1)
    np.testing.assert_array_equal(a2c.rollout_buffer.actions.flatten(), ours.rollout_buffer.actions.flatten())
    policy_only = ("action_net", "mlp_extractor.policy_net")
    for name, parameter in ours.policy.named_parameters():
        if name.startswith(policy_only):
            th.testing.assert_close(parameter, a2c.policy.get_parameter(name), atol=1e-6, rtol=1e-5)
    assert (parameters(a2c) - before).abs().max() > 1e-3


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


def test_without_a_seed_the_seed_of_torch_counts():
    def trained():
        th.manual_seed(7)
        env = make_vec_env("CartPole-v1", 1, seed=5)
        return parameters(REINFORCE("MlpPolicy", env, n_steps=50, policy_kwargs=SMALL_NET).learn(200))

    assert th.equal(trained(), trained())


def test_learn_again():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0)
    seeds = seeds_of(model.env)
    model.learn(30)
    steps = model.num_timesteps
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps >= steps + 30
    model.learn(30)
    assert 30 <= model.num_timesteps < steps + 30
    assert len(set(seeds)) == len(seeds) == model._n_updates  # every rollout has new random numbers


def test_schedules_are_read_at_the_current_progress():
    model = REINFORCE(
        "MlpPolicy", "CartPole-v1", n_steps=50, learning_rate="lin_1e-2", value_learning_rate=LinearSchedule(0.1, 0.0, 1.0),
        ent_coef=lambda progress: 0.01 * progress, clip_range="lin_0.3", n_epochs=2,
    )  # fmt: skip
    read: dict[str, set[float]] = {"ent_coef": set(), "clip_range": set()}
    for name, progresses in read.items():
        schedule = getattr(model, model.schedules[name])
        spy = lambda progress, p=progresses, s=schedule: (p.add(progress), s(progress))[1]  # noqa: E731
        setattr(model, model.schedules[name], spy)
    model.learn(1)
    model._current_progress_remaining = 0.25
    model.train()
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.25)
    assert model.value_optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)
    assert read == {"ent_coef": {0.0, 0.25}, "clip_range": {0.0, 0.25}}
    # the last episodes run beyond total_timesteps, where a schedule must not become negative
    model._update_current_progress_remaining(300, 200)
    assert model._current_progress_remaining == 0.0


def test_arguments_can_be_assigned_during_training():
    """As with A2C's ent_coef, which callbacks anneal. An assigned schedule function stays."""

    class Assign(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.ent_coef, self.model.learning_rate, self.model.value_learning_rate = 0.25, "lin_0.5", 0.125

    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, n_epochs=2, seed=0)
    schedule_of = lambda name: getattr(model, model.schedules[name])  # noqa: E731
    model.learn(1, Assign())
    assert schedule_of("ent_coef")(0.5) == 0.25
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.5 * model._current_progress_remaining
    assert model.value_optimizer.param_groups[0]["lr"] == 0.125
    model.lr_schedule = lambda _: 1e-5
    model.clip_range = 0.05
    model.learn(1)
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-5
    assert schedule_of("clip_range")(1.0) == 0.05
    model.ent_coef = -1
    with pytest.raises(ValueError, match="ent_coef must be finite and >= 0 throughout training, got -1"):
        model.learn(1)


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
    assert int(last["train/n_updates"]) == model._n_updates  # the last update has a row
