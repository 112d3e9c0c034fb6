"""
Black-box optimisation: Rastrigin's function, a NumPy "simulator" with a local minimum in every unit cube.

x ~ Normal(mu, sigma) is the search distribution. Its expected cost is smooth, so gradient descent on mu and sigma passes
over the local minima while sigma is large. Sigma learns more slowly than mu, and shrinks near the optimum, 0 at x = 0.
"""

import numpy as np
import torch as th
from torch.distributions import Independent, Normal

from sb3_reinforce import ScoreFunctionEstimator


def rastrigin(x: np.ndarray) -> np.ndarray:
    """10 d + sum_i x_i^2 - 10 cos(2 pi x_i) of each row, without a gradient, like a simulator."""
    return 10 * x.shape[-1] + (x**2 - 10 * np.cos(2 * np.pi * x)).sum(-1)


def main(n_dims: int = 5, n_updates: int = 800, seed: int = 0) -> tuple[float, float]:
    th.manual_seed(seed)
    mu = th.nn.Parameter(th.empty(n_dims).uniform_(2.0, 4.0))
    log_sigma = th.nn.Parameter(th.full((n_dims,), 0.7))
    start = rastrigin(mu.detach().numpy()).item()
    estimator = ScoreFunctionEstimator(n_samples=100, cost_input="numpy")
    optimizer = th.optim.Adam([{"params": [mu], "lr": 0.05}, {"params": [log_sigma], "lr": 0.02}])
    for update in range(n_updates):
        loss = estimator(Independent(Normal(mu, log_sigma.exp()), 1), rastrigin)
        if update % 100 == 0:
            sigma = log_sigma.exp().mean().item()
            print(
                f"update {update:4d}: E[f] {loss.item():8.4f}, f(mu) {rastrigin(mu.detach().numpy()):8.4f}, sigma {sigma:.4f}"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = rastrigin(mu.detach().numpy()).item()
    print(f"f(mu) fell from {start:.2f} to {end:.4f} (optimum: 0) after {n_updates * estimator.n_samples} evaluations")
    return start, end


if __name__ == "__main__":
    main()
