"""Returns worked out by hand, and identities."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.returns import episode_return, reward_to_go, steps_in_episode
from tests.envs import NoCallback, RewardListEnv, tabular_model


def flat(*episodes: list[float]) -> tuple[th.Tensor, th.Tensor]:
    return th.tensor([reward for episode in episodes for reward in episode], dtype=th.float64), th.tensor(
        [len(episode) for episode in episodes]
    )


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        # [0, 0, 0, 1]: R_t = gamma^(3-t); [1, 2, 3, 4]: R_3 = 4, R_2 = 3 + gamma 4, ...
        (0.0, [0, 0, 0, 1, 1, 2, 3, 4]),
        (1.0, [1, 1, 1, 1, 10, 9, 7, 4]),
        # 3 + 0.9 * 4 = 6.6; 2 + 0.9 * 6.6 = 7.94; 1 + 0.9 * 7.94 = 8.146
        (0.9, [0.729, 0.81, 0.9, 1, 8.146, 7.94, 6.6, 4]),
    ],
)
def test_reward_to_go(gamma, expected):
    rewards, lengths = flat([0, 0, 0, 1], [1, 2, 3, 4])
    th.testing.assert_close(reward_to_go(rewards, lengths, gamma), th.tensor(expected, dtype=th.float64))


def test_episode_return():
    # 0.9^3 * 1 = 0.729; 1 + 1.8 + 2.43 + 2.916 = 8.146; the same for every step
    rewards, lengths = flat([0, 0, 0, 1], [1, 2, 3, 4], [5])
    expected = th.tensor([0.729] * 4 + [8.146] * 4 + [5.0], dtype=th.float64)
    th.testing.assert_close(episode_return(rewards, lengths, 0.9), expected)


def test_last_values_are_added_after_the_last_step():
    # the first episode ended by a time limit in a state worth 10, the second has terminated:
    # R_1 = 2 + 0.5 * 10 = 7, R_0 = 1 + 0.5 * 7 = 4.5; then 3 alone
    rewards, lengths = flat([1, 2], [3])
    returns = reward_to_go(rewards, lengths, 0.5, th.tensor([10.0, 0.0]))
    th.testing.assert_close(returns, th.tensor([4.5, 7.0, 3.0], dtype=th.float64))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.99, 1.0])
def test_recursive_doubling_equals_the_recursion(gamma):
    """Lengths around powers of two, against R_t = r_t + gamma R_{t+1} step by step."""
    generator = th.Generator().manual_seed(0)
    lengths = th.tensor([1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 1000])
    rewards = th.randn(int(lengths.sum()), dtype=th.float64, generator=generator)
    expected, position = [], 0
    for length in lengths.tolist():
        following, backwards = 0.0, []
        for reward in reversed(rewards[position : position + length].tolist()):
            following = reward + gamma * following
            backwards.append(following)
        expected += reversed(backwards)
        position += length
    th.testing.assert_close(reward_to_go(rewards, lengths, gamma), th.tensor(expected, dtype=th.float64))


def test_keeps_dtype_and_input():
    rewards, lengths = flat([1, 2, 3])
    rewards = rewards.float()
    returns = reward_to_go(rewards, lengths, 1.0, th.tensor([1.0]))
    assert returns.dtype == th.float32
    assert rewards.tolist() == [1, 2, 3]


def test_steps_in_episode():
    assert steps_in_episode(th.tensor([3, 1, 2])).tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("lengths", [[3, 2], [0, 4], [], [[4]]])
def test_refuses_lengths_that_do_not_fit(lengths):
    with pytest.raises(ValueError, match="lengths must add up to S"):
        reward_to_go(th.ones(4), th.tensor(lengths, dtype=th.long), 0.9)


def test_refuses_last_values_of_another_shape():
    with pytest.raises(ValueError, match=r"one value per episode, shape \(2,\), got shape \(1,\)"):
        reward_to_go(th.ones(4), th.tensor([2, 2]), 0.9, th.ones(1))


# --- through the algorithm: what the rollout buffer holds after two environments out of step ---------------------


def play(model: REINFORCE) -> REINFORCE:
    """One rollout."""
    callback = NoCallback()
    callback.init_callback(model)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def first_component_as_value(model: REINFORCE) -> None:
    """V(o) = o_0."""
    with th.no_grad():
        model.policy.value_net.weight.copy_(th.tensor([[1.0, 0.0]]))
        model.policy.value_net.bias.zero_()


@pytest.mark.parametrize("truncated", [False, True], ids=["terminated", "truncated"])
def test_two_environments_out_of_step(truncated):
    """
    n_steps = 4: environment 0 plays [1, 2, 3] twice (its second episode ends after step 4), environment 1 plays
    [0, 0, 0, 1] once and waits for two steps, which are discarded. Nothing is bootstrapped at a time limit.
    """
    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3], truncated), lambda: RewardListEnv([0, 0, 0, 1], truncated)])
    model = play(tabular_model(env, n_steps=4, gamma=0.5))
    buffer = model.rollout_buffer
    # R_2 = 3, R_1 = 2 + 1.5 = 3.5, R_0 = 1 + 1.75 = 2.75; then 1/8, 1/4, 1/2, 1
    np.testing.assert_allclose(buffer.returns[:, 0], [2.75, 3.5, 3, 2.75, 3.5, 3, 0.125, 0.25, 0.5, 1])
    np.testing.assert_allclose(buffer.rewards[:, 0], [1, 2, 3, 1, 2, 3, 0, 0, 0, 1])
    np.testing.assert_allclose(buffer.observations[:, 0, 0], [0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    np.testing.assert_allclose(buffer.episode_starts[:, 0], [1, 0, 0, 1, 0, 0, 1, 0, 0, 0])
    assert model.num_timesteps == 12
    assert model.logger.name_to_value["rollout/discarded_steps"] == 2
    assert model.logger.name_to_value["rollout/n_episodes"] == 3
    assert model.logger.name_to_value["rollout/truncated_fraction"] == truncated
    # 1 + 2 + 3 = 6 twice and 1 once: mean 13/3
    assert model.logger.name_to_value["rollout/ep_return_mean"] == pytest.approx(13 / 3)
    assert model.logger.name_to_value["rollout/ep_return_min"] == 1
    assert model.logger.name_to_value["rollout/ep_return_max"] == 6


def test_n_episodes_is_an_equal_quota():
    """Two episodes each, although environment 0 would end four short ones before environment 1 ends two."""
    env = DummyVecEnv([lambda: RewardListEnv([1.0]), lambda: RewardListEnv([1, 1, 1])])
    model = play(tabular_model(env, n_episodes=4, gamma=1.0))
    np.testing.assert_allclose(model.rollout_buffer.returns[:, 0], [1, 1, 3, 2, 1, 3, 2, 1])
    assert model.num_timesteps == 12  # six steps of two environments


@pytest.mark.parametrize(("truncation", "last"), [("terminal", 0.0), ("bootstrap", 1.0), (None, 1.0)])
def test_truncation_adds_the_value_of_the_terminal_observation(truncation, last):
    """V(o) = o_0 here, and the terminal observation is filled with 2, the length of the episode. Default: it counts."""
    env = DummyVecEnv([lambda: RewardListEnv([1, 1], truncated=True), lambda: RewardListEnv([1, 1])])
    model = tabular_model(env, n_steps=2, gamma=0.5, baseline="value", truncation=truncation)
    first_component_as_value(model)
    play(model)
    # truncated: R_1 = 1 + 0.5 * 2 * last, R_0 = 1 + 0.5 R_1; terminated: R_1 = 1, R_0 = 1.5
    first = [1 + 0.5 * (1 + last), 1 + last, 1.5, 1.0]
    np.testing.assert_allclose(model.rollout_buffer.returns[:, 0], first)
    np.testing.assert_allclose(model.rollout_buffer.values[:, 0], [0, 1, 0, 1])
    np.testing.assert_allclose(model.rollout_buffer.advantages[:, 0], np.array(first) - [0, 1, 0, 1])


@pytest.mark.parametrize(
    "arguments", [dict(baseline="none"), dict(baseline="moving_average"), dict(baseline="value", returns="episode")]
)
def test_nothing_bootstraps_without_a_learned_value_of_what_remains(arguments):
    """R_0 = 1 + 1 at a time limit: the default of ``truncation`` is "terminal" without V, and for whole-episode returns."""
    model = tabular_model(DummyVecEnv([lambda: RewardListEnv([1, 1], truncated=True)]), n_steps=2, gamma=1.0, **arguments)
    play(model)
    assert model.rollout_buffer.returns[0, 0] == 2


def test_unfinished_bootstrap_runs_on_across_rollouts():
    """
    n_steps = 2 on episodes [1, 2, 3], V(o) = o_0, gamma = 0.5. Rollout 1 is cut before o = 2: R_1 = 2 + 0.5 * 2 = 3,
    R_0 = 1 + 0.5 * 3 = 2.5. Rollout 2 has the rest, 3, then the first step of the next episode, cut before o = 1:
    1 + 0.5 * 1 = 1.5. Its weight gamma^t continues with t = 2.
    """
    env = DummyVecEnv([lambda: RewardListEnv([1, 2, 3])])
    model = tabular_model(env, n_steps=2, gamma=0.5, baseline="value", unfinished="bootstrap", discount_state=True)
    first_component_as_value(model)
    buffer = model.rollout_buffer
    play(model)
    np.testing.assert_allclose(buffer.returns[:, 0], [2.5, 3])
    np.testing.assert_allclose(buffer.advantages[:, 0], [2.5, 0.5 * (3 - 1)])
    np.testing.assert_allclose(buffer.episode_starts[:, 0], [1, 0])
    play(model)
    np.testing.assert_allclose(buffer.returns[:, 0], [3, 1.5])
    np.testing.assert_allclose(buffer.advantages[:, 0], [0.25 * (3 - 2), 1.5])
    np.testing.assert_allclose(buffer.episode_starts[:, 0], [0, 1])
    assert model.num_timesteps == 4
