"""log pi(a|s), the entropy and V(s) of whatever policy there is, for many steps at a time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_reinforce.policies import is_recurrent
from sb3_reinforce.rollout.extractor import actor_features, shares_extractor
from sb3_reinforce.rollout.sampling import draws_before_tanh, overrides, policy_class
from sb3_reinforce.rollout.squashed import log_prob_before_tanh
from sb3_reinforce.running.devices import has_convolutions
from sb3_reinforce.update.rows import Rows
from sb3_reinforce.update.sequences import distribution_of_sequences, values_of_sequences
from sb3_reinforce.update.steps import Selection, Steps, chunks, sequences_of

KL_ROWS = 8192  # With so many, the error of the mean is some hundredths of it.
KL_IMAGES = 2048  # twice that error, where a row takes a hundred times as long


def distribution_of(policy: ActorCriticPolicy, steps: Steps) -> Any:
    """:return: pi(.|s) of each step, as the policy's ``get_distribution`` gives it"""
    if not is_recurrent(policy):
        return policy.get_distribution(steps.observations, **_masks_of(steps))
    distribution = distribution_of_sequences(policy, steps)
    if steps.action_masks is not None:
        distribution.apply_masking(steps.action_masks)
    return distribution


def _masks_of(steps: Steps) -> dict[str, Any]:
    return {} if steps.action_masks is None else {"action_masks": steps.action_masks}


def predict_values(policy: ActorCriticPolicy, steps: Steps) -> th.Tensor:
    """:return: V(s) of each step, shape [n]"""
    if is_recurrent(policy):
        return values_of_sequences(policy, steps)
    return policy.predict_values(steps.observations).flatten()


def log_prob_and_entropy(policy: ActorCriticPolicy, steps: Steps) -> tuple[th.Tensor, th.Tensor | None]:
    """
    log pi(a|s) and the entropy of pi(.|s), without V(s) unless the policy's class leaves no other way.

    :return: both of shape [n]; no entropy where it has no closed form
    :raises TypeError: if the policy does not give one log-probability per action
    """
    actions = _for_distribution(policy, steps.actions)
    if overrides(policy, "evaluate_actions"):
        _, log_prob, entropy = policy.evaluate_actions(steps.observations, actions, **_masks_of(steps))
    else:
        distribution = distribution_of(policy, steps)
        of_actions = partial(log_prob_before_tanh, distribution) if draws_before_tanh(policy) else distribution.log_prob
        log_prob, entropy = of_actions(actions), distribution.entropy()
    if log_prob.shape != actions.shape[:1]:
        raise TypeError(
            f"the policy must give one log-probability per action, shape {tuple(actions.shape[:1])}, "
            f"got shape {tuple(log_prob.shape)} from {policy_class(policy).__name__}"
        )
    return log_prob, entropy


def _for_distribution(policy: ActorCriticPolicy, actions: th.Tensor) -> th.Tensor:
    return actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else actions.float()


def log_probs_of(policy: ActorCriticPolicy, rows: Rows, selected: Selection | None = None) -> np.ndarray:
    """:return: log pi(a|s) of the rows, by default all, in evaluation mode and without gradient, shape [n]"""
    policy.set_training_mode(False)
    log_probs = []
    with th.no_grad():
        for chunk in rows.chunks(selected):
            log_probs.append(log_prob_and_entropy(policy, rows.samples(chunk))[0].cpu().numpy())
    return np.concatenate(log_probs)


def shared_features(policy: ActorCriticPolicy, rows: Rows) -> th.Tensor | None:
    """
    :return: what the features extractor that policy and value share computes of all rows, in evaluation mode and without
        gradient, shape [S, features]; None if they share none
    """
    if not shares_extractor(policy):
        return None
    policy.set_training_mode(False)
    features: th.Tensor | None = None
    with th.no_grad():
        for chunk in rows.chunks():
            found = actor_features(policy, rows.samples(chunk).observations)
            if features is None:  # all at once: tensors kept from each chunk would lie between the freed ones
                features = found.new_empty((rows.n_rows, *found.shape[1:]))
            features[chunk] = found
    return features


def kl_terms(policy: ActorCriticPolicy, rows: Rows, features: th.Tensor | None = None) -> np.ndarray:
    """
    Terms whose mean estimates KL(pi_old, pi): (r - 1) - log r >= 0 with r = pi / pi_old, as in SB3's PPO.

    Source: Schulman, "Approximating KL divergence" (2020).

    :param rows: with log pi_old in the buffer; of more than ``KL_ROWS`` on all ranks, or ``KL_IMAGES`` with convolutions, each
        rank takes an equal share at random, unless the policy has memory, which needs whole episodes
    :param features: :func:`shared_features` of the policy, if they are known
    :return: shape [n]
    """
    selected: Selection = rows.all
    limit = KL_IMAGES if features is None and has_convolutions(policy) else KL_ROWS
    if rows.n_total > limit and rows.sequences is None:
        # At random: evenly spaced rows may all be at the same steps of their episodes. Always alike, so that runs repeat.
        n = -(-rows.n_rows * limit // rows.n_total)
        selected = np.sort(np.random.default_rng(0).choice(rows.n_rows, n, replace=False))
    if features is None:
        log_probs = log_probs_of(policy, rows, selected)
    else:
        with th.no_grad():
            distribution = policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(features[selected]))
            actions = th.as_tensor(rows.buffer.actions[selected], device=features.device)
            log_probs = distribution.log_prob(_for_distribution(policy, actions)).cpu().numpy()
    log_ratio = log_probs - rows.buffer.log_probs[selected, 0]
    return np.expm1(log_ratio) - log_ratio


def values_of(policy: ActorCriticPolicy, steps: Steps, n_rows: int, chunk_size: int | None) -> th.Tensor:
    """:return: V(s) of each step, in evaluation mode and without gradient, shape [n_rows], float64, on the CPU"""
    policy.set_training_mode(False)
    values = []
    with th.no_grad():
        for rows in chunks(slice(0, n_rows), chunk_size, steps.sequences):
            values.append(predict_values(policy, steps.at(rows, policy.device)).double().cpu())
    return th.cat(values)


@contextmanager
def distribution_put_back(policy: nn.Module) -> Iterator[None]:
    """
    Inside, distributions are not validated: that asks for values, which vmap's tensors do not have, and which may be NaN in
    the logits of a policy that masks its actions. Behind it the policy has the distribution that it had before: SB3's
    policies keep their last one, and its tensors would outlive their use.
    """
    distribution = getattr(policy, "action_dist", None)
    kept = dict(vars(distribution)) if distribution is not None else {}
    validate_args = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(validate_args)
        if distribution is not None:
            vars(distribution).clear()
            vars(distribution).update(kept)


def example_of(policy: ActorCriticPolicy) -> Steps:
    """:return: one step, with an observation of the policy's space and an action, on its device"""
    # A copy: the space's own random numbers stay untouched.
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    return Steps(
        observations=policy.obs_to_tensor(space.sample())[0],
        actions=th.zeros((1, get_action_dim(policy.action_space)), device=policy.device),
        sequences=sequences_of(policy, np.ones(1, dtype=np.int64)),
    )


def value_only_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """
    The parameters that V depends on and the policy does not, whatever the policy's class calls them.

    They are found by differentiating both at one observation. None are found if policy and value share all.
    """
    policy.set_training_mode(False)
    example = example_of(policy)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # The dependence shows even where the numbers are NaN
    with distribution_put_back(policy):
        log_prob, entropy = log_prob_and_entropy(policy, example)
        policy_output = log_prob.sum() if entropy is None else log_prob.sum() + entropy.sum()
        of_policy = th.autograd.grad(policy_output, parameters, allow_unused=True)
        of_value = th.autograd.grad(predict_values(policy, example).sum(), parameters, allow_unused=True)
    return [p for p, v, pi in zip(parameters, of_value, of_policy, strict=True) if v is not None and pi is None]
