"""The ranges that ``sb3-reinforce tune`` searches; ``zoo_configs/sweep.yml`` holds the same for W&B."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from torch import nn

#: from, to, on a logarithmic scale
LogRange = tuple[float, float]
Range = LogRange | Sequence[Any]

# Baselines made of other episodes. Here they always get `n_episodes`: with `n_steps` they need several environments, and a
# config may have one.
OF_OTHER_EPISODES = ("leave_one_out", "per_step", "optimal")

# One flat space for every trial, because a W&B sweep knows no conditions: the converter drops what the baseline and the kind
# of step do not use. "greedy" is not searched: it plays each reset twice and needs n_episodes == n_envs.
SEARCH_SPACE: dict[str, Range] = {
    "natural_gradient": [False, True],
    "target_kl": (3e-3, 1e-1),
    "learning_rate": (1e-4, 1e-2),
    "lr_schedule": ["constant", "lin"],
    "gamma": [0.9, 0.95, 0.98, 0.99, 0.995, 0.999],
    "baseline": ["value", "moving_average", *OF_OTHER_EPISODES],
    "n_steps": [128, 256, 512, 1024, 2048],
    "n_episodes": [8, 16, 32, 64],
    "value_learning_rate": (3e-4, 3e-2),
    "ent_coef": (1e-6, 1e-1),
    "normalize_advantage": [False, True],
    "net_arch": ["tiny", "small", "medium"],
    "activation_fn": ["tanh", "relu"],
    "norm_obs": [False, True],
    "norm_reward": [False, True],
}
# Searched, too, for a config with a recurrent policy; a W&B sweep of one adds these names to sweep.yml
MEMORY_SPACE: dict[str, Range] = {"lstm_hidden_size": [16, 64, 256], "enable_critic_lstm": [True, False]}
# Arguments of VecNormalize, not of REINFORCE: searched where each trial's environments are wrapped as it asks
NORMALIZATION = ("norm_obs", "norm_reward")

# RL Zoo's names
POLICY_KWARGS: dict[str, dict[str, Any]] = {
    "net_arch": {"tiny": [64], "small": [64, 64], "medium": [256, 256]},
    "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU},
}


def search_space(n_envs: int, normalization: bool, memory: bool = False) -> dict[str, Range]:
    """
    :param normalization: whether arguments of VecNormalize are searched, too
    :param memory: whether those of a recurrent policy are
    :return: name -> range
    """
    space = {**SEARCH_SPACE, **(MEMORY_SPACE if memory else {})}
    # rounded up to multiples of n_envs: every environment plays as many episodes
    space["n_episodes"] = sorted({-(-n // n_envs) * n_envs for n in SEARCH_SPACE["n_episodes"]})
    return {name: values for name, values in space.items() if normalization or name not in NORMALIZATION}


def suggest(trial: optuna.Trial, space: Mapping[str, Range]) -> dict[str, Any]:
    """:return: name -> value, chosen by the trial, which gives the same when it is asked again"""
    return {
        name: trial.suggest_float(name, *values, log=True)
        if isinstance(values, tuple)
        else trial.suggest_categorical(name, values)
        for name, values in space.items()
    }


def sample_reinforce_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """:return: arguments of REINFORCE that are valid together; RL Zoo's search calls this"""
    # What the search of a recurrent policy has already sampled for this trial, which RL Zoo does not pass on
    memory = trial.params.keys() >= MEMORY_SPACE.keys()
    return convert_reinforce_params(suggest(trial, search_space(n_envs, False, memory)))


def complete_sample(sampled: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """
    Add the config's ``natural_gradient`` and ``baseline`` to a sample without them: other values depend on them.

    :raises ValueError: if one of the sampled values would have no effect
    """
    found = {name: entry[name] for name in ("natural_gradient", "baseline") if name in entry} | dict(sampled)
    step_size, unused = _step_sizes(found)
    if unused in sampled and "natural_gradient" not in sampled:
        natural = bool(found.get("natural_gradient"))
        raise ValueError(f"--sampled: {unused} has no effect with the config's natural_gradient={natural}: sample that, too")
    if "lr_schedule" in sampled and step_size not in sampled:
        raise ValueError(f"--sampled: lr_schedule is that of {step_size}: sample that, too")
    return found


def _step_sizes(hyperparams: Mapping[str, Any]) -> tuple[str, str]:
    """:return: name of the hyperparameter that sets the size of a step, and of the one that then has no effect"""
    return ("target_kl", "learning_rate") if hyperparams.get("natural_gradient") else ("learning_rate", "target_kl")


def convert_reinforce_params(sampled_params: Mapping[str, Any]) -> dict[str, Any]:
    """:return: sampled values as hyperparameters in a config: arguments of REINFORCE, and ``normalize`` if that is sampled"""
    hyperparams = dict(sampled_params)
    step_size, unused = _step_sizes(hyperparams)
    hyperparams.pop(unused, None)
    if hyperparams.get("natural_gradient"):  # a config may ask for several steps per batch
        hyperparams |= {"n_epochs": 1, "batch_size": None}
    if hyperparams.pop("lr_schedule", "constant") == "lin" and step_size in hyperparams:
        hyperparams[step_size] = f"lin_{hyperparams[step_size]}"
    baseline = hyperparams.get("baseline")
    if baseline in OF_OTHER_EPISODES:
        hyperparams.pop("n_steps", None)
    elif "n_episodes" in hyperparams:
        hyperparams["n_episodes"] = None  # a config may have it
    if baseline not in (None, "value"):
        hyperparams.pop("value_learning_rate", None)
        # a config may ask for these, and only a learned value can bootstrap
        hyperparams |= {"truncation": None, "unfinished": "finish"}
    policy_kwargs = {name: choices[hyperparams.pop(name)] for name, choices in POLICY_KWARGS.items() if name in hyperparams}
    policy_kwargs |= {name: hyperparams.pop(name) for name in MEMORY_SPACE if name in hyperparams}
    if policy_kwargs:
        hyperparams["policy_kwargs"] = copy.deepcopy(policy_kwargs)
    normalize = {name: hyperparams.pop(name) for name in NORMALIZATION if name in hyperparams}
    if normalize:
        hyperparams["normalize"] = normalize if any(normalize.values()) else False
    return hyperparams
