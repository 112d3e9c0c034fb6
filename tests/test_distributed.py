"""Training on several ranks, started by torchrun on this machine, equals training in one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.running.checkpoint_file import CheckpointError
from tests.distributed_cases import ENVS_OF_RANK, GRADIENT_CASES, SCRIPTS, updated
from tests.envs import RewardListEnv
from tests.processes import results_of_ranks


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str, Path]:
    """What both ranks found, what was printed, and the folder that they wrote into."""
    folder = tmp_path_factory.mktemp("two_ranks")
    return *results_of_ranks(2, "all", folder), folder


@pytest.fixture(scope="module")
def found(two_ranks: tuple[list[dict[str, Any]], str, Path]) -> list[dict[str, Any]]:
    return two_ranks[0]


def test_exchanges(found):
    for rank, exchanged in enumerate(both["exchanges"] for both in found):
        assert [value["rank"] for value in exchanged["gather"]] == [0, 1]
        assert [value["ragged"].tolist() for value in exchanged["gather"]] == [[0], [0, 1]]
        assert exchanged["broadcast"]["of rank"] == 0
        assert exchanged["broadcast"]["tensor"].tolist() == [0, 0, 0]
        # [1, 10] * 1 + [1, 10] * 2; no gradient on any rank; one on rank 1 only
        assert exchanged["grads"] == [[3, 30], None, [[5]]]
        assert exchanged["sums"] == [3.0, 1.0]
        assert exchanged["lengths"] == [[n, n + 1] for n in (8_000, 8_165, 8_166, 100_000)]
        assert exchanged["many"] == [3.0]
        assert exchanged["buffer"] == 4.0
        # of 1, 2, 6, and of 7, 7, 7
        assert exchanged["moments"] == [(3, 3.0, 14.0), (3, 7.0, 0.0)], rank


def test_the_ranks_are_unequal():
    """The next test is only worth something if ranks differ in the numbers of environments and steps."""
    n_steps = [sum(len(SCRIPTS[index]) for index in indices) for indices in ENVS_OF_RANK[2]]
    assert n_steps[0] != n_steps[1]
    assert len(ENVS_OF_RANK[2][0]) != len(ENVS_OF_RANK[2][1])


def assert_equal_to_one_process(case: str, found: list[dict[str, Any]], but: str = "nothing") -> None:
    """:param but: logged values whose names begin with this may differ"""
    expected = updated(case)
    first, *others = (each["gradients"][case] for each in found)
    for name, parameter in expected["parameters"].items():
        np.testing.assert_allclose(first["parameters"][name], parameter, rtol=0, atol=1e-6, err_msg=f"{case} {name}")
        for other in others:
            np.testing.assert_array_equal(first["parameters"][name], other["parameters"][name], err_msg=f"{case} {name}")
    logged, in_one = (
        {key: value for key, value in each["logged"].items() if not key.startswith(but)} for each in (first, expected)
    )
    assert logged == pytest.approx(in_one, rel=1e-5, abs=1e-6, nan_ok=True)
    assert first["state"] == pytest.approx(expected["state"])
    assert all(other["state"] == first["state"] for other in others)


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_two_ranks_equal_one_process(case: str, found):
    assert_equal_to_one_process(case, found)


@pytest.mark.slow
def test_three_ranks_equal_one_process(tmp_path: Path):
    found, _ = results_of_ranks(3, "gradients", tmp_path)
    for case in GRADIENT_CASES:
        # an environment that is alone on its rank does not wait, so it discards no steps
        assert_equal_to_one_process(case, found, but="rollout/discarded")


def test_equal_to_the_bit_after_every_update(found):
    first, second = (both["training"] for both in found)
    assert len(first["at_rollout_end"]) == len(second["at_rollout_end"]) == first["n_updates"] / 2 > 3
    # num_timesteps and all parameters
    assert first["at_rollout_end"] == second["at_rollout_end"]
    assert len({parameters for _, parameters in first["at_rollout_end"]}) == len(first["at_rollout_end"])
    for name, parameter in first["parameters"].items():
        np.testing.assert_array_equal(parameter, second["parameters"][name])


def test_statistics_are_global(found):
    first, second = (both["training"] for both in found)
    for name, (count, mean, variance) in first["statistics"].items():
        assert count == second["statistics"][name][0]
        np.testing.assert_array_equal([mean, variance], second["statistics"][name][1:])
    # every step of every environment counts once, and every reset; VecNormalize's count starts at 1e-4
    n_rollouts, n_envs = first["n_updates"] / 2, 1 + 2
    assert first["statistics"]["returns"][0] == pytest.approx(1e-4 + first["num_timesteps"])
    assert first["statistics"]["observations/"][0] == pytest.approx(1e-4 + first["num_timesteps"] + n_rollouts * n_envs)


def test_steps_and_episodes_are_global(found):
    first, second = (both["training"] for both in found)
    assert first["num_timesteps"] == second["num_timesteps"] == first["own_steps"] + second["own_steps"] >= 2_000
    for both in (first, second):
        assert np.all(np.diff(both["seen"]) > 0)  # always growing
    assert first["infos"] == second["infos"]
    assert len(first["infos"]) == 100 or sum(length for _, length in first["infos"]) <= first["num_timesteps"]


def test_ranks_play_episodes_of_their_own(found):
    first, second = (both["training"]["first_observation"] for both in found)
    # with the same seed, no environment of one rank plays the same as one of the other
    assert not np.isin(first, second).any()
    # without a seed, and with generators that the user has seeded alike, the actions still differ
    first, second = (both["unseeded"] for both in found)
    assert len(first) == len(second) == 30
    assert first.tolist() != second.tolist()


def test_rank_zero_alone_writes(two_ranks):
    found, printed, folder = two_ranks
    assert (folder / "model0.zip").exists()
    assert not (folder / "model1.zip").exists()
    assert (folder / "best0").exists()
    assert not (folder / "best1").exists()
    rows = (folder / "log0" / "progress.csv").read_text().splitlines()
    assert len(rows) > found[0]["training"]["n_updates"] / 2  # one row per update, and those of the evaluations
    assert (folder / "log1" / "progress.csv").read_text() == ""
    assert found[0]["training"]["evaluations"] > 0
    assert found[1]["training"]["evaluations"] == 0
    assert printed.count("Using cpu device") == 1
    assert printed.count("Sampling actions with NumPy") == 1


def test_exchanges_of_an_update(found):
    # policy gradient, statistics, three fits of the value network, whether to stop, the rollout's report
    assert [both["counted"] for both in found] == [[1 + 1 + 3 + 1 + 1] * 3] * 2


def test_a_callback_stops_all_ranks(found):
    # 20 steps per rollout; rank 1 stops at its step 45, the fifth of the third rollout, where rank 0 plays all 20
    for both in found:
        assert both["stopping"] == {"num_timesteps": 2 * 2 * 20 + 20 + 5, "n_updates": 2}


def test_a_checkpoint_that_is_asked_to_stop_stops_all_ranks(two_ranks):
    found, _, folder = two_ranks
    # three updates of 2 ranks * 20 steps; rank 0 alone writes, both can resume
    for both in (rank["asked_to_stop"] for rank in found):
        assert (both["num_timesteps"], both["n_updates"]) == ((120, 120), 3)
    assert [path.name for path in (folder / "checkpoints").glob("*.zip")] == ["checkpoint_120_steps.zip"]
    assert Path(found[0]["asked_to_stop"]["newest"]).name == "checkpoint_120_steps.zip"
    assert found[1]["asked_to_stop"]["newest"] == "None"
    assert [both["asked_to_stop"]["chunk_size"] for both in found] == [8, 9]  # each rank its own


def test_a_checkpoint_of_two_ranks_on_one(two_ranks):
    folder = two_ranks[2] / "checkpoints"
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 10)] * 2)
    with pytest.raises(CheckpointError, match=r"_120_steps\.zip is of a run on 2 ranks, got 1: start as many as then, or"):
        REINFORCE.resume(folder, env)
    model = REINFORCE.resume(folder, env, other_ranks=True)
    assert (model.num_timesteps, model.n_envs, model.chunk_size) == (120, 2, 8)
    model.learn(1, reset_num_timesteps=False)
    assert model.num_timesteps == 120 + 2 * 20


def test_a_callback_that_changes_one_rank_alone(found):
    """Rank 0's bias rises by 1 in rollout 2: from the next one on all play with its policy, and a warning says so once."""
    first, second = (both["meddling"] for both in found)
    assert len(first["parameters"]) == 5
    assert first["parameters"] == second["parameters"]
    bias = first["bias"]
    assert abs(bias[1] - bias[0]) < 0.1  # what an update makes of it
    assert 0.9 < bias[2] - bias[1] < 1.1
    assert second["warnings"] == []
    (warning,) = first["warnings"]
    assert warning.startswith("after update 2 the policy is not the same on all ranks, and all continue with rank 0's (said")


def test_steps_of_the_greedy_baseline_are_global(found):
    # two updates of 2 ranks * 2 environments * 20 steps
    assert [both["greedy"] for both in found] == [160, 160]


def test_different_arguments_are_refused(found):
    for both in found:
        assert both["refusal"] == (
            "n_value_epochs must be the same on all ranks, got 1 on rank 0, 2 on rank 1; then: "
            "this process has left its group of ranks because of an error: start the run again"
        )
