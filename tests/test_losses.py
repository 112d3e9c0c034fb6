"""The losses, by hand."""

import math

import pytest
import torch as th

from sb3_reinforce.losses import clipped_loss, count_clipped, entropy_loss, importance_ratio, score_loss

LOG_PROB, ADVANTAGES = th.tensor([-1.0, -2.0, -0.5]), th.tensor([2.0, -1.0, 4.0])


def gradient(loss) -> th.Tensor:
    log_prob = LOG_PROB.clone().requires_grad_()
    return th.autograd.grad(loss(log_prob), log_prob)[0]


def test_score_loss():
    # -(2 * -1 + -1 * -2 + 4 * -0.5) = 2, a sum and not a mean; by log pi it is -A
    assert score_loss(LOG_PROB, ADVANTAGES).item() == 2.0
    assert gradient(lambda log_prob: score_loss(log_prob, ADVANTAGES)).tolist() == [-2.0, 1.0, -4.0]


def test_importance_ratio():
    # e^(-1 + 1), e^(-2 + 1), e^(-0.5 + 1)
    found = importance_ratio(LOG_PROB, th.full((3,), -1.0))
    th.testing.assert_close(found, th.tensor([1.0, math.exp(-1), math.exp(0.5)]))


def test_clipped_loss_at_the_sampling_parameters():
    """There r = 1, and the gradient is that of the score loss: -A."""
    found = gradient(lambda log_prob: clipped_loss(importance_ratio(log_prob, LOG_PROB), ADVANTAGES, 0.2))
    assert found.tolist() == [-2.0, 1.0, -4.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # min(A r, A clip(r)) with clip_range 0.2; the slope is that of the loss by r
        (1.5, 2.0, -2.4, 0.0),  # min(3, 2 * 1.2): no more to gain
        (0.5, 2.0, -1.0, -2.0),  # min(1, 2 * 0.8): back towards 1
        (1.5, -2.0, 3.0, 2.0),  # min(-3, -2.4)
        (0.5, -2.0, 1.6, 0.0),  # min(-1, -1.6)
        (1.1, 2.0, -2.2, -2.0),  # within the range
    ],
)
def test_clipped_loss(ratio, advantage, loss, slope):
    r = th.tensor([ratio], requires_grad=True)
    found = clipped_loss(r, th.tensor([advantage]), 0.2)
    assert found.item() == pytest.approx(loss)
    assert th.autograd.grad(found, r)[0].item() == pytest.approx(slope)


def test_count_clipped():
    assert count_clipped(th.tensor([0.7, 0.9, 1.0, 1.1, 1.3]), 0.2) == 2


def test_entropy_loss():
    assert entropy_loss(th.tensor([0.5, 1.5, 1.0]), LOG_PROB).item() == -3.0


def test_entropy_loss_without_closed_form():
    """grad of -H is E[log pi grad log pi]: by log pi the loss has the slope log pi itself, by r = 1 as well."""
    assert gradient(lambda log_prob: entropy_loss(None, log_prob)).tolist() == LOG_PROB.tolist()
    found = gradient(lambda log_prob: entropy_loss(None, log_prob, importance_ratio(log_prob, LOG_PROB)))
    assert found.tolist() == LOG_PROB.tolist()
