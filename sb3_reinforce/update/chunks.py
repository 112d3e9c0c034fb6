"""Gradients of the chunks of a batch, where it pays on several threads."""

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from sb3_reinforce.rollout.sampling import ACTIVATIONS, needs_torch
from sb3_reinforce.running.threads import threads_of_user
from sb3_reinforce.update.steps import Selection

MAX_THREADS = 4  # Python's own part of a chunk is computed by one thread at a time; more than two were not measured.
MIN_CHUNKS = 4  # With fewer, waking a thread takes as long as it saves.
# Without state and randomness, so that several threads may compute with one module
MODULES = (
    ActorCriticPolicy,
    FlattenExtractor,
    MlpExtractor,
    nn.Sequential,
    nn.ModuleList,
    nn.Flatten,
    nn.Linear,
    *ACTIVATIONS,
)


def add_gradients(
    policy: ActorCriticPolicy,
    chunks: Iterable[Selection],
    loss_of: Callable[[ActorCriticPolicy, Selection], tuple[th.Tensor, tuple[float, ...]]],
    n_numbers: int,
    parameters: Sequence[nn.Parameter] | None = None,
) -> list[float]:
    """
    Add the gradient of the sum of all chunks' losses to ``grad`` of the parameters.

    Chunks of a plain MLP on the CPU are computed side by side in Python threads: torch releases Python's lock, and
    a thread without a chunk sleeps, where those of OpenMP spin. The gradients are added in the chunks' order, so that
    the result does not depend on the number of threads.

    :param loss_of: a chunk's loss, and numbers to be summed; it must use the policy that it is given
    :param n_numbers: how many numbers that are
    :param parameters: None: all of the policy
    :return: the sums of the numbers
    """
    chunks, sums = list(chunks), np.zeros(n_numbers)
    n_threads = _threads_for(policy) if len(chunks) >= MIN_CHUNKS else 1
    if n_threads <= 1:
        for chunk in chunks:
            loss, numbers = loss_of(policy, chunk)
            loss.backward(inputs=parameters)
            sums += numbers
        return sums.tolist()
    parameters = parameters or [parameter for parameter in policy.parameters() if parameter.requires_grad]

    def gradients_of(chunk: Selection) -> tuple[tuple[th.Tensor | None, ...], tuple[float, ...]]:
        # SB3's policies write into their distribution: each thread needs one of its own.
        own = copy.copy(policy)
        own.action_dist = copy.copy(policy.action_dist)
        loss, numbers = loss_of(own, chunk)
        return th.autograd.grad(loss, parameters, allow_unused=True), numbers

    for gradients, numbers in _pool(n_threads).map(gradients_of, chunks):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                # A copy: autograd may give the same memory for two parameters.
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        sums += numbers
    return sums.tolist()


def _threads_for(policy: ActorCriticPolicy) -> int:
    if policy.device.type != "cpu" or needs_torch(policy) is not None:
        return 1
    if any(type(module) not in MODULES for module in policy.modules()):
        return 1
    return min(threads_of_user(), MAX_THREADS)


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """:return: threads in which torch itself uses one thread each"""
    return ThreadPoolExecutor(n_threads, "chunks", initializer=th.set_num_threads, initargs=(1,))
