"""The log-derivative trick, from the formula to the gradient: grad E[f(x)] = E[f(x) grad log p(x; theta)]."""

import sys

import matplotlib.pyplot as plt
import torch as th
from torch.distributions import Normal

from sb3_reinforce import score_function_loss
from sb3_reinforce.score_function import leave_one_out

th.manual_seed(0)
theta = th.tensor(0.5, requires_grad=True)
p = Normal(theta, 1.0)
x = p.sample((16, 5000))  # 5000 estimates, each made of K = 16 samples
f = 4.0 + (x > 1.0)  # 4, or 5 above a threshold: f'(x) = 0, and yet E[f] depends on theta
exact = Normal(0.0, 1.0).log_prob(1.0 - theta).exp().item()  # E[f] = 5 - Phi(1 - theta)

log_prob = p.log_prob(x)
(gradient,) = th.autograd.grad((f * log_prob).mean(), theta, retain_graph=True)  # the formula
print(f"exact {exact:.4f}, from {x.numel()} samples {gradient:.4f}")

score = x - theta.detach()  # grad log p has mean zero: E[b * score] = 0, so f - b may replace f, with less variance
baselines = {"none: b = 0": 0.0 * f, "half the mean: b = 2.2": 2.2 + 0.0 * f, "leave one out": leave_one_out(f)}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, b in baselines.items():
    estimates = ((f - b) * score).mean(0)
    left.hist(estimates, bins=120, range=(-3, 6), histtype="step", label=f"{name}, variance {estimates.var():.3f}")
    right.plot(b.mean(), estimates.var(), "o", markersize=9)
    print(f"{name:22s}: mean {estimates.mean():.4f}, variance {estimates.var():.4f}")
constants = th.linspace(-0.5, 9.0, 50)
right.plot(constants, [((f - b) * score).mean(0).var() for b in constants], color="gray", zorder=0)
left.axvline(exact, color="black", label="exact gradient")
left.set(xlabel=r"estimate of $\nabla$E[f]", ylabel="how often", title="each of them is unbiased")
right.set(xlabel="baseline b", ylabel="variance of the estimate", ylim=(0, None), title="a constant b near E[f] is best")
left.legend(fontsize=7, loc="upper right")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "log_derivative_trick.png", dpi=100)

(gradient,) = th.autograd.grad(score_function_loss(log_prob, f), theta)  # the same in one call
print(f"score_function_loss: {gradient:.4f}")
