"""Videos of evaluation episodes."""

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, sync_envs_normalization

# An episode may be long; 20 s of film at 50 frames a second
MAX_FRAMES = 1000


def make_video_env(env: gym.Env | str, model: BaseAlgorithm) -> VecEnv:
    """
    An environment that a model can play in as it does in training.

    :param env: an environment with ``render_mode="rgb_array"``, or the id of one
    :param model: its VecNormalize and its order of image axes are taken over
    :return: one environment
    """
    if isinstance(env, str):
        made: VecEnv = make_vec_env(env, env_kwargs={"render_mode": "rgb_array"})
    else:
        made = DummyVecEnv([lambda: env])
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        settings = {name: getattr(normalize, name) for name in ("norm_obs", "clip_obs", "epsilon", "norm_obs_keys")}
        made = VecNormalize(made, training=False, norm_reward=False, **settings)
    return model._wrap_env(made, verbose=0, monitor_wrapper=False)


def record_episode(model: BaseAlgorithm, env: VecEnv) -> tuple[np.ndarray, int, float]:
    """
    Play one deterministic episode with the model and film it.

    :param model: plays; its random numbers are not used
    :param env: has ``render_mode="rgb_array"``; of several environments the first is shown
    :return: frames [T, channel, height, width], uint8, at most ``MAX_FRAMES``; frames per second; the episode's return
    :raises ValueError: if the environment does not render to arrays
    """
    if model.get_vec_normalize_env() is not None and isinstance(env, VecNormalize):
        assert model.env is not None
        sync_envs_normalization(model.env, env)
    observations, total_reward, frames = env.reset(), 0.0, []
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    for _ in range(MAX_FRAMES):
        frame = env.get_images()[0] if env.render_mode == "rgb_array" else None
        if frame is None:
            raise ValueError(f"video_env must have render_mode='rgb_array', got {env.render_mode!r}")
        frames.append(np.asarray(frame, dtype=np.uint8))
        actions, state = model.predict(
            observations,  # type: ignore[arg-type]
            state=state,
            episode_start=starts,
            deterministic=True,
        )
        observations, rewards, starts, _ = env.step(actions)
        total_reward += float(rewards[0])
        if starts[0]:
            break
    fps: Any = (env.metadata or {}).get("render_fps", 30)
    return np.stack(frames).transpose(0, 3, 1, 2), int(fps), total_reward
