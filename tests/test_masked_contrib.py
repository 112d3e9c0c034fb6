"""What sb3-contrib's own tests ask of MaskablePPO, asked of REINFORCE: policies, masks, evaluation, saving and spaces."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import EventCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy as plain_evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.sampling import needs_torch
from tests.masked_envs import strict

pytest.importorskip("sb3_contrib")

SMALL = dict(policy_kwargs=dict(net_arch=[8]), n_steps=64, seed=8, device="cpu")
# Of each kind one environment where every wrong choice is forbidden but the right one, so that a policy that has learned
# nothing scores 100, and one where some are
ENVS = {
    "Discrete": (lambda: InvalidActionEnvDiscrete(20, n_invalid_actions=19), lambda: InvalidActionEnvDiscrete(8, 20, 3)),
    "MultiDiscrete": (
        lambda: InvalidActionEnvMultiDiscrete([2, 3, 2], n_invalid_actions=4),
        lambda: InvalidActionEnvMultiDiscrete([2, 3], 20, 2),
    ),
    "MultiBinary": (
        lambda: InvalidActionEnvMultiBinary(4, n_invalid_actions=4),
        lambda: InvalidActionEnvMultiBinary(4, 20, 2),
    ),
}


@pytest.mark.parametrize("kind", ENVS)
def test_kinds_of_actions(kind):
    only_right, some = ENVS[kind]
    model = REINFORCE("MaskableMlpPolicy", only_right(), **SMALL)
    assert evaluate_policy(model, only_right(), n_eval_episodes=2, warn=False)[0] == 100
    assert plain_evaluate_policy(model, only_right(), n_eval_episodes=2, warn=False)[0] == 100
    model = REINFORCE("MaskableMlpPolicy", some(), **SMALL).learn(100)
    evaluate_policy(model, some(), n_eval_episodes=2, warn=False)


def test_identity():
    """As test_identity: learn to name the state, with 5 of 10 wrong names forbidden. At random the score is 17 of 100."""
    env = InvalidActionEnvDiscrete(dim=11, n_invalid_actions=5)
    arguments = dict(n_steps=200, gamma=0.0, learning_rate=0.03, truncation="terminal", seed=32, device="cpu")
    model = REINFORCE("MaskableMlpPolicy", env, **arguments).learn(4000)
    evaluate_policy(model, env, n_eval_episodes=2, reward_threshold=90, warn=False)


def test_masking_can_be_left_out_of_an_evaluation():
    env = InvalidActionEnvDiscrete(dim=20, n_invalid_actions=19)
    model = REINFORCE("MaskableMlpPolicy", env, **SMALL)
    with pytest.warns(UserWarning, match="got no action_masks and found none"):
        unmasked = evaluate_policy(model, env, n_eval_episodes=2, use_masking=False, warn=False)[0]
    assert unmasked < 50


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
def test_several_environments(vec_env_cls):
    kwargs = {} if vec_env_cls is None else dict(start_method="fork")
    env = make_vec_env(ENVS["Discrete"][0], 2, vec_env_cls=vec_env_cls, vec_env_kwargs=kwargs)
    assert is_masking_supported(env)
    model = REINFORCE("MaskableMlpPolicy", env, **SMALL)
    assert evaluate_policy(model, env, n_eval_episodes=2, warn=False)[0] == 100
    env.close()


def test_an_environment_without_masks_and_a_policy_without():
    """As test_masked_evaluation: evaluate_policy asks for masks of the environment, the policy must take them."""
    model = REINFORCE("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="Environment does not support action masking"):
        evaluate_policy(model, gym.make("CartPole-v1"), warn=False)
    with pytest.raises(ValueError, match="action_masks is for maskable policies such as MaskableMlpPolicy, got MlpPolicy"):
        evaluate_policy(model, ActionMasker(gym.make("CartPole-v1"), lambda env: np.ones(2, bool)), warn=False)


def test_callbacks(tmp_path):
    """As test_callback: MaskableEvalCallback with a callback of its own, logs, and the best model."""
    env = make_vec_env(ENVS["Discrete"][1], 2)
    eval_env = Monitor(ENVS["Discrete"][1]())
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=100)
    callback = MaskableEvalCallback(
        eval_env, eval_freq=20, n_eval_episodes=2, log_path=str(tmp_path), best_model_save_path=str(tmp_path),
        callback_after_eval=stop, verbose=0,
    )  # fmt: skip
    assert isinstance(callback, EventCallback)
    REINFORCE("MaskableMlpPolicy", env, **SMALL).learn(200, callback=callback)
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) >= 4
    best = REINFORCE.load(tmp_path / "best_model")
    evaluate_policy(best, eval_env, n_eval_episodes=2)


def test_images_and_dicts():
    """As test_cnn and test_dict_obs."""

    class Dicts(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Dict(image=env.observation_space)

        def observation(self, observation):
            return dict(image=observation)

    def images():
        env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)
        return ActionMasker(env, lambda env: np.arange(env.action_space.n) < 2)

    for policy, make in (("MaskableCnnPolicy", images), ("MaskableMultiInputPolicy", lambda: Dicts(images()))):
        kwargs = {**SMALL, "policy_kwargs": dict(features_extractor_kwargs=dict())}
        model = REINFORCE(policy, make(), **{**kwargs, "n_steps": 8, "max_episode_steps": 1000}).learn(8)
        assert set(model.rollout_buffer.actions.flatten().tolist()) <= {0.0, 1.0}
        env = make_vec_env(make)
        assert model.predict(env.reset(), action_masks=get_action_masks(env))[0][0] < 2


def test_policies_are_given_as_classes(tmp_path):
    class Own(MaskableActorCriticPolicy):
        """A subclass: sampled by torch, and saved by name, so that loading it needs trust."""

    for policy in (MaskableActorCriticPolicy, Own):
        model = REINFORCE(policy, strict(), **SMALL).learn(64)
        assert type(model.policy) is policy
        assert needs_torch(model.policy) == (None if policy is MaskableActorCriticPolicy else "policy class Own")
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="trust=True"):
        REINFORCE.load(tmp_path / "model")


def test_parameters_of_maskable_ppo(tmp_path):
    """As for A2C and PPO: REINFORCE takes over the networks of a MaskablePPO, and acts as it."""
    from sb3_contrib import MaskablePPO

    other = MaskablePPO("MlpPolicy", strict(), policy_kwargs=dict(net_arch=[8]), seed=1, device="cpu")
    model = REINFORCE("MaskableMlpPolicy", strict(), **SMALL)
    model.set_parameters(other.get_parameters())
    observations = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    masks = np.tile([True, False, True, True], (20, 1))
    ours = model.predict(observations, deterministic=True, action_masks=masks)[0]
    np.testing.assert_array_equal(ours, other.predict(observations, deterministic=True, action_masks=masks)[0])
    for name, tensor in other.policy.state_dict().items():
        assert th.equal(model.policy.state_dict()[name], tensor)


@pytest.mark.parametrize("policy", ["MaskableMlpPolicy", "MaskableMlpLstmPolicy"])
def test_without_sb3_contrib(monkeypatch, policy):
    for module in ("sb3_contrib.common.maskable.policies", "sb3_contrib.common.maskable.distributions"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "sb3_reinforce.maskable_recurrent", raising=False)
    with pytest.raises(ValueError, match=rf"policy '{policy}' needs sb3-contrib: pip install \"sb3-reinforce\[contrib\]\"$"):
        REINFORCE(policy, strict())
