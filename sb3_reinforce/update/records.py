"""What an update logs."""

from collections.abc import Sequence

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy


def record_update(
    logger: Logger,
    policy: ActorCriticPolicy,
    steps: Sequence[dict[str, float]],
    of_kl: tuple[float, ...],
    of_returns: tuple[float, ...],
    of_errors: tuple[float, ...],
    value_loss: float | None,
    n_updates: int,
) -> None:
    """
    :param steps: what the optimiser steps of the policy returned
    :param of_kl: number, mean and sum of squared deviations of the terms of the KL divergence, over the steps of all ranks
    :param of_returns: the same of the returns R
    :param of_errors: the same of R - V
    :param value_loss: mean loss of the value network's fit; None if there was none
    """
    names = {"policy_loss": "policy_gradient_loss", "entropy_loss": "entropy_loss", "grad_norm": "grad_norm"}
    for key, name in names.items():
        logger.record(f"train/{name}", np.mean([step[key] for step in steps]))
    logger.record("train/approx_kl", of_kl[1])
    logger.record("train/n_updates", n_updates, exclude="tensorboard")
    if "clip_fraction" in steps[0]:
        logger.record("train/clip_fraction", np.mean([step["clip_fraction"] for step in steps]))
    if value_loss is not None:
        logger.record("train/value_loss", value_loss)
        logger.record("train/explained_variance", explained_variance(of_returns, of_errors))
    if hasattr(policy, "log_std"):
        logger.record("train/std", th.exp(policy.log_std).mean().item())


def explained_variance(of_returns: tuple[float, ...], of_errors: tuple[float, ...]) -> float:
    """
    1 - Var[R - V] / Var[R], as in SB3: 1 is a perfect V, 0 no better than a constant; the value loss tells how far V is off.

    Where all returns are equal, but for the rounding of float32, it is NaN: there is nothing to explain. Where they hardly
    vary, as once a task is solved, it may be far below 0 although V is off by less than a thousandth.

    :param of_returns: number, mean and sum of squared deviations of R
    :param of_errors: the same of R - V
    """
    n, mean, squares = of_returns
    rounding = np.finfo(np.float32).eps * abs(mean)
    return 1 - of_errors[2] / squares if squares > n * rounding**2 else np.nan
