"""
Gymnasium vector environments and EnvPool as Stable-Baselines3 ``VecEnv``.

A vector environment steps all its environments in one call, often far faster than ``DummyVecEnv``, which calls one
environment after the other. The two interfaces differ in what a step is at the end of an episode:

===========  ======================================================================================================
autoreset    what ``step`` returns for an environment whose episode ends
===========  ======================================================================================================
SB3          the first observation of the next episode; the last one is ``info["terminal_observation"]``
SAME_STEP    the same, with the last observation in ``infos["final_obs"]``
DISABLED     the last observation; the caller resets, with ``reset(options={"reset_mask": mask})``
NEXT_STEP    the last observation; the *next* step ignores the action, resets, and returns reward 0. That step is no
             transition: learnt from, it teaches that any action leads from the end of an episode to the start of one
===========  ======================================================================================================

:class:`VectorEnvAdapter` gives SB3's step for all of them. In NEXT_STEP mode it resets the environments that ended at
once, so that the step that is no transition never happens.
"""

import copy
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import index as as_index
from typing import Any, SupportsIndex, overload

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import DictInfoToList, NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

# How a user's environment resets the environments of a mask and no other: as `reset`, one row per environment,
# of which only those of the mask are read.
MaskedReset = Callable[[VectorEnv, np.ndarray], tuple[Any, dict[str, Any]]]

# First observations of the environments that were reset, infos, the environments' rows in the infos, rows of the infos
ResetRows = tuple[Any, dict[str, Any], np.ndarray, int]

_BATCHABLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

# Where SAME_STEP environments put what belongs to the episode that ended
_FINAL = ("final_obs", "_final_obs", "final_info", "_final_info")

# Wrappers that keep statistics of all environments and forget or refuse them when only some are reset, and the cure.
_NO_PARTIAL_RESET: dict[type, str] = {
    NormalizeObservation: "use SB3's VecNormalize around the adapter",
    NormalizeReward: "use SB3's VecNormalize around the adapter, or an environment with AutoresetMode.SAME_STEP",
    RecordEpisodeStatistics: "leave it out: the adapter records every episode",
}


def _rows(obs: Any, ids: Any) -> Any:
    """
    :param obs: arrays, or a dict or tuple of arrays
    :param ids: indices of rows, or one
    :return: these rows of every array; a copy if there are several
    """
    if isinstance(obs, dict):
        return {key: _rows(part, ids) for key, part in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_rows(part, ids) for part in obs)
    return obs[ids]


def _set_rows(obs: Any, ids: np.ndarray, new_obs: Any) -> None:
    """
    :param obs: arrays, or a dict or tuple of arrays, written to
    :param ids: indices of rows
    :param new_obs: the new rows, in the same structure
    """
    if isinstance(obs, dict):
        for key, part in obs.items():
            _set_rows(part, ids, new_obs[key])
    elif isinstance(obs, tuple):
        for part, new_part in zip(obs, new_obs, strict=True):
            _set_rows(part, ids, new_part)
    else:
        obs[ids] = new_obs


def _equal_rows(obs: Any, other: Any, ids: np.ndarray) -> bool:
    """
    :param obs: arrays, or a dict or tuple of arrays
    :param other: the same of the same structure
    :param ids: indices or mask of rows
    :return: True if these rows are equal everywhere
    """
    if isinstance(obs, dict):
        return all(_equal_rows(part, other[key], ids) for key, part in obs.items())
    if isinstance(obs, tuple):
        return all(_equal_rows(part, other_part, ids) for part, other_part in zip(obs, other, strict=True))
    return bool(np.array_equal(obs[ids], other[ids], equal_nan=obs.dtype.kind == "f"))


def _check_batchable(space: spaces.Space, name: str) -> None:
    """
    Check that the observations of many environments fit into arrays.

    :param space: space of one environment
    :param name: its name in the message
    :raises ValueError: for another space than SB3's VecEnvs know
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            _check_batchable(part, f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space):
            _check_batchable(part, f"{name}[{i}]")
    elif not isinstance(space, _BATCHABLE):
        raise ValueError(
            f"{name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of these, got {space}: "
            "change it with a gymnasium wrapper, such as FlattenObservation"
        )


def _array_maker(space: spaces.Space, make_copy: bool) -> Callable[[Any], Any]:
    """
    What turns observations into arrays of the space's dtype. Chosen once, as asking a space what it is takes longer than
    the work.

    :param space: space of one environment
    :param make_copy: False keeps an array that has the right dtype already
    :return: a function of observations, one row per environment; it gives arrays in the structure of the space
    """
    if isinstance(space, spaces.Dict):
        makers = {key: _array_maker(part, make_copy) for key, part in space.items()}
        return lambda obs: {key: maker(obs[key]) for key, maker in makers.items()}
    if isinstance(space, spaces.Tuple):
        parts = [_array_maker(part, make_copy) for part in space]
        return lambda obs: tuple(maker(part) for maker, part in zip(parts, obs, strict=True))
    return partial(np.array if make_copy else np.asarray, dtype=space.dtype)


def _check_rows(obs: Any, space: spaces.Space, n_rows: int) -> None:
    """
    Check that there is one observation per environment.

    :param obs: arrays in the structure of the space
    :param space: space of one environment
    :param n_rows: number of environments
    :raises ValueError: if a shape differs
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            _check_rows(obs[key], part, n_rows)
    elif isinstance(space, spaces.Tuple):
        for part_obs, part in zip(obs, space, strict=True):
            _check_rows(part_obs, part, n_rows)
    else:
        assert space.shape is not None, "spaces that fit into arrays have a shape"
        shape = (n_rows, *space.shape)
        if obs.shape != shape:
            raise ValueError(
                f"observations must have the shape (num_envs, *single_observation_space.shape) = {shape}, got {obs.shape} "
                "from reset: correct the environment's spaces"
            )


def _copy_arrays(infos: dict[str, Any]) -> dict[str, Any]:
    """
    A copy of a vector environment's infos that the environment cannot overwrite.

    :param infos: dict of arrays, possibly nested
    :return: new dicts and arrays; other objects are shared
    """
    return {
        key: _copy_arrays(value) if isinstance(value, dict) else value.copy() if isinstance(value, np.ndarray) else value
        for key, value in infos.items()
    }


def _info_of(infos: dict[str, Any], row: int, n_rows: int) -> dict[str, Any]:
    """
    What a vector environment's infos say of one environment.

    A value belongs to those environments that its mask, the key with an underscore before it, names; without a mask to
    all. What has no row per environment (a name, a constant) is everyone's.

    :param infos: dict of arrays and masks, possibly nested
    :param row: the environment's row
    :param n_rows: number of rows
    :return: a new dict
    """
    info: dict[str, Any] = {}
    for key, value in infos.items():
        if key[:1] == "_" and key[1:] in infos:
            continue
        mask = infos.get("_" + key)
        if mask is not None and not mask[row]:
            continue
        if isinstance(value, dict):
            value = _info_of(value, row, n_rows)
        elif isinstance(value, np.ndarray) and value.shape[:1] == (n_rows,):
            value = value[row]
            if isinstance(value, np.generic):
                # Gymnasium packed Python numbers into the array: users test `info["x"] is True` and write JSON
                value = value.item()
        info[key] = value
    return info


@dataclass(slots=True)
class EndedEpisodes:
    """
    What is known of the episodes that ended in one step, as arrays with one row per episode.

    :param ids: their environments, rising
    :param terminal_obs: last observations: arrays, or a list of observations
    :param truncated: True if a time limit alone ended the episode
    :param returns: sums of rewards, float64; None if the environments' own ``Monitor`` records them, in the infos
    :param lengths: numbers of steps, None as returns
    :param seconds: time of the step since the adapter was made
    :param infos: the vector environment's infos of the episodes' last step
    """

    ids: np.ndarray
    terminal_obs: Any
    truncated: np.ndarray
    returns: np.ndarray | None
    lengths: np.ndarray | None
    seconds: float
    infos: dict[str, Any]


@dataclass(slots=True, eq=False)
class _ResetInfos:
    """
    What a reset of some environments said.

    :param infos: the vector environment's infos
    :param n_rows: number of rows in them
    """

    infos: dict[str, Any]
    n_rows: int


class StepInfos(list[dict[str, Any]]):
    """
    The infos of one step: a list of dicts, which are made when they are first looked at.

    Making thousands of dicts takes longer than stepping thousands of CartPoles, and nobody reads most of them. Every
    step has a list of its own with dicts of its own, so that they can be kept and changed at will.

    :param blank: a list of ``None``, one per environment
    :param infos: the vector environment's infos of this step
    :param ended: the episodes that ended in this step, None if there are none
    """

    __slots__ = ("_ended_missing", "_filled", "_infos", "ended")

    def __init__(self, blank: list[Any], infos: dict[str, Any], ended: EndedEpisodes | None) -> None:
        super().__init__(blank)
        self._infos = infos
        self.ended = ended
        self._ended_missing = ended is not None
        self._filled = False

    def _make(self, env: int) -> dict[str, Any]:
        """
        :param env: index of an environment whose dict is missing
        :return: its new dict, which the list keeps
        """
        if self._ended_missing:
            self._make_ended()
            made: dict[str, Any] | None = list.__getitem__(self, env)
            if made is not None:
                return made
        info = _info_of(self._infos, env, len(self)) if self._infos else {}
        info["TimeLimit.truncated"] = False
        list.__setitem__(self, env, info)
        return info

    def _make_ended(self) -> None:
        """Make the dicts of the episodes that ended: who reads one reads all."""
        ended = self.ended
        assert ended is not None, "asked for only if there are any"
        self._ended_missing = False
        n_envs = len(self)
        truncated = ended.truncated.tolist()
        returns = lengths = None
        if ended.returns is not None and ended.lengths is not None:
            returns, lengths = ended.returns.tolist(), ended.lengths.tolist()
        seconds = round(ended.seconds, 6)
        plain = isinstance(ended.terminal_obs, np.ndarray | list)
        for row, env in enumerate(ended.ids.tolist()):
            if list.__getitem__(self, env) is not None:
                # The user has put something there
                continue
            info = _info_of(ended.infos, env, n_envs) if ended.infos else {}
            if returns is not None and lengths is not None:
                # Monitor's keys and rounding
                info["episode"] = {"r": round(returns[row], 6), "l": lengths[row], "t": seconds}
            info["TimeLimit.truncated"] = truncated[row]
            info["terminal_observation"] = ended.terminal_obs[row] if plain else _rows(ended.terminal_obs, row)
            list.__setitem__(self, env, info)

    def _fill(self) -> None:
        """Make all dicts that are still missing."""
        if not self._filled:
            self._filled = True
            for env, info in enumerate(list.__iter__(self)):
                if info is None:
                    self._make(env)

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: slice, /) -> list[dict[str, Any]]: ...

    def __getitem__(self, key: SupportsIndex | slice, /) -> Any:
        if isinstance(key, slice):
            self._fill()
            return list.__getitem__(self, key)
        info: dict[str, Any] | None = list.__getitem__(self, key)
        if info is None:
            return self._make(as_index(key))
        return info

    def __setitem__(self, key: SupportsIndex | slice, value: Any, /) -> None:
        if isinstance(key, slice):
            self._fill()
        list.__setitem__(self, key, value)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._fill()
        return list.__iter__(self)

    def __radd__(self, other: list[Any]) -> list[Any]:
        # `[] + infos` would read this list's memory without asking it
        return other + list(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Copies and pickles are plain lists
        return list, (list(self),)


def _fill_first(name: str) -> Callable[..., Any]:
    """
    :param name: a method of list that looks at the elements or moves them
    :return: the same after all dicts are made
    """
    method = getattr(list, name)

    def fill_first(self: StepInfos, *args: Any) -> Any:
        self._fill()
        return method(self, *[list(arg) if isinstance(arg, StepInfos) else arg for arg in args])

    fill_first.__name__ = name
    return fill_first


for _name in (
    *("__add__", "__contains__", "__delitem__", "__eq__", "__iadd__", "__imul__", "__mul__", "__ne__", "__repr__"),
    *("__reversed__", "__rmul__", "append", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse"),
):
    setattr(StepInfos, _name, _fill_first(_name))


def _is_envpool(env: Any) -> bool:
    """
    Whether this is an EnvPool, told by its interface: its classes are made at run time, one per game.

    :param env: an environment
    :return: True if it has EnvPool's own calls
    """
    return all(hasattr(env, name) for name in ("send", "recv", "async_reset", "config"))


class VectorEnvAdapter(VecEnv):
    """
    A ``gymnasium.vector.VectorEnv`` or an EnvPool as an SB3 ``VecEnv``.

    Observations, rewards, dones and infos are those of ``DummyVecEnv`` with ``Monitor`` around every environment, for
    each autoreset mode (see the top of this module), and so is ``info["episode"]``. Environments that have a
    ``Monitor`` of their own inside keep its statistics. Nothing in a step loops over environments, except over those
    whose episode ended, where the infos ask for it.

    Modes: SAME_STEP; DISABLED; NEXT_STEP for ``SyncVectorEnv``, ``AsyncVectorEnv`` with shared memory,
    CartPole-v1's own ``CartPoleVectorEnv``, EnvPool, and any other with ``masked_reset``. For ``AsyncVectorEnv``
    SAME_STEP is the fastest: the others ask all workers twice in a step in which an episode ends.

    Seeds: ``seed(s)`` gives environment i the seed s + i at the next reset; environments with one generator for all
    (``CartPoleVectorEnv``) take s for it. EnvPool takes seeds only in ``envpool.make``.

    :param env: the vector environment, or an EnvPool made with ``env_type="gymnasium"``
    :param masked_reset: for a NEXT_STEP environment of another kind, ``f(env, mask) -> (observations, infos)``: resets
        the environments of the mask, bool of shape [num_envs], and no other, so that their next step is a normal one;
        returns what ``env.reset`` returns. It replaces ``reset(options={"reset_mask": mask})`` in DISABLED mode
    :param monitor_file: path of a CSV file for returns, lengths and times of all episodes, as ``Monitor`` writes them (its
        extension ``monitor.csv`` is added); None writes none. It costs some 5 microseconds per episode
    :raises ValueError: if env is no vector environment, is closed, has environments with different spaces or spaces
        that SB3 does not know, an autoreset mode that is unknown or cannot be made SB3's, or wrappers that prevent that; if
        monitor_file is given and the environments have a ``Monitor`` of their own
    """

    def __init__(self, env: Any, masked_reset: MaskedReset | None = None, monitor_file: str | None = None) -> None:
        self._is_envpool = _is_envpool(env)
        if not isinstance(env, VectorEnv) and not self._is_envpool:
            raise ValueError(
                f"VectorEnvAdapter needs a gymnasium.vector.VectorEnv or an EnvPool, got {type(env).__name__} ({env!r}): make "
                "one with gymnasium.make_vec(id, num_envs=...), or give functions that make single environments to SB3's "
                "DummyVecEnv"
            )
        if getattr(env, "closed", False):
            raise ValueError(f"VectorEnvAdapter needs an open environment, got {env!r}, which is closed: make a new one")
        self.env = env
        self._closed = False
        # Vector wrappers do not pass get_attr and call on: attributes are asked of the innermost
        self._base = env if self._is_envpool else env.unwrapped
        if _is_envpool(self._base):
            self._check_envpool()
        n_envs, observation_space, action_space = self._checked_spaces()
        self._actions: np.ndarray | None = None
        assert action_space.shape is not None, "spaces that fit into arrays have a shape"
        self._action_shape = (n_envs, *action_space.shape)
        self._action_dtype: np.dtype = np.dtype(action_space.dtype)

        # Of each environment, what its last reset said, and where; None if that is in `_reset_infos` already
        self._reset_sources = np.full(n_envs, None, dtype=object)
        self._reset_rows = np.zeros(n_envs, dtype=np.int64)
        self._reset_infos_are_old = self._has_reset_infos = False
        super().__init__(n_envs, observation_space, action_space)
        # VecVideoRecorder reads render_fps here; the autoreset mode is not the adapter's
        own_metadata = {key: value for key, value in getattr(env, "metadata", {}).items() if key != "autoreset_mode"}
        self.metadata = {**own_metadata, **self.metadata}

        self._masked_reset = masked_reset
        self._check_mask = False
        self._reset_ended = self._choose_reset()
        self._fresh = self._arrays_are_fresh()
        self._to_arrays = _array_maker(observation_space, make_copy=not self._fresh)
        self._own_monitor = not self._has_monitor_inside()

        self._returns = np.zeros(n_envs, dtype=np.float64)
        # Lengths are differences of step numbers: no array is written to in a step without an end
        self._n_steps = 0
        self._starts = np.zeros(n_envs, dtype=np.int64)
        self._t_start = time.time()
        self._results_writer: ResultsWriter | None = None
        if monitor_file is not None:
            if not self._own_monitor:
                raise ValueError(f"monitor_file={monitor_file!r} is for environments without a Monitor: give theirs filename")
            env_id = "None" if self.spec is None else self.spec.id
            self._results_writer = ResultsWriter(monitor_file, header={"t_start": self._t_start, "env_id": env_id})
        self._blank: list[Any] = [None] * n_envs
        self._seed_warned = False

    # ---- What can be adapted -------------------------------------------------------------------------------------------

    def _check_envpool(self) -> None:
        """
        :raises ValueError: if it is an EnvPool that steps other than all single-player environments at once
        """
        if not self._is_envpool:
            raise ValueError(
                f"VectorEnvAdapter needs an EnvPool without wrappers of gymnasium, which take its spaces for those of all "
                f"environments, got {type(self.env).__name__}: put SB3's VecEnvWrapper around the adapter instead"
            )
        config = self.env.config
        if not hasattr(self.env, "action_space"):
            raise ValueError(
                f"VectorEnvAdapter needs an EnvPool with the gymnasium interface, got {type(self.env).__name__}: make it with "
                'envpool.make(id, env_type="gymnasium", num_envs=...)'
            )
        if config["batch_size"] not in (0, config["num_envs"]):
            raise ValueError(
                "VectorEnvAdapter needs an EnvPool that steps all environments together, got "
                f"batch_size={config['batch_size']} and num_envs={config['num_envs']}: leave batch_size out of envpool.make"
            )
        if config.get("max_num_players", 1) != 1:
            raise ValueError(
                f"VectorEnvAdapter needs environments with one player, got max_num_players={config['max_num_players']}"
            )

    def _checked_spaces(self) -> tuple[int, spaces.Space, spaces.Space]:
        """
        :return: number of environments, spaces of one of them
        :raises ValueError: if they differ between environments, or SB3 does not know them
        """
        if self._is_envpool:
            # EnvPool's observation_space is that of one environment, and old versions have no other
            n_envs, observation_space, action_space = (
                int(self.env.config["num_envs"]),
                self.env.observation_space,
                self.env.action_space,
            )
        else:
            n_envs = self.env.num_envs
            observation_space, action_space = self.env.single_observation_space, self.env.single_action_space
            for name, single in (("observation_space", observation_space), ("action_space", action_space)):
                batched = getattr(self.env, name)
                if batch_space(single, n_envs) != batched:
                    raise ValueError(
                        f"all environments must have the same {name}, as SB3 knows only one, but {name}={batched} is not "
                        f"{n_envs} times single_{name}={single}: give all environments the same, for SyncVectorEnv and "
                        "AsyncVectorEnv with observation_mode='same'"
                    )
        _check_batchable(observation_space, "single_observation_space")
        if not isinstance(action_space, _BATCHABLE):
            raise ValueError(
                "single_action_space must be a Box, Discrete, MultiDiscrete or MultiBinary space, got "
                f"{action_space}: SB3 has no policies for others"
            )
        return n_envs, observation_space, action_space

    def _wrappers(self) -> Iterator[VectorEnv]:
        """
        :return: the vector wrappers, from the outermost
        """
        env = self.env
        while isinstance(env, VectorWrapper):
            yield env
            env = env.env

    def _choose_reset(self) -> Callable[[np.ndarray, np.ndarray, Any], ResetRows] | None:
        """
        Find out how to reset the environments whose episode ended, and no other, within the step.

        :return: what does it, None where the environment does so itself
        :raises ValueError: if there is no way
        """
        mode = self.env.metadata.get("autoreset_mode") if hasattr(self.env, "metadata") else None
        if self._is_envpool:
            return self._reset_envpool if self._masked_reset is None else self._reset_by_mask
        try:
            mode = AutoresetMode(mode)
        except ValueError:
            raise ValueError(
                f"metadata['autoreset_mode'] of the vector environment must be one of {[str(m) for m in AutoresetMode]}, got "
                f"{mode!r} from {self.env!r}: set env.metadata['autoreset_mode'] to what the environment does when an "
                "episode ends"
            ) from None
        for wrapper in self._wrappers():
            if isinstance(wrapper, DictInfoToList):
                raise ValueError("DictInfoToList cannot be inside a VectorEnvAdapter, which makes lists itself: leave it out")
            cures = [cure for kind, cure in _NO_PARTIAL_RESET.items() if isinstance(wrapper, kind)]
            if cures and mode is not AutoresetMode.SAME_STEP:
                raise ValueError(
                    f"{type(wrapper).__name__} does not allow for resets of some environments only, which {mode} needs: "
                    f"{cures[0]}"
                )
        if mode is AutoresetMode.SAME_STEP:
            if self._masked_reset is not None:
                raise ValueError(f"masked_reset is not for {mode}, in which environments reset themselves: leave it out")
            return None
        if self._masked_reset is not None:
            return self._reset_by_mask
        base = self._base
        if mode is AutoresetMode.DISABLED:
            # The mode asks for masks, but nothing shows that an environment obeys them: the first one is checked.
            # Wrappers may change observations in every call, so only without.
            self._check_mask = base is self.env and not isinstance(base, SyncVectorEnv | AsyncVectorEnv)
            return self._reset_by_mask
        if isinstance(base, SyncVectorEnv):
            # A masked reset also takes back the reset that the next step would do
            return self._reset_by_mask
        if isinstance(base, AsyncVectorEnv):
            if base.shared_memory and getattr(base, "worker", None) is None:
                return self._reset_by_mask
            # Without shared memory gymnasium's worker forgets that it was reset and resets again in the next step
            raise ValueError(
                "an AsyncVectorEnv in NEXT_STEP mode resets some environments only with shared_memory=True and gymnasium's "
                f"own worker, got shared_memory={base.shared_memory}, worker={getattr(base, 'worker', None)}: make it with "
                "autoreset_mode=AutoresetMode.SAME_STEP"
            )
        if type(base) is CartPoleVectorEnv and base is self.env:
            return self._reset_cartpole
        raise ValueError(
            f"{self.env!r} resets an environment in the step after its end (AutoresetMode.NEXT_STEP), which is no transition, "
            "and VectorEnvAdapter knows no way to reset some of its environments earlier: make it with "
            "AutoresetMode.SAME_STEP or DISABLED if it can, use gymnasium.make_vec(id, vectorization_mode='sync'), put "
            "wrappers around the adapter (SB3's VecEnvWrapper) instead of inside, or pass masked_reset"
        )

    def _arrays_are_fresh(self) -> bool:
        """
        :return: True if arrays that the environment returned are never written to again
        """
        if self._is_envpool:
            return True
        if type(self.env) in (SyncVectorEnv, AsyncVectorEnv):
            return bool(self.env.copy)
        return type(self.env) is CartPoleVectorEnv

    def _has_monitor_inside(self) -> bool:
        """
        :return: True if the environments record their episodes with SB3's Monitor
        """
        return isinstance(self._base, SyncVectorEnv | AsyncVectorEnv) and all(self._are_wrapped(Monitor))

    # ---- Reset and step ------------------------------------------------------------------------------------------------

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Seed the environments at the next reset: environment i with ``seed + i``.

        :param seed: None draws one from NumPy's global generator
        :return: one seed per environment
        """
        if self._is_envpool and not self._seed_warned:
            self._seed_warned = True
            warnings.warn("EnvPool takes seeds only in envpool.make(..., seed=...): seed() changes nothing", stacklevel=2)
        return super().seed(None if seed is None else int(seed))

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        Pass options to the next reset.

        :param options: one dict for all environments, or a list of equal dicts
        :raises ValueError: if the dicts differ, as a vector environment takes only one
        """
        if isinstance(options, list) and (len(options) != self.num_envs or any(other != options[0] for other in options)):
            raise ValueError(
                f"a vector environment takes one dict of options for all its {self.num_envs} environments, got the list "
                f"{options}: pass one dict"
            )
        super().set_options(options)

    def reset(self) -> VecEnvObs:
        """
        Reset all environments, also in the middle of episodes, which then do not count.

        :return: one observation per environment
        """
        seed, options = self._seeds[0], self._options[0]
        if self._is_envpool:
            # It would warn of a seed at every reset
            result = self.env.reset(options=options) if options else self.env.reset()
        else:
            result = self.env.reset(seed=seed, options=options or None)
        obs, infos = result
        if not isinstance(infos, dict):
            raise ValueError(
                f"a vector environment must return infos as a dict of arrays, got {type(infos).__name__} from reset of "
                f"{self.env!r}: leave out the wrapper that changes them, as the adapter makes lists itself"
            )
        obs = self._to_arrays(obs)
        _check_rows(obs, self.observation_space, self.num_envs)
        self._returns[:] = 0.0
        self._n_steps = 0
        self._starts[:] = 0
        self._actions = None
        self._reset_seeds()
        self._reset_options()
        everyone = np.arange(self.num_envs)
        self._note_reset(everyone, infos, everyone, self.num_envs)
        return obs

    def _note_reset(self, ids: np.ndarray, infos: dict[str, Any], rows: np.ndarray, n_rows: int) -> None:
        """
        Keep what a reset said, for who asks :attr:`reset_infos`.

        :param ids: the environments
        :param infos: the vector environment's infos
        :param rows: rows of the environments in the infos
        :param n_rows: number of rows in the infos
        """
        self._has_reset_infos = self._has_reset_infos or bool(infos)
        if self._has_reset_infos:
            self._reset_sources[ids] = _ResetInfos(infos if self._fresh else _copy_arrays(infos), n_rows)
            self._reset_rows[ids] = rows
            self._reset_infos_are_old = True

    @property
    def reset_infos(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """What the last reset of each environment said; made when it is asked for."""
        if self._reset_infos_are_old:
            self._reset_infos_are_old = False
            for env, (source, row) in enumerate(zip(self._reset_sources, self._reset_rows.tolist(), strict=True)):
                if source is not None:
                    self._reset_infos[env] = _info_of(source.infos, row, source.n_rows)
            self._reset_sources[:] = None
        return self._reset_infos

    @reset_infos.setter
    def reset_infos(self, infos: list[dict[str, Any]]) -> None:
        self._reset_infos = infos

    def step_async(self, actions: np.ndarray) -> None:
        """
        Take the actions of the next step.

        :param actions: shape [num_envs, \\*action_space.shape]
        :raises ValueError: if shape or kind of numbers are wrong, or the adapter is closed
        """
        if self._closed:
            raise ValueError("step() on a closed VectorEnvAdapter: make a new environment")
        actions = np.asarray(actions)
        if actions.shape != self._action_shape:
            raise ValueError(
                f"actions must have the shape (num_envs, *action_space.shape) = {self._action_shape}, got {actions.shape}"
            )
        if actions.dtype != self._action_dtype:
            if not np.can_cast(actions.dtype, self._action_dtype, casting="same_kind"):
                raise ValueError(f"actions must be of dtype {self._action_dtype} for {self.action_space}, got {actions.dtype}")
            actions = actions.astype(self._action_dtype)
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all environments and reset those whose episode ends.

        :return: observations, rewards, dones and infos as of ``DummyVecEnv``
        """
        assert self._actions is not None, "step_wait() needs step_async() before it"
        actions, self._actions = self._actions, None
        try:
            obs, rewards, terminations, truncations, infos = self.env.step(actions)
        except Exception as error:
            self._name_environment(error)
            raise
        obs = self._to_arrays(obs)
        if infos and not self._fresh:
            infos = _copy_arrays(infos)
        rewards = np.asarray(rewards)
        self._returns += rewards
        self._n_steps += 1
        dones = np.logical_or(terminations, truncations)
        ids = dones.nonzero()[0]
        if len(ids):
            step_infos = self._end(ids, dones, obs, terminations, infos)
        else:
            step_infos = StepInfos(self._blank, infos, None)
        return obs, rewards.astype(np.float32), dones, step_infos

    def _end(self, ids: np.ndarray, dones: np.ndarray, obs: Any, terminations: Any, infos: dict[str, Any]) -> StepInfos:
        """
        Close the books of the episodes that ended, and start new ones.

        :param ids: the environments
        :param dones: the same as a mask
        :param obs: observations of this step; the rows of `ids` are overwritten with the first of new episodes
        :param terminations: which environments terminated
        :param infos: the vector environment's
        :return: the infos of this step
        :raises ValueError: if the environment does not do what its autoreset mode says
        """
        if self._reset_ended is None:
            terminal_obs, final_infos = self._final(ids, infos)
            # Besides what is final, those who ended have there what their reset returned
            infos = {key: value for key, value in infos.items() if key not in _FINAL}
            reset_infos, rows, n_rows = infos, ids, self.num_envs
        else:
            terminal_obs, final_infos = _rows(obs, ids), infos
            first_obs, reset_infos, rows, n_rows = self._reset_ended(ids, dones, obs)
            _set_rows(obs, ids, first_obs)
        self._note_reset(ids, reset_infos, rows, n_rows)
        returns = lengths = None
        if self._own_monitor:
            returns, lengths = self._returns[ids], self._n_steps - self._starts[ids]
        self._returns[ids] = 0.0
        self._starts[ids] = self._n_steps
        # An episode that both terminates and runs out of time has terminated
        truncated = ~np.asarray(terminations)[ids]
        seconds = time.time() - self._t_start
        if self._results_writer is not None and returns is not None and lengths is not None:
            for episode_return, length in zip(returns.tolist(), lengths.tolist(), strict=True):
                row_of_file = {"r": round(episode_return, 6), "l": length, "t": round(seconds, 6)}
                self._results_writer.write_row(row_of_file)
        ended = EndedEpisodes(ids, terminal_obs, truncated, returns, lengths, seconds, final_infos)
        return StepInfos(self._blank, infos, ended)

    def _final(self, ids: np.ndarray, infos: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """
        :param ids: environments whose episode ended
        :param infos: infos of a SAME_STEP environment
        :return: last observations and infos of these episodes
        :raises ValueError: if they are missing
        """
        if "final_obs" not in infos:
            raise ValueError(
                "an environment with AutoresetMode.SAME_STEP must give the last observations of episodes in "
                f"infos['final_obs'], got infos with {sorted(infos)} from {self.env!r}: correct its "
                "metadata['autoreset_mode'], or the environment"
            )
        final_obs = infos["final_obs"]
        if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:
            # Gymnasium's: each is what the environment itself returned and may write to again
            return [copy.deepcopy(final_obs[i]) for i in ids.tolist()], infos.get("final_info", {})
        return _rows(final_obs, ids), infos.get("final_info", {})

    def _reset_by_mask(self, ids: np.ndarray, dones: np.ndarray, obs: Any) -> ResetRows:
        """
        Gymnasium's way: one call with a mask.

        :param ids: the environments to reset
        :param dones: the same as a mask
        :param obs: observations before
        :return: first observations of `ids`; infos; the rows of `ids` in the infos and how many rows these have
        :raises ValueError: if other environments were reset, too
        """
        # `dones` is handed to the user: the environment gets a mask of its own
        mask = dones.copy()
        try:
            if self._masked_reset is not None:
                all_obs, infos = self._masked_reset(self.env, mask)
            else:
                all_obs, infos = self.env.reset(options={"reset_mask": mask})
        except Exception as error:
            self._name_environment(error)
            raise
        all_obs = self._to_arrays(all_obs)
        if self._check_mask and len(ids) < self.num_envs:
            self._check_mask = False
            if not _equal_rows(all_obs, obs, ~dones):
                raise ValueError(
                    "reset(options={'reset_mask': mask}) of an environment with AutoresetMode.DISABLED must leave the others "
                    f"alone, but their observations changed in {self.env!r}: obey the mask in its reset, or pass "
                    "masked_reset, which is not checked"
                )
        return _rows(all_obs, ids), infos, ids, self.num_envs

    def _reset_envpool(self, ids: np.ndarray, dones: np.ndarray, obs: Any) -> ResetRows:
        """
        EnvPool's way: a call with the indices, which returns their rows only. Parameters as of :meth:`_reset_by_mask`.
        """
        first_obs, infos = self.env.reset(ids.astype(np.int32))
        return self._to_arrays(first_obs), infos, np.arange(len(ids)), len(ids)

    def _reset_cartpole(self, ids: np.ndarray, dones: np.ndarray, obs: Any) -> ResetRows:
        """
        CartPoleVectorEnv takes no mask, so its state is written as its own next step would: the same draws from the same
        generator, hence the same episodes, without the step. Parameters as of :meth:`_reset_by_mask`.
        """
        env = self._base
        state = env.np_random.uniform(low=env.low, high=env.high, size=(4, len(ids)))
        env.state[:, ids] = state
        env.steps[ids] = 0
        env.prev_done[ids] = False
        return state.T.astype(np.float32), {}, ids, self.num_envs

    def _name_environment(self, error: Exception) -> None:
        """
        Note on an error which environment raised it, where that can be known.

        :param error: raised in a step or reset; the note is added in place
        """
        ids: list[int] = []
        if isinstance(self._base, SyncVectorEnv):
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            for frame, called in pairwise(frames):
                # Its loops count environments with i; after them `called` is the function that stacks observations
                if frame.f_locals.get("self") is self._base and called.f_code.co_name in ("step", "reset", "_add_info"):
                    ids = [i for i in [frame.f_locals.get("i")] if isinstance(i, int)]
        elif isinstance(self._base, AsyncVectorEnv):
            # It drops the pipes of workers that failed
            ids = [i for i, pipe in enumerate(self._base.parent_pipes) if pipe is None]
        if ids:
            error.add_note(f"Raised by environment {', '.join(map(str, ids))} of {self.num_envs} in {self._base!r}")

    # ---- The single environments ---------------------------------------------------------------------------------------

    def _selected(self, indices: VecEnvIndices) -> list[int]:
        """
        :param indices: None for all
        :return: indices of environments, not negative
        :raises ValueError: if there is no such environment
        """
        selected = [as_index(i) for i in self._get_indices(as_index(indices) if isinstance(indices, np.integer) else indices)]
        wrong = [i for i in selected if not -self.num_envs <= i < self.num_envs]
        if wrong:
            raise ValueError(f"indices must be of the {self.num_envs} environments, got {wrong}")
        return [i % self.num_envs for i in selected]

    def _call_worker(self, i: int, name: str, *args: Any, **kwargs: Any) -> Any:
        """
        Call a method of one environment of an AsyncVectorEnv, whose own `call` always calls all.

        :param i: the environment
        :param name: method or attribute
        :return: what it returned
        """
        base = self._base
        base._assert_is_running()
        base.parent_pipes[i].send(("_call", (name, args, kwargs)))
        result, success = base.parent_pipes[i].recv()
        base._raise_if_errors([success if j == i else True for j in range(self.num_envs)])
        return result

    def _check_attr(self, name: str) -> None:
        """
        :param name: an attribute of AsyncVectorEnv's environments
        :raises AttributeError: if they lack it; asking for it would end the workers
        """
        if not all(self._base.call("has_wrapper_attr", name)):
            raise AttributeError(f"the environments of {self._base!r} have no attribute {name!r}")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        An attribute of the environments.

        :param attr_name: its name
        :param indices: which environments, None for all
        :return: one value per environment. A vector environment without single environments inside (an EnvPool,
            ``CartPoleVectorEnv``) has one value for all
        :raises AttributeError: if there is no such attribute
        """
        selected = self._selected(indices)
        if attr_name == "render_mode":
            # Outermost, as wrappers change it, and EnvPool may lack it
            return [getattr(self.env, "render_mode", None)] * len(selected)
        if attr_name == "allow_early_resets" and self._own_monitor:
            # Who was told that there is a Monitor may ask it this
            return [True] * len(selected)
        if isinstance(self._base, SyncVectorEnv):
            return [self._base.envs[i].get_wrapper_attr(attr_name) for i in selected]
        if isinstance(self._base, AsyncVectorEnv):
            self._check_attr(attr_name)
            values = self._base.get_attr(attr_name)
            return [values[i] for i in selected]
        return [getattr(self._base, attr_name)] * len(selected)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of the environments: where it exists, at the outermost wrapper otherwise.

        :param attr_name: its name
        :param value: the same for every environment
        :param indices: which environments, None for all
        :raises ValueError: if some are chosen in a vector environment without single environments inside
        """
        selected = self._selected(indices)
        if isinstance(self._base, SyncVectorEnv):
            for i in selected:
                self._base.envs[i].set_wrapper_attr(attr_name, value)
        elif isinstance(self._base, AsyncVectorEnv):
            if len(set(selected)) == self.num_envs:
                values = [value] * self.num_envs
            else:
                # It sets all or none: the others get what they have
                values = self.get_attr(attr_name)
                for i in selected:
                    values[i] = value
            self._base.set_attr(attr_name, values)
        else:
            self._check_all(selected, f"set_attr({attr_name!r})")
            setattr(self._base, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the environments.

        :param method_name: its name
        :param method_args: its arguments
        :param indices: which environments, None for all
        :param method_kwargs: its keyword arguments
        :return: one result per environment. A vector environment without single environments inside is called once; a
            list or tuple with one element per environment is theirs, any other result is everyone's
        :raises ValueError: if some are chosen in a vector environment without single environments inside
        """
        selected = self._selected(indices)
        if isinstance(self._base, SyncVectorEnv):
            return [self._base.envs[i].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for i in selected]
        if isinstance(self._base, AsyncVectorEnv):
            self._check_attr(method_name)
            if selected == list(range(self.num_envs)):
                return list(self._base.call(method_name, *method_args, **method_kwargs))
            return [self._call_worker(i, method_name, *method_args, **method_kwargs) for i in selected]
        self._check_all(selected, f"env_method({method_name!r})")
        result = getattr(self._base, method_name)(*method_args, **method_kwargs)
        if isinstance(result, list | tuple) and len(result) == self.num_envs:
            return list(result)
        return [result] * self.num_envs

    def _check_all(self, selected: list[int], call: str) -> None:
        """
        :param selected: indices of environments
        :param call: what was called, for the message
        :raises ValueError: if these are not all
        """
        if len(set(selected)) != self.num_envs:
            raise ValueError(
                f"{call} with indices={selected} needs single environments, but {self._base!r} has none inside: leave indices "
                "out, or use gymnasium.make_vec(id, vectorization_mode='sync')"
            )

    def _are_wrapped(self, wrapper_class: type) -> list[bool]:
        """
        :param wrapper_class: class of a wrapper of single environments
        :return: one answer per environment
        """
        if isinstance(self._base, SyncVectorEnv):
            return [is_wrapped(env, wrapper_class) for env in self._base.envs]
        if isinstance(self._base, AsyncVectorEnv):
            # Workers answer with what can be pickled: their names, each as `<Outer<Inner<...>>>`
            pattern = re.compile(rf"<{re.escape(wrapper_class.__name__)}<")
            return [pattern.search(text) is not None for text in self._base.call("__str__")]
        return [False] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Whether environments have a wrapper.

        True for ``Monitor``, whose work the adapter does. In an ``AsyncVectorEnv`` wrappers are known by the name of their
        class.

        :param wrapper_class: wrapper of single environments, or a vector wrapper
        :param indices: which environments, None for all
        :return: one answer per environment
        """
        selected = self._selected(indices)
        if wrapper_class is Monitor or any(isinstance(wrapper, wrapper_class) for wrapper in self._wrappers()):
            return [True] * len(selected)
        answers = self._are_wrapped(wrapper_class)
        return [answers[i] for i in selected]

    # ---- Pictures and the end ------------------------------------------------------------------------------------------

    @property
    def spec(self) -> gym.envs.registration.EnvSpec | None:
        """The specification that the vector environment was made from, None if there is none (EnvPool)."""
        spec = getattr(self.env, "spec", None)
        return spec if isinstance(spec, gym.envs.registration.EnvSpec) else None

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: one RGB image per environment; None with another render mode than "rgb_array"
        """
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"images need render_mode='rgb_array', got {self.render_mode!r}: set it when the environment is made",
                stacklevel=2,
            )
            return [None] * self.num_envs
        if self._is_envpool:
            return list(self.env.render(np.arange(self.num_envs, dtype=np.int32)))
        return list(self.env.render())

    def close(self) -> None:
        """Close the vector environment; a second call does nothing."""
        if not self._closed:
            self._closed = True
            if self._results_writer is not None:
                self._results_writer.close()
            self.env.close()


def vectorize(
    venv: VecEnv, vectorization_mode: str | None = None, vector_kwargs: dict[str, Any] | None = None
) -> VectorEnvAdapter:
    """
    As many environments of the same kind, made by ``gymnasium.make_vec``: a ``vec_env_wrapper`` for RL Zoo's configs.

    ::

        CartPole-v1:
          n_envs: 512
          vec_env_wrapper: sb3_reinforce.vec_env.vectorize

    The old environments are closed. Where they wrote Monitor files, all episodes go to the first of these.

    :param venv: what RL Zoo made
    :param vectorization_mode: "vector_entry_point", "sync" or "async"; None takes the environment's own vector class
        if it has one, else "sync"
    :param vector_kwargs: arguments for "sync" and "async", such as ``{"autoreset_mode": "SameStep"}``
    :return: the new environments, with the seed of the old
    :raises ValueError: if venv is no ``DummyVecEnv`` (``vec_env_class: subproc``), or its environments have wrappers or
        ``info_keywords``, which would get lost, or no specification
    """
    if not isinstance(venv, DummyVecEnv):
        raise ValueError(f"vectorize needs a DummyVecEnv around single environments, got {type(venv).__name__}")
    env = venv.envs[0]
    file = None
    limits: list[int] = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Monitor):
            if env.info_keywords:
                raise ValueError(f"vectorize would lose Monitor's info_keywords={env.info_keywords}: leave them out")
            file = None if env.results_writer is None else env.results_writer.file_handler.name
        elif isinstance(env, gym.wrappers.TimeLimit):
            # Only the wrapper knows a time limit that gymnasium.make was given
            limits.append(env._max_episode_steps)
        elif not isinstance(env, gym.wrappers.OrderEnforcing | gym.wrappers.PassiveEnvChecker):
            raise ValueError(
                f"vectorize would lose the wrapper {type(env).__name__}, as it makes new environments: leave env_wrapper out, "
                "or use a wrapper of VecEnvs after it"
            )
        env = env.env
    # The innermost knows its arguments; the specification of the others would make the Monitor again
    spec = env.spec
    if spec is None:
        raise ValueError(f"vectorize needs environments made by gymnasium.make, got {env!r} without a specification")
    kwargs: dict[str, Any] = {"max_episode_steps": min(limits)} if limits and min(limits) != spec.max_episode_steps else {}
    seed = venv._seeds[0]
    venv.close()
    vector_env = gym.make_vec(
        spec, num_envs=venv.num_envs, vectorization_mode=vectorization_mode, vector_kwargs=vector_kwargs, **kwargs
    )
    adapter = VectorEnvAdapter(vector_env, monitor_file=file)
    if seed is not None:
        adapter.seed(seed)
    return adapter
