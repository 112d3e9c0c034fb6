"""The space of a hyperparameter search: ranges, valid combinations, and what becomes of a sample."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

pytest.importorskip("rl_zoo3")

import optuna

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo import register
from sb3_reinforce.zoo.search import can_normalize
from sb3_reinforce.zoo.search_space import (
    MEMORY_SPACE,
    NORMALIZATION,
    complete_sample,
    convert_reinforce_params,
    sample_reinforce_params,
    search_space,
    suggest,
)


def test_register_makes_it_searchable():
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    register()
    assert HYPERPARAMS_SAMPLER["reinforce"] is sample_reinforce_params
    assert HYPERPARAMS_CONVERTER["reinforce"] is convert_reinforce_params


@pytest.mark.parametrize("n_envs", [1, 3, 8, 100])
def test_n_episodes_are_equal_shares(n_envs: int):
    values = search_space(n_envs, True)["n_episodes"]
    assert values
    assert all(n % n_envs == 0 and n >= 2 for n in values)


def test_n_episodes_of_the_space_by_hand():
    assert search_space(1, True)["n_episodes"] == search_space(8, True)["n_episodes"] == [8, 16, 32, 64]
    # 8, 16, 32, 64 rounded up to multiples of 6
    assert search_space(6, True)["n_episodes"] == [12, 18, 36, 66]
    assert search_space(100, True)["n_episodes"] == [100]
    assert not set(NORMALIZATION) & set(search_space(1, False))


def test_the_space_of_a_recurrent_policy():
    """The size of the LSTM and whether V has its own are searched as well, and become the policy's arguments."""
    space = search_space(1, False, memory=True)
    assert {*space} - {*search_space(1, False)} == {*MEMORY_SPACE} == {"lstm_hidden_size", "enable_critic_lstm"}
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    assert "lstm_hidden_size" not in sample_reinforce_params(trial, 0, 1, {})["policy_kwargs"]
    suggest(trial, space)  # as Search does for a recurrent policy
    kwargs = sample_reinforce_params(trial, 0, 1, {})
    assert {name: kwargs["policy_kwargs"][name] for name in MEMORY_SPACE} == {n: trial.params[n] for n in MEMORY_SPACE}
    assert not {*MEMORY_SPACE} & {*kwargs}


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"n_episodes": 3, "baseline": "greedy"},
        {"truncation": "bootstrap"},
        {"unfinished": "bootstrap", "n_epochs": 2, "batch_size": 64},
        {"natural_gradient": True, "target_kl": 0.05},
        {"returns": "episode", "loss_reduction": "step"},
    ],
)
def test_no_invalid_combination_is_proposed(config: dict[str, Any], n_envs: int):
    env = make_vec_env("CartPole-v1", n_envs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    baselines, steps = set(), set()
    for _ in range(40):
        model = REINFORCE("MlpPolicy", env, device="cpu", **{**config, **sample_reinforce_params(study.ask(), 0, n_envs, {})})
        baselines.add((model.baseline, model.n_episodes is None))
        steps.add(model.natural_gradient)
    assert steps == {False, True}
    assert baselines == {
        ("value", True), ("moving_average", True), ("leave_one_out", False), ("per_step", False), ("optimal", False)
    }  # fmt: skip


@pytest.mark.parametrize(
    "sampled, expected",
    [
        (
            {"baseline": "value", "n_steps": 256, "n_episodes": 8, "value_learning_rate": 0.02},
            {"baseline": "value", "n_steps": 256, "n_episodes": None, "value_learning_rate": 0.02},
        ),
        (
            {"baseline": "per_step", "n_steps": 256, "n_episodes": 8, "value_learning_rate": 0.02},
            {"baseline": "per_step", "n_episodes": 8, "truncation": None, "unfinished": "finish"},
        ),
        (
            {"baseline": "moving_average", "n_steps": 256, "n_episodes": 8},
            {"baseline": "moving_average", "n_steps": 256, "n_episodes": None, "truncation": None, "unfinished": "finish"},
        ),
        ({"learning_rate": 1e-5, "lr_schedule": "lin"}, {"learning_rate": "lin_1e-05"}),
        ({"learning_rate": 0.01, "lr_schedule": "constant"}, {"learning_rate": 0.01}),
        (
            {"natural_gradient": False, "target_kl": 0.02, "learning_rate": 0.01, "lr_schedule": "lin"},
            {"natural_gradient": False, "learning_rate": "lin_0.01"},
        ),
        (
            {"natural_gradient": True, "target_kl": 0.02, "learning_rate": 0.01, "lr_schedule": "lin"},
            {"natural_gradient": True, "target_kl": "lin_0.02", "n_epochs": 1, "batch_size": None},
        ),
        (
            {"natural_gradient": True, "target_kl": 0.02, "learning_rate": 0.01, "lr_schedule": "constant"},
            {"natural_gradient": True, "target_kl": 0.02, "n_epochs": 1, "batch_size": None},
        ),
        ({"net_arch": "tiny", "activation_fn": "relu"}, {"policy_kwargs": {"net_arch": [64], "activation_fn": nn.ReLU}}),
        ({"norm_obs": True, "norm_reward": False}, {"normalize": {"norm_obs": True, "norm_reward": False}}),
        ({"norm_obs": False, "norm_reward": False}, {"normalize": False}),
        ({"gamma": 0.9, "ent_coef": 1e-3}, {"gamma": 0.9, "ent_coef": 1e-3}),
    ],
)
def test_convert(sampled: dict[str, Any], expected: dict[str, Any]):
    before = dict(sampled)
    assert convert_reinforce_params(sampled) == expected
    assert sampled == before


def test_a_sample_means_what_the_config_makes_of_it():
    """Of a config with the natural gradient: target_kl counts, a linear schedule is its own."""
    entry = {"natural_gradient": True, "target_kl": "lin_0.03", "baseline": "value", "gamma": 0.95}
    sampled = {"target_kl": 0.09, "lr_schedule": "lin", "value_learning_rate": 0.1}
    converted = convert_reinforce_params(complete_sample(sampled, entry))
    assert (converted["target_kl"], converted["value_learning_rate"]) == ("lin_0.09", 0.1)
    assert "gamma" not in converted


def test_normalization_is_searched_where_it_can_be():
    box, image = spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (36, 36, 3), np.uint8)
    assert can_normalize(box)
    assert can_normalize(spaces.Dict(a=box))
    assert not can_normalize(image)
    assert not can_normalize(spaces.Dict(a=box, b=spaces.Discrete(2)))
    assert not can_normalize(spaces.Discrete(2))
