"""
The actions of gSDE with squashed outputs, before tanh.

Where tanh saturates, its inverse returns another number than was drawn, and the mean of grad log pi is not zero. So the
numbers that were drawn are kept beside the rollout buffer, whose actions are tanh of them, as in SB3.
"""

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution, sum_independent_dims

from sb3_reinforce.rollout.recording import Rollout
from sb3_reinforce.rollout.sampling import Sampler, TorchSampler

_NAME = "before_tanh"  # the buffer's attribute


def keep_before_tanh(rollout: Rollout, sampler: Sampler) -> None:
    """Keep what the sampler has drawn before tanh, if it has, with one row per row of the rollout buffer."""
    if isinstance(sampler, TorchSampler) and sampler.before_tanh:
        vars(rollout.buffer)[_NAME] = rollout.laid_out(sampler.before_tanh).reshape(rollout.n_steps, -1)


def before_tanh(buffer: RolloutBuffer) -> np.ndarray | None:
    """:return: what was drawn before tanh, shape [S, action dimensions]; None where the policy does not squash"""
    return vars(buffer).get(_NAME)


def log_prob_before_tanh(distribution: StateDependentNoiseDistribution, drawn: th.Tensor) -> th.Tensor:
    """:return: log pi of tanh(drawn), shape [n], as the distribution's own method with the exact inverse of tanh"""
    assert distribution.bijector is not None, "draws_before_tanh"
    of_normal = sum_independent_dims(distribution.distribution.log_prob(drawn))
    return of_normal - distribution.bijector.log_prob_correction(drawn).sum(dim=1)
