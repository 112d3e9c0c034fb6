"""Where ``sb3-reinforce tune`` looks for hyperparameters; ``zoo_configs/sweep.yml`` holds the same ranges for W&B."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import optuna

#: from, to, on a logarithmic scale
LogRange = tuple[float, float]
Range = LogRange | Sequence[Any]

# Baselines made of other episodes. They always get `n_episodes` here: with `n_steps` they take the other environments'
# episodes, of which a config with one environment has none.
OF_OTHER_EPISODES = ("leave_one_out", "per_step", "optimal")

# One flat space, the same for every trial, so that a W&B sweep, which knows no conditions, can hold it too: the converter
# leaves out what baseline and kind of step do not use. "greedy" plays each reset twice and wants n_episodes == n_envs: not
# searched.
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
# Of VecNormalize, not of REINFORCE: searched where the experiment wraps the environments as each trial asks
NORMALIZATION = ("norm_obs", "norm_reward")

# RL Zoo's names
NET_ARCH = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}
ACTIVATION_FN = {"tanh": nn.Tanh, "relu": nn.ReLU}


def search_space(n_envs: int, normalization: bool) -> dict[str, Range]:
    """
    :param n_envs: number of environments; every environment plays an equal share of ``n_episodes``, so its values are
        rounded up to multiples
    :param normalization: whether to search what VecNormalize does
    :return: name -> range
    """
    space = dict(SEARCH_SPACE)
    space["n_episodes"] = sorted({-(-n // n_envs) * n_envs for n in SEARCH_SPACE["n_episodes"]})
    return {name: values for name, values in space.items() if normalization or name not in NORMALIZATION}


def suggest(trial: "optuna.Trial", space: Mapping[str, Range]) -> dict[str, Any]:
    """
    :param trial: which chooses; asked again it answers the same
    :param space: name -> range
    :return: name -> value
    """
    return {
        name: trial.suggest_float(name, *values, log=True)
        if isinstance(values, tuple)
        else trial.suggest_categorical(name, values)
        for name, values in space.items()
    }


def sample_reinforce_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    RL Zoo's sampler of REINFORCE.

    :param trial: which chooses
    :param n_actions: number of action dimensions, not used
    :param n_envs: number of environments
    :param additional_args: of off-policy algorithms, not used
    :return: arguments of :class:`~sb3_reinforce.reinforce.REINFORCE` which can be right together
    """
    return convert_reinforce_params(suggest(trial, search_space(n_envs, normalization=False)))


def complete_sample(sampled: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """
    Some values of the search space, with what their meaning hangs on.

    :param sampled: name -> value, of some names of the search space
    :param entry: the config's entry, which holds what is not sampled
    :return: the same, with ``natural_gradient`` and ``baseline``
    :raises ValueError: if one of them would have no effect
    """
    found = {name: entry[name] for name in ("natural_gradient", "baseline") if name in entry} | dict(sampled)
    step_size, unused = "learning_rate", "target_kl"
    if found.get("natural_gradient"):
        step_size, unused = unused, step_size
    if unused in sampled and "natural_gradient" not in sampled:
        natural = bool(found.get("natural_gradient"))
        raise ValueError(f"--sampled: {unused} has no effect with the config's natural_gradient={natural}: sample that, too")
    if "lr_schedule" in sampled and step_size not in sampled:
        raise ValueError(f"--sampled: lr_schedule is that of {step_size}: sample that, too")
    return found


def convert_reinforce_params(sampled_params: Mapping[str, Any]) -> dict[str, Any]:
    """
    RL Zoo's converter of REINFORCE: sampled values to hyperparameters, as they stand in a config.

    :param sampled_params: name -> value, of all names of the search space or of some
    :return: hyperparameters; without ``norm_obs`` and ``norm_reward`` arguments of REINFORCE alone
    """
    hyperparams = dict(sampled_params)
    # the size of a step is one or the other
    if hyperparams.get("natural_gradient"):
        step_size, unused = "target_kl", "learning_rate"
        # a config may ask for several steps per batch
        hyperparams |= {"n_epochs": 1, "batch_size": None}
    else:
        step_size, unused = "learning_rate", "target_kl"
    hyperparams.pop(unused, None)
    if hyperparams.pop("lr_schedule", "constant") == "lin" and step_size in hyperparams:
        hyperparams[step_size] = f"lin_{hyperparams[step_size]}"
    baseline = hyperparams.get("baseline")
    if baseline in OF_OTHER_EPISODES:
        hyperparams.pop("n_steps", None)
    elif "n_episodes" in hyperparams:
        hyperparams["n_episodes"] = None  # a config may have it
    if baseline not in (None, "value"):
        hyperparams.pop("value_learning_rate", None)
        # what a config may ask for, and only a learned value can give
        hyperparams |= {"truncation": None, "unfinished": "finish"}
    policy_kwargs: dict[str, Any] = {}
    if "net_arch" in hyperparams:
        policy_kwargs["net_arch"] = list(NET_ARCH[hyperparams.pop("net_arch")])
    if "activation_fn" in hyperparams:
        policy_kwargs["activation_fn"] = ACTIVATION_FN[hyperparams.pop("activation_fn")]
    if policy_kwargs:
        hyperparams["policy_kwargs"] = policy_kwargs
    normalize = {name: hyperparams.pop(name) for name in NORMALIZATION if name in hyperparams}
    if normalize:
        hyperparams["normalize"] = normalize if any(normalize.values()) else False
    return hyperparams
