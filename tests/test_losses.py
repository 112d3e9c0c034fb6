"""The losses by hand: two steps, log pi = log 0.5 and log 0.8, advantages 2 and -1."""

import math

import pytest
import torch as th

from sb3_reinforce.losses import clipped_loss, count_clipped, entropy_loss, importance_ratio, score_loss

ADVANTAGES = th.tensor([2.0, -1.0])


@pytest.fixture
def log_prob() -> th.Tensor:
    return th.tensor([0.5, 0.8]).log().requires_grad_()


def gradient(loss: th.Tensor, log_prob: th.Tensor) -> list[float]:
    return th.autograd.grad(loss, log_prob)[0].tolist()


def test_score_loss(log_prob):
    loss = score_loss(log_prob, ADVANTAGES)
    assert loss.item() == pytest.approx(-2 * math.log(0.5) + math.log(0.8))
    assert gradient(loss, log_prob) == [-2, 1]


@pytest.mark.parametrize(
    "old, value, expected",
    [
        # r = 1, 1: -(2 - 1), and the gradient of score_loss
        ([0.5, 0.8], -1.0, [-2, 1]),
        # r = 2, 2: min(4, 2 * 1.2) is clipped and has no gradient; min(-2, -1.2) is not
        ([0.25, 0.4], -(2.4 - 2), [0, 2]),
        # r = 0.5, 1: min(1, 2 * 0.8) is not clipped: such a step may still gain
        ([1.0, 0.8], -(1 - 1), [-1, 1]),
        # r = 1, 0.5: min(-0.5, -0.8) is clipped
        ([0.5, 1.6], -(2 - 0.8), [-2, 0]),
    ],
)
def test_clipped_loss(log_prob, old, value, expected):
    ratio = importance_ratio(log_prob, th.tensor(old).log())
    loss = clipped_loss(ratio, ADVANTAGES, clip_range=0.2)
    assert loss.item() == pytest.approx(value, abs=1e-5)
    assert gradient(loss, log_prob) == pytest.approx(expected, abs=1e-5)


def test_count_clipped():
    assert count_clipped(th.tensor([1.0, 1.19, 1.21, 0.81, 0.79]), 0.2) == 2


def test_entropy_loss(log_prob):
    assert entropy_loss(th.tensor([0.3, 0.4]), log_prob).item() == pytest.approx(-0.7)
    # Without a closed form: the gradient of E[log pi], log pi grad log pi per step, times r where the policy has moved
    expected = [math.log(0.5), math.log(0.8)]
    assert gradient(entropy_loss(None, log_prob), log_prob) == pytest.approx(expected)
    ratio = importance_ratio(log_prob, th.tensor([0.25, 0.8]).log())
    assert gradient(entropy_loss(None, log_prob, ratio), log_prob) == pytest.approx([2 * expected[0], expected[1]])
