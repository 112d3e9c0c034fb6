"""Settings for environments whose observations are images, where the config has no entry of their own."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.preprocessing import is_image_space

from sb3_reinforce.arguments import check_spaces
from sb3_reinforce.policy_checks import SMALLEST_IMAGE

NOT_NORMALIZED = "{'norm_obs': False}"


def observation_space(env_id: str, entry: Mapping[str, Any], env_kwargs: Mapping[str, Any]) -> spaces.Space:
    """
    Make an environment, to see what it shows.

    :param entry: its hyperparameters, of which ``env_wrapper`` counts
    :raises UnsupportedSpaceError: for spaces that SB3's policies cannot serve
    """
    env = gym.make(env_id, **{**(entry.get("env_kwargs") or {}), **env_kwargs})
    wrap = get_wrapper_class(dict(entry))
    env = env if wrap is None else wrap(env)
    space = env.observation_space
    check_spaces(space, env.action_space)
    env.close()
    return space


def settings_for_images(space: spaces.Space, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """
    :param given: hyperparameters that the user has chosen
    :return: hyperparameters to use instead of those of the entry ``default``; why, in words. Both are empty without images
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    images = [part for part in parts.values() if is_image_space(part) and isinstance(part, spaces.Box)]
    if not images:
        return {}, ""
    shape = " x ".join(map(str, images[0].shape))
    if any(_side(image) < SMALLEST_IMAGE for image in images):
        return {}, f"images of {shape}, too small for convolutions, so they are taken as vectors"
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy"
    chosen = {"policy": policy, "normalize": NOT_NORMALIZED}
    chosen = {key: value for key, value in chosen.items() if key not in given}
    settings = ", ".join(f"{key}: {value}" for key, value in chosen.items()) or "what you gave"
    return chosen, f"images of {shape} and has no entry, so it gets {settings} (-params changes that)"


def _side(image: spaces.Box) -> int:
    """The shorter side of an image; of three axes the shortest is that of the channels."""
    assert image.shape is not None, "it is a Box"
    return sorted(image.shape)[-2]


def images_in(space: spaces.Space) -> list[str | None]:
    """:return: the keys of images in a Dict; [None] for an image alone"""
    parts: Mapping[Any, spaces.Space] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    return [key for key, part in parts.items() if is_image_space(part)]
