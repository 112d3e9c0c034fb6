"""VectorEnvAdapter: the VecEnv around a vector environment."""

import json
import time
import warnings
from collections.abc import Sequence
from functools import partial
from operator import index as as_index
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_reinforce.running.env_queries import is_envpool
from sb3_reinforce.vec_env.infos import EndedEpisodes, ResetInfos, StepInfos, copy_arrays, split_final
from sb3_reinforce.vec_env.kinds import arrays_are_fresh, check_kind, is_atari_vector_env, single_spaces, vector_wrappers
from sb3_reinforce.vec_env.observations import array_spaces, as_arrays, check_rows, rows, set_rows
from sb3_reinforce.vec_env.resets import MaskedReset, choose_reset
from sb3_reinforce.vec_env.single import single_envs

# A path; or a file that is there and open, to which rows are added
MonitorFile = str | ResultsWriter


class VectorEnvAdapter(VecEnv):
    """
    A ``gymnasium.vector.VectorEnv`` or an EnvPool as an SB3 ``VecEnv``.

    Observations, rewards, dones and infos, ``info["episode"]`` included, are those of ``DummyVecEnv`` with ``Monitor``
    around every environment, in each autoreset mode (see :mod:`sb3_reinforce.vec_env`). If the environments have a
    ``Monitor`` inside, its statistics are kept. A step loops only over the environments whose episode ended.

    Modes: SAME_STEP; DISABLED; NEXT_STEP for ``SyncVectorEnv``, ``AsyncVectorEnv`` with shared memory,
    CartPole-v1's ``CartPoleVectorEnv``, ale-py's ``AtariVectorEnv``, EnvPool, and any other with ``masked_reset``. For
    ``AsyncVectorEnv`` and ``AtariVectorEnv`` SAME_STEP is the fastest: the others call all environments twice in a step in
    which an episode ends.

    Seeds: ``seed(s)`` gives environment i the seed s + i at the next reset. ``CartPoleVectorEnv`` has one generator for
    all environments, seeded with s. EnvPool takes seeds only in ``envpool.make``.

    :param env: the vector environment, or an EnvPool made with ``env_type="gymnasium"``
    :param masked_reset: for another NEXT_STEP environment, ``f(env, mask) -> (observations, infos)``: resets only the
        environments of the mask, bool of shape [num_envs], so that their next step is a transition; returns what
        ``env.reset`` returns. In DISABLED mode it replaces ``reset(options={"reset_mask": mask})``
    :param monitor_file: path of a CSV file for return, length and time of every episode, as ``Monitor`` writes it (the
        extension ``monitor.csv`` is added); None: no file. Or an open ``ResultsWriter``, whose file has a header already
    :raises ValueError: if env is no open vector environment, if its spaces differ between environments or are unknown to
        SB3, if its autoreset mode or a wrapper cannot be adapted, or if there are both monitor_file and a ``Monitor``
    """

    def __init__(self, env: Any, masked_reset: MaskedReset | None = None, monitor_file: MonitorFile | None = None) -> None:
        check_kind(env)
        n_envs, observation_space, action_space = single_spaces(env)
        self.env = env
        self._closed = False
        self._is_envpool = is_envpool(env)
        self._single = single_envs(env if self._is_envpool else env.unwrapped, n_envs)
        self._array_spaces = array_spaces(observation_space, "single_observation_space")
        super().__init__(n_envs, observation_space, action_space)
        # VecVideoRecorder reads render_fps here; the autoreset mode does not hold for the adapter
        own_metadata = {key: value for key, value in getattr(env, "metadata", {}).items() if key != "autoreset_mode"}
        self.metadata = {**own_metadata, **self.metadata}

        self._actions: np.ndarray | None = None
        assert action_space.shape is not None, "spaces that fit into arrays have a shape"
        self._action_shape = (n_envs, *action_space.shape)
        self._action_dtype: np.dtype = np.dtype(action_space.dtype)

        self._fresh = arrays_are_fresh(env)
        self._reset_ended = choose_reset(env, masked_reset, partial(as_arrays, self._array_spaces))
        self._own_monitor = not all(self._single.are_wrapped(Monitor))
        self._returns = np.zeros(n_envs, dtype=np.float64)
        # Lengths are differences of step numbers, so a step in which no episode ends writes to no array of counts
        self._n_steps = 0
        self._starts = np.zeros(n_envs, dtype=np.int64)
        self._t_start = time.time()
        self._results_writer: ResultsWriter | None = None
        if monitor_file is not None and not self._own_monitor:
            raise ValueError(f"monitor_file={monitor_file!r} is for environments without a Monitor: give theirs filename")
        if isinstance(monitor_file, ResultsWriter):
            self._results_writer = monitor_file
            with open(monitor_file.file_handler.name) as file:
                self._t_start = json.loads(file.readline()[1:])["t_start"]
        elif monitor_file is not None:
            env_id = "None" if self.spec is None else self.spec.id
            self._results_writer = ResultsWriter(monitor_file, header={"t_start": self._t_start, "env_id": env_id})
        self._blank: list[Any] = [None] * n_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed environment i with ``seed + i`` at the next reset; None draws a seed from NumPy's global generator."""
        if self._is_envpool:
            warnings.warn("EnvPool takes seeds only in envpool.make(..., seed=...): seed() changes nothing", stacklevel=2)
        return super().seed(None if seed is None else int(seed))

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """:raises ValueError: for a list of dicts that differ, as a vector environment takes only one"""
        if isinstance(options, list) and (len(options) != self.num_envs or any(other != options[0] for other in options)):
            raise ValueError(
                f"a vector environment takes one dict of options for all its {self.num_envs} environments, got the list "
                f"{options}: pass one dict"
            )
        super().set_options(options)

    def reset(self) -> VecEnvObs:
        """Reset all environments. Episodes that have not ended are not recorded."""
        options = self._options[0] or None
        if self._is_envpool:
            # EnvPool would warn at every reset that gets a seed
            obs, infos = self.env.reset(options=options) if options else self.env.reset()
        else:
            obs, infos = self.env.reset(seed=self._reset_seed(), options=options)
        if not isinstance(infos, dict):
            raise ValueError(
                f"a vector environment must return infos as a dict of arrays, got {type(infos).__name__} from reset of "
                f"{self.env!r}: leave out the wrapper that changes them, as the adapter makes lists itself"
            )
        obs = as_arrays(self._array_spaces, obs, make_copy=not self._fresh)
        check_rows(self._array_spaces, obs, self.num_envs)
        self._returns[:] = 0.0
        self._n_steps = 0
        self._starts[:] = 0
        self._actions = None
        self._reset_seeds()
        self._reset_options()
        everyone = np.arange(self.num_envs)
        self._last_resets.note(everyone, infos if self._fresh else copy_arrays(infos), everyone, self.num_envs)
        return obs

    def _reset_seed(self) -> Any:
        seed = self._seeds[0]
        if seed is None or not is_atari_vector_env(self.env.unwrapped):
            return seed
        # AtariVectorEnv takes them as 32 bits with a sign
        return (seed + np.arange(self.num_envs)) % 2**31

    @property
    def reset_infos(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The infos of the last reset of each environment."""
        return self._last_resets.read()

    @reset_infos.setter
    def reset_infos(self, infos: list[dict[str, Any]]) -> None:
        # VecEnv's constructor sets it
        self._last_resets = ResetInfos(infos)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: of the next step, shape [num_envs, \\*action_space.shape]
        :raises ValueError: if shape or dtype are wrong, or the adapter is closed
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
        :return: observations, rewards, dones and infos as from ``DummyVecEnv``
        :raises ValueError: if the environment does not behave as its autoreset mode requires
        """
        assert self._actions is not None, "step_wait() needs step_async() before it"
        actions, self._actions = self._actions, None
        try:
            return self._step(actions)
        except Exception as error:
            if ids := self._single.culprits(error):
                error.add_note(f"Raised by environment {', '.join(map(str, ids))} of {self.num_envs} in {self._single.env!r}")
            raise

    def _step(self, actions: np.ndarray) -> VecEnvStepReturn:
        obs, rewards, terminations, truncations, infos = self.env.step(actions)
        obs = as_arrays(self._array_spaces, obs, make_copy=not self._fresh)
        if infos and not self._fresh:
            infos = copy_arrays(infos)
        rewards = np.asarray(rewards)
        self._returns += rewards
        self._n_steps += 1
        dones = np.logical_or(terminations, truncations)
        ids = dones.nonzero()[0]
        step_infos = self._end(ids, dones, obs, terminations, infos) if len(ids) else StepInfos(self._blank, infos, None)
        return obs, rewards.astype(np.float32), dones, step_infos

    def _end(self, ids: np.ndarray, dones: np.ndarray, obs: Any, terminations: Any, infos: dict[str, Any]) -> StepInfos:
        """Record the episodes that ended, and start new ones, whose first observations overwrite rows of ``obs``."""
        if self._reset_ended is None:
            terminal_obs, final_infos, infos = split_final(infos, ids, self.env)
            self._last_resets.note(ids, infos, ids, self.num_envs)
        else:
            terminal_obs, final_infos = rows(obs, ids), infos
            first_obs, reset_infos, reset_rows, n_rows = self._reset_ended(ids, dones, obs)
            set_rows(obs, ids, first_obs)
            self._last_resets.note(ids, reset_infos if self._fresh else copy_arrays(reset_infos), reset_rows, n_rows)
        returns = lengths = None
        if self._own_monitor:
            returns, lengths = self._returns[ids], self._n_steps - self._starts[ids]
        self._returns[ids] = 0.0
        self._starts[ids] = self._n_steps
        # An episode that terminates at the time limit counts as terminated
        truncated = ~np.asarray(terminations)[ids]
        ended = EndedEpisodes(ids, terminal_obs, truncated, returns, lengths, time.time() - self._t_start, final_infos)
        if self._results_writer is not None:
            for record in ended.records():
                self._results_writer.write_row(record)
        return StepInfos(self._blank, infos, ended)

    def _selected(self, indices: VecEnvIndices) -> list[int]:
        """Indices of environments, not negative; None selects all."""
        selected = [as_index(i) for i in self._get_indices(as_index(indices) if isinstance(indices, np.integer) else indices)]
        wrong = [i for i in selected if not -self.num_envs <= i < self.num_envs]
        if wrong:
            raise ValueError(f"indices must be of the {self.num_envs} environments, got {wrong}")
        return [i % self.num_envs for i in selected]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :return: one value per environment. A vector environment without single environments inside (an EnvPool,
            ``CartPoleVectorEnv``) has one value for all
        :raises AttributeError: if there is no such attribute
        """
        selected = self._selected(indices)
        if attr_name == "render_mode":
            # Of the outermost wrapper, as wrappers may change it; EnvPool may lack it
            return [getattr(self.env, "render_mode", None)] * len(selected)
        if attr_name == "allow_early_resets" and self._own_monitor:
            # env_is_wrapped(Monitor) is True, so callers may ask this of a Monitor
            return [True] * len(selected)
        return self._single.get(attr_name, selected)

    def has_attr(self, attr_name: str) -> bool:
        """:return: whether all environments have it. It is not read where possible: AsyncVectorEnv would call a method"""
        return self._single.has(attr_name) or super().has_attr(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute where it exists, at the outermost wrapper otherwise.

        :raises ValueError: for a part of the environments, if there are no single environments inside
        """
        self._single.set(attr_name, value, self._selected(indices))

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :return: one result per environment. A vector environment without single environments inside is called once: a
            list or tuple of num_envs elements has one for each environment, any other result counts for all
        :raises ValueError: for a part of the environments, if there are no single environments inside
        """
        return self._single.call(method_name, method_args, method_kwargs, self._selected(indices))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for ``Monitor``: the adapter records episodes. ``AsyncVectorEnv`` knows wrappers by their class's name."""
        selected = self._selected(indices)
        if wrapper_class is Monitor or any(isinstance(wrapper, wrapper_class) for wrapper in vector_wrappers(self.env)):
            return [True] * len(selected)
        answers = self._single.are_wrapped(wrapper_class)
        return [answers[i] for i in selected]

    @property
    def spec(self) -> gym.envs.registration.EnvSpec | None:
        """The specification of the vector environment, None if it has none (EnvPool)."""
        spec = getattr(self.env, "spec", None)
        return spec if isinstance(spec, gym.envs.registration.EnvSpec) else None

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: one RGB image per environment; None unless the render mode is ``rgb_array``"""
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
