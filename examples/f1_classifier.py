"""
A classifier trained on its F1 score itself, against its twin trained on cross-entropy.

One point in ten is positive, and the classes overlap. F1 = 2 TP / (2 TP + FP + FN) counts hard predictions of the whole
batch: it has no derivative and is no sum over points. So the model draws the labels of a batch as one joint sample
(`Independent`), and the score function turns 1 - F1 into a gradient. (Moving the twin's threshold would do here too,
see docs/score_function.md.)
"""

import torch as th
from torch.distributions import Bernoulli, Independent

from sb3_reinforce import ScoreFunctionEstimator


def make_data(n_points: int) -> tuple[th.Tensor, th.Tensor]:
    """Two Gaussians in the plane, the positive one 1.5 away from the origin."""
    targets = (th.rand(n_points) < 0.1).float()
    return th.randn(n_points, 2) + 1.5 * targets[:, None] * th.tensor([0.8, 0.6]), targets


def f1_score(predictions: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """F1 of hard predictions [..., N] on targets [N], shape [...]."""
    return 2 * (predictions * targets).sum(-1) / (predictions.sum(-1) + targets.sum()).clamp(min=1)


def train(inputs: th.Tensor, targets: th.Tensor, n_updates: int, on_f1: bool) -> th.nn.Module:
    model = th.nn.Linear(2, 1)
    optimizer = th.optim.Adam(model.parameters(), lr=0.05)
    estimator = ScoreFunctionEstimator(n_samples=32)
    for _ in range(n_updates):
        logits = model(inputs).squeeze(-1)
        if on_f1:
            loss = estimator(Independent(Bernoulli(logits=logits), 1), lambda labels: 1 - f1_score(labels, targets))
        else:
            loss = th.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main(n_updates: int = 500, seed: int = 0) -> dict[str, float]:
    th.manual_seed(seed)
    train_data, (inputs, targets) = make_data(1000), make_data(50_000)
    scores = {}
    for name in ("cross-entropy", "F1"):
        model = train(*train_data, n_updates, on_f1=name == "F1")
        predictions = (model(inputs).squeeze(-1) > 0).float()
        scores[name] = f1_score(predictions, targets).item()
        print(f"trained on {name:13s}: F1 on new data {scores[name]:.3f}, {predictions.mean():.1%} called positive")
    return scores


if __name__ == "__main__":
    main()
