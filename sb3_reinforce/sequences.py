"""
Sequences of tokens: log-probs [K, B, T] of K samples for each of B prompts, padded to T tokens.

One pure function per formula; :func:`~sb3_reinforce.score_function_loss` with ``mask=...`` puts them together. The mask is
True for the tokens that the model drew, the end token among them, and False for a prompt, for padding, and for what others
wrote in between (the output of a tool). Numbers behind it are never used, NaN neither. Costs are minimised: a reward is -cost.

RLOO is ``baseline="leave_one_out"``, ReMax :func:`remax_baseline`, GRPO's advantage :func:`grpo_advantage`.
"""

from typing import Any

import torch as th

from sb3_reinforce import score_checks
from sb3_reinforce.baselines import Baseline


def mask_to_end(tokens: th.Tensor, end: int) -> th.Tensor:
    """
    True up to the first end token and for the token itself, False behind it.

    The end token was drawn like the others: without it the model never learns when to stop.

    :param tokens: whole numbers, shape [..., T], without the prompt
    :param end: the end token; where a row has none, all of the row is True
    :return: bool, shape of ``tokens``
    """
    is_end = tokens == end
    return is_end.cumsum(-1) - is_end.long() == 0


def sequence_log_prob(log_prob: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    log p(x_k) = sum_t log p(x_t | x_<t), over the tokens that the model drew.

    A sum, not a mean: a mean divides by the length, which the sample itself has chosen, and biases the gradient.

    :param log_prob: log p(x_t | x_<t), shape [K, ..., T]
    :param mask: bool, shape of ``log_prob``
    :return: shape [K, ...]
    """
    return th.where(mask, log_prob, 0.0).sum(-1)


def cost_to_go(cost: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    C_t = sum_{u>=t} f_u: what token t can still change (the costs' reward-to-go). 0 behind the mask.

    :param cost: f_t of each token, shape [K, ..., T]
    :param mask: bool, shape of ``cost``
    :return: shape of ``cost``
    """
    return th.where(mask, cost, 0.0).flip(-1).cumsum(-1).flip(-1).where(mask, 0.0)


def cost_at_end(cost: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    The cost of a sequence as a cost of its last token, to be added to costs per token.

    :param cost: one number per sequence, shape [K, ...]
    :param mask: bool, shape [K, ..., T], with at least one True per sequence
    :return: shape of ``mask``, 0 but at the last True of each sequence
    :raises ValueError: if the shapes do not fit
    """
    if cost.shape != mask.shape[:-1]:
        raise ValueError(f"cost must have the shape of mask without T, {tuple(mask.shape[:-1])}, got {tuple(cost.shape)}")
    last = mask.shape[-1] - 1 - mask.flip(-1).int().argmax(-1, keepdim=True)
    return th.zeros(mask.shape, dtype=cost.dtype, device=cost.device).scatter(-1, last, cost[..., None])


def leave_one_out_to_go(cost_to_go: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    b_t = mean of C_t over the other samples of the same prompt that have a token t; where none has one, their mean at the
    last t before it that some had.

    Adds no bias: b_t depends on t and on the other samples. Source: Kool et al. (2019), for each t as in ``per_step`` of
    ``baselines.py``.

    :param cost_to_go: C_t, shape [K, ..., T], K >= 2, 0 behind the mask
    :param mask: bool, shape of ``cost_to_go``
    :return: b_t, shape of ``cost_to_go``
    """
    others = mask.sum(0) - mask.long()
    means = (cost_to_go.sum(0) - cost_to_go) / others.clamp(min=1)
    last = th.where(others > 0, th.arange(mask.shape[-1], device=mask.device), 0).cummax(-1).values
    return means.gather(-1, last)


def remax_baseline(greedy_cost: Any, n_samples: int) -> th.Tensor:
    """
    The cost of the greedy sequence for the same prompt, the same b for its K samples: ``baseline=remax_baseline(...)``.

    Adds no bias: greedy decoding draws nothing. It costs one more sequence per prompt, and works with K = 1. Source: ReMax
    (Li et al. 2024); before it, self-critical sequence training (Rennie et al. 2017).

    :param greedy_cost: f of the sequence of likeliest tokens, shape [B], numbers or bools
    :param n_samples: K
    :return: b, shape [K, B]
    :raises ValueError: if ``greedy_cost`` is no vector
    """
    greedy_cost = score_checks.as_tensor(greedy_cost, "greedy_cost")
    if greedy_cost.ndim != 1:
        raise ValueError(f"greedy_cost must have the shape [B], one cost per prompt, got {tuple(greedy_cost.shape)}")
    return greedy_cost.detach().expand(n_samples, -1)


def grpo_advantage(cost: Any, eps: float = 1e-4) -> th.Tensor:
    """
    A_k = (f_k - mean f) / (std f + eps) over the K samples of each prompt: GRPO's advantage (Shao et al. 2024), for a cost.

    *Biased.* The deviation is made of the same samples as f_k, and prompts whose samples nearly agree get more
    weight. For K = 2 all that is left of f is which of the two is greater, so a gamble that mostly wins is
    preferred to a better mean. Use it as the cost::

        loss = score_function_loss(log_prob, grpo_advantage(cost), baseline="none", mask=mask)

    whose value means nothing. The published loss divides by the length of each sequence, too, a second bias (Liu et al. 2025,
    "Understanding R1-Zero-like training"); this one does not. Without the division by std it is (K - 1)/K of RLOO.

    :param cost: f, shape [K, ...], K >= 2
    :param eps: added to the deviation, in units of cost
    :return: shape of ``cost``, float64 (float32 on MPS), without gradient
    :raises ValueError: if K < 2
    """
    cost = score_checks.as_tensor(cost, "cost").detach()
    if cost.ndim == 0 or len(cost) < 2:
        raise ValueError(f"grpo_advantage needs K >= 2 samples on axis 0, got shape {tuple(cost.shape)}")
    cost = cost.to(score_checks.precise_dtype(cost))
    return (cost - cost.mean(0)) / (cost.std(0) + eps)


def kl_to_reference(log_prob: th.Tensor, reference_log_prob: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    log p(x_t | x_<t) - log q(x_t | x_<t), a *cost* per token whose expected sum is KL(p || q). Without gradient.

    The gradient of that KL is E[sum_t s_t C_t], with C_t the cost-to-go of these numbers and s_t the score. So add ``beta *``
    them to the costs, per token, or their sum per sequence: both are right. Differentiating an estimate of the KL in the loss
    is not: log p - log q ("k1") has the expected gradient 0, and q/p - 1 - log(q/p) of a sequence ("k3") that of KL(q || p).
    Summed over tokens, as in GRPO, k3 also lacks the effect of each token on those behind it.

    Source: Ahmadian et al. (2024), "Back to basics"; the names are Schulman's (2020), "Approximating KL divergence".

    :param log_prob: log p of the drawn tokens, shape [K, ..., T]
    :param reference_log_prob: log q of the same tokens, same shape
    :param mask: bool, same shape
    :return: same shape, 0 behind the mask
    :raises ValueError: if the shapes differ
    """
    if not log_prob.shape == reference_log_prob.shape == mask.shape:
        shapes = [tuple(each.shape) for each in (log_prob, reference_log_prob, mask)]
        raise ValueError(f"log_prob, reference_log_prob and mask must have equal shapes [K, ..., T], got {shapes}")
    return th.where(mask, log_prob.detach() - reference_log_prob.detach(), 0.0)


def exact_kl_to_reference(logits: th.Tensor, reference_logits: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    sum_v p(v | x_<t) log(p(v | x_<t) / q(v | x_<t)) for each t: the KL summed over the vocabulary, with gradient.

    The same expectation as :func:`kl_to_reference`, without the variance of the token at t, where all V logits are known. Its
    own gradient is part of the gradient of the KL: add it to the costs per token, with ``cost_gradient=True``. Source: the
    Rao-Blackwellised estimator of Amini, Vieira and Cotterell (2025), "Better estimation of the KL divergence between language
    models".

    :param logits: of p, shape [K, ..., T, V]; -inf forbids a token
    :param reference_logits: of q, same shape
    :param mask: bool, shape [K, ..., T]
    :return: shape [K, ..., T], 0 behind the mask
    :raises ValueError: if the shapes do not fit
    """
    if not logits.shape == reference_logits.shape == (*mask.shape, logits.shape[-1]):
        shapes = [tuple(each.shape) for each in (logits, reference_logits, mask)]
        raise ValueError(f"logits and reference_logits must have the shape [K, ..., T, V], mask [K, ..., T], got {shapes}")
    inside = mask[..., None]
    log_p = th.where(inside, logits, 0.0).log_softmax(-1)
    log_q = th.where(inside, reference_logits.detach(), 0.0).log_softmax(-1)
    # a token of probability 0 adds 0, and its -inf gets no gradient
    return (log_p.exp() * th.where(log_p > -th.inf, log_p - log_q, 0.0)).sum(-1).where(mask, 0.0)


def token_surrogate(log_prob: th.Tensor, cost: th.Tensor, baseline: th.Tensor) -> th.Tensor:
    """
    sum_t f_t, with the gradient sum_t (C_t - b_t) grad log p(x_t | x_<t) + grad f_t.

    DiCE: f_t is multiplied by p(x_<=t) / p.detach(), which is 1, and b_t by the part that token t alone adds to it. Higher
    derivatives are right as well. Sources: Foerster et al. (2018), "DiCE"; for b_t Mao et al. (2019), "A baseline for any
    order gradient estimation in stochastic computation graphs".

    :param log_prob: log p(x_t | x_<t), 0 behind the mask, shape [K, ..., T]
    :param cost: f_t, 0 behind the mask, same shape
    :param baseline: b_t, without gradient, same shape
    :return: shape [K, ...]
    """
    upto = log_prob.to(cost.dtype).cumsum(-1)
    before = upto - log_prob.to(cost.dtype)
    box, box_before = th.exp(upto - upto.detach()), th.exp(before - before.detach())
    return (box * cost - (box - box_before) * baseline).sum(-1)


def token_loss(log_prob: th.Tensor, cost: Any, baseline: Any, cost_gradient: bool, mask: th.Tensor) -> th.Tensor:
    """
    :func:`~sb3_reinforce.score_function_loss` for a cost per token; arguments as there, 0 behind the mask.

    :return: the mean over samples and prompts of the summed costs, a scalar in the dtype of ``cost``
    """
    if isinstance(baseline, (str, Baseline)) and baseline not in ("none", "leave_one_out"):
        raise ValueError(f"a cost per token takes baseline 'none', 'leave_one_out', values or a function, got {baseline!r}")
    costs = score_checks.checked_cost(log_prob, cost, cost_gradient)
    to_go = cost_to_go(costs.detach(), mask)
    if isinstance(baseline, str) and baseline == "none":
        b = th.zeros_like(to_go)
    elif isinstance(baseline, str) and baseline == "leave_one_out":
        b = leave_one_out_to_go(to_go, mask)
    else:
        values = baseline(to_go) if callable(baseline) else baseline
        if isinstance(values, th.Tensor) and values.shape == mask.shape:
            values = values.where(mask, 0.0)
        b = score_checks.checked_values(values, to_go, "baseline")
    return token_surrogate(log_prob, costs, b).mean()


def without_padding(log_prob: Any, cost: Any, mask: Any) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    :param log_prob: shape [K, ..., T]
    :param cost: shape [K, ...] or [K, ..., T]
    :param mask: bool, shape of ``log_prob``
    :return: the three as tensors on one device; log_prob, and costs per token, are 0 behind the mask
    :raises ValueError: if they do not fit together
    """
    mask = th.as_tensor(mask)
    if not isinstance(log_prob, th.Tensor) or log_prob.ndim < 2:
        got = f"shape {tuple(log_prob.shape)}" if isinstance(log_prob, th.Tensor) else type(log_prob).__name__
        raise ValueError(f"with a mask, log_prob must be a tensor of shape [K, ..., T], one log-prob per token, got {got}")
    if mask.dtype != th.bool or mask.shape != log_prob.shape:
        raise ValueError(
            f"mask must be bool, of the shape of log_prob {tuple(log_prob.shape)}, True for drawn tokens, got {mask.dtype} of "
            f"shape {tuple(mask.shape)}: an attention mask of whole numbers becomes one by mask.bool()"
        )
    if not mask.any(-1).all():
        empty = (~mask.any(-1)).nonzero()[0].tolist()
        raise ValueError(f"mask must have at least one True per sequence, got none for sample {empty[0]}, element {empty[1:]}")
    mask = mask.to(log_prob.device)
    cost = score_checks.as_tensor(cost, "cost").to(log_prob.device)
    if cost.shape not in (log_prob.shape, log_prob.shape[:-1]):
        raise ValueError(
            f"with a mask, cost must have the shape of log_prob, {tuple(log_prob.shape)}: one cost per token, or "
            f"{tuple(log_prob.shape[:-1])}: one per sequence, got {tuple(cost.shape)}"
        )
    cost = th.where(mask, cost, 0) if cost.shape == mask.shape else cost
    return th.where(mask, log_prob, 0.0), cost, mask
