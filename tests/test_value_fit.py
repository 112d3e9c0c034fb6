"""The fit of the value network: after the policy step, to the returns, and of its own parameters only."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common import utils
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.running.exchange import moments
from sb3_reinforce.update.likelihood import value_only_parameters
from sb3_reinforce.update.records import explained_variance
from sb3_reinforce.update.value_fit import ValueFit
from tests.envs import BatchNormDropout, RewardListEnv, collect

SMALL_NET = dict(net_arch=[8])


def test_value_baseline_predicts_before_it_is_fitted():
    """The rollout's values are those of the network before the update, not after it."""
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, n_value_epochs=20, policy_kwargs=SMALL_NET)
    model._setup_learn(10**6)
    collect(model)
    observations, values = th.as_tensor(model.rollout_buffer.observations[:, 0]), model.rollout_buffer.values[:, 0].copy()
    np.testing.assert_allclose(model.policy.predict_values(observations).detach().numpy()[:, 0], values, atol=1e-5)
    model.train()
    assert np.abs(model.policy.predict_values(observations).detach().numpy()[:, 0] - values).max() > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_the_two_optimisers_share_no_parameter(monkeypatch, shared):
    """The fit changes the parameters that only the value depends on, the policy step all others; none is left out."""

    class Extractor(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 5)
            self.linear = nn.Linear(4, 5)

        def forward(self, observations):
            return self.linear(observations)

    policy_kwargs = dict(net_arch=[8], features_extractor_class=Extractor, share_features_extractor=shared)
    model = REINFORCE("MlpPolicy", "CartPole-v1", learning_rate=1e-3, n_steps=32, seed=0, policy_kwargs=policy_kwargs)
    modules = ["mlp_extractor.value_net.0", "value_net", *([] if shared else ["vf_features_extractor.linear"])]
    expected = {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    names = {parameter: name for name, parameter in model.policy.named_parameters()}
    assert {names[parameter] for parameter in value_only_parameters(model.policy)} == expected

    def changed_by(action) -> set[str]:
        before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
        action()
        return {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}

    with monkeypatch.context() as without:
        without.setattr(ValueFit, "fit", lambda *_: None)
        assert changed_by(lambda: model.learn(1)) == set(names.values()) - expected
    monkeypatch.setattr(model.policy.optimizer, "step", lambda: None)
    assert changed_by(model.train) == expected


def test_value_fit_begins_with_the_mean_of_the_returns():
    """Even with a learning rate near 0 the mean of V over the batch is the mean of R after one update."""
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu", value_learning_rate=1e-12).learn(1)
    buffer = model.rollout_buffer
    assert abs(buffer.values.mean() - buffer.returns.mean()) > 5
    with th.no_grad():
        values = model.policy.predict_values(th.as_tensor(buffer.observations))
    assert values.mean().item() == pytest.approx(buffer.returns.mean(), abs=1e-3)


def test_value_network_is_fitted_to_the_returns():
    """Returns of [1, 1] with gamma 0.5 are 1.5 and 1: after many fits V equals them, whatever the policy does."""
    env = DummyVecEnv([lambda: RewardListEnv([1, 1])])
    model = REINFORCE("MlpPolicy", env, n_steps=20, gamma=0.5, seed=0, value_learning_rate=1e-2, n_value_epochs=500)
    model.learn(1)
    values = model.policy.predict_values(th.tensor([[0.0, 0.0], [1.0, 1.0]])).flatten()
    np.testing.assert_allclose(values.detach(), [1.5, 1.0], atol=0.05)


def test_value_fit_leaves_shared_batch_norm_alone():
    kwargs = dict(net_arch=[8], features_extractor_class=BatchNormDropout)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, policy_kwargs=kwargs, n_value_epochs=7)
    model.learn(1)
    assert model.policy.features_extractor.layers[0].num_batches_tracked == 1  # by the policy step


@pytest.mark.parametrize(
    "returns, values, expected",
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.0),
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], 0.0),  # a constant is not wrong, but explains nothing
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -3.0),  # R - V = -2, 0, 2: four times the returns' variance
        ([100.0, 100.0, 100.0], [99.0, 100.0, 101.0], np.nan),
    ],
)
def test_explained_variance_is_that_of_sb3(returns, values, expected):
    returns, values = np.array(returns, np.float32), np.array(values, np.float32)
    found = explained_variance(*moments(returns, returns - values))
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(utils.explained_variance(values, returns), expected)


def test_rounding_is_no_variance():
    """Of returns that are one step of float32 apart there is nothing to explain; a thousand steps are something."""
    step, errors = np.spacing(np.float32(100)), np.float32([0.1, -0.1])
    assert np.isnan(explained_variance(*moments(np.float32([100, 100 + step]), errors)))
    assert explained_variance(*moments(np.float32([100, 100 + 1000 * step]), errors)) < -100
