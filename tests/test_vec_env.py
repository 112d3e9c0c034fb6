"""
VectorEnvAdapter against DummyVecEnv and Monitor: the same transitions, to the letter, whatever the vector environment does
when an episode ends.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import TransformObservation
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce.vec_env import VectorEnvAdapter
from tests.vector_envs import MODES, N_ENVS, CountingEnv, FakeEnvPool, OtherVectorEnv, assert_same_run, env_fns, reference


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
    # With length 1 every step ends the episodes of all environments
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns(lengths=lengths), autoreset_mode=mode))
    assert assert_same_run(ours, reference(lengths=lengths)) >= 20


@pytest.mark.parametrize("mode", MODES)
def test_environments_with_a_monitor_keep_its_statistics(mode: AutoresetMode) -> None:
    def rewards_in_cents(env: gym.Env) -> gym.Env:
        # Outside the Monitor, which records the original rewards
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
    class KeepsLast(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            result = super().step(actions)
            self.last = result[0].copy()
            return result

    # An adapter that returns NEXT_STEP observations as they are: this masked reset does nothing. assert_same_run must fail
    ours = VectorEnvAdapter(KeepsLast(env_fns()), masked_reset=lambda env, mask: (env.last, {}))
    with pytest.raises(AssertionError, match="observations"):
        assert_same_run(ours, reference())
    # Each episode has one step too many, the reset, with reward 0
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


# ---- Masks and final observations -------------------------------------------------------------------------------------


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
    # The adapter copies the environment's array: 1 1 1 | end of env 0: 0 2 2 | end of env 1: 1 0 3 | ends of 0 and 2: 0 1 0
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
