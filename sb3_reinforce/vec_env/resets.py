"""Resets only the environments whose episode ended, within the same step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, NormalizeObservation, NormalizeReward, RecordEpisodeStatistics

from sb3_reinforce.running.env_queries import is_envpool
from sb3_reinforce.vec_env.kinds import is_atari_vector_env, vector_wrappers
from sb3_reinforce.vec_env.observations import equal_rows, rows

# (env, mask) -> (observations, infos): resets only the environments of the mask. Returns what `reset` returns, one row per
# environment, of which only those of the mask are read.
MaskedReset = Callable[[VectorEnv, np.ndarray], tuple[Any, dict[str, Any]]]

# (ids, mask, observations before the reset) -> (first observations of `ids`, infos, rows of `ids` in the infos, number of
# rows in the infos)
ResetEnded = Callable[[np.ndarray, np.ndarray, Any], tuple[Any, dict[str, Any], np.ndarray, int]]

# Wrappers whose statistics a reset of some environments would break, and what to do instead
_NO_PARTIAL_RESET: dict[type, str] = {
    NormalizeObservation: "use SB3's VecNormalize around the adapter",
    NormalizeReward: "use SB3's VecNormalize around the adapter, or an environment with AutoresetMode.SAME_STEP",
    RecordEpisodeStatistics: "leave it out: the adapter records every episode",
}


def choose_reset(env: Any, masked_reset: MaskedReset | None, to_arrays: Callable[[Any], Any]) -> ResetEnded | None:
    """
    :param to_arrays: turns the environment's observations into arrays
    :return: the function that resets the environments whose episode ended; None if the vector environment does so itself
    :raises ValueError: if there is no way
    """
    if is_envpool(env):
        return partial(_reset_envpool, env, to_arrays) if masked_reset is None else _ByMask(env, masked_reset, to_arrays)
    mode = env.metadata.get("autoreset_mode")
    try:
        mode = AutoresetMode(mode)
    except ValueError:
        raise ValueError(
            f"metadata['autoreset_mode'] of the vector environment must be one of {[str(m) for m in AutoresetMode]}, got "
            f"{mode!r} from {env!r}: set env.metadata['autoreset_mode'] to what the environment does when an episode ends"
        ) from None
    for wrapper in vector_wrappers(env):
        if isinstance(wrapper, DictInfoToList):
            raise ValueError("DictInfoToList cannot be inside a VectorEnvAdapter, which makes lists itself: leave it out")
        cures = [cure for kind, cure in _NO_PARTIAL_RESET.items() if isinstance(wrapper, kind)]
        if cures and mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"{type(wrapper).__name__} does not allow for resets of some environments only, which {mode} needs: {cures[0]}"
            )
    if mode is AutoresetMode.SAME_STEP:
        if masked_reset is not None:
            raise ValueError(f"masked_reset is not for {mode}, in which environments reset themselves: leave it out")
        return None
    if masked_reset is not None:
        return _ByMask(env, masked_reset, to_arrays)
    base = env.unwrapped
    if mode is AutoresetMode.DISABLED:
        # An unknown environment may ignore the mask, so the first reset is checked; not with wrappers, as these may change
        # observations at every call
        check = base is env and not isinstance(base, SyncVectorEnv | AsyncVectorEnv)
        return _ByMask(env, _gymnasium_reset, to_arrays, check)
    if isinstance(base, AsyncVectorEnv) and not (base.shared_memory and getattr(base, "worker", None) is None):
        # Without shared memory gymnasium's worker would reset a second time in the next step
        raise ValueError(
            "an AsyncVectorEnv in NEXT_STEP mode resets some environments only with shared_memory=True and gymnasium's "
            f"own worker, got shared_memory={base.shared_memory}, worker={getattr(base, 'worker', None)}: make it with "
            "autoreset_mode=AutoresetMode.SAME_STEP"
        )
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv) or is_atari_vector_env(base):
        # A masked reset also cancels the reset that the next step would do
        return _ByMask(env, _gymnasium_reset, to_arrays)
    if type(base) is CartPoleVectorEnv and base is env:
        return partial(_reset_cartpole, env)
    raise ValueError(
        f"{env!r} resets an environment in the step after its end (AutoresetMode.NEXT_STEP), which is no transition, "
        "and VectorEnvAdapter knows no way to reset some of its environments earlier: make it with "
        "AutoresetMode.SAME_STEP or DISABLED if it can, use gymnasium.make_vec(id, vectorization_mode='sync'), put "
        "wrappers around the adapter (SB3's VecEnvWrapper) instead of inside, or pass masked_reset"
    )


def _gymnasium_reset(env: VectorEnv, mask: np.ndarray) -> tuple[Any, dict[str, Any]]:
    return env.reset(options={"reset_mask": mask})


class _ByMask:
    """A masked reset as a :data:`ResetEnded`. ``check`` verifies once that the reset obeys the mask."""

    def __init__(self, env: Any, reset: MaskedReset, to_arrays: Callable[[Any], Any], check: bool = False) -> None:
        self.env, self.reset, self.to_arrays, self.check = env, reset, to_arrays, check

    def __call__(self, ids: np.ndarray, dones: np.ndarray, obs: Any) -> tuple[Any, dict[str, Any], np.ndarray, int]:
        # A copy of the mask, as the adapter returns `dones`
        all_obs, infos = self.reset(self.env, dones.copy())
        all_obs = self.to_arrays(all_obs)
        if self.check and len(ids) < len(dones):
            self.check = False
            if not equal_rows(all_obs, obs, ~dones):
                raise ValueError(
                    "reset(options={'reset_mask': mask}) of an environment with AutoresetMode.DISABLED must leave the others "
                    f"alone, but their observations changed in {self.env!r}: obey the mask in its reset, or pass "
                    "masked_reset, which is not checked"
                )
        return rows(all_obs, ids), infos, ids, len(dones)


def _reset_envpool(
    env: Any, to_arrays: Callable[[Any], Any], ids: np.ndarray, dones: np.ndarray, obs: Any
) -> tuple[Any, dict[str, Any], np.ndarray, int]:
    """EnvPool resets by index, and returns only the rows of these environments."""
    first_obs, infos = env.reset(ids.astype(np.int32))
    return to_arrays(first_obs), infos, np.arange(len(ids)), len(ids)


def _reset_cartpole(env: Any, ids: np.ndarray, dones: np.ndarray, obs: Any) -> tuple[Any, dict[str, Any], np.ndarray, int]:
    """CartPoleVectorEnv takes no mask. Write its state as its own next step would, with the same random draws."""
    state = env.np_random.uniform(low=env.low, high=env.high, size=(4, len(ids)))
    env.state[:, ids] = state
    env.steps[ids] = 0
    env.prev_done[ids] = False
    return state.T.astype(np.float32), {}, ids, len(dones)
