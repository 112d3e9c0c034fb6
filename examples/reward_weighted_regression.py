"""
Reward-weighted regression (Peters and Schaal 2007) as a subclass of ``EpisodicAlgorithm``: the policy is fitted to its own
actions, each weighted by exp(R / temperature) of the batch. ``python examples/reward_weighted_regression.py``
"""

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import EpisodicAlgorithm
from sb3_reinforce.returns import reward_to_go


class RewardWeightedRegression(EpisodicAlgorithm):
    def __init__(self, *args, temperature: float = 0.5, n_epochs: int = 10, **kwargs):
        self.temperature, self.n_epochs = temperature, n_epochs
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        buffer = self.rollout_buffer  # whole episodes laid end to end, of rollout.lengths steps each
        observations, actions = th.as_tensor(buffer.observations[:, 0]), th.as_tensor(buffer.actions[:, 0]).flatten()
        returns = reward_to_go(th.as_tensor(buffer.rewards[:, 0]), self.rollout.lengths, self.gamma)
        # in units of the returns' spread, so that one temperature serves any environment
        weights = th.softmax(returns / (returns.std() + 1e-8) / self.temperature, dim=0)
        for _ in range(self.n_epochs):
            loss = -(weights * self.policy.get_distribution(observations).log_prob(actions)).sum()
            self.policy.optimizer.zero_grad()
            loss.backward()
            self.policy.optimizer.step()
        self._n_updates += 1
        self.logger.record("train/loss", loss.item())


if __name__ == "__main__":
    model = RewardWeightedRegression("MlpPolicy", make_vec_env("CartPole-v1", 8), n_steps=512, seed=0, device="cpu")
    for _ in range(2):
        mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1), n_eval_episodes=50, deterministic=False)
        print(f"CartPole-v1 after {model.num_timesteps:,} steps: {mean:.0f} +- {std:.0f}, the returns of 50 episodes")
        if model.num_timesteps == 0:
            model.learn(100_000)
