"""
Checks of what users pass. Each error names the argument, the rule, the value received and a cure.

The rules of an algorithm read its constructor's arguments off the attributes of the same names.
"""

import math
import os
from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.baselines import Baseline, make_baseline
from sb3_reinforce.running.env_queries import forbids_early_resets, is_envpool
from sb3_reinforce.running.normalization import normalizing
from sb3_reinforce.schedules import make_schedule


class NotFiniteError(ValueError):
    """A loss, gradient or parameter that is NaN or infinite."""


SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """:raises ValueError: unless ``value`` is one of ``choices``"""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """:raises ValueError: unless ``value`` is True or False"""
    check_choice(name, value, (True, False))


def check_count(name: str, value: Any, optional: bool = False) -> None:
    """:raises ValueError: unless ``value`` is a whole number >= 1 (or None, where that is allowed)"""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1{' or None' if optional else ''}, got {value!r}")
    if int(value) >= 2**31:
        raise ValueError(f"{name} must be less than 2^31, got {value!r}")


def check_fraction(name: str, value: Any) -> None:
    """:raises ValueError: unless ``value`` is a number in [0, 1]"""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")


def check_positive(name: str, value: Any, optional: bool = True) -> None:
    """:raises ValueError: unless ``value`` is a finite number > 0 (or None, where that is allowed)"""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0.0 < value < math.inf:
        raise ValueError(
            f"{name} must be a finite number > 0{', or None to switch it off' if optional else ''}, got {value!r}"
        )


def check_number(name: str, value: Any) -> None:
    """:raises ValueError: unless ``value`` is a finite number"""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_episodic(given: Any) -> None:
    """:raises ValueError: for arguments of an EpisodicAlgorithm that cannot be right, whatever the environment"""
    check_choice("unfinished", given.unfinished, ("finish", "bootstrap"))
    for name in ("n_steps", "max_episode_steps"):
        check_count(name, getattr(given, name))
    for name in ("n_episodes", "freeze_normalization_after"):
        check_count(name, getattr(given, name), optional=True)
    seed = given.seed
    if seed is not None and (not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32):
        raise ValueError(f"seed must be a whole number in [0, 2^32 - 1] or None, got {seed!r}")
    check_fraction("gamma", given.gamma)
    if given.learning_rate is not None:
        make_schedule("learning_rate", given.learning_rate)
    if given.unfinished == "bootstrap" and given.n_episodes is not None:
        raise ValueError(
            f'unfinished="bootstrap" stops at n_steps, so it excludes n_episodes, got n_episodes={given.n_episodes}: '
            "leave one of them out"
        )


def check_reinforce(given: Any) -> None:
    """:raises ValueError: for arguments of a REINFORCE that cannot be right, whatever the environment"""
    check_choice("returns", given.returns, ("reward_to_go", "episode"))
    check_choice("loss_reduction", given.loss_reduction, ("episode", "step", None))
    check_choice("truncation", given.truncation, ("terminal", "bootstrap", None))
    for name in ("discount_state", "normalize_advantage", "natural_gradient"):
        check_flag(name, getattr(given, name))
    for name in ("n_epochs", "n_value_epochs", "cg_max_steps"):
        check_count(name, getattr(given, name))
    for name in ("batch_size", "chunk_size", "value_batch_size", "bptt_steps"):
        check_count(name, getattr(given, name), optional=True)
    check_positive("max_grad_norm", given.max_grad_norm)
    check_positive("cg_damping", given.cg_damping, optional=False)
    for name in ("ent_coef", "value_learning_rate", "clip_range"):
        if not (name == "value_learning_rate" and given.value_learning_rate is None):
            make_schedule(name, getattr(given, name))
    if make_schedule("target_kl", given.target_kl)(1.0) == 0.0:
        raise ValueError(f"target_kl must be > 0 at the start of training, got {given.target_kl!r}")
    if given.natural_gradient and (given.n_epochs > 1 or given.batch_size is not None):
        raise ValueError(
            "natural_gradient=True takes one step on the whole batch, as long as target_kl says, so n_epochs must be 1 and "
            f"batch_size None, got n_epochs={given.n_epochs} and batch_size={given.batch_size}"
        )

    baseline = given.baseline
    needs = make_baseline(baseline).needs
    if "greedy" in needs and given.n_episodes is None:
        raise ValueError(
            f"baseline={baseline!r} plays each reset twice, so it needs n_episodes equal to the number of environments, "
            "got n_episodes=None: give n_episodes"
        )
    for name in ("truncation", "unfinished"):
        if getattr(given, name) == "bootstrap" and "values" not in needs:
            raise ValueError(
                f'{name}="bootstrap" needs a learned value function: choose baseline="value", got baseline={baseline!r}'
            )
        if getattr(given, name) == "bootstrap" and given.returns == "episode":
            raise ValueError(
                f'{name}="bootstrap" needs returns="reward_to_go": the value of a later state is a reward-to-go, '
                'got returns="episode"'
            )
    if given.discount_state and given.returns == "episode":
        raise ValueError(
            'discount_state=True is for returns="reward_to_go": the whole-episode return is discounted from the '
            'start already, and would count gamma twice; got returns="episode"'
        )


def check_clip_range(clip_range: Any) -> None:
    """
    For training only: RL Zoo's enjoy puts a clip range of 0 into the model that it loads.

    :raises ValueError: for a clip range that would undo the first update
    """
    if make_schedule("clip_range", clip_range)(1.0) == 0.0:
        raise ValueError(f"clip_range must be > 0 at the start of training, got {clip_range!r}")


def check_inherited(
    use_sde: Any,
    sde_sample_freq: Any,
    rollout_buffer_class: Any,
    rollout_buffer_kwargs: Any,
    stats_window_size: Any,
    tensorboard_log: Any,
    verbose: Any,
    device: Any,
) -> None:
    """:raises ValueError: for arguments of Stable-Baselines3's constructor that cannot be right, and that it does not check"""
    check_flag("use_sde", use_sde)
    if sde_sample_freq != -1:
        check_count("sde_sample_freq", sde_sample_freq)
    check_count("stats_window_size", stats_window_size)
    is_class = isinstance(rollout_buffer_class, type) and issubclass(rollout_buffer_class, RolloutBuffer)
    if rollout_buffer_class is not None and not is_class:
        raise ValueError(f"rollout_buffer_class must be None or a subclass of RolloutBuffer, got {rollout_buffer_class!r}")
    if not isinstance(rollout_buffer_kwargs, dict | None):
        raise ValueError(f"rollout_buffer_kwargs must be a dict or None, got {rollout_buffer_kwargs!r}")
    if not isinstance(tensorboard_log, str | os.PathLike | None):
        raise ValueError(f"tensorboard_log must be the path of a folder or None, got {tensorboard_log!r}")
    if not isinstance(verbose, Integral) or verbose < 0:
        raise ValueError(f"verbose must be 0 for no output, 1 for rows and notes, or 2 for more, got {verbose!r}")
    try:
        th.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device must be "auto", "cpu", "cuda" or another of torch, got {device!r} ({reason})') from error


class UnsupportedSpaceError(ValueError, AssertionError, NotImplementedError):
    """A space that SB3's policies cannot serve. SB3 itself raises one of the other two, which old code may expect."""


def check_new_env(env: Any) -> None:
    """:raises ValueError: for what is no single environment and no VecEnv, or has spaces that SB3's policies cannot serve"""
    if isinstance(env, VectorEnv) or (is_envpool(env) and not isinstance(env, VecEnv)):
        raise ValueError(
            f"env must be a gymnasium.Env or a VecEnv of SB3, got the vector environment {env!r}: give VectorEnvAdapter(env), "
            "from sb3_reinforce"
        )
    if isinstance(env, (gym.Env, VecEnv)):
        check_spaces(env.observation_space, env.action_space)


def with_checked_spaces(env: gym.Env) -> gym.Env:
    """
    For ``wrapper_class`` of SB3's ``make_vec_env``: DummyVecEnv itself fails with spaces that it cannot store.

    :return: the environment
    :raises UnsupportedSpaceError: for spaces that SB3's policies cannot serve
    """
    check_spaces(env.observation_space, env.action_space)
    return env


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """:raises UnsupportedSpaceError: for spaces that SB3's policies cannot serve"""
    supported = "Box, Discrete, MultiDiscrete or MultiBinary"
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    of_text = [key for key, part in parts.items() if part.dtype is not None and part.dtype.kind in "US"]
    cure = "change it by an environment wrapper"
    problem = None
    if of_text:
        problem = ("observation_space", f"must be {supported}, or a Dict of them", observation_space)
        others = [key for key in parts if key not in of_text]
        cure = "leave out the text, by minigrid.wrappers.ImgObsWrapper (MiniGrid)" + (
            f" or gymnasium.wrappers.FilterObservation(env, {others})" if others else " or a wrapper of your own"
        )
    elif any(isinstance(part, spaces.Dict) for part in parts.values()):
        problem = ("observation_space", "must not be nested", observation_space)
        cure = "flatten it by gymnasium.wrappers.FlattenObservation"
    elif not all(isinstance(part, SPACES) for part in parts.values()):
        problem = ("observation_space", f"must be {supported}, or a Dict of them", observation_space)
        if isinstance(observation_space, spaces.Tuple):
            cure = "flatten it by gymnasium.wrappers.FlattenObservation"
    elif any(isinstance(part, spaces.Box) and part.shape == () for part in parts.values()):
        problem = ("observation_space", "must have at least one axis", observation_space)
    elif not parts or any(0 in (part.shape or ()) for part in parts.values()):
        problem = ("observation_space", "must have at least one element", observation_space)
    elif any(isinstance(part, spaces.MultiDiscrete) and len(part.shape) != 1 for part in parts.values()):
        problem = ("observation_space", "must have one axis where it is MultiDiscrete", observation_space)
    elif any(_starts_above_zero(part) for part in parts.values()):
        problem = ("observation_space", "must count from 0 (start=0)", observation_space)
    elif not isinstance(action_space, SPACES):
        problem = ("action_space", f"must be {supported}", action_space)
    elif 0 in (action_space.shape or ()):
        problem = ("action_space", "must have at least one element", action_space)
    elif isinstance(action_space, spaces.Box) and not (np.isfinite(action_space.low) & np.isfinite(action_space.high)).all():
        problem = ("action_space", "must have a finite lower and upper bound", action_space)
    elif isinstance(action_space, spaces.Box) and action_space.dtype.kind != "f":
        problem = ("action_space", "must be of floats, which are what a Gaussian draws", action_space)
    elif isinstance(action_space, (spaces.MultiDiscrete, spaces.MultiBinary)) and len(action_space.shape) != 1:
        problem = ("action_space", "must have one axis", action_space)
    elif _starts_above_zero(action_space):
        problem = ("action_space", "must count from 0 (start=0)", action_space)
    if problem:
        name, rule, space = problem
        raise UnsupportedSpaceError(f"{name} {rule}, got {space}: {cure}")


def _starts_above_zero(space: spaces.Space) -> bool:
    return isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and bool(np.any(space.start != 0))


def check_env(env: VecEnv, given: Any) -> None:
    """:raises ValueError: for arguments of an EpisodicAlgorithm that the environments cannot be trained with"""
    check_spaces(env.observation_space, env.action_space)
    n_episodes = given.n_episodes
    if n_episodes is not None and n_episodes % env.num_envs != 0:
        raise ValueError(
            f"n_episodes must be a multiple of the number of environments, so that each plays an equal share (the "
            f"first to finish would be the short ones), got n_episodes={n_episodes} and n_envs={env.num_envs}"
        )
    if given.freeze_normalization_after is not None and not normalizing(env):
        raise ValueError(
            "freeze_normalization_after is for an environment in VecNormalize, got "
            f"{given.freeze_normalization_after} and none: wrap the environment, or leave the argument out"
        )
    if given.unfinished == "finish" and forbids_early_resets(env):
        raise ValueError(
            "Monitor(allow_early_resets) must be True, because every rollout starts at a reset, got False: "
            'leave the argument out, or use unfinished="bootstrap"'
        )


def check_baseline(baseline: str | Baseline, n_episodes: int | None, n_envs: int, world_size: int) -> None:
    """:raises ValueError: for a baseline that such batches do not serve. Other ranks have other episodes."""
    made = make_baseline(baseline)
    if "greedy" in made.needs and n_episodes != n_envs:
        raise ValueError(
            f"baseline={baseline!r} plays each reset twice, so every environment must play one episode per update, "
            f"got n_episodes={n_episodes} and n_envs={n_envs}: make them equal"
        )
    if made.needs_others and world_size == 1:
        if n_episodes is None and n_envs == 1:
            raise ValueError(
                f"baseline={baseline!r} is made of other environments' episodes where n_steps sets the batch, "
                "got n_envs=1: use n_episodes >= 2 instead of n_steps, or more environments"
            )
        if n_episodes == 1:
            raise ValueError(f"baseline={baseline!r} is made of other episodes: n_episodes must be >= 2, got 1")
