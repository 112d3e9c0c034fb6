"""
The features extractor that policy and value share, as in ``CnnPolicy``: what it computes serves both.

Its pass over images costs a hundred times what the two heads behind it do. So V(s) is computed while sampling, from the
features of the action; and the fit of V, which leaves a shared extractor alone, computes the features once for all epochs.
"""

from typing import Any

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BaseModel,
    MultiInputActorCriticPolicy,
)
from torch import nn

POLICIES = (ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy)
DISTRIBUTIONS = (DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution)


def is_plain(policy: Any) -> bool:
    """
    By exact types: a subclass may override something.

    :return: whether policy and distribution are SB3's own, without gSDE, and no method is replaced on the object
    """
    return type(policy) in POLICIES and type(policy.action_dist) in DISTRIBUTIONS and not _has_own_method(policy)


def changed_module(policy: nn.Module) -> nn.Module | None:
    """:return: the first module with a hook, which runs in torch calls only, or with a method set on the object"""
    for module in policy.modules():
        if module._forward_hooks or module._forward_pre_hooks or _has_own_method(module):
            return module
    return None


def _has_own_method(module: nn.Module) -> bool:
    return any(callable(value) and hasattr(type(module), name) for name, value in vars(module).items())


def shares_extractor(policy: Any) -> bool:
    """:return: whether policy and value share a features extractor that has parameters, in a policy of SB3's"""
    return is_plain(policy) and policy.share_features_extractor and any(True for _ in policy.features_extractor.parameters())


def actor_features(policy: ActorCriticPolicy, observations: Any) -> th.Tensor:
    """:return: the features of the policy, and of V if they share them, as SB3's ``get_distribution`` computes them"""
    return BaseModel.extract_features(policy, observations, policy.pi_features_extractor)


def value_from_features(policy: ActorCriticPolicy, features: th.Tensor) -> th.Tensor:
    """:return: V(s) from the shared features, shape [n, 1]"""
    return policy.value_net(policy.mlp_extractor.forward_critic(features))
