"""The greedy baseline's episodes: they start from the same resets, count as steps, and callbacks do not see them."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, VectorEnvAdapter
from sb3_reinforce.returns import reward_to_go
from tests.envs import RewardListEnv, seeds_of


def vector_envs(env_id: str, n_envs: int):
    return VectorEnvAdapter(gym.make_vec(env_id, n_envs, vectorization_mode="sync"))


def greedy_episode(model: REINFORCE, env_id: str, seed: int) -> th.Tensor:
    """R_t of the policy's deterministic episode, played by hand."""
    env = gym.make(env_id)
    observation, _ = env.reset(seed=seed)
    rewards, ended = [], False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
        rewards.append(float(reward))
        ended = terminated or truncated
    return reward_to_go(th.tensor(rewards, dtype=th.float64), th.tensor([len(rewards)]), model.gamma)


@pytest.mark.parametrize(
    ("make_env", "seed", "env_id"),
    [
        (make_vec_env, 0, "CartPole-v1"),
        (make_vec_env, None, "Pendulum-v1"),
        (lambda *a: make_vec_env(*a, vec_env_cls=SubprocVecEnv), None, "CartPole-v1"),
        (vector_envs, 0, "Pendulum-v1"),
        (vector_envs, None, "CartPole-v1"),
    ],
    ids=["dummy-0", "dummy-None", "subprocesses", "adapter-0", "adapter-None"],
)
def test_from_the_same_resets(make_env, seed, env_id):
    env = make_env(env_id, 2)
    seeds = seeds_of(env)
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=2, seed=seed, device="cpu", learning_rate=0.0)
    steps = 0
    for n_updates in (1, 2):
        model.learn(1, reset_num_timesteps=n_updates == 1)  # the first reset is made by SB3's learn()
        greedy = [greedy_episode(model, env_id, seeds[-1] + i) for i in range(2)]
        for i, played in enumerate(model.batch.episodes.greedy_returns.split(model.rollout.lengths.tolist())):
            n = min(len(played), len(greedy[i]))
            # continuous actions differ in their last digits between NumPy and torch
            th.testing.assert_close(played[:n], greedy[i][:n], rtol=1e-2 if env_id == "Pendulum-v1" else 1e-9, atol=1e-6)
            assert (played[n:] == greedy[i][-1]).all()
        longest = max(len(episode) for episode in greedy)
        steps = model.rollout.played_steps + 2 * longest + (steps if n_updates == 2 else 0)
        assert model.num_timesteps == steps
        assert len(model.ep_info_buffer) == 2 * n_updates
    env.close()


def test_statistics_are_frozen():
    """VecNormalize counts the reset and the sampled steps, not the greedy ones."""
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=2, seed=0, device="cpu").learn(1)
    assert model.num_timesteps > model.rollout.played_steps
    # the count starts at 1e-4; 2 observations of the reset
    assert env.obs_rms.count == pytest.approx(1e-4 + 2 + model.rollout.played_steps)
    assert env.training


def test_b_of_a_known_episode():
    """Rewards 1, 2, 4 for any actions, gamma = 0.5: both greedy and sampled have R = 3, 4, 4, so R - b = 0."""
    env = DummyVecEnv([lambda: RewardListEnv([1.0, 2.0, 4.0])])
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=1, gamma=0.5, seed=0, device="cpu").learn(1)
    assert model.batch.episodes.greedy_returns.tolist() == [3, 4, 4]
    assert model.rollout_buffer.advantages.flatten().tolist() == [0, 0, 0]
    assert model.num_timesteps == 6


class StepsSeen:
    """Counts the steps that callbacks see."""

    n = 0

    def __call__(self, locals_, globals_):
        self.n += 1
        return True


def test_callbacks_do_not_see_them():
    env = DummyVecEnv([lambda: RewardListEnv([1.0, 2.0, 4.0])])
    seen = StepsSeen()
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=1, seed=0, device="cpu").learn(12, seen)
    assert (seen.n, model.num_timesteps) == (6, 12)


class UntilAnotherAction(gym.Env):
    """Ends with action 1, which the greedy policy never takes."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, bool(action == 1), False, {}


def test_a_greedy_episode_that_does_not_end():
    env = DummyVecEnv([UntilAnotherAction])
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=1, max_episode_steps=50, seed=0, device="cpu")
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match="within max_episode_steps=50 steps, environment 0 has played 51") as caught:
        model.learn(1)
    assert "greedy episodes" in caught.value.__notes__[0]


class NotSeeded(RewardListEnv):
    def _observation(self):
        return np.random.default_rng().random(2, np.float32)


def test_other_starts_give_one_warning():
    env = DummyVecEnv([lambda: NotSeeded([1.0, 2.0])])
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=1, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="do not begin alike after a reset with the same seed") as caught:
        model.learn(8)
    assert len(caught) == 1


class BrokenWhenGreedy(RewardListEnv):
    resets = 0

    def reset(self, **kwargs):
        self.resets += 1
        return super().reset(**kwargs)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.resets == 3 else reward, *rest


def test_a_reward_that_is_not_finite():
    # resets: by learn(), by DummyVecEnv after the sampled episode, and for the greedy one
    env = DummyVecEnv([lambda: BrokenWhenGreedy([1.0, 2.0])])
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=1, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"reward must be finite, got nan from environment 0 at step \d of the greedy"):
        model.learn(1)


def test_the_progress_bar_counts_the_greedy_steps():
    from stable_baselines3.common.callbacks import ProgressBarCallback

    bar = ProgressBarCallback()
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 5)] * 2)
    model = REINFORCE("MlpPolicy", env, baseline="greedy", n_episodes=2, seed=0).learn(50, bar)
    assert bar.pbar.n == model.num_timesteps == 60  # 3 updates of 2 * 5 steps, played twice
