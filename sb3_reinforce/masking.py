"""Training and predicting with action masks, for policies that draw from the allowed actions alone."""

import inspect
import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.action_masks import (
    KEY,
    ActionMasks,
    as_masks,
    check_choices,
    check_not_normalized,
    choices_of,
    masks_for,
    state_of_caller,
    takes_masks,
)
from sb3_reinforce.observations import by_key
from sb3_reinforce.policies import is_recurrent_class, name_of
from sb3_reinforce.running import ranks
from sb3_reinforce.running.env_queries import offers_action_masks
from sb3_reinforce.running.resumable import ResumableAlgorithm


class MaskingAlgorithm(ResumableAlgorithm):
    """An on-policy algorithm whose policy may take action masks; the base of ``EpisodicAlgorithm``."""

    # Of the environments that are being played, if the policy takes them
    _masks: ActionMasks | None = None
    # Infos of the step that _last_obs comes from; where an environment has just been reset, others count
    _last_infos: Any = ()
    _warned_of_masks = False
    # Whether V(s) of each step is wanted
    _samples_values = False

    def _setup_model(self) -> None:
        if not takes_masks(self.policy_class):
            super()._setup_model()
            return
        if not choices_of(self.action_space):
            raise ValueError(
                f"{self._policy_name()} masks Discrete, MultiDiscrete and MultiBinary actions, got {self.action_space}: use "
                "MlpPolicy, CnnPolicy or MultiInputPolicy, and limit the actions in the environment"
            )
        given_class, given_buffer = self.policy_class, self.rollout_buffer_class
        from sb3_contrib.common.maskable import buffers  # only now, because it is an extra

        is_dict = isinstance(self.observation_space, spaces.Dict)
        usual: Any = buffers.MaskableDictRolloutBuffer if is_dict else buffers.MaskableRolloutBuffer
        self.rollout_buffer_class = given_buffer or usual
        if "use_sde" not in inspect.signature(given_class).parameters:  # which SB3 gives to every policy
            self.policy_class = lambda *args, use_sde, **kwargs: given_class(*args, **kwargs)  # type: ignore[assignment]
        try:
            super()._setup_model()
        finally:
            # A saved model need not name the usual one.
            self.policy_class, self.rollout_buffer_class = given_class, None if given_buffer is usual else given_buffer
        if not hasattr(self.rollout_buffer, "action_masks"):
            raise ValueError(
                f"rollout_buffer_class must keep action_masks for {self._policy_name()}, got {given_buffer}: leave it out, or "
                "give a subclass of sb3-contrib's MaskableRolloutBuffer"
            )

    def _policy_name(self) -> str:
        return name_of(self.policy_class) or self.policy_class.__name__

    def _check_env(self) -> None:
        super()._check_env()
        assert self.env is not None, "checked above"
        if takes_masks(self.policy_class) or self._warned_of_masks:
            return
        space = self.env.observation_space
        # A policy of the user's own may read the key itself.
        in_key = isinstance(space, spaces.Dict) and KEY in space.spaces and self._policy_name() in self.policy_aliases
        if in_key or offers_action_masks(self.env):
            self._warn_of_masks(f'key "{KEY}" of the observations' if in_key else "method action_masks")

    def _warn_of_masks(self, source: str) -> None:
        """Warn once of masks, which the policy does not take."""
        if choices_of(self.action_space) and not self._warned_of_masks:
            self._warned_of_masks = True
            if ranks.rank() == 0:
                name = self._policy_name()
                maskable = f"Maskable{name}" if f"Maskable{name}" in self.policy_aliases else "MaskableMlpPolicy"
                warnings.warn(
                    f"the environment has action masks ({source}), which {name} does not take: it also draws the actions that "
                    f'they forbid (said once). Use "{maskable}", or let the environment accept every action',
                    stacklevel=2,
                )

    def _find_masks(self, env: VecEnv) -> ActionMasks | None:
        """
        :param env: behind its first reset
        :return: its masks, if the policy takes them
        :raises ValueError: if it does and there are none, or ``VecNormalize`` changes them
        """
        masks = ActionMasks(env)
        if not takes_masks(self.policy_class):
            if masks.source == "info":  # which is not known before the first reset
                self._warn_of_masks(f'info["{KEY}"]')
            return None
        if masks.source is None:
            raise ValueError(
                f"{self._policy_name()} needs an environment with action masks, got none: give it a method action_masks() (or "
                f'wrap it in ActionMasker of sb3-contrib), a key "{KEY}" of Dict observations, or info["{KEY}"] from reset() '
                "and step(); without masks use MlpPolicy, CnnPolicy or MultiInputPolicy"
            )
        check_not_normalized(env)
        return masks

    def _read_masks(self, step: int) -> np.ndarray | None:
        """:return: which actions are allowed now, bool, shape [n_envs, width]; None: all"""
        if self._masks is None:
            return None
        assert self._last_episode_starts is not None, "set by the reset"
        return self._masks.read(self._last_obs, self._last_episode_starts, self._last_infos, step)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation (and optional hidden state).

        :param observation: the input observation
        :param state: The last hidden states (can be None, used in recurrent policies)
        :param episode_start: where episodes begin and hidden states are reset (can be None, used in recurrent policies)
        :param deterministic: Whether or not to return deterministic actions.
        :param action_masks: which actions are allowed, for a maskable policy. None: those in the observation
            (``"action_mask"``), or of the environment that ``evaluate_policy``, ``EvalCallback`` or RL Zoo's ``enjoy`` plays;
            where there are none, all are allowed, with one warning
        :return: the model's action and the next hidden state (used in recurrent policies)
        :raises ValueError: for masks of a wrong width or type, or that forbid everything, and for a policy that takes none
        """
        if not takes_masks(self.policy_class):
            if action_masks is not None:
                raise ValueError(f"action_masks is for maskable policies such as MaskableMlpPolicy, got {self._policy_name()}")
            return super().predict(observation, state, episode_start, deterministic)
        several = self.policy.is_vectorized_observation(observation)
        n_rows = len(next(iter(by_key(observation).values()))) if several else 1
        masks = masks_for(observation, n_rows) if action_masks is None else action_masks
        if masks is None:
            if not self._warned_of_masks:
                self._warned_of_masks = True
                warnings.warn(
                    f"predict() of {self._policy_name()} got no action_masks and found none, so that all actions are allowed "
                    "(said once): pass action_masks=get_action_masks(env), of sb3_contrib.common.maskable.utils",
                    stacklevel=2,
                )
        else:
            masks = as_masks(masks if several else [masks], n_rows, self.action_space, " in predict()")
            check_choices(masks[None], self.action_space, "of predict()")
        if state is None and is_recurrent_class(self.policy_class):
            state = state_of_caller()
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks=masks)  # type: ignore[call-arg]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_masks", "_last_infos"]
