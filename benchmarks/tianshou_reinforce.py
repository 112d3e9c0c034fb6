"""Tianshou's Reinforce as a contestant of throughput.py: its own collector, buffer and trainer, the same networks."""

import time

import gymnasium as gym
import torch as th
from gymnasium import spaces
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, ProbabilisticActorPolicy, Reinforce
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic

N_STEPS = 512


def _gaussian(mean_and_std: tuple[th.Tensor, th.Tensor]) -> th.distributions.Distribution:
    return th.distributions.Independent(th.distributions.Normal(*mean_and_std), 1)


def speed(env_id: str, n_envs: int, seconds: float) -> float:
    """
    Steps per second of training, updates included; how many steps fill the time is tried out first.

    :param env_id: of the environment, with Discrete or Box actions
    :param n_envs: environments in its DummyVectorEnv
    :param seconds: about how long to measure
    """
    n_steps = 4 * N_STEPS * n_envs
    _train(env_id, n_envs, n_steps)
    start = time.perf_counter()
    _train(env_id, n_envs, n_steps)
    n_steps = max(n_steps, int(n_steps * seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    _train(env_id, n_envs, n_steps)
    return n_steps / (time.perf_counter() - start)


def _train(env_id: str, n_envs: int, n_steps: int) -> None:
    envs = DummyVectorEnv([lambda: gym.make(env_id) for _ in range(n_envs)])
    env = gym.make(env_id)
    assert env.observation_space.shape is not None
    net = {"state_shape": env.observation_space.shape, "hidden_sizes": [64, 64], "activation": th.nn.Tanh}
    if isinstance(env.action_space, spaces.Discrete):
        actor = Net(**net, action_shape=int(env.action_space.n))
        policy = DiscreteActorPolicy(actor=actor, action_space=env.action_space)
    else:
        actor = ContinuousActorProbabilistic(preprocess_net=Net(**net), action_shape=env.action_space.shape, unbounded=True)
        policy = ProbabilisticActorPolicy(actor=actor, dist_fn=_gaussian, action_space=env.action_space)
    algorithm = Reinforce(policy=policy, optim=AdamOptimizerFactory(lr=3e-3), gamma=0.99)
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector(algorithm, envs, VectorReplayBuffer(100_000, n_envs)),
            max_epochs=1,
            epoch_num_steps=n_steps,
            collection_step_num_env_steps=N_STEPS * n_envs,
            batch_size=None,
            verbose=False,
            show_progress=False,
        )
    )
