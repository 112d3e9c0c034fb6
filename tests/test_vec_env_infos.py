"""The infos of a step: a list of dicts that are made when they are read, and equal those of DummyVecEnv."""

import copy
import json
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from sb3_reinforce.vec_env import VectorEnvAdapter
from tests.vector_envs import N_ENVS, CountingEnv, env_fns


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
    # The keys of the ended episode are gone too
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
        """Returns the same array of infos at every step."""

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
    # A value without a row per environment belongs to all
    assert steps[0][2]["fps"] == 30


def test_ended_episodes_as_arrays() -> None:
    _, infos = infos_of_a_step_with_an_end()
    np.testing.assert_array_equal(infos.ended.ids, [0])
    np.testing.assert_array_equal(infos.ended.lengths, [2])
    # Rewards 0.1 * 0 and 0.1 * 1
    np.testing.assert_array_equal(infos.ended.returns, [0.1])
    np.testing.assert_array_equal(infos.ended.truncated, [True])
    np.testing.assert_array_equal(infos.ended.terminal_obs, [[2, 2, 0]])
