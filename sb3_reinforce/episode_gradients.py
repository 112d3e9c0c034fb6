"""
g_i = sum_t gamma^(c t) grad log pi(a_it|s_it) (R_it - b_it), the policy gradient of episode i: its mean and its variance.

No entropy term, not clipped, in evaluation mode, with the parameters that played. The mean over N episodes estimates the
gradient. Only sums over the episodes are kept, so that memory does not grow with N * P.
"""

from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_reinforce.scores import Scores


@dataclass
class EpisodeGradients:
    """
    What is kept of K vectors g_i for each of N episodes. Of several processes: add ``total``, join the others.

    :param total: sum_i g_i, shape [K, P], float64
    :param squares: abs(g_i)^2, shape [N, K], float64
    :param along: g_i along K given directions, shape [N, K], float64; None if none were given
    """

    total: th.Tensor
    squares: th.Tensor
    along: th.Tensor | None

    @property
    def count(self) -> int:
        """N."""
        return len(self.squares)

    @property
    def mean(self) -> th.Tensor:
        """gbar, shape [K, P]."""
        return self.total / self.count

    @property
    def variance(self) -> th.Tensor:
        """trS = sum_i abs(g_i - gbar)^2 / (N - 1), the trace of the covariance of an episode's gradient, shape [K]."""
        about_zero = self.squares.sum(0) - self.mean.square().sum(1).cpu() * self.count
        return about_zero.clamp(min=0.0) / (self.count - 1)

    @property
    def mean_square(self) -> th.Tensor:
        """G2 = abs(gbar)^2 - trS / N, an unbiased estimate of abs(E[g])^2, shape [K]."""
        return self.mean.square().sum(1).cpu() - self.variance / self.count


def episode_gradients(
    scores: Scores, lengths: th.Tensor, weights: th.Tensor, directions: th.Tensor | None = None
) -> EpisodeGradients:
    """
    :param weights: K times gamma^(c t) (R - b), shape [K, S]
    :param directions: K directions, or one for all, shape [K, P] or [P]
    :return: of the vectors sum_t weight_kt grad log pi(a_it|s_it)
    """
    total: Any = 0.0
    squares, along = [], []
    for block in scores.of_episodes(lengths, weights):
        total = total + block.sum(0, dtype=th.float64)
        squares.append(block.square().sum(2, dtype=th.float64).cpu())
        if directions is not None:
            along.append((block * directions).sum(2, dtype=th.float64).cpu())
    return EpisodeGradients(total, th.cat(squares), th.cat(along) if along else None)
