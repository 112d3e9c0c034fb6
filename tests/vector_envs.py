"""Vector environments whose transitions are known, and the comparison with DummyVecEnv and Monitor."""

import copy
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_reinforce.vec_env import VectorEnvAdapter

N_ENVS = 3
MODES = list(AutoresetMode)


class CountingEnv(gym.Env):
    """
    Observation k of all that an environment ever gives is filled with k, so a step left out or counted twice shows.

    An element of the observation holds the last action, so an action given to another environment shows. Rewards are
    not exact in float32, so a sum in float32 shows. Episodes have a random or fixed length; they end by termination,
    by truncation, or both at once. A step after the end is an error, as is one before the first reset.

    :param index: which environment this is
    :param kind: of the observation: "box", "dict", "discrete", "image" or "tuple"
    :param lengths: of the episodes, in turn; None draws them from the seeded generator
    :param infos: False leaves the infos empty
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(
        self,
        index: int = 0,
        kind: str = "box",
        lengths: tuple[int, ...] | None = None,
        infos: bool = True,
        render_mode: str | None = None,
    ) -> None:
        box = spaces.Box(-1.0, 1e6, (3,), np.float32)
        self.observation_space = {
            "box": box,
            "dict": spaces.Dict({"b": box, "a": spaces.Discrete(10_000)}),
            "discrete": spaces.Discrete(10_000),
            "image": spaces.Box(0, 255, (2, 2, 1), np.uint8),
            "tuple": spaces.Tuple((box, spaces.Discrete(10_000))),
        }[kind]
        self.action_space = spaces.Discrete(5)
        self.index, self.kind, self.lengths, self.infos, self.render_mode = index, kind, lengths, infos, render_mode
        self.k, self.episode, self.left, self.difficulty = -1, 0, 0, 1.0

    def _obs(self, action: int) -> Any:
        self.k += 1
        box = np.array([self.k, self.k, action], dtype=np.float32)
        return {
            "box": box,
            "dict": {"b": box, "a": self.k},
            "discrete": self.k,
            "image": np.full((2, 2, 1), self.k % 256, dtype=np.uint8),
            "tuple": (box, self.k),
        }[self.kind]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.k, self.episode = -1, 0
        self.episode += 1
        lengths = self.lengths
        self.left = int(self.np_random.integers(1, 8)) if lengths is None else lengths[self.episode % len(lengths)]
        return self._obs(0), {"start": self.episode, **(options or {})} if self.infos else {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.left > 0, "step after the end of the episode"
        self.left -= 1
        over = self.left == 0
        # Episodes end by truncation, both, and termination in turn
        terminated, truncated = over and self.episode % 3 != 1, over and self.episode % 3 != 0
        info: dict[str, Any] = {}
        if self.infos:
            info = {"count": self.k, "over": over, "name": f"env{self.index}", "nested": {"half": self.k / 2}}
            if self.k % 2 == self.index % 2:
                info["sometimes"] = np.full(2, self.k)
        reward = 0.1 * self.k + 1e-4 * self.index
        return self._obs(int(action)), reward, bool(terminated), bool(truncated), info

    def greet(self, word: str) -> str:
        return f"{word} from {self.index}"

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.index, dtype=np.uint8)


class FakeEnvPool:
    """
    What the adapter uses of EnvPool's gymnasium interface, with its ways: spaces of one environment, an autoreset in the step
    after the end, a partial reset that returns only its rows, infos without masks, no seeds after construction.
    """

    metadata: ClassVar = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, envs: list[CountingEnv], seed: int, **config: Any) -> None:
        self.envs = envs
        self.config = {"num_envs": len(envs), "batch_size": len(envs), "max_num_players": 1, **config}
        self.observation_space, self.action_space = envs[0].observation_space, envs[0].action_space
        self.seeds: list[int | None] = [seed + i for i in range(len(envs))]
        self.over = np.zeros(len(envs), dtype=bool)
        self.closed_times = 0

    def send(self) -> None: ...
    def recv(self) -> None: ...
    def async_reset(self) -> None: ...

    def reset(self, env_id: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        ids = np.arange(len(self.envs)) if env_id is None else env_id
        obs = np.stack([self.envs[i].reset(seed=self.seeds[i])[0] for i in ids])
        for i in ids:
            self.seeds[i], self.over[i] = None, False
        return obs, {"env_id": np.array(ids, dtype=np.int32)}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        rows = []
        for i, env in enumerate(self.envs):
            if self.over[i]:
                rows.append((env.reset()[0], 0.0, False, False))
            else:
                rows.append(env.step(actions[i])[:4])
        obs, rewards, terminations, truncations = (np.stack(part) for part in zip(*rows, strict=True))
        self.over = terminations | truncations
        return obs, rewards, terminations, truncations, {"env_id": np.arange(len(self.envs), dtype=np.int32)}

    def close(self) -> None:
        self.closed_times += 1


class OtherVectorEnv(VectorEnv):
    """
    Counts up in all environments; a masked reset starts a row at 0. Ends at 2 + i steps.

    :param mode: what it says of itself
    :param obeys: False resets all environments whatever the mask says
    """

    def __init__(self, mode: AutoresetMode, obeys: bool = True, n_envs: int = N_ENVS) -> None:
        self.num_envs, self.obeys = n_envs, obeys
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = spaces.Box(0, 99, (1,)), spaces.Discrete(5)
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self.counts = np.zeros((n_envs, 1), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")
        self.counts[mask if mask is not None and self.obeys else slice(None)] = 0
        return self.counts, {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.counts += 1
        terminations = self.counts[:, 0] >= 2 + np.arange(self.num_envs)
        return self.counts, np.ones(self.num_envs), terminations, np.zeros(self.num_envs, dtype=bool), {}


def env_fns(n_envs: int = N_ENVS, wrap: Any = None, **kwargs: Any) -> list[Any]:
    def make(index: int) -> gym.Env:
        env = CountingEnv(index, **kwargs)
        return env if wrap is None else wrap(env)

    return [partial(make, index) for index in range(n_envs)]


def reference(**kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv(env_fns(wrap=Monitor, **kwargs))


def cartpole(n_envs: int, **kwargs: Any) -> VectorEnvAdapter:
    return VectorEnvAdapter(gym.make_vec("CartPole-v1", num_envs=n_envs, vectorization_mode="vector_entry_point", **kwargs))


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal values, types of containers, dtypes of arrays and kinds of scalars."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        assert set(ours) == set(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, tuple):
        assert isinstance(ours, tuple), where
        assert len(ours) == len(theirs), where
        for i, part in enumerate(theirs):
            assert_same(ours[i], part, f"{where}[{i}]")
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype, where
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
    else:
        assert ours == theirs, where
        assert isinstance(ours, bool) == isinstance(theirs, bool), where


def assert_same_run(ours: VecEnv, theirs: VecEnv, n_steps: int = 40, drop: tuple[str, ...] = (), seed: int = 0) -> int:
    """
    Step both with the same actions and compare all they return.

    :param drop: keys of infos that only the reference has
    :return: number of episodes that ended
    """
    rng = np.random.default_rng(seed)
    ours.seed(seed)
    theirs.seed(seed)
    assert_same(ours.reset(), theirs.reset(), "reset")
    kept: list[tuple[Any, Any]] = []
    n_ended = 0
    for step in range(n_steps):
        actions = rng.integers(0, 5, size=N_ENVS)
        obs, rewards, dones, infos = ours.step(actions)
        kept.append((obs, copy.deepcopy(obs)))
        expected = theirs.step(actions)
        assert_same(obs, expected[0], f"step {step}: observations")
        assert_same(rewards, expected[1], f"step {step}: rewards")
        assert_same(dones, expected[2], f"step {step}: dones")
        for i, info in enumerate(expected[3]):
            info = {key: value for key, value in info.items() if key not in drop}
            info_ours = {key: value for key, value in infos[i].items() if key != "env_id"}
            if "episode" in info:
                n_ended += 1
                # The clock differs
                assert info_ours["episode"].pop("t") >= 0.0
                info["episode"].pop("t")
            assert_same(info_ours, info, f"step {step}: infos[{i}]")
    # Returned observations are never overwritten
    for step, (obs, at_the_time) in enumerate(kept):
        assert_same(obs, at_the_time, f"observations of step {step}, later")
    return n_ended
