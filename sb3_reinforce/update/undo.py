"""A failed update leaves everything as it was before it."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_reinforce.arguments import NotFiniteError
from sb3_reinforce.baselines import Baseline
from sb3_reinforce.running.training_state import copied


@contextmanager
def undone_on_failure(
    model: OnPolicyAlgorithm, optimizers: Sequence[th.optim.Optimizer], baseline: Baseline, rates: Sequence[str]
) -> Iterator[None]:
    """
    Whatever is raised inside: parameters, optimisers, the baseline and the number of updates are as they were before.

    :param rates: arguments to lower where numbers are not finite, for the message
    :raises ValueError: instead of what was raised inside, if the cause is a number that is not finite
    """
    parameters = model.policy.state_dict()
    last_good, moments = copied(parameters), [copied(optimizer.state) for optimizer in optimizers]
    baseline_state, n_updates = copy.deepcopy(baseline.state_dict()), model._n_updates
    try:
        yield
    except BaseException as error:
        for name, tensor in parameters.items():
            tensor.copy_(last_good[name])
        for optimizer, saved in zip(optimizers, moments, strict=True):
            optimizer.state.clear()
            optimizer.state.update(saved)
        baseline.load_state_dict(baseline_state)
        model._n_updates = n_updates
        # "Expected parameter ...": torch's distributions, of a mean or logit that is NaN
        if not isinstance(error, NotFiniteError) and not str(error).startswith("Expected parameter"):
            raise
        lower = " or ".join(f"{name} (now {getattr(model, name)!r})" for name in rates)
        raise ValueError(
            f"update {n_updates + 1} must give finite numbers, and the parameters from before it were put back: "
            f"{str(error).splitlines()[0]}; lower {lower}, or scale the observations or the rewards (largest return "
            f"{np.abs(model.rollout_buffer.returns).max():.3g}), for example by VecNormalize"
        ) from error
