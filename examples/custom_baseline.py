"""
A baseline of your own: V(o) = w . (o, 1), a linear function of the observation, by recursive least squares.

    python examples/custom_baseline.py

It adds no bias, because ``predict`` comes before ``update``: b depends on the observation and on past batches only.
``check_unbiased`` confirms it.
"""

from collections.abc import Mapping
from typing import Any

import torch as th

from sb3_reinforce import REINFORCE, Baseline, Episodes, check_unbiased


class LinearValue(Baseline):
    """
    Least squares over all batches; ``decay`` scales the sums of phi phi^T and phi R, phi = (o, 1), at each update.

    :param decay: weight of the past batches
    """

    def __init__(self, decay: float = 0.9):
        self.decay = decay
        self.squares = self.products = th.zeros(0)

    @staticmethod
    def features(episodes: Episodes) -> th.Tensor:
        flat = episodes.observations.double().flatten(1)
        return th.cat([flat, th.ones(len(flat), 1, dtype=th.float64)], dim=1)

    def predict(self, episodes: Episodes) -> th.Tensor:
        if not len(self.products):
            return th.zeros_like(episodes.returns)
        ridge = 1e-3 * th.eye(len(self.products), dtype=th.float64)  # solvable even if an observation has never varied
        return self.features(episodes) @ th.linalg.solve(self.squares + ridge, self.products)

    def update(self, episodes: Episodes) -> None:
        phi = self.features(episodes)
        squares, products = phi.T @ phi, phi.T @ episodes.returns
        new = not len(self.products)
        self.squares = squares if new else self.decay * self.squares + squares
        self.products = products if new else self.decay * self.products + products

    def state_dict(self) -> dict[str, Any]:
        return {"squares": self.squares, "products": self.products}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.squares, self.products = state_dict["squares"], state_dict["products"]


def main(total_timesteps: int = 50_000) -> REINFORCE:
    return REINFORCE("MlpPolicy", "CartPole-v1", baseline=LinearValue(), seed=0, verbose=1).learn(total_timesteps)


if __name__ == "__main__":
    print(check_unbiased(LinearValue()))
    main()
