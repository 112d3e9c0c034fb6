"""Policy, its arguments and spaces that do not fit together: a ValueError says what to use instead."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_reinforce import REINFORCE, VectorEnvAdapter, compare_baselines
from tests.envs import Random
from tests.vector_envs import CountingEnv, FakeEnvPool

VECTOR, FLOATS = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(0, 1, (3, 40, 40), np.float32)
IMAGE, SMALL = spaces.Box(0, 255, (40, 40, 3), np.uint8), spaces.Box(0, 255, (35, 40, 3), np.uint8)


class Recurrent(ActorCriticPolicy):
    """The methods that REINFORCE calls, with the arguments that sb3-contrib's RecurrentActorCriticPolicy needs."""

    def get_distribution(self, obs, lstm_states, episode_starts): ...

    def evaluate_actions(self, obs, actions, lstm_states, episode_starts): ...


class WithClosure(th.optim.SGD):
    def step(self, closure): ...


def optimizer(kind):
    return dict(policy_kwargs=dict(optimizer_class=kind))


@pytest.mark.parametrize(
    ("policy", "space", "kwargs", "message"),
    [
        ("CnnPolicy", VECTOR, {}, r"CnnPolicy is for images, got Box\(-1.0, 1.0, \(3,\), float32\): use MlpPolicy for"),
        ("CnnPolicy", FLOATS, {}, r"is for images, .*channels first, need policy_kwargs=dict\(normalize_images=False\)"),
        ("CnnPolicy", spaces.Discrete(3), {}, r"CnnPolicy is for images, got Discrete\(3\): use MlpPolicy"),
        ("CnnPolicy", SMALL, {}, r"needs images of 36 x 36 pixels or more, channels first, got .*\(3, 35, 40\).*: use gym"),
        ("MultiInputPolicy", spaces.Dict(a=SMALL), {}, "MultiInputPolicy needs images of 36 x 36 pixels or more"),
        ("MultiInputPolicy", VECTOR, {}, "MultiInputPolicy is for Dict observations, got Box.*: use MlpPolicy, or CnnPolicy"),
        (MultiInputActorCriticPolicy, VECTOR, {}, "MultiInputPolicy is for Dict observations, got Box"),
        (
            ActorCriticPolicy,
            spaces.Dict(a=VECTOR),
            {},
            "must be MultiInputPolicy for Dict observations, got MlpPolicy and Dict",
        ),
        ("MlpPolicy", spaces.Dict(a=VECTOR), {}, "You must use `MultiInputPolicy`"),  # SB3's own words
        ("MlpPolicy", VECTOR, dict(policy_kwargs=dict(net_arc=[8])), "MlpPolicy has no 'net_arc', did you mean 'net_arch'?"),
        ("MlpPolicy", VECTOR, dict(policy_kwargs=dict(x=1)), "MlpPolicy has no 'x': it has net_arch, activation_fn, ortho_i"),
        ("MlpPolicy", VECTOR, dict(policy_kwargs=[64]), r"policy_kwargs must be a dict, such as .*, got \[64\]"),
        ("MlpPolicy", VECTOR, dict(policy_kwargs=dict(activation_fn="relu")), r"MlpPolicy cannot be made with policy_kwargs="),
        (
            "MlpPolicy",
            VECTOR,
            dict(policy_kwargs=dict(net_arch=64)),
            r"made with policy_kwargs={'net_arch': 64}: 'int' object",
        ),
        ("MlpPolicy", VECTOR, dict(policy_kwargs=dict(optimizer_kwargs=dict(momentum=1))), "made with .* argument 'momentum'"),
        ("MlpPolicy", VECTOR, dict(policy_kwargs=dict(squash_output=True)), r"made with .*only available when using gSDE"),
        ("MlpPolicy", VECTOR, dict(rollout_buffer_kwargs=dict(x=1)), r"rollout_buffer_kwargs={'x': 1}: .*argument 'x'"),
        ("MlpPolicy", VECTOR, optimizer(th.optim.LBFGS), "must step by the gradient alone, got LBFGS, .* closure: use Adam"),
        ("MlpPolicy", VECTOR, optimizer(WithClosure), "must step by the gradient alone, got WithClosure"),
        ("MlpPolicy", VECTOR, optimizer(th.optim.SparseAdam), "must take dense gradients, got SparseAdam: use Adam"),
        (
            Recurrent,
            VECTOR,
            {},
            "got Recurrent, which also needs lstm_states and episode_starts .* RecurrentPPO of sb3-contrib",
        ),
        (
            "MLPPolicy",
            VECTOR,
            {},
            "policy must be one of 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy', .* or a class .* 'MLPPolicy'$",
        ),
        (SACPolicy, VECTOR, {}, "policy must be one of .* or a class such as ActorCriticPolicy, got <class .*SACPolicy'>"),
        (DQNPolicy, VECTOR, {}, "policy must be one of .* or a class such as ActorCriticPolicy, got <class .*DQNPolicy'>"),
        (nn.Linear, VECTOR, {}, "or a class such as ActorCriticPolicy, got <class .*Linear'>"),
        (None, VECTOR, {}, "or a class such as ActorCriticPolicy, got None"),
    ],
)
def test_refused_at_construction(policy, space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE(policy, Random(space, spaces.Discrete(2)), **kwargs)


def test_what_fits_is_accepted():
    for policy, space in (("MlpPolicy", IMAGE), ("CnnPolicy", IMAGE), ("MultiInputPolicy", spaces.Dict(a=IMAGE, b=VECTOR))):
        REINFORCE(policy, Random(space, spaces.Discrete(2)), policy_kwargs=dict(net_arch=[8]))
    REINFORCE("CnnPolicy", Random(FLOATS, spaces.Discrete(2)), policy_kwargs=dict(normalize_images=False))


def test_a_class_of_the_users_own_may_take_dicts():
    class Mine(ActorCriticPolicy):
        def make_features_extractor(self):
            return CombinedExtractor(self.observation_space)

    assert REINFORCE(Mine, Random(spaces.Dict(a=VECTOR), spaces.Discrete(2)), n_steps=8).learn(1)._n_updates == 1


def test_an_error_of_the_users_policy_keeps_its_words():
    class Mine(ActorCriticPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            raise TypeError("my own bug")

    with pytest.raises(ValueError, match=r"^Mine cannot be made with policy_kwargs={}: my own bug$") as caught:
        REINFORCE(Mine, "CartPole-v1")
    assert isinstance(caught.value.__cause__, TypeError)


def test_vector_environments_are_given_to_the_adapter():
    """Wherever an environment is given: the error names the adapter, which then works."""
    message = r"env must be a gymnasium.Env or a VecEnv of SB3, got the vector environment .*: give VectorEnvAdapter\(env\)"
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    model = REINFORCE("MlpPolicy", VectorEnvAdapter(env), n_steps=8)
    for give in (
        lambda: REINFORCE("MlpPolicy", env),
        lambda: REINFORCE("MlpPolicy", FakeEnvPool([CountingEnv(0), CountingEnv(1)], seed=0)),
        lambda: model.set_env(env),
        lambda: compare_baselines(env, n_episodes=4),
    ):
        with pytest.raises(ValueError, match=message):
            give()


class Mission(spaces.Space):
    """MiniGrid's: text without a length."""

    def __init__(self):
        super().__init__(dtype=str)


class Grid(Random):
    def __init__(self):
        super().__init__(spaces.Dict(image=IMAGE, mission=Mission()), spaces.Discrete(2))


gym.register("TextGrid-v0", Grid)


@pytest.mark.parametrize(
    "use", [lambda: REINFORCE("MultiInputPolicy", "TextGrid-v0"), lambda: compare_baselines("TextGrid-v0")]
)
def test_text_observations(use):
    """Also where DummyVecEnv would be the first to fail, with a TypeError."""
    cure = r"minigrid.wrappers.ImgObsWrapper \(MiniGrid\) or gymnasium.wrappers.FilterObservation\(env, \['image'\]\)"
    with pytest.raises(ValueError, match=rf"observation_space must be Box.* or a Dict of them, got Dict.*by {cure}"):
        use()


@pytest.mark.parametrize("verb", ["train", "compare-baselines"])
def test_text_observations_on_the_command_line(verb, capsys, tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo.cli import main

    monkeypatch.chdir(tmp_path)
    assert main([verb, "--env", "TextGrid-v0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sb3-reinforce {verb}: error: observation_space must be Box")
    assert "minigrid.wrappers.ImgObsWrapper" in error
    assert len(error.splitlines()) == 1


def test_text_observations_filtered():
    """The cure works."""
    env = gym.wrappers.FilterObservation(gym.make("TextGrid-v0"), ["image"])
    REINFORCE("MultiInputPolicy", env, policy_kwargs=dict(net_arch=[8]))
