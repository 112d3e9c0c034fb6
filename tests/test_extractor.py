"""A features extractor that policy and value share is computed once for both, with the results of SB3's own methods."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.extractor import shares_extractor
from sb3_reinforce.rollout.sampling import TorchSampler
from sb3_reinforce.update.likelihood import kl_terms, log_probs_of, shared_features
from tests.envs import collect, parameters, rows_of

IMAGES = spaces.Box(0, 255, (1, 36, 36), np.uint8)
DICT = spaces.Dict({"image": IMAGES, "vector": spaces.Box(-1, 1, (3,), np.float32)})


class OwnPolicy(ActorCriticCnnPolicy):
    """Overrides nothing; but it might, so nothing is taken for granted of it."""


def made(policy="CnnPolicy", **kwargs) -> REINFORCE:
    def image_env():
        env = FakeImageEnv(action_dim=3, screen_height=36, screen_width=36, n_channels=1, discrete=True)
        env.observation_space.seed(0)
        return env

    env = VecTransposeImage(DummyVecEnv([image_env, image_env]))
    own = dict(n_episodes=4, baseline="value", seed=0, device="cpu")
    own["policy_kwargs"] = dict(features_extractor_kwargs={"features_dim": 16})
    return REINFORCE(policy, env, **{**own, **kwargs})


@pytest.mark.parametrize(
    "arguments",
    [dict(), dict(n_epochs=2, batch_size=7, value_batch_size=11), dict(chunk_size=3), dict(truncation="bootstrap")],
    ids=["one step", "minibatches", "chunks", "bootstrap"],
)
def test_training_is_that_of_sb3s_methods(arguments):
    """V while sampling, the fit and the KL are to rounding what the policy's own methods give in passes of their own."""
    models = [made(policy, **arguments) for policy in ("CnnPolicy", OwnPolicy)]
    assert [shares_extractor(model.policy) for model in models] == [True, False]
    for model in models:
        model.learn(1)
    new, old = models
    np.testing.assert_array_equal(new.rollout_buffer.actions, old.rollout_buffer.actions)
    np.testing.assert_allclose(new.rollout_buffer.values, old.rollout_buffer.values, rtol=1e-4, atol=1e-6)
    th.testing.assert_close(parameters(new), parameters(old), rtol=1e-4, atol=1e-5)
    logs = [model.logger.name_to_value for model in models]
    for name in ("train/approx_kl", "train/value_loss", "train/explained_variance"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-3), name


@pytest.mark.parametrize("baseline, passes", [("value", 3), ("none", 3)])
def test_images_are_passed_as_seldom_as_can_be(baseline, passes):
    """Once to sample, once for the gradient, once for the KL and all epochs of the fit."""
    model, rows = made(baseline=baseline, n_value_epochs=5, truncation="terminal"), []
    model.learn(1)  # what is measured before the first update is not counted
    model.policy.features_extractor.register_forward_hook(lambda module, images, features: rows.append(len(features)))
    model.learn(1, reset_num_timesteps=False)
    assert sum(rows) == passes * model.rollout.n_steps


@pytest.mark.parametrize(
    "policy_class, observation_space, shares",
    [
        (ActorCriticCnnPolicy, IMAGES, True),
        (MultiInputActorCriticPolicy, DICT, True),
        (ActorCriticPolicy, spaces.Box(-1, 1, (3,), np.float32), False),  # it only flattens
    ],
)
@pytest.mark.parametrize(
    "action_space",
    [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-1, 1, (2,), np.float32)],
    ids=str,
)
def test_parameters_of_the_distribution_are_sb3s(policy_class, observation_space, shares, action_space):
    policy = policy_class(observation_space, action_space, lambda _: 1e-3)
    policy.set_training_mode(False)
    observation_space.seed(0)
    observations, _ = policy.obs_to_tensor(_batch([observation_space.sample() for _ in range(5)]))
    sampler = TorchSampler(policy, np.random.default_rng(0), with_values=True)
    arrays = (
        {key: tensor.numpy() for key, tensor in observations.items()}
        if isinstance(observations, dict)
        else observations.numpy()
    )
    found = th.as_tensor(sampler.distribution_parameters(arrays))
    distribution = policy.get_distribution(observations).distribution
    if isinstance(action_space, spaces.Box):
        th.testing.assert_close(found, distribution.mean)
        th.testing.assert_close(th.as_tensor(sampler.std).expand(5, 2), distribution.stddev)
    elif isinstance(action_space, spaces.MultiDiscrete):
        th.testing.assert_close(found[:, :2].softmax(1), distribution[0].probs)
        th.testing.assert_close(found[:, 2:].softmax(1), distribution[1].probs)
    elif isinstance(action_space, spaces.Discrete):
        th.testing.assert_close(found.softmax(1), distribution.probs)
    else:
        th.testing.assert_close(found.sigmoid(), distribution.probs)
    assert len(sampler.values) == shares
    if shares:
        th.testing.assert_close(th.as_tensor(sampler.values[0]), policy.predict_values(observations).flatten())


def _batch(observations):
    if isinstance(observations[0], dict):
        return {key: np.stack([one[key] for one in observations]) for key in observations[0]}
    return np.stack(observations)


def test_kl_from_features():
    model = made()
    model._setup_learn(1)
    rows = rows_of(collect(model))
    model.rollout_buffer.log_probs[:, 0] = log_probs_of(model.policy, rows) - 0.1
    # r = e^0.1 at each step: (r - 1) - log r
    expected = np.full(rows.n_rows, np.expm1(0.1) - 0.1)
    np.testing.assert_allclose(kl_terms(model.policy, rows), expected, rtol=1e-3)
    np.testing.assert_allclose(kl_terms(model.policy, rows, shared_features(model.policy, rows)), expected, rtol=1e-3)


def test_what_may_differ_is_left_to_the_policy():
    model = made(policy_kwargs=dict(share_features_extractor=False, features_extractor_kwargs={"features_dim": 4}))
    assert not shares_extractor(model.policy)
    model = made()
    assert shares_extractor(model.policy)
    model.policy.predict_values = lambda observations: th.zeros(len(observations), 1)
    assert not shares_extractor(model.policy)


def test_channels_last_changes_rounding_alone(tmp_path):
    """The layout of weights in memory that docs/gpu.md recommends; also for the natural gradient, and when saved."""
    sgd = dict(optimizer_class=th.optim.SGD, features_extractor_kwargs={"features_dim": 16})
    for arguments in (dict(), dict(natural_gradient=True)):
        plain, other = (made(policy_kwargs=sgd, **arguments) for _ in range(2))
        other.policy.to(memory_format=th.channels_last)
        assert not other.policy.features_extractor.cnn[2].weight.is_contiguous()
        states = [model.learn(1).policy.state_dict() for model in (plain, other)]
        for name, tensor in states[0].items():
            th.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    other.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", device="cpu")
    assert all(th.equal(tensor, states[1][name]) for name, tensor in loaded.policy.state_dict().items())
