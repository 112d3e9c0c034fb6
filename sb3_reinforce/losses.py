"""
The losses whose gradient is the policy gradient: one pure function per formula.

Each is a sum over steps, not a mean: the caller divides by D, which may be a number of episodes. Advantages and old
log-probabilities are constants of the loss; gradients reach the parameters through ``log_prob`` or the ratio computed from it.
"""

import torch as th


def score_loss(log_prob: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """
    -sum_t A_t log pi(a_t|s_t), whose gradient is -sum_t A_t grad log pi(a_t|s_t).

    Source: Williams (1992), the REINFORCE algorithm. The value of the loss is no measure of progress.

    :param log_prob: log pi(a_t|s_t), shape [n]
    :param advantages: A_t = gamma^(c t) (R_t - b_t), reward units, shape [n]
    :return: the loss, a scalar
    """
    return -(advantages * log_prob).sum()


def importance_ratio(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """
    r_t = pi(a_t|s_t) / pi_old(a_t|s_t), 1 at the parameters that sampled the actions.

    :param log_prob: log pi(a_t|s_t), shape [n]
    :param old_log_prob: log pi_old(a_t|s_t) of the policy that sampled, shape [n]
    :return: r_t, shape [n]
    """
    return th.exp(log_prob - old_log_prob)


def clipped_loss(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    """
    -sum_t min(A_t r_t, A_t clip(r_t, 1 - clip_range, 1 + clip_range)).

    At r = 1 its gradient is that of :func:`score_loss`, because grad r = r grad log pi. Source: Schulman et al. (2017),
    "Proximal Policy Optimization Algorithms", equation 7.

    :param ratio: r_t, shape [n]
    :param advantages: A_t, reward units, shape [n]
    :param clip_range: how far r_t may leave 1 before it no longer gains anything
    :return: the loss, a scalar
    """
    clipped_ratio = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    return -th.min(advantages * ratio, advantages * clipped_ratio).sum()


def count_clipped(ratio: th.Tensor, clip_range: float) -> float:
    """:return: how many ratios are further than ``clip_range`` from 1"""
    return (th.abs(ratio.detach() - 1) > clip_range).sum().item()


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor, ratio: th.Tensor | None = None) -> th.Tensor:
    """
    -sum_t H(pi(.|s_t)), or an estimate with the same gradient where the entropy has no closed form.

    H = -E[log pi], so grad H = -E[log pi grad log pi]: the gradient of a mere mean of -log pi has expectation zero.

    :param entropy: H(pi(.|s_t)), shape [n]; None: no closed form
    :param log_prob: log pi(a_t|s_t), shape [n]
    :param ratio: r_t where the policy may have left the one that sampled, shape [n]; None: it has not
    :return: the loss, a scalar; without a closed form only its gradient has a meaning
    """
    if entropy is not None:
        return -entropy.sum()
    return (log_prob.detach() * (log_prob if ratio is None else ratio)).sum()
