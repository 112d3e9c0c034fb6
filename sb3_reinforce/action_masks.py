"""
Action masks: which actions each environment allows now. Found where sb3-contrib finds them, and in two places more.

A mask is bool, True where allowed. It has one element per action of a Discrete space, per choice of each part of a
MultiDiscrete space laid end to end, and two (for 0 and for 1) per bit of a MultiBinary space, as in sb3-contrib.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_normalize

from sb3_reinforce.observations import by_key
from sb3_reinforce.running.env_queries import offers_action_masks

METHOD = "action_masks"  # of the environments, as in sb3-contrib
KEY = "action_mask"  # of Dict observations or infos, as in PettingZoo and gymnasium's Taxi
# Whose functions play an environment that they call ``env``: SB3's evaluate_policy, RL Zoo's enjoy and record_video
PLAYERS = ("stable_baselines3", "rl_zoo3", "sb3_reinforce")
BOOL = np.dtype(bool)


@cache
def takes_masks(policy_class: Any) -> bool:
    """:return: whether the policy can draw from the allowed actions alone, as those of sb3-contrib for MaskablePPO"""
    methods = (getattr(policy_class, name, None) for name in ("get_distribution", "evaluate_actions"))
    return any(METHOD in inspect.signature(method).parameters for method in methods if callable(method))


def choices_of(space: spaces.Space) -> tuple[int, ...]:
    """:return: how many choices each part of an action has; empty for actions that cannot be masked (Box)"""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.flatten().tolist())
    return (2,) * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else ()


def as_masks(given: Sequence[Any] | np.ndarray, n_rows: int, space: spaces.Space, where: str) -> np.ndarray:
    """
    :param given: one mask per row
    :param space: of the actions
    :param where: for the message, behind "of environment i"
    :return: the masks, bool, shape [n_rows, width]
    :raises ValueError: for a mask of another width, or with other elements than True and False (or 1 and 0)
    """
    width = sum(choices_of(space))
    given = given if hasattr(given, "__len__") else [given]
    masks = _as_array(given)
    if masks is None or len(masks) != n_rows or masks.size != n_rows * width:
        if len(given) != n_rows:
            raise ValueError(f"action_masks must hold one mask for each of {n_rows} observations, got {len(given)}{where}")
        sizes = [-1 if (array := _as_array(mask)) is None else array.size for mask in given]
        row = next(i for i, size in enumerate(sizes) if size != width)
        raise ValueError(
            f"an action mask must have {width} elements for {space}, one per choice, got {given[row]!r} of environment "
            f"{row}{where}"
        )
    masks = masks.reshape(n_rows, width)
    if masks.dtype is BOOL:
        return masks
    allowed = masks == 1
    if masks.dtype.kind not in "biuf" or not np.array_equal(allowed, masks != 0):
        row = next((i for i, mask in enumerate(masks.tolist()) if any(each not in (0, 1) for each in mask)), 0)
        raise ValueError(
            "an action mask must be True (or 1) where an action is allowed and False (or 0) where it is not, got "
            f"{given[row]!r} of environment {row}{where}"
        )
    return allowed


def _as_array(given: Any) -> np.ndarray | None:
    try:
        return np.asarray(given)
    except ValueError:  # masks of different lengths
        return None


def check_choices(masks: np.ndarray, space: spaces.Space, where: str = "of the rollout", first_step: int = 0) -> None:
    """
    :param masks: bool, shape [T, n_envs, width]; the first row is step ``first_step``
    :raises ValueError: if one forbids all choices of an action, or of a part of it
    """
    choices = choices_of(space)
    some = np.logical_or.reduceat(masks, np.cumsum((0, *choices[:-1])), axis=-1)
    if not some.all():
        step, env_index, part = np.argwhere(~some)[0].tolist()
        of_part = f" of part {part}" if len(choices) > 1 else ""
        raise ValueError(
            f"an action mask must allow one action at least, got one that forbids all {choices[part]}{of_part} of environment "
            f"{env_index} at step {step + first_step} {where}: end the episode where no action is left, or mend the mask"
        )


class ActionMasks:
    """
    The masks of a VecEnv: from the environments' method ``action_masks()``, which ``ActionMasker`` gives to any environment;
    else from the key ``"action_mask"`` of Dict observations; else from ``info["action_mask"]`` of every reset and step.

    :param env: after its first reset
    """

    def __init__(self, env: VecEnv):
        self.env, self.space = env, env.action_space
        #: None: there are none
        self.source: str | None = None
        self._methods: list[Any] | None = None
        if offers_action_masks(env):
            self.source = "method"
            # Asking each environment for its method takes as long as calling it.
            if _is_plain(env):
                self._methods = [single.get_wrapper_attr(METHOD) for single in env.unwrapped.envs]  # type: ignore[attr-defined]
        elif isinstance(env.observation_space, spaces.Dict) and KEY in env.observation_space.spaces:
            self.source = "observation"
        elif any(KEY in (info or ()) for info in getattr(env.unwrapped, "reset_infos", None) or ()):
            self.source = "info"

    def read(self, observations: Any, starts: np.ndarray, infos: Any, step: int | None = None) -> np.ndarray:
        """
        :param observations: of all environments, now
        :param starts: which environments have just been reset, shape [n_envs]
        :param infos: of the last step
        :param step: steps played so far, if they are known, for messages
        :return: which actions are allowed now: bool, shape [n_envs, width]
        :raises ValueError: for a mask of a wrong width or type
        """
        if self._methods is not None:
            masks: Any = [method() for method in self._methods]
        elif self.source == "method":
            masks = self.env.env_method(METHOD)
            # A vector environment without single environments inside answers once, for all.
            masks = masks[0] if np.ndim(masks[0]) == 2 and len(masks[0]) == self.env.num_envs else masks
        elif self.source == "observation":
            masks = observations[KEY]
        else:
            masks = self._of_infos(starts, infos)
        return as_masks(masks, self.env.num_envs, self.space, "" if step is None else f" at step {step}")

    def _of_infos(self, starts: np.ndarray, infos: Any) -> Any:
        resets: Any = self.env.unwrapped.reset_infos
        if hasattr(infos, "column") and (masks := infos.column(KEY)) is not None:  # of VectorEnvAdapter, one array
            for i in starts.nonzero()[0].tolist():
                masks[i] = resets[i].get(KEY)
            return masks
        return [(resets if start else infos)[i].get(KEY) for i, start in enumerate(starts.tolist())]


def _is_plain(env: VecEnv) -> bool:
    """Whether ``env_method`` is DummyVecEnv's."""
    while isinstance(env, VecEnvWrapper) and type(env).env_method is VecEnvWrapper.env_method:
        env = env.venv
    return type(env) is DummyVecEnv


def check_not_normalized(env: VecEnv) -> None:
    """:raises ValueError: if ``VecNormalize`` changes the masks in the observations"""
    normalize = unwrap_vec_normalize(env)
    keys = [] if normalize is None or not normalize.norm_obs else list(normalize.norm_obs_keys or ())
    if KEY in keys:
        raise ValueError(
            f"VecNormalize must leave the action masks as they are, got norm_obs_keys={keys}: give "
            f"norm_obs_keys={[key for key in keys if key != KEY]}"
        )


def masks_for(observation: Any, n_rows: int) -> Any:
    """
    The masks that belong to observations which ``predict`` was given without any.

    They are in the observations, or the environment has them. That is found where it is played by SB3's ``evaluate_policy``
    (and so ``EvalCallback``) or RL Zoo's ``enjoy`` and ``record_video``: the local variable ``env`` of the calling function.

    :param n_rows: number of observations
    :return: one mask per row; None: none were found
    """
    if KEY in by_key(observation):
        return by_key(observation)[KEY]
    package, names = _caller_of_predict()
    env = names.get("env")
    if package not in PLAYERS or not isinstance(env, VecEnv) or env.num_envs != n_rows:
        return None
    masks = ActionMasks(env)
    if masks.source is None:
        return None
    started = names.get("dones", names.get("done"))
    starts = np.ones(n_rows, dtype=bool) if started is None else started
    infos = names.get("infos", getattr(env.unwrapped, "buf_infos", None))
    if masks.source == "info" and infos is None and not starts.all():
        return None
    return masks.read(observation, starts, infos)


def state_of_caller() -> Any:
    """:return: the state that ``predict`` has returned to sb3-contrib's ``evaluate_policy``, which does not pass it on"""
    package, names = _caller_of_predict()
    return names.get("state") if package == "sb3_contrib" else None


def _caller_of_predict() -> tuple[str, Mapping[str, Any]]:
    """:return: the package of the function that has called ``predict``, and its local variables"""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "predict" and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__package__")).partition(".")[0], frame.f_locals
