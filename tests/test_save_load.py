"""Saving and loading models, and parameters of other algorithms."""

import io
import warnings
import zipfile

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_reinforce import REINFORCE
from sb3_reinforce.baselines import MovingAverageBaseline
from tests.envs import baseline_of, parameters

SMALL_NET = dict(net_arch=[8])


@pytest.mark.parametrize("baseline", ["none", "moving_average", "value"])
def test_a_loaded_model_trains_on_like_the_saved_one(tmp_path, baseline):
    """With the same seed, rollouts and updates after loading are those that the saved model makes, to the bit."""
    make_env = lambda: make_vec_env("CartPole-v1", 2)  # noqa: E731
    model = REINFORCE("MlpPolicy", make_env(), n_steps=40, seed=1, baseline=baseline, policy_kwargs=SMALL_NET).learn(300)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", make_env())
    assert th.equal(parameters(model), parameters(loaded))
    assert loaded.baseline == baseline
    assert baseline_of(loaded).state_dict() == baseline_of(model).state_dict()
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
    # loading for evaluation always works; training does not, with a number that does not divide n_episodes
    three = REINFORCE.load(tmp_path / "model.zip", make_vec_env("CartPole-v1", 3))
    with pytest.raises(ValueError, match="n_episodes must be a multiple of the number of environments"):
        three.learn(16)


@pytest.mark.parametrize("other_class", [A2C, PPO])
def test_weights_of_other_algorithms(tmp_path, other_class):
    other = other_class("MlpPolicy", "CartPole-v1", seed=1, device="cpu").learn(10)
    other.save(tmp_path / "other.zip")
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.set_parameters(other.get_parameters())
        assert th.equal(parameters(model), parameters(other))
        model.set_parameters(str(tmp_path / "other.zip"))
    # Adam cannot use the state of A2C's RMSprop
    assert any("another class of optimiser" in str(w.message) for w in caught) == (other_class is A2C)
    model.learn(16)
    assert not th.equal(parameters(model), parameters(other))


def test_adam_stays_adam():
    """The state of AdamW has Adam's keys, but it would bring its weight decay along."""
    policy_kwargs = dict(optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.5))
    other = REINFORCE("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs)
    model = REINFORCE("MlpPolicy", "CartPole-v1")
    with pytest.warns(UserWarning, match="another class of optimiser"):
        model.set_parameters(other.get_parameters())
    for optimizer in (model.policy.optimizer, model.value_optimizer):
        assert optimizer.param_groups[0]["weight_decay"] == 0


def test_user_baseline_is_saved(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, baseline=MovingAverageBaseline(0.3))
    model.learn(50)
    model.save(tmp_path / "model.zip")
    loaded = REINFORCE.load(tmp_path / "model.zip")
    assert loaded.baseline.decay == 0.3
    assert loaded.baseline.average == model.baseline.average != 0


@pytest.mark.parametrize("other_class", [A2C, PPO])
def test_other_algorithms_load_ours(tmp_path, other_class):
    """The file of a model with a value network: loaded, it plays alike and can be trained; a model takes its parameters."""
    env = make_vec_env("CartPole-v1")
    model = REINFORCE("MlpPolicy", env, n_steps=16, batch_size=16, seed=1, policy_kwargs=SMALL_NET).learn(40)
    model.save(tmp_path / "model")
    loaded = other_class.load(tmp_path / "model", env=env, device="cpu")
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0]
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    assert 0 < expected.sum() < 50
    loaded.learn(16)
    assert not th.equal(parameters(model), parameters(loaded))
    for given, exact_match in ((model.get_parameters(), True), (str(tmp_path / "model"), False)):
        other = other_class("MlpPolicy", env, policy_kwargs=SMALL_NET, device="cpu")
        other.set_parameters(given, exact_match=exact_match)
        assert th.equal(parameters(model), parameters(other))


def test_the_value_optimizer_is_loaded(tmp_path, monkeypatch):
    """From our files, and from those of before December 2026, where its state had a name of its own."""
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, policy_kwargs=SMALL_NET, n_value_epochs=3).learn(1)
    model.save(tmp_path / "new")
    monkeypatch.setattr(REINFORCE, "get_parameters", OnPolicyAlgorithm.get_parameters)
    model.save(tmp_path / "old")
    monkeypatch.undo()
    with zipfile.ZipFile(tmp_path / "old.zip") as old, zipfile.ZipFile(tmp_path / "new.zip") as new:
        assert set(old.namelist()) - set(new.namelist()) == {"value_optimizer.pth"}
    for name in ("new", "old"):
        loaded = REINFORCE.load(tmp_path / name)
        assert loaded.value_optimizer.state_dict()["state"][0]["step"] == 3
        assert loaded.policy.optimizer.state_dict()["state"][0]["step"] == 1
        again = REINFORCE("MlpPolicy", "CartPole-v1", policy_kwargs=SMALL_NET)
        again.set_parameters(str(tmp_path / name))
        assert again.value_optimizer.state_dict()["state"][0]["step"] == 3
    # a model without a value network takes what it has
    REINFORCE("MlpPolicy", "CartPole-v1", policy_kwargs=SMALL_NET, baseline="none").set_parameters(model.get_parameters())
