"""log pi(a|s), the entropy and V(s) of whatever policy there is, for many steps at a time."""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_reinforce.observations import map_arrays
from sb3_reinforce.rollout.sampling import draws_before_tanh, overrides, policy_class
from sb3_reinforce.rollout.squashed import log_prob_before_tanh
from sb3_reinforce.update.rows import Rows, chunks


def log_prob_and_entropy(
    policy: ActorCriticPolicy, observations: Any, actions: th.Tensor
) -> tuple[th.Tensor, th.Tensor | None]:
    """
    log pi(a|s) and the entropy of pi(.|s), without V(s) unless the policy's class leaves no other way.

    :param actions: as :meth:`Rows.samples` gives them, float, shape [n, action dimensions]
    :return: both of shape [n]; no entropy where it has no closed form
    :raises TypeError: if the policy does not give one log-probability per action
    """
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    if overrides(policy, "evaluate_actions"):
        _, log_prob, entropy = policy.evaluate_actions(observations, actions)
    else:
        distribution: Any = policy.get_distribution(observations)
        of_actions = partial(log_prob_before_tanh, distribution) if draws_before_tanh(policy) else distribution.log_prob
        log_prob, entropy = of_actions(actions), distribution.entropy()
    if log_prob.shape != actions.shape[:1]:
        raise TypeError(
            f"the policy must give one log-probability per action, shape {tuple(actions.shape[:1])}, "
            f"got shape {tuple(log_prob.shape)} from {policy_class(policy).__name__}"
        )
    return log_prob, entropy


def log_probs_of(policy: ActorCriticPolicy, rows: Rows) -> np.ndarray:
    """:return: log pi(a|s) of all rows, in evaluation mode and without gradient, shape [S]"""
    policy.set_training_mode(False)
    log_probs = []
    with th.no_grad():
        for chunk in rows.chunks():
            data = rows.samples(chunk)
            log_probs.append(log_prob_and_entropy(policy, data.observations, data.actions)[0].cpu().numpy())
    return np.concatenate(log_probs)


def values_of(policy: ActorCriticPolicy, observations: Any, n_rows: int, chunk_size: int | None) -> th.Tensor:
    """:return: V(s) of each row, in evaluation mode and without gradient, shape [n_rows], float64, on the CPU"""
    policy.set_training_mode(False)
    values = []
    with th.no_grad():
        for rows in chunks(slice(0, n_rows), chunk_size):
            chunk = map_arrays(lambda array, rows=rows: array[rows].to(policy.device), observations)  # type: ignore[misc]
            values.append(policy.predict_values(chunk).flatten().double().cpu())
    return th.cat(values)


def value_only_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """
    The parameters that V depends on and the policy does not, whatever the policy's class calls them.

    They are found by differentiating both at one observation. None are found if policy and value share all.
    """
    policy.set_training_mode(False)
    # Copies: the spaces' own random numbers stay untouched.
    observation_space, action_space = copy.deepcopy((policy.observation_space, policy.action_space))
    observation_space.seed(0)
    obs_tensor, _ = policy.obs_to_tensor(observation_space.sample())
    action = th.zeros((1, get_action_dim(action_space)), device=policy.device)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # The dependence shows even where the numbers are NaN, as those of a policy that masks its actions may be.
    validate_args = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        log_prob, entropy = log_prob_and_entropy(policy, obs_tensor, action)
        policy_output = log_prob.sum() if entropy is None else log_prob.sum() + entropy.sum()
        of_policy = th.autograd.grad(policy_output, parameters, allow_unused=True)
        of_value = th.autograd.grad(policy.predict_values(obs_tensor).sum(), parameters, allow_unused=True)
    finally:
        th.distributions.Distribution.set_default_validate_args(validate_args)
    return [p for p, v, pi in zip(parameters, of_value, of_policy, strict=True) if v is not None and pi is None]
