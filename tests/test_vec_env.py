"""
VectorEnvAdapter against DummyVecEnv and Monitor: the same transitions, to the letter, whatever the vector environment does
when an episode ends.
"""

import copy
import json
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorRewardWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import (
    DictInfoToList,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TransformObservation,
)
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.vec_env import VectorEnvAdapter, vectorize

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
        # Ends in turn by termination, truncation and both
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


def env_fns(n_envs: int = N_ENVS, wrap: Any = None, **kwargs: Any) -> list[Any]:
    def make(index: int) -> gym.Env:
        env = CountingEnv(index, **kwargs)
        return env if wrap is None else wrap(env)

    return [partial(make, index) for index in range(n_envs)]


def reference(**kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv(env_fns(wrap=Monitor, **kwargs))


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
    # Nothing that was handed out is written to later
    for step, (obs, at_the_time) in enumerate(kept):
        assert_same(obs, at_the_time, f"observations of step {step}, later")
    return n_ended


# ---- The same transitions as DummyVecEnv -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["box", "dict", "discrete", "image", "tuple"])
@pytest.mark.parametrize("copy_obs", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_sync_equals_dummy_vec_env(mode: AutoresetMode, copy_obs: bool, kind: str) -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(kind=kind), copy=copy_obs, autoreset_mode=mode))
    assert assert_same_run(ours, reference(kind=kind)) > 20
    assert [info["start"] for info in ours.reset_infos] == [env.episode for env in ours.env.envs]


@pytest.mark.parametrize(
    ("mode", "copy_obs", "shared_memory", "kind"),
    [
        (AutoresetMode.NEXT_STEP, True, True, "box"),
        (AutoresetMode.NEXT_STEP, False, True, "dict"),
        (AutoresetMode.SAME_STEP, True, True, "dict"),
        (AutoresetMode.SAME_STEP, True, False, "box"),
        (AutoresetMode.DISABLED, False, True, "box"),
        (AutoresetMode.DISABLED, True, False, "dict"),
    ],
)
def test_async_equals_dummy_vec_env(mode: AutoresetMode, copy_obs: bool, shared_memory: bool, kind: str) -> None:
    env = AsyncVectorEnv(env_fns(kind=kind), copy=copy_obs, shared_memory=shared_memory, autoreset_mode=mode)
    ours = VectorEnvAdapter(env)
    assert assert_same_run(ours, reference(kind=kind)) > 20
    ours.close()


@pytest.mark.parametrize("lengths", [(1,), (5, 2, 9)])
@pytest.mark.parametrize("mode", MODES)
def test_fixed_lengths(mode: AutoresetMode, lengths: tuple[int, ...]) -> None:
    # With length 1 every step is an end, and all environments always end together
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(lengths=lengths), autoreset_mode=mode))
    assert assert_same_run(ours, reference(lengths=lengths)) >= 20


@pytest.mark.parametrize("mode", MODES)
def test_environments_with_a_monitor_keep_its_statistics(mode: AutoresetMode) -> None:
    def rewards_in_cents(env: gym.Env) -> gym.Env:
        # Outside the Monitor: what it records are the rewards before
        return gym.wrappers.TransformReward(Monitor(env), lambda reward: 100 * reward)

    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(wrap=rewards_in_cents), autoreset_mode=mode))
    assert assert_same_run(ours, DummyVecEnv(env_fns(wrap=rewards_in_cents))) > 20


def test_without_infos() -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(infos=False)))
    assert assert_same_run(ours, reference(infos=False)) > 20
    assert ours.reset_infos == [{}] * N_ENVS


@pytest.mark.parametrize("mode", MODES)
def test_observation_wrapper_sees_terminal_observations(mode: AutoresetMode) -> None:
    def double(env: gym.Env) -> gym.Env:
        return gym.wrappers.TransformObservation(env, lambda obs: 2 * obs, None)

    vector_env = SyncVectorEnv(env_fns(), autoreset_mode=mode)
    if mode is AutoresetMode.SAME_STEP:
        # gymnasium's vector wrappers of this kind refuse this mode
        ours = VectorEnvAdapter(SyncVectorEnv(env_fns(wrap=double), autoreset_mode=mode))
    else:
        ours = VectorEnvAdapter(TransformObservation(vector_env, lambda obs: 2 * obs))
    assert assert_same_run(ours, DummyVecEnv(env_fns(wrap=lambda env: Monitor(double(env))))) > 20


def test_envpool_stand_in_equals_dummy_vec_env() -> None:
    pool = FakeEnvPool([CountingEnv(i) for i in range(N_ENVS)], seed=0)
    ours = VectorEnvAdapter(pool)
    with pytest.warns(UserWarning, match=r"EnvPool takes seeds only in envpool.make"):
        n_ended = assert_same_run(ours, reference(), drop=("count", "over", "name", "nested", "sometimes"))
    assert n_ended > 20
    assert [info["env_id"] for info in ours.reset_infos] == [0, 1, 2]
    ours.step(np.zeros(N_ENVS, dtype=int))[3][2]["env_id"] = 7
    ours.close()
    ours.close()
    assert pool.closed_times == 1


def test_the_reset_step_counted_as_a_transition_is_detected() -> None:
    # What an adapter would do that hands NEXT_STEP environments on as they are: the comparison above must see it
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns()))

    def do_nothing(ids: np.ndarray, dones: np.ndarray, obs: np.ndarray) -> tuple[Any, ...]:
        return obs[ids], {}, ids, N_ENVS

    ours._reset_ended = do_nothing
    with pytest.raises(AssertionError, match="observations"):
        assert_same_run(ours, reference())
    # And what it learns from: reward 0 for the reset, one step too many per episode
    ours.seed(0)
    ours.reset()
    steps = [ours.step(np.zeros(N_ENVS, dtype=int)) for _ in range(40)]
    assert any(reward == 0.0 for step in steps for reward in step[1])


def test_transitions_count_up_by_one() -> None:
    # Fixed lengths 2, 3, 2, ... (episode 1 has lengths[1]): observations 0 | 1 2 3 | 4 5 6 ... without a gap
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(1, lengths=(2, 3))))
    seen = [ours.reset()[0, 0]]
    for _ in range(5):
        obs, _, dones, infos = ours.step(np.array([1]))
        if dones[0]:
            seen.append(infos[0]["terminal_observation"][0])
        seen.append(obs[0, 0])
    # 3 steps, end, 2 steps, end
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7]


# ---- Resets, seeds, options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_reset_in_the_middle_starts_afresh(mode: AutoresetMode) -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(lengths=(4,)), autoreset_mode=mode))
    ours.seed(3)
    first = ours.reset()
    for _ in range(2):
        ours.step(np.zeros(N_ENVS, dtype=int))
    ours.seed(3)
    np.testing.assert_array_equal(ours.reset(), first)
    for step in range(4):
        _, _, dones, infos = ours.step(np.zeros(N_ENVS, dtype=int))
        assert dones.all() == (step == 3)
    # Four steps, not six. Step k (from 0) rewards 0.1 k: 0.0 + 0.1 + 0.2 + 0.3, and 1e-4 per step and index
    assert [info["episode"]["l"] for info in infos] == [4, 4, 4]
    assert [info["episode"]["r"] for info in infos] == [0.6, 0.6004, 0.6008]


@pytest.mark.parametrize("mode", MODES)
def test_reset_right_after_an_end(mode: AutoresetMode) -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(lengths=(2,)), autoreset_mode=mode))
    for _ in range(2):
        ours.seed(0)
        ours.reset()
        for _step in range(2):
            dones, infos = ours.step(np.zeros(N_ENVS, dtype=int))[2:]
        assert dones.all()
        assert [info["episode"]["l"] for info in infos] == [2, 2, 2]


def test_seeds_are_used_once() -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns()))
    assert ours.seed(np.int64(10)) == [10, 11, 12]
    ours.reset()
    assert ours.get_attr("np_random_seed") == [10, 11, 12]
    state = ours.get_attr("np_random")[0].bit_generator.state
    ours.reset()
    assert ours.get_attr("np_random")[0].bit_generator.state != state


def test_options_are_passed_once() -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns()))
    options = {"low": -1}
    ours.set_options(options)
    ours.reset()
    assert [info["low"] for info in ours.reset_infos] == [-1, -1, -1]
    ours.reset()
    assert all("low" not in info for info in ours.reset_infos)
    ours.set_options([options, options, options])
    with pytest.raises(ValueError, match="one dict of options for all its 3 environments"):
        ours.set_options([{"low": 0}, {"low": 1}, {"low": 2}])


# ---- Infos: made when they are read ---------------------------------------------------------------------------------------


def infos_of_a_step_with_an_end() -> tuple[VectorEnvAdapter, Any]:
    ours = VectorEnvAdapter(SyncVectorEnv([partial(CountingEnv, 0, lengths=(2,)), partial(CountingEnv, 1, lengths=(9,))]))
    ours.seed(0)
    ours.reset()
    ours.step(np.array([0, 0]))
    return ours, ours.step(np.array([0, 0]))[3]


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(list, id="list"),
        pytest.param(tuple, id="tuple"),
        pytest.param(lambda infos: infos[:], id="slice"),
        pytest.param(lambda infos: [*infos], id="unpack"),
        pytest.param(lambda infos: infos.copy(), id="copy"),
        pytest.param(copy.copy, id="copy.copy"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda infos: pickle.loads(pickle.dumps(infos)), id="pickle"),
        pytest.param(lambda infos: [] + infos, id="radd"),
        pytest.param(lambda infos: infos + [], id="add"),
        pytest.param(lambda infos: [infos.pop(0), infos.pop()], id="pop"),
        pytest.param(lambda infos: list(reversed(infos))[::-1], id="reversed"),
        pytest.param(lambda infos: [info for _, info in zip(range(2), infos, strict=True)], id="zip"),
        pytest.param(lambda infos: list(np.array(infos)), id="numpy"),
        pytest.param(lambda infos: [infos[-2], infos[np.int64(1)]], id="index"),
        pytest.param(lambda infos: ([], infos.__setitem__(slice(0, 0), []), list(infos))[2], id="setslice"),
    ],
)
def test_infos_read_in_every_way(read: Any) -> None:
    _, infos = infos_of_a_step_with_an_end()
    assert isinstance(infos, list)
    assert len(infos) == 2
    first, second = read(infos)
    assert first["episode"]["l"] == 2
    assert first["TimeLimit.truncated"] is True
    assert first["count"] == 1
    np.testing.assert_array_equal(first["terminal_observation"], [2, 2, 0])
    assert "episode" not in second
    assert second["TimeLimit.truncated"] is False
    assert second["nested"] == {"half": 0.5}


def test_infos_compare_and_print_as_lists() -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(infos=False, lengths=(9,))))
    ours.reset()
    step = ours.step(np.zeros(N_ENVS, dtype=int))[3]
    assert step == [{"TimeLimit.truncated": False}] * N_ENVS
    assert step == copy.copy(step)
    assert repr(step) == repr([{"TimeLimit.truncated": False}] * N_ENVS)
    assert {"TimeLimit.truncated": False} in step
    assert json.loads(json.dumps(step)) == list(step)


def test_changed_infos_stay_in_their_step() -> None:
    ours, infos = infos_of_a_step_with_an_end()
    infos[0]["mine"] = infos[1]["mine"] = 1
    infos[1]["nested"]["half"] = "changed"
    assert infos[0]["mine"] == 1
    infos[1] = {"whole": "new"}
    later = ours.step(np.array([0, 0]))[3]
    assert "mine" not in later[0]
    assert "mine" not in later[1]
    # Neither what belonged to the end is left
    assert set(later[0]) == {"count", "over", "name", "nested", "sometimes", "TimeLimit.truncated"} - (
        set() if later[0]["count"] % 2 == 0 else {"sometimes"}
    )
    assert infos[1] == {"whole": "new"}
    _, infos = infos_of_a_step_with_an_end()
    infos[0] = {"whole": "new"}
    assert infos[1]["count"] == 1
    assert list(infos)[:1] == [{"whole": "new"}]


def test_reset_infos_stay_until_the_next_reset() -> None:
    ours, _ = infos_of_a_step_with_an_end()
    assert ours.reset_infos == [{"start": 2}, {"start": 1}]
    ours.reset_infos[0]["mine"] = ours.reset_infos[1]["mine"] = 1
    for _ in range(2):
        ours.step(np.array([0, 0]))
    # Environment 0 has ended again, environment 1 has not
    assert ours.reset_infos == [{"start": 3}, {"start": 1, "mine": 1}]


def test_infos_read_late_are_those_of_their_step() -> None:
    class Reuses(SyncVectorEnv):
        """Hands out one array of infos again and again."""

        shared = np.zeros(N_ENVS)

        def reset(self, **kwargs: Any) -> Any:
            return super().reset(**kwargs)[0], {"shared": self.shared}

        def step(self, actions: Any) -> Any:
            self.shared += 1
            return (*super().step(actions)[:4], {"shared": self.shared, "deep": {"shared": self.shared}, "fps": 30})

    ours = VectorEnvAdapter(Reuses(env_fns(lengths=(9,))))
    ours.reset()
    steps = [ours.step(np.zeros(N_ENVS, dtype=int))[3] for _ in range(3)]
    assert [infos[1]["shared"] for infos in steps] == [1, 2, 3]
    assert [infos[1]["deep"]["shared"] for infos in steps] == [1, 2, 3]
    assert ours.reset_infos == [{"shared": 0}] * N_ENVS
    # No row per environment: everyone's
    assert steps[0][2]["fps"] == 30


def test_ended_episodes_as_arrays() -> None:
    _, infos = infos_of_a_step_with_an_end()
    np.testing.assert_array_equal(infos.ended.ids, [0])
    np.testing.assert_array_equal(infos.ended.lengths, [2])
    # Rewards 0.1 * 0 and 0.1 * 1
    np.testing.assert_array_equal(infos.ended.returns, [0.1])
    np.testing.assert_array_equal(infos.ended.truncated, [True])
    np.testing.assert_array_equal(infos.ended.terminal_obs, [[2, 2, 0]])


# ---- CartPole's own vector environment --------------------------------------------------------------------------------------


def cartpole(n_envs: int, **kwargs: Any) -> VectorEnvAdapter:
    return VectorEnvAdapter(gym.make_vec("CartPole-v1", num_envs=n_envs, vectorization_mode="vector_entry_point", **kwargs))


def test_cartpole_alone_equals_dummy_vec_env() -> None:
    # One environment and one generator each: the same starts, also of later episodes
    ours, theirs = cartpole(1), DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))])
    ours.seed(5)
    theirs.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    n_ended = 0
    for step in range(400):
        actions = rng.integers(0, 2, size=1)
        obs, rewards, dones, infos = ours.step(actions)
        expected = theirs.step(actions)
        np.testing.assert_allclose(obs, expected[0], rtol=1e-6, err_msg=f"step {step}")
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        if dones[0]:
            n_ended += 1
            assert infos[0]["episode"]["r"] == expected[3][0]["episode"]["r"]
            assert infos[0]["episode"]["l"] == expected[3][0]["episode"]["l"]
            np.testing.assert_allclose(infos[0]["terminal_observation"], expected[3][0]["terminal_observation"], rtol=1e-6)
    assert n_ended > 10


def test_cartpole_512_follows_single_cartpoles() -> None:
    # One generator for all cannot give the starts of single environments, so these take over each start
    n_envs = 512
    ours = cartpole(n_envs)
    ours.seed(0)
    ours.reset()
    singles = [gym.make("CartPole-v1").unwrapped for _ in range(n_envs)]
    for i, single in enumerate(singles):
        single.reset(seed=0)
        single.state = ours.env.state[:, i].copy()
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    steps_of = np.zeros(n_envs, dtype=int)
    for _ in range(60):
        actions = rng.integers(0, 2, size=n_envs)
        obs, rewards, dones, infos = ours.step(actions)
        steps_of += 1
        np.testing.assert_array_equal(rewards, np.ones(n_envs))
        for i, single in enumerate(singles):
            expected, _, terminated, _, _ = single.step(int(actions[i]))
            assert dones[i] == terminated
            np.testing.assert_allclose(infos[i]["terminal_observation"] if dones[i] else obs[i], expected, rtol=1e-5)
            if terminated:
                assert infos[i]["episode"]["r"] == infos[i]["episode"]["l"] == steps_of[i]
                lengths.append(int(steps_of[i]))
                steps_of[i] = 0
                assert np.all(np.abs(obs[i]) <= 0.05)
                single.reset()
                single.state = ours.env.state[:, i].copy()
            else:
                assert infos[i] == {"TimeLimit.truncated": False}
    # A random policy balances for some 22 steps; those cut off at 60 are few
    assert len(lengths) > 900
    assert 18 < np.mean(lengths) < 25
    # Every start is another
    assert len(np.unique(ours.reset()[:, 0])) == n_envs


def test_cartpole_time_limit_is_truncation() -> None:
    ours = cartpole(4, max_episode_steps=5)
    ours.reset()
    for step in range(10):
        dones, infos = ours.step(np.array([0, 1, 0, 1]))[2:]
        assert dones.all() == ((step + 1) % 5 == 0)
    assert [info["episode"]["l"] for info in infos] == [5] * 4
    assert all(info["TimeLimit.truncated"] for info in infos)


def test_cartpole_attributes_and_pictures() -> None:
    ours = cartpole(3, render_mode="rgb_array")
    ours.reset()
    assert ours.get_attr("length") == [0.5] * 3
    ours.set_attr("length", 0.7)
    assert ours.env.length == 0.7
    assert not ours.has_attr("no_such_thing")
    assert [image.shape for image in ours.get_images()] == [(400, 600, 3)] * 3
    assert len(ours.env_method("render")) == 3
    with pytest.raises(ValueError, match=r"set_attr\('length'\) with indices=\[1\] needs single environments"):
        ours.set_attr("length", 0.7, indices=1)
    with pytest.raises(ValueError, match=r"env_method\('render'\) with indices=\[0\] needs single environments"):
        ours.env_method("render", indices=[0])
    assert ours.spec.id == "CartPole-v1"
    ours.close()


def test_envpool_equals_its_own_steps() -> None:
    envpool = pytest.importorskip("envpool")
    kwargs = {"env_type": "gymnasium", "num_envs": N_ENVS, "seed": 4, "num_threads": 1, "max_episode_steps": 25}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, raw = VectorEnvAdapter(envpool.make("CartPole-v1", **kwargs)), envpool.make("CartPole-v1", **kwargs)
    # Environment i plays action (k // 4) % 2 in its transition k, in both; its own generator gives its starts
    n_steps = 150
    ours_steps: list[list[Any]] = [[] for _ in range(N_ENVS)]
    raw_steps: list[list[Any]] = [[] for _ in range(N_ENVS)]
    first = ours.reset()
    obs, _ = raw.reset()
    np.testing.assert_array_equal(first, obs)
    kept = []
    for k in range(n_steps):
        obs, rewards, dones, infos = ours.step(np.full(N_ENVS, (k // 4) % 2))
        kept.append((obs, obs.copy()))
        for i in range(N_ENVS):
            last = infos[i]["terminal_observation"] if dones[i] else obs[i]
            ours_steps[i].append((*last, rewards[i], dones[i], infos[i]["TimeLimit.truncated"], infos[i]["elapsed_step"]))
    over = np.zeros(N_ENVS, dtype=bool)
    for _ in range(2 * n_steps):
        actions = np.array([(len(steps) // 4) % 2 for steps in raw_steps], dtype=np.int32)
        obs, rewards, terminations, truncations, infos = raw.step(actions)
        for i in np.flatnonzero(~over):
            dones = terminations | truncations
            raw_steps[i].append(
                (*obs[i], rewards[i], dones[i], truncations[i] and not terminations[i], infos["elapsed_step"][i])
            )
        over = terminations | truncations
    for i in range(N_ENVS):
        np.testing.assert_array_equal(ours_steps[i], raw_steps[i][:n_steps], err_msg=f"environment {i}")
        assert sum(step[5] for step in ours_steps[i]) > 5
    assert all(np.array_equal(obs, at_the_time) for obs, at_the_time in kept)
    assert ours.spec is None
    ours.close()


# ---- With SB3 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [A2C, PPO])
@pytest.mark.parametrize("wrapper", [lambda env: env, VecNormalize, VecMonitor, partial(VecFrameStack, n_stack=2)])
@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_sb3_algorithms_and_wrappers(algorithm: Any, wrapper: Any) -> None:
    kwargs = {"n_steps": 16, "seed": 0, "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    if algorithm is PPO:
        kwargs.update(batch_size=32, n_epochs=1)
    env = wrapper(cartpole(8, max_episode_steps=12))
    model = algorithm("MlpPolicy", env, **kwargs).learn(512)
    assert model.num_timesteps == 512
    # At least every 12 steps an end
    assert len(model.ep_info_buffer) >= 32
    assert max(info["l"] for info in model.ep_info_buffer) <= 12
    assert all(info["r"] == info["l"] for info in model.ep_info_buffer)


def test_wrappers_see_what_dummy_vec_env_gives() -> None:
    ours = VecFrameStack(VecNormalize(VectorEnvAdapter(SyncVectorEnv(env_fns()))), n_stack=2)
    theirs = VecFrameStack(VecNormalize(reference()), n_stack=2)
    assert assert_same_run(ours, theirs) > 20


def test_a2c_learns_the_same_as_with_dummy_vec_env() -> None:
    parameters = []
    for env in (VectorEnvAdapter(SyncVectorEnv(env_fns())), reference()):
        model = A2C("MlpPolicy", env, n_steps=8, seed=1, policy_kwargs={"net_arch": [4]}, device="cpu").learn(240)
        parameters.append(model.policy.state_dict())
    for name, value in parameters[0].items():
        np.testing.assert_array_equal(value, parameters[1][name], err_msg=name)


def test_reinforce_learns_the_same_as_with_dummy_vec_env() -> None:
    parameters = []
    for env in (VectorEnvAdapter(SyncVectorEnv(env_fns())), reference()):
        model = REINFORCE("MlpPolicy", env, n_steps=8, seed=1, policy_kwargs={"net_arch": [4]}, device="cpu").learn(240)
        parameters.append(model.policy.state_dict())
    for name, value in parameters[0].items():
        np.testing.assert_array_equal(value, parameters[1][name], err_msg=name)


def test_evaluate_policy() -> None:
    env = cartpole(4, max_episode_steps=7)
    model = A2C("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [4]}, device="cpu")
    with warnings.catch_warnings():
        # It would warn of an environment without a Monitor
        warnings.simplefilter("error")
        returns, lengths = evaluate_policy(model, env, n_eval_episodes=8, return_episode_rewards=True)
    # 7 steps are too few to fall
    assert returns == [7.0] * 8
    assert lengths == [7] * 8


# ---- Single environments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_attributes_and_methods(kind: Any) -> None:
    ours = VectorEnvAdapter(kind(env_fns(wrap=lambda env: gym.wrappers.TimeLimit(env, 50), render_mode="rgb_array")))
    ours.reset()
    assert ours.render_mode == "rgb_array"
    assert ours.metadata["render_fps"] == 7
    assert "rgb_array" in ours.metadata["render_modes"]
    assert ours.get_attr("index") == [0, 1, 2]
    assert ours.get_attr("index", indices=[-1, 0]) == [2, 0]
    ours.set_attr("difficulty", [1, 2])
    assert ours.get_attr("difficulty") == [[1, 2]] * 3
    ours.set_attr("difficulty", 5, indices=1)
    assert ours.get_attr("difficulty") == [[1, 2], 5, [1, 2]]
    assert ours.env_method("greet", "hello") == ["hello from 0", "hello from 1", "hello from 2"]
    assert ours.env_method("greet", word="bye", indices=[2]) == ["bye from 2"]
    with pytest.raises(ValueError, match=r"indices must be of the 3 environments, got \[3\]"):
        ours.get_attr("index", indices=3)
    # A question for what is not there ends no worker
    assert not ours.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        ours.env_method("no_such_thing")
    assert ours.env_is_wrapped(Monitor) == [True] * 3
    assert ours.get_attr("allow_early_resets") == [True] * 3
    assert ours.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3
    assert ours.env_is_wrapped(gym.wrappers.ClipAction, indices=1) == [False]
    assert [int(image[0, 0, 0]) for image in ours.get_images()] == [0, 1, 2]
    assert ours.render().shape == (8, 8, 3)
    ours.step(np.zeros(N_ENVS, dtype=int))
    ours.close()
    ours.close()
    assert ours.env.closed


def test_no_pictures_without_render_mode() -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns()))
    with pytest.warns(UserWarning, match="images need render_mode='rgb_array', got None"):
        assert ours.get_images() == [None] * 3


# ---- Files and RL Zoo ------------------------------------------------------------------------------------------------------


def test_monitor_file(tmp_path: Path) -> None:
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(lengths=(2, 3))), monitor_file=str(tmp_path / "log"))
    ours.seed(0)
    ours.reset()
    episodes = []
    for _ in range(10):
        episodes += [info["episode"] for info in ours.step(np.zeros(N_ENVS, dtype=int))[3] if "episode" in info]
    ours.close()
    lines = (tmp_path / "log.monitor.csv").read_text().splitlines()
    assert json.loads(lines[0][1:])["env_id"] == "None"
    assert lines[1] == "r,l,t"
    # 10 steps are 2 times the lengths 3 and 2, in 3 environments
    assert [line.split(",")[:2] for line in lines[2:]] == [[str(e["r"]), str(e["l"])] for e in episodes]
    assert [e["l"] for e in episodes] == [3] * 3 + [2] * 3 + [3] * 3 + [2] * 3
    with pytest.raises(ValueError, match="monitor_file='x' is for environments without a Monitor"):
        VectorEnvAdapter(SyncVectorEnv(env_fns(wrap=Monitor)), monitor_file="x")


def test_vectorize_as_rl_zoo_calls_it(tmp_path: Path) -> None:
    utils = pytest.importorskip("rl_zoo3.utils")
    wrap = utils.get_wrapper_class({"vec_env_wrapper": "sb3_reinforce.vec_env.vectorize"}, "vec_env_wrapper")
    env = wrap(make_vec_env("CartPole-v1", n_envs=4, seed=3, monitor_dir=str(tmp_path)))
    assert type(env.env) is CartPoleVectorEnv
    assert env.num_envs == 4
    # The seed that the zoo gave, the environments' own time limit
    same = cartpole(4)
    same.seed(3)
    np.testing.assert_array_equal(env.reset(), same.reset())
    assert env.env.max_episode_steps == 500
    PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, device="cpu", policy_kwargs={"net_arch": [4]}).learn(512)
    env.close()
    results = load_results(str(tmp_path))
    assert len(results) > 5
    assert (results["r"] == results["l"]).all()


def test_vectorize_keeps_arguments() -> None:
    old = make_vec_env("CartPole-v1", n_envs=2, env_kwargs={"render_mode": "rgb_array", "sutton_barto_reward": True})
    env = vectorize(old, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "SameStep"})
    assert env.render_mode == "rgb_array"
    assert env.env.envs[0].unwrapped._sutton_barto_reward
    assert env.env.autoreset_mode is AutoresetMode.SAME_STEP
    env.close()
    env = vectorize(make_vec_env("CartPole-v1", n_envs=2, env_kwargs={"max_episode_steps": 20}))
    assert env.env.max_episode_steps == 20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cartpole(2), "needs a DummyVecEnv around single environments, got VectorEnvAdapter"),
        (lambda: make_vec_env("CartPole-v1", wrapper_class=gym.wrappers.FlattenObservation), "lose the wrapper Flatten"),
        (lambda: make_vec_env("CartPole-v1", monitor_kwargs={"info_keywords": ("a",)}), r"lose Monitor's info_keywords=\('a'"),
        (reference, "made by gymnasium.make, got .*CountingEnv.* without a specification"),
    ],
)
def test_vectorize_loses_nothing_silently(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vectorize(make())


# ---- Bad input --------------------------------------------------------------------------------------------------------------


def with_mode(mode: Any) -> SyncVectorEnv:
    env = SyncVectorEnv(env_fns())
    env.metadata = {"autoreset_mode": mode} if mode is not None else {}
    return env


def closed() -> SyncVectorEnv:
    env = SyncVectorEnv(env_fns())
    env.close()
    return env


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


class TextEnv(CountingEnv):
    def __init__(self, index: int = 0, **kwargs: Any) -> None:
        super().__init__(index, **kwargs)
        self.observation_space = spaces.Text(5)


class DictActionEnv(CountingEnv):
    def __init__(self, index: int = 0, **kwargs: Any) -> None:
        super().__init__(index, **kwargs)
        self.action_space = spaces.Dict({"a": spaces.Discrete(2)})


class WideEnv(CountingEnv):
    def __init__(self, index: int = 0, **kwargs: Any) -> None:
        super().__init__(index, **kwargs)
        self.observation_space = spaces.Box(-1.0, 1e6 * (1 + index), (3,), np.float32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "CartPole-v1", r"needs a gymnasium.vector.VectorEnv or an EnvPool, got str \('CartPole-v1'\).*make_vec"),
        (CountingEnv, "needs a gymnasium.vector.VectorEnv or an EnvPool, got CountingEnv.*DummyVecEnv"),
        (reference, "needs a gymnasium.vector.VectorEnv or an EnvPool, got DummyVecEnv"),
        (closed, "which is closed: make a new one"),
        (lambda: with_mode(None), r"metadata\['autoreset_mode'\] of the vector environment must be one of .* got None"),
        (lambda: with_mode("Sometimes"), "must be one of .*NEXT_STEP.* got 'Sometimes'"),
        (
            lambda: SyncVectorEnv([partial(WideEnv, i) for i in range(2)], observation_mode="different"),
            "(?s)must have the same observation_space.*observation_mode='same'",
        ),
        (lambda: SyncVectorEnv([TextEnv]), r"single_observation_space must be a Box.*got Text.*FlattenObservation"),
        (lambda: SyncVectorEnv([DictActionEnv]), r"single_action_space must be a Box.*got Dict"),
        (lambda: OtherVectorEnv(AutoresetMode.NEXT_STEP), "knows no way to reset some.*SAME_STEP.*masked_reset"),
        (
            lambda: RecordEpisodeStatistics(gym.make_vec("CartPole-v1", 2, "vector_entry_point")),
            "RecordEpisodeStatistics does not allow for resets of some environments",
        ),
        (
            lambda: TransformObservation(gym.make_vec("CartPole-v1", 2, "vector_entry_point"), lambda obs: obs),
            "knows no way to reset some.*put wrappers around the adapter",
        ),
        (lambda: NormalizeObservation(SyncVectorEnv(env_fns())), "NormalizeObservation does not.*VecNormalize"),
        (lambda: NormalizeReward(SyncVectorEnv(env_fns())), "NormalizeReward does not.*VecNormalize"),
        (lambda: DictInfoToList(SyncVectorEnv(env_fns())), "DictInfoToList cannot be inside"),
        (lambda: FakeEnvPool([CountingEnv(), CountingEnv()], 0, batch_size=1), "batch_size=1 and num_envs=2: leave"),
        (lambda: FakeEnvPool([CountingEnv()], 0, max_num_players=2), "one player, got max_num_players=2"),
    ],
)
def test_bad_environments(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VectorEnvAdapter(make())


@pytest.mark.parametrize("worker", [False, True])
def test_async_that_resets_twice_is_refused(worker: bool) -> None:
    from gymnasium.vector.async_vector_env import _async_worker

    env = AsyncVectorEnv(env_fns(2), shared_memory=worker, worker=_async_worker if worker else None)
    with pytest.raises(ValueError, match=r"only with shared_memory=True and gymnasium's own worker.*SAME_STEP"):
        VectorEnvAdapter(env)
    env.close()


def test_envpool_of_deepmind_is_refused() -> None:
    pool = FakeEnvPool([CountingEnv()], 0)
    del pool.action_space
    with pytest.raises(ValueError, match=r'with the gymnasium interface.*env_type="gymnasium"'):
        VectorEnvAdapter(pool)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrapped_envpool_is_refused() -> None:
    envpool = pytest.importorskip("envpool")
    pool = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=2)
    with pytest.raises(ValueError, match=r"an EnvPool without wrappers of gymnasium.*got VectorRewardWrapper"):
        VectorEnvAdapter(VectorRewardWrapper(pool))


def test_masked_reset_for_another_environment() -> None:
    masks = []

    def masked_reset(env: VectorEnv, mask: np.ndarray) -> tuple[Any, dict[str, Any]]:
        masks.append(mask)
        return env.reset(options={"reset_mask": mask})

    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        ours = VectorEnvAdapter(OtherVectorEnv(mode), masked_reset=masked_reset)
        ours.reset()
        lengths: list[list[int]] = [[], [], []]
        for _ in range(12):
            for i, info in enumerate(ours.step(np.zeros(N_ENVS, dtype=int))[3]):
                lengths[i].extend([info["episode"]["l"]] if "episode" in info else [])
        # Environment i ends after 2 + i steps
        assert lengths == [[2] * 6, [3] * 4, [4] * 3]
    assert masks[0].tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"masked_reset is not for AutoresetMode.SAME_STEP"):
        VectorEnvAdapter(OtherVectorEnv(AutoresetMode.SAME_STEP), masked_reset=masked_reset)


def test_disabled_environment_that_ignores_the_mask_is_found_out() -> None:
    ours = VectorEnvAdapter(OtherVectorEnv(AutoresetMode.DISABLED, obeys=True))
    ours.reset()
    kept = [ours.step(np.zeros(N_ENVS, dtype=int))[0] for _ in range(4)]
    # Its one array is not handed out: 1 1 1 | end of env 0: 0 2 2 | end of env 1: 1 0 3 | ends of 0 and 2: 0 1 0
    assert [obs[:, 0].tolist() for obs in kept] == [[1, 1, 1], [0, 2, 2], [1, 0, 3], [0, 1, 0]]
    ours = VectorEnvAdapter(OtherVectorEnv(AutoresetMode.DISABLED, obeys=False))
    ours.reset()
    ours.step(np.zeros(N_ENVS, dtype=int))
    with pytest.raises(ValueError, match=r"must leave the others alone.*obey the mask in its reset, or pass masked_reset"):
        ours.step(np.zeros(N_ENVS, dtype=int))


def test_same_step_environment_without_final_obs() -> None:
    ours = VectorEnvAdapter(OtherVectorEnv(AutoresetMode.SAME_STEP))
    ours.reset()
    ours.step(np.zeros(N_ENVS, dtype=int))
    with pytest.raises(ValueError, match=r"last observations of episodes in infos\['final_obs'\], got infos with \[\]"):
        ours.step(np.zeros(N_ENVS, dtype=int))


def test_same_step_environment_with_dense_final_obs() -> None:
    class Dense(OtherVectorEnv):
        def step(self, actions: np.ndarray) -> tuple[Any, ...]:
            obs, rewards, terminations, truncations, _ = super().step(actions)
            final_obs = obs.copy()
            obs[terminations] = 0
            return obs, rewards, terminations, truncations, {"final_obs": final_obs}

    ours = VectorEnvAdapter(Dense(AutoresetMode.SAME_STEP))
    ours.reset()
    ours.step(np.zeros(N_ENVS, dtype=int))
    obs, _, dones, infos = ours.step(np.zeros(N_ENVS, dtype=int))
    assert dones.tolist() == [True, False, False]
    assert obs[:, 0].tolist() == [0, 2, 2]
    assert infos[0]["terminal_observation"].tolist() == [2]
    assert infos[1] == {"TimeLimit.truncated": False}


def test_bad_observations_and_actions() -> None:
    class Wrong(OtherVectorEnv):
        def reset(self, **kwargs: Any) -> Any:
            return np.zeros(N_ENVS), {}

    with pytest.raises(ValueError, match=r"num_envs, \*single_observation_space.shape\) = \(3, 1\), got \(3,\)"):
        VectorEnvAdapter(Wrong(AutoresetMode.DISABLED)).reset()

    class ListInfos(OtherVectorEnv):
        def reset(self, **kwargs: Any) -> Any:
            return self.counts, [{}] * N_ENVS

    with pytest.raises(ValueError, match=r"must return infos as a dict of arrays, got list"):
        VectorEnvAdapter(ListInfos(AutoresetMode.DISABLED)).reset()
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns()))
    ours.reset()
    with pytest.raises(ValueError, match=r"actions must have the shape .* = \(3,\), got \(2,\)"):
        ours.step(np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"actions must be of dtype int64 for Discrete.*got float64"):
        ours.step(np.zeros(3))
    assert ours.step(np.zeros(3, dtype=np.int32))[0].shape == (3, 3)
    assert ours.step([1, 2, 3])[0].shape == (3, 3)
    ours.close()
    with pytest.raises(ValueError, match=r"step\(\) on a closed VectorEnvAdapter"):
        ours.step(np.zeros(3, dtype=int))


class FailingEnv(CountingEnv):
    """Environment 1 fails in its second step, with `where="reset"` in its second reset."""

    def __init__(self, index: int, where: str) -> None:
        super().__init__(index, lengths=(2,))
        self.where = where

    def reset(self, **kwargs: Any) -> Any:
        if self.where == "reset" and self.index == 1 and self.episode == 1:
            raise RuntimeError("motor broken")
        return super().reset(**kwargs)

    def step(self, action: int) -> Any:
        if self.where == "step" and self.index == 1 and self.left == 1:
            raise RuntimeError("motor broken")
        return super().step(action)


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("where", ["step", "reset"])
@pytest.mark.filterwarnings("ignore")
def test_an_error_names_its_environment(kind: Any, where: str) -> None:
    ours = VectorEnvAdapter(kind([partial(FailingEnv, i, where) for i in range(3)]))
    ours.reset()
    ours.step(np.zeros(3, dtype=int))
    with pytest.raises(RuntimeError, match="motor broken") as caught:
        ours.step(np.zeros(3, dtype=int))
    assert caught.value.__notes__ == [f"Raised by environment 1 of 3 in {ours.env!r}"]
    ours.close()


def test_an_error_after_the_environments_blames_none() -> None:
    class WrongShape(CountingEnv):
        def step(self, action: int) -> Any:
            return (np.zeros(7, dtype=np.float32), *super().step(action)[1:])

    ours = VectorEnvAdapter(SyncVectorEnv([WrongShape, WrongShape]))
    ours.reset()
    with pytest.raises(ValueError, match="shape") as caught:
        ours.step(np.zeros(2, dtype=int))
    assert not hasattr(caught.value, "__notes__")
