"""
Policies with memory that draw from the allowed actions alone: sb3-contrib's recurrent policies with the distributions of its
maskable ones. Imported when such a policy is asked for, as sb3-contrib is an extra.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.maskable.distributions import MaskableDistribution, make_masked_proba_distribution
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.type_aliases import Schedule

from sb3_reinforce.action_masks import choices_of


class MaskableRecurrentActorCriticPolicy(RecurrentActorCriticPolicy):
    """
    As ``RecurrentActorCriticPolicy``, whose arguments it has; its methods take ``action_masks``, too.

    Masks are bool, True where allowed, shape [n, width] (see :mod:`sb3_reinforce.action_masks`); None allows all actions.
    """

    action_dist: MaskableDistribution  # type: ignore[assignment]
    _action_masks: Any = None

    def _build(self, lr_schedule: Schedule) -> None:
        # The network is the same: one logit per choice. SB3 makes it for distributions that it knows.
        self.action_dist = MultiCategoricalDistribution(list(choices_of(self.action_space)))  # type: ignore[assignment]
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> MaskableDistribution:  # type: ignore[override]
        distribution = self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi))  # type: ignore[attr-defined]
        if self._action_masks is not None:
            distribution.apply_masking(self._action_masks)
        return distribution  # type: ignore[no-any-return]

    @contextmanager
    def _masked(self, action_masks: Any) -> Iterator[None]:
        """Inside, these masks count; with None those of the method that has called this one."""
        outer = self._action_masks
        self._action_masks = outer if action_masks is None else action_masks
        try:
            yield
        finally:
            self._action_masks = outer

    def forward(  # type: ignore[override]
        self,
        obs: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        """:return: action, value and log-probability, and the next states"""
        with self._masked(action_masks):
            return super().forward(obs, lstm_states, episode_starts, deterministic)

    def get_distribution(  # type: ignore[override]
        self, obs: th.Tensor, lstm_states: tuple[th.Tensor, th.Tensor], episode_starts: th.Tensor, action_masks: Any = None
    ) -> tuple[MaskableDistribution, tuple[th.Tensor, ...]]:
        """:return: the distribution of the allowed actions, and the next states"""
        with self._masked(action_masks):
            return super().get_distribution(obs, lstm_states, episode_starts)  # type: ignore[return-value]

    def evaluate_actions(  # type: ignore[override]
        self,
        obs: th.Tensor,
        actions: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        action_masks: Any = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """:return: values, log-probabilities of the actions and entropy"""
        with self._masked(action_masks):
            return super().evaluate_actions(obs, actions, lstm_states, episode_starts)

    def predict(  # type: ignore[override]
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """:return: the actions and the next states"""
        with self._masked(action_masks):
            return super().predict(observation, state, episode_start, deterministic)


class MaskableRecurrentActorCriticCnnPolicy(MaskableRecurrentActorCriticPolicy, RecurrentActorCriticCnnPolicy):
    """For images."""


class MaskableRecurrentMultiInputActorCriticPolicy(MaskableRecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy):
    """For Dict observations."""
