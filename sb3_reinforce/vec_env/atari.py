"""Atari games in ale-py's ``AtariVectorEnv``: emulation, preprocessing and frame stack in C++ threads."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode
from stable_baselines3.common import atari_wrappers as sb3
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_reinforce.vec_env.adapter import MonitorFile, VectorEnvAdapter

NO_ALE = 'Atari games need ale-py: pip install "sb3-reinforce[atari]"'
PARTS_OF_ATARI_WRAPPER = (
    *(sb3.AtariWrapper, sb3.StickyActionEnv, sb3.NoopResetEnv, sb3.MaxAndSkipEnv, sb3.EpisodicLifeEnv, sb3.FireResetEnv),
    *(sb3.WarpFrame, sb3.ClipRewardEnv),
)
# Arguments of AtariEnv with the value that AtariVectorEnv always has, and arguments of AtariVectorEnv that are not env_kwargs
_AS_IT_IS = (("obs_type", "rgb"), ("obs_type", "grayscale"), ("mode", None), ("difficulty", None), ("render_mode", None))
_NOT_OF_GAME = (
    *("num_envs", "autoreset_mode", "reward_clipping", "episodic_life", "life_loss_info", "stack_num", "noop_max"),
    *("frameskip", "maxpool", "img_height", "img_width", "batch_size", "grayscale"),
)


class AtariAdapter(VectorEnvAdapter):
    """
    An ``AtariVectorEnv`` in SAME_STEP mode, made without reward clipping, which would hide the score.

    ``info["episode"]`` has the score and the number of steps of whole games.

    :param clip_reward: whether rewards are -1, 0 or 1, by their sign
    :param terminal_on_life_loss: whether an episode ends with each life. The game goes on, but for the reset of all
        environments that begins a rollout, which starts new games
    :param monitor_file: see :class:`VectorEnvAdapter`
    """

    def __init__(
        self, env: Any, clip_reward: bool, terminal_on_life_loss: bool, monitor_file: MonitorFile | None = None
    ) -> None:
        super().__init__(env, monitor_file=monitor_file)
        self.clip_reward, self.terminal_on_life_loss = clip_reward, terminal_on_life_loss
        self._lives = np.zeros(self.num_envs, dtype=np.int32)

    def reset(self) -> VecEnvObs:
        obs = super().reset()
        self._lives = np.array([info["lives"] for info in self.reset_infos])
        return obs

    def _step(self, actions: np.ndarray) -> VecEnvStepReturn:
        obs, rewards, dones, infos = super()._step(actions)
        if self.terminal_on_life_loss:
            lives = infos.arrays["lives"]  # type: ignore[attr-defined]
            # As in SB3's EpisodicLifeEnv: with the last life the game ends, for some games a few steps later
            lost = (lives < self._lives) & (lives > 0) & ~dones
            self._lives = lives
            if lost.any():
                dones = dones | lost
                for i in lost.nonzero()[0].tolist():
                    infos[i] = {**infos[i], "terminal_observation": obs[i].copy()}  # type: ignore[call-overload, index]
        return obs, np.sign(rewards) if self.clip_reward else rewards, dones, infos


def is_atari(spec: EnvSpec | None) -> bool:
    """:return: whether it is one of ale-py's games"""
    return spec is not None and isinstance(spec.entry_point, str) and spec.entry_point.endswith(":AtariEnv")


def make_atari_env(
    env_id: str | EnvSpec,
    n_envs: int = 1,
    seed: int | None = None,
    frame_stack: int = 4,
    wrapper_kwargs: dict[str, Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    monitor_file: MonitorFile | None = None,
) -> AtariAdapter:
    """
    Make what SB3's ``make_atari_env`` and ``VecFrameStack`` make together, from one ``AtariVectorEnv``.

    Images are those of ``AtariWrapper`` up to the maximum over two frames, which is taken of grey values here, of colours
    there; channels come first. A step is ``frame_skip`` frames, whatever the id says.

    :param env_id: such as ``"ALE/Pong-v5"`` (repeats actions with probability 0.25) or ``"PongNoFrameskip-v4"`` (never does)
    :param n_envs: number of games
    :param seed: of the first game; the others count up
    :param frame_stack: frames in an observation
    :param wrapper_kwargs: ``noop_max=30``, ``frame_skip=4``, ``screen_size=84``, ``terminal_on_life_loss=False`` and
        ``clip_reward=True``, which are ``AtariWrapper``'s but for the lives
    :param env_kwargs: arguments of ``AtariEnv``, such as ``full_action_space``, and of ``AtariVectorEnv``: ``num_threads``
    :param monitor_file: path of a CSV file with one row per game; None: no file
    :return: observations of shape [n_envs, frame_stack, screen_size, screen_size], uint8
    :raises DependencyNotInstalled: without ale-py
    :raises ValueError: for an id that is no Atari game, and for arguments that ``AtariVectorEnv`` does not have
    """
    try:
        import ale_py  # noqa: F401  optional: the extra `atari`; registers the games
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise DependencyNotInstalled(f"{NO_ALE} ({error})") from error
    spec = gym.spec(env_id) if isinstance(env_id, str) else env_id
    if not is_atari(spec):
        raise ValueError(f"make_atari_env needs the id of an Atari game, such as 'ALE/Pong-v5', got {spec.id!r}")
    wrapper: dict[str, Any] = {
        "noop_max": 30,
        "frame_skip": 4,
        "screen_size": 84,
        "terminal_on_life_loss": False,
        "clip_reward": True,
    }
    _check_known("wrapper_kwargs", wrapper_kwargs or {}, wrapper)
    wrapper |= wrapper_kwargs or {}
    given = {**spec.kwargs, **(env_kwargs or {})}
    # frame_skip says how many frames a step has
    own = {key: value for key, value in given.items() if key != "frameskip" and (key, value) not in _AS_IT_IS}
    _check_known(
        "env_kwargs", own, [name for name in inspect.signature(AtariVectorEnv).parameters if name not in _NOT_OF_GAME]
    )
    env = AtariVectorEnv(
        num_envs=n_envs,
        autoreset_mode=AutoresetMode.SAME_STEP,
        reward_clipping=False,
        episodic_life=False,  # would start a new game with each life
        stack_num=frame_stack,
        noop_max=wrapper["noop_max"],
        frameskip=wrapper["frame_skip"],
        maxpool=wrapper["frame_skip"] > 1,
        img_height=wrapper["screen_size"],
        img_width=wrapper["screen_size"],
        **own,
    )
    env.spec = spec
    adapter = AtariAdapter(env, wrapper["clip_reward"], wrapper["terminal_on_life_loss"], monitor_file)
    if seed is not None:
        adapter.seed(seed)
    return adapter


def _check_known(name: str, given: Any, known: Any) -> None:
    if wrong := [key for key in given if key not in known]:
        raise ValueError(
            f"{name} must be some of {', '.join(known)} for AtariVectorEnv, got {', '.join(wrong)}: leave it out, or play "
            "single environments (SB3's make_atari_env; in a config without vectorize)"
        )


def read_atari_wrapper(env: gym.Env) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Read the arguments of an ``AtariWrapper`` off its parts.

    :param env: a single game
    :return: ``wrapper_kwargs`` and ``env_kwargs`` of :func:`make_atari_env`
    :raises ValueError: without an ``AtariWrapper``, or if something would be done twice
    """
    parts: dict[type, Any] = {}
    while isinstance(env, gym.Wrapper):
        parts[type(env)] = env
        env = env.env
    spec = env.spec
    assert spec is not None, "it is one of ale-py's"
    if sb3.AtariWrapper not in parts:
        raise ValueError(
            f"{spec.id} as a vector environment has AtariWrapper's preprocessing inside, so the config must have it, too, to "
            "play single games: env_wrapper: stable_baselines3.common.atari_wrappers.AtariWrapper"
        )
    if spec.kwargs["frameskip"] != 1:
        raise ValueError(
            f"AtariWrapper skips frames, and {spec.id} does so itself (frameskip={spec.kwargs['frameskip']}): give env_kwargs "
            "{'frameskip': 1}"
        )
    if sb3.StickyActionEnv in parts:
        raise ValueError(
            "AtariVectorEnv repeats actions itself: give env_kwargs {'repeat_action_probability': "
            f"{parts[sb3.StickyActionEnv].action_repeat_probability}}} instead of AtariWrapper's action_repeat_probability"
        )
    wrapper_kwargs = {
        "noop_max": parts[sb3.NoopResetEnv].noop_max if sb3.NoopResetEnv in parts else 0,
        "frame_skip": parts[sb3.MaxAndSkipEnv]._skip if sb3.MaxAndSkipEnv in parts else 1,
        "screen_size": parts[sb3.WarpFrame].width,
        "terminal_on_life_loss": sb3.EpisodicLifeEnv in parts,
        "clip_reward": sb3.ClipRewardEnv in parts,
    }
    return wrapper_kwargs, spec.kwargs
