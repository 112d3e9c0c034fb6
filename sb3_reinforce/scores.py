"""
Scores, grad log pi(a|s): one vector per step, or their weighted sums, one per episode.

The optimal baseline and the gradient's variance are computed from them. A score has P numbers, one per parameter of the
policy, so those of a batch may not fit into memory: they are computed in pieces, and long episodes are summed piece by piece.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.func import functional_call, grad, vmap

from sb3_reinforce.observations import map_arrays
from sb3_reinforce.update.likelihood import distribution_put_back, log_prob_and_entropy
from sb3_reinforce.update.steps import Steps

# Numbers in memory at a time: 64 MiB of single scores and their sums.
PIECE = 2**24
# P times the mean length of an episode up to which vmap computes single scores at once. Above, one backward pass per
# episode is faster: vmap writes P numbers per step, a backward pass adds them up where they arise.
SINGLE = 2**19
# Numbers of the scores whose norms are averaged: all of them for a small policy, some steps for a large one
NORMS = 2**20

# Whether vmap gives the scores that plain autograd gives, found out once per policy
_VMAP_IS_EXACT: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


class _LogProb(nn.Module):
    """log pi(a|s) as a module's ``forward``, which is what ``functional_call`` takes."""

    def __init__(self, policy: ActorCriticPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, steps: Steps) -> th.Tensor:
        return log_prob_and_entropy(self.policy, steps)[0]


class Scores:
    """
    The scores of a policy at given steps, in evaluation mode, by all its parameters laid end to end.

    Parameters on which log pi does not depend, such as the value network's, are left out: their score is zero. Single
    scores come from ``torch.func.vmap``, which is compared with plain autograd at first use; a policy that vmap cannot
    serve gets a loop. So does a policy with memory: its score at a step takes the episode up to there.

    :param steps: the S steps, on any device
    :param chunk_size: steps at a time, at most; None: as many as :data:`PIECE` allows. Episodes of a policy with memory are
        never cut
    """

    def __init__(self, policy: ActorCriticPolicy, steps: Steps, chunk_size: int | None = None):
        self.policy, self.steps, self.chunk_size = policy, steps, chunk_size
        self.n_steps = len(steps.actions)
        # Of each step the row that its episode starts at; None for a policy without memory, which needs the step alone
        self._starts = None if steps.sequences is None else _starts(steps.sequences.lengths)
        policy.set_training_mode(False)
        named = {f"policy.{name}": p for name, p in policy.named_parameters() if p.requires_grad}
        some: Any = th.linspace(0, self.n_steps - 1, min(self.n_steps, 16)).round().long()
        if steps.sequences is not None:
            some = slice(0, int(steps.sequences.lengths[0]))
        with distribution_put_back(policy):
            log_prob = log_prob_and_entropy(policy, steps.at(some, policy.device))[0]
            of_some = th.autograd.grad(log_prob.sum(), list(named.values()), allow_unused=True)
        used = [score is not None for score in of_some]
        self._parameters = {name: p for (name, p), is_used in zip(named.items(), used, strict=True) if is_used}
        self.n_parameters = sum(parameter.numel() for parameter in self._parameters.values())
        if policy not in _VMAP_IS_EXACT:
            expected = th.cat([score.flatten() for score in of_some if score is not None])
            _VMAP_IS_EXACT[policy] = steps.sequences is None and self._vmap_is_exact(some, expected)
        self._by_single_steps = _VMAP_IS_EXACT[policy]

    def _vmap_is_exact(self, rows: th.Tensor, expected: th.Tensor) -> bool:
        """Whether the sum of vmap's scores is what autograd gives for the sum, all at once."""
        try:
            by_vmap = self._by_vmap(rows).sum(0)
        except Exception:  # whatever the policy does that vmap cannot trace
            return False
        return th.allclose(by_vmap, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    def _by_vmap(self, rows: slice | th.Tensor) -> th.Tensor:
        """The scores of the given steps, shape [n, P]."""
        log_prob = _LogProb(self.policy)

        def of_one_step(parameters: dict[str, th.Tensor], step: dict[str, Any]) -> th.Tensor:
            batch_of_one = Steps(**{name: map_arrays(lambda array: array[None], part) for name, part in step.items()})
            # tie_weights=True would leave vmap's tensors behind in a features extractor that policy and value share.
            # Parameters that are truly tied come out wrong without it, and are left to autograd by the comparison.
            return functional_call(log_prob, parameters, (batch_of_one,), tie_weights=False).sum()

        detached = {name: parameter.detach() for name, parameter in self._parameters.items()}
        parts = {name: part for name, part in vars(self.steps.at(rows, self.policy.device)).items() if part is not None}
        with distribution_put_back(self.policy):
            scores = vmap(grad(of_one_step), in_dims=(None, 0))(detached, parts)
        return th.cat([scores[name].flatten(1) for name in detached], dim=1)

    def _by_autograd(self, rows: slice | th.Tensor, weights: th.Tensor) -> th.Tensor:
        """Sums of the given steps' scores, by weights of shape [K, n]: shape [K, P]."""
        with distribution_put_back(self.policy):
            log_prob = log_prob_and_entropy(self.policy, self.steps.at(rows, self.policy.device))[0]
        parameters = list(self._parameters.values())
        sums = []
        for k, weight in enumerate(weights):
            more = k < len(weights) - 1
            scores = th.autograd.grad(log_prob, parameters, weight.to(log_prob), retain_graph=more, materialize_grads=True)
            sums.append(th.cat([score.flatten() for score in scores]))
        return th.stack(sums)

    def of_steps(self, rows: slice | th.Tensor) -> th.Tensor:
        """:return: grad log pi(a|s) of each of the n steps, shape [n, P], on the policy's device"""
        if self._by_single_steps:
            return self._by_vmap(rows)
        scores = []
        for row in th.arange(self.n_steps)[rows].tolist():
            first = row if self._starts is None else int(self._starts[row])
            last_alone = th.eye(row - first + 1)[-1:]
            scores.append(self._by_autograd(slice(first, row + 1), last_alone)[0])
        return th.stack(scores)

    def of_episodes(self, lengths: th.Tensor, weights: th.Tensor) -> Iterator[th.Tensor]:
        """
        Weighted sums over each episode: sum_t w_kt grad log pi(a_t|s_t) for k = 1 ... K.

        :param lengths: steps of each of N episodes, laid end to end, shape [N]
        :param weights: K weights per step, shape [K, S]
        :return: blocks of consecutive episodes, shape [n, K, P] each, their n adding up to N, on the policy's device
        """
        weights = weights.to(self.policy.device, th.float32)
        size = max(1, PIECE // ((1 + len(weights)) * max(self.n_parameters, 1)))
        few = self.n_parameters * self.n_steps <= SINGLE * len(lengths)
        if few and self._by_single_steps:
            yield from self._episodes_by_vmap(lengths.tolist(), weights, min(size, self.chunk_size or size))
            return
        start = 0
        for length in lengths.tolist():
            sums: Any = 0.0
            for piece in _pieces(start, length, length if self._starts is not None else self.chunk_size or 512):
                sums = sums + self._by_autograd(piece, weights[:, piece])
            yield sums[None]
            start += length

    def _episodes_by_vmap(self, lengths: list[int], weights: th.Tensor, size: int) -> Iterator[th.Tensor]:
        begun: th.Tensor | None = None  # sums of an episode that continues in the next piece
        episode = iter(lengths)
        left = next(episode)
        for piece in _pieces(0, self.n_steps, size):
            scores = self._by_vmap(piece)
            ended, row = [], 0
            while row < len(scores):
                n = min(left, len(scores) - row)
                first = piece.start + row
                sums = weights[:, first : first + n] @ scores[row : row + n]
                begun = sums if begun is None else begun + sums
                row, left = row + n, left - n
                if left == 0:
                    ended.append(begun)
                    begun, left = None, next(episode, 0)
            if ended:
                yield th.stack(ended)

    def mean_square_norm(self) -> float:
        """
        The mean over the steps of abs(grad log pi(a|s))^2, an estimate of the trace of the Fisher information.

        Over all steps, if they have no more than 2^20 numbers together; else over evenly spaced ones, 16 at least, and
        16 with memory.
        """
        affordable = NORMS // max(self.n_parameters, 1) if self._starts is None else 0
        n = min(self.n_steps, max(16, affordable))
        rows = th.linspace(0, self.n_steps - 1, n).round().long()
        size = max(1, PIECE // max(self.n_parameters, 1))
        return sum(float(self.of_steps(part).square().sum(dtype=th.float64)) for part in rows.split(size)) / n


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.repeat(np.cumsum(lengths) - lengths, lengths)


def _pieces(start: int, length: int, size: int) -> Iterator[slice]:
    for first in range(start, start + length, size):
        yield slice(first, min(first + size, start + length))
