"""Histograms, pictures and videos, as W&B's types."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Figure, HParam, Image, Video
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, sync_envs_normalization

from sb3_reinforce.tracking.metrics import STATISTICS

if TYPE_CHECKING:
    import wandb

# Longest video: 20 s at 50 frames a second
MAX_FRAMES = 1000


def histogram(values: np.ndarray, discrete: bool = False, bins: int = 20) -> "wandb.Histogram | None":
    """
    The distribution of values of any shape, without NaN and infinity; None if nothing is left.

    :param discrete: whether they are small whole numbers, so that each has its own bin
    """
    import wandb

    finite = th.as_tensor(values[np.isfinite(values)], dtype=th.float64)
    if not len(finite):
        return None
    edges: int | th.Tensor = bins
    # 511: the most bins that W&B takes
    if discrete and finite.max() - finite.min() < 511:
        edges = th.arange(finite.min().item() - 0.5, finite.max().item() + 1, dtype=th.float64)
    # four times as fast as np.histogram
    counts, edges = th.histogram(finite, edges)
    return wandb.Histogram(np_histogram=(counts.long().numpy(), edges.numpy()))


def episode_statistics(episodes: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Statistics of episodes' returns and lengths by metric; histograms are functions, for a background thread to call."""
    array = np.array(episodes, dtype=np.float64)
    found: dict[str, Any] = {}
    for statistic in STATISTICS:
        for name, value in zip(("return", "length"), getattr(array, statistic)(axis=0).tolist(), strict=True):
            found[f"rollout/ep_{name}_{statistic}"] = value
    found["rollout/ep_return_hist"] = partial(histogram, array[:, 0])
    found["rollout/ep_length_hist"] = partial(histogram, array[:, 1])
    return found


def step_histograms(model: BaseAlgorithm) -> dict[str, Any]:
    """Histograms of the last 10,000 steps in a model's buffer by metric, as functions for a background thread to call."""
    buffer = getattr(model, "rollout_buffer", None)
    names: tuple[str, ...] = ("returns", "advantages", "actions")
    if buffer is None:
        buffer, names = getattr(model, "replay_buffer", None), ("actions",)
    n_rows = 0 if buffer is None else buffer.size()
    if not n_rows:
        return {}
    discrete = isinstance(model.action_space, spaces.Discrete | spaces.MultiDiscrete)
    found: dict[str, Any] = {}
    for name in names:
        # a copy, because the thread reads it during the next rollout
        values = np.array(getattr(buffer, name)[:n_rows][-10_000:])
        found[f"histogram/{name}"] = partial(histogram, values, discrete and name == "actions")
    return found


def to_wandb(value: Any) -> Any:
    """Convert the argument of ``logger.record`` to a number or one of W&B's media; to None if it is not logged."""
    import wandb

    if value is None or isinstance(value, str | HParam):
        return None
    if isinstance(value, Video):
        # SB3 records [1, time, channel, height, width]; W&B wants the video alone. Frames may be floats in [0, 1].
        frames = value.frames.detach().cpu()
        if frames.is_floating_point():
            frames = (frames * 255).round().clamp(0, 255)
        return wandb.Video(frames[0].to(th.uint8).numpy(), fps=int(value.fps), format="mp4")
    if isinstance(value, Figure):
        import PIL.Image

        # as pixels: with the figure itself W&B fails unless pyplot was imported
        png = io.BytesIO()
        value.figure.savefig(png, format="png")
        return wandb.Image(PIL.Image.open(png))
    if isinstance(value, Image):
        if isinstance(value.image, str):
            return wandb.Image(value.image)
        return wandb.Image(_height_width_channel(value.image, value.dataformats))
    if isinstance(value, th.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | list | tuple):
        array = np.asarray(value)
        if array.size == 0 or array.dtype.kind not in "biuf":
            return None
        return array.item() if array.size == 1 else histogram(array, bins=64)
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, bool | int | float) else None


def _height_width_channel(image: th.Tensor | np.ndarray, dataformats: str) -> np.ndarray:
    """
    :param dataformats: the meaning of the axes in TensorBoard's letters: HW, HWC, CHW, NHWC, NCHW, ...
    :return: the pixels, shape [H, W] or [H, W, C], of the first image of a batch
    :raises ValueError: if the letters do not fit the image
    """
    pixels = image.detach().cpu().numpy() if isinstance(image, th.Tensor) else np.asarray(image)
    axes = dataformats.upper()
    if len(axes) != pixels.ndim or len(set(axes)) != len(axes) or not {"H", "W"} <= set(axes) <= set("NHWC"):
        raise ValueError(
            f"dataformats must name each axis of the image once, out of NHWC, got {dataformats!r} for {pixels.shape}"
        )
    if "N" in axes:
        pixels = pixels.take(0, axis=axes.index("N"))
        axes = axes.replace("N", "")
    return pixels.transpose([axes.index(axis) for axis in "HWC" if axis in axes])


def make_video_env(env: gym.Env | str, model: BaseAlgorithm) -> VecEnv:
    """:return: one environment for videos, with the model's VecNormalize and order of image axes"""
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
    Play and film one deterministic episode in the first of the environments; no random number of the model is used.

    :return: frames [T, channel, height, width], uint8, at most ``MAX_FRAMES``; frames per second; the episode's return
    :raises ValueError: if the environment does not render to arrays
    """
    if model.get_vec_normalize_env() is not None and isinstance(env, VecNormalize):
        assert model.env is not None
        sync_envs_normalization(model.env, env)
    observations, total_reward, frames = env.reset(), 0.0, []
    state, dones = None, np.ones(env.num_envs, dtype=bool)
    for _ in range(MAX_FRAMES):
        frame = env.get_images()[0] if env.render_mode == "rgb_array" else None
        if frame is None:
            raise ValueError(f"video_env must have render_mode='rgb_array', got {env.render_mode!r}")
        frames.append(np.asarray(frame, dtype=np.uint8))
        # A maskable policy finds the masks of the local variables env, dones and infos.
        actions, state = model.predict(observations, state, dones, deterministic=True)  # type: ignore[arg-type]
        observations, rewards, dones, infos = env.step(actions)  # noqa: RUF059
        total_reward += float(rewards[0])
        if dones[0]:
            break
    fps: Any = (env.metadata or {}).get("render_fps", 30)
    return np.stack(frames).transpose(0, 3, 1, 2), int(fps), total_reward


def encode_video(frames: np.ndarray, fps: int, caption: str, warn: Callable[..., None]) -> "wandb.Video | None":
    """Encode frames [T, channel, height, width], uint8, as W&B's video; None and a warning if that fails."""
    import wandb

    try:
        return wandb.Video(frames, fps=fps, format="mp4", caption=caption)
    except Exception as error:
        warn("a video was not encoded", error, about="videos")
        return None
