"""A categorical whose expected cost and gradient are known, and expectations over all batches of it."""

import itertools

import torch as th
from torch.distributions import Categorical

from sb3_reinforce import score_function_loss
from sb3_reinforce.baselines import MovingAverageBaseline

LOGITS = th.tensor([0.3, -0.8, 0.5], dtype=th.float64)
COSTS = th.tensor([7.0, 1.0, 4.0], dtype=th.float64)


def tensor(values, grad=False):
    return th.tensor(values, dtype=th.float64, requires_grad=grad)


def moving_average(average=None):
    baseline = MovingAverageBaseline()
    baseline.average = average
    return baseline


def enumerated(n_samples, derivative):
    """Sum over all batches of ``n_samples`` draws from Categorical(LOGITS), weighted by their probability."""
    total = 0.0
    for batch in itertools.product(range(3), repeat=n_samples):
        logits = LOGITS.clone().requires_grad_()
        x = th.tensor(batch)
        log_prob = Categorical(logits=logits).log_prob(x)
        total = total + log_prob.sum().exp().item() * derivative(log_prob, COSTS[x], logits)
    return total


def gradient(log_prob, costs, logits, baseline):
    return th.autograd.grad(score_function_loss(log_prob, costs, baseline), logits)[0]


def expected_cost(logits):
    return logits.softmax(0) @ COSTS


TRUE_GRADIENT = th.autograd.functional.jacobian(expected_cost, LOGITS)


def z_scores(samples, truth):
    return (samples.mean(0) - truth) / (samples.std(0) / len(samples) ** 0.5)
