"""How many rows a forward and backward pass takes at a time, where ``chunk_size`` does not say it."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn.modules.batchnorm import _BatchNorm

from sb3_reinforce.policies import is_recurrent
from sb3_reinforce.update.likelihood import distribution_put_back, example_of, log_prob_and_entropy, predict_values
from sb3_reinforce.update.steps import Steps

# Of what a forward pass keeps for the backward pass: a CPU's cache, a small part of a GPU's memory. An LSTM is fast with many
# episodes side by side, and keeps more than is counted.
CPU_BYTES, GPU_BYTES, LSTM_BYTES = 2 * 2**20, 2**30, 2**26
SMALLEST = 128  # With fewer rows, convolutions and large layers take longer per row.


def default_chunk_size(policy: ActorCriticPolicy) -> int | None:
    """
    The smallest power of two whose rows fill ``CPU_BYTES``, or ``GPU_BYTES`` on a GPU, but not below ``SMALLEST``.

    It depends on the network and the kind of device alone: resumed on another machine, a run has the same chunks.

    :return: None, all rows at once: with batch norm, whose result depends on the other rows, and for a policy that gives
        no log-probability of some observation
    """
    if any(isinstance(module, _BatchNorm) for module in policy.modules()):
        return None
    policy.set_training_mode(False)
    try:
        one_row = example_of(policy)
        with distribution_put_back(policy):
            # What does not grow with the rows, as parameters do not, cancels out.
            bytes_per_row = _kept_bytes(policy, one_row.at(np.array([0, 0]), policy.device)) - _kept_bytes(policy, one_row)
    except Exception:
        return None
    budget = LSTM_BYTES if is_recurrent(policy) else CPU_BYTES if policy.device.type == "cpu" else GPU_BYTES
    rows = budget // max(bytes_per_row, 1)
    return max(1 << (rows - 1).bit_length(), SMALLEST)


def chunk_size_of(model: Any) -> int | None:
    """:return: the argument ``chunk_size`` of a REINFORCE, or without it the default of its policy; None: all rows at once"""
    return model.chunk_size or model._default_chunk_size


def _kept_bytes(policy: ActorCriticPolicy, steps: Steps) -> int:
    """What autograd keeps of these steps for the backward pass of the log-probability or of V, whichever is more."""
    kept: list[dict[int, th.UntypedStorage]] = []

    def keep(tensor: th.Tensor) -> th.Tensor:
        storage = tensor.untyped_storage()
        kept[-1][storage.data_ptr()] = storage
        return tensor

    with th.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept.append({})
        log_prob_and_entropy(policy, steps)
        kept.append({})
        predict_values(policy, steps)
    return max(sum(storage.nbytes() for storage in storages.values()) for storages in kept)
