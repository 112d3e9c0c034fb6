"""
The problems of benchmarks/estimators.py: a distribution and a cost each, in torch alone, for any library to estimate.

A task has ``encoder`` (the parameters whose gradient is estimated), ``decoder`` (parameters that the cost depends on, maybe
none) and three functions. ``distribution(batch)`` is what is sampled, ``cost(batch)`` a function of samples [K, B, event] with
costs [K, B], ``extra(batch)`` what of the loss needs no samples (a KL divergence), a number.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch as th
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, OneHotCategorical
from torch.nn.functional import binary_cross_entropy_with_logits, softplus


@dataclass
class Task:
    """
    :param n_evaluations: cost evaluations per gradient
    :param kind: "bernoulli", "one-hot" or "categorical"
    :param batches: seed -> endless batches
    :param differentiable: whether the cost has a gradient in x
    :param final: the expected loss, as exactly as it can be had
    """

    name: str
    n_evaluations: int
    kind: str
    encoder: th.nn.Module
    logits: Callable[[Any], th.Tensor]
    cost: Callable[[Any], Callable[[th.Tensor], th.Tensor]]
    batch: Callable[[th.Generator], Any]
    final: Callable[[], float]
    learning_rate: float
    n_updates: int
    decoder: th.nn.Module = field(default_factory=th.nn.Identity)
    extra: Callable[[Any], Any] = lambda batch: 0.0
    differentiable: bool = True

    def distribution(self, batch: Any) -> Distribution:
        logits = self.logits(batch)
        if self.kind == "categorical":
            return Categorical(logits=logits)
        return Independent(Bernoulli(logits=logits) if self.kind == "bernoulli" else OneHotCategorical(logits=logits), 1)


def digits() -> tuple[th.Tensor, th.Tensor]:
    """1797 handwritten digits of 8 x 8 pixels, black or white, and which they are; scikit-learn ships them."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return th.as_tensor(data.data > 7.5).float(), th.as_tensor(data.target)


class Vector(th.nn.Module):
    """Logits that depend on nothing."""

    def __init__(self, values: th.Tensor):
        super().__init__()
        self.values = th.nn.Parameter(values)


def toy(t: float) -> Task:
    """The toy of REBAR's paper: E[(x - t)^2] of one Bernoulli variable. Least at x = 0, by 1 - 2 t; logit 0.5 at first."""
    encoder = Vector(th.tensor([[0.5]]))

    def final() -> float:
        p = encoder.values.sigmoid().item()
        return p * (1 - t) ** 2 + (1 - p) * t**2

    return Task(
        f"toy, t = {t}", 2, "bernoulli", encoder, lambda batch: encoder.values, lambda batch: lambda x: ((x - t) ** 2).sum(-1),
        lambda generator: None, final, 0.1, 200,
    )  # fmt: skip


def quadratic(n: int = 200, t: float = 0.499) -> Task:
    """E[mean (x_i - t)^2] of 200 Bernoulli variables with one cost (Titsias and Shi 2022)."""
    encoder = Vector(0.5 * th.randn(1, n))

    def final() -> float:
        p = encoder.values.sigmoid()
        return (p * (1 - t) ** 2 + (1 - p) * t**2).mean().item()

    return Task(
        f"quadratic, {n} dimensions", 4, "bernoulli", encoder, lambda batch: encoder.values,
        lambda batch: lambda x: ((x - t) ** 2).mean(-1), lambda generator: None, final, 0.1, 200,
    )  # fmt: skip


def autoencoder(
    name: str, kind: str, encoder: th.nn.Module, decoder: th.nn.Module, shape: tuple[int, ...], learning_rate: float = 5e-3
) -> Task:
    """
    Negative ELBO of binarised digits in nats: -log p(pixels | z), sampled, plus KL(q(z | pixels), uniform), exact.

    50 digits per batch. ``final`` is that of all digits, 5 samples each.
    """
    pixels, _ = digits()

    def logits(batch: th.Tensor) -> th.Tensor:
        return encoder(batch - 0.5).view(len(batch), *shape)

    def cost(batch: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
        def negative_log_likelihood(z: th.Tensor) -> th.Tensor:
            predicted = decoder(z.reshape(*z.shape[: -len(shape)], -1) - 0.5)
            return binary_cross_entropy_with_logits(predicted, batch.expand_as(predicted), reduction="none").sum(-1)

        return negative_log_likelihood

    def extra(batch: th.Tensor) -> th.Tensor:
        phi = logits(batch)
        if kind == "bernoulli":
            entropy = softplus(phi) - phi * phi.sigmoid()
            return (th.tensor(2.0).log() - entropy).sum(-1).mean()
        q = phi.log_softmax(-1)
        return (q.exp() * (q + th.tensor(float(shape[-1])).log())).sum((-1, -2)).mean()

    def final() -> float:
        with th.no_grad():
            x = task.distribution(pixels).sample((5,))
            return (cost(pixels)(x).mean() + extra(pixels)).item()

    task = Task(
        name, 4, kind, encoder, logits, cost, lambda generator: pixels[th.randint(len(pixels), (50,), generator=generator)],
        final, learning_rate, 250, decoder, extra,
    )  # fmt: skip
    return task


def belief_network() -> Task:
    """One stochastic layer with linear maps: a sigmoid belief network, 32 units."""
    return autoencoder("sigmoid belief network", "bernoulli", th.nn.Linear(64, 32), th.nn.Linear(32, 64), (32,))


def _network(n_in: int, n_out: int) -> th.nn.Module:
    return th.nn.Sequential(th.nn.Linear(n_in, 64), th.nn.LeakyReLU(0.3), th.nn.Linear(64, n_out))


def bernoulli_vae() -> Task:
    return autoencoder("Bernoulli VAE", "bernoulli", _network(64, 32), _network(32, 64), (32,))


def categorical_vae() -> Task:
    """8 variables with 8 categories each. With smaller steps it ignores them for hundreds of updates."""
    return autoencoder("categorical VAE", "one-hot", _network(64, 64), _network(64, 64), (8, 8), learning_rate=2e-2)


def zero_one() -> Task:
    """A linear classifier of digits, trained on its 0-1 loss itself: the class is drawn, and no gradient goes through."""
    pixels, target = digits()
    encoder = th.nn.Linear(64, 10)

    def final() -> float:
        with th.no_grad():
            return (1 - encoder(pixels - 0.5).softmax(-1).gather(1, target[:, None])).mean().item()

    return Task(
        "0-1 loss", 4, "categorical", encoder, lambda batch: encoder(pixels[batch] - 0.5),
        lambda batch: lambda x: (x != target[batch]).float(),
        lambda generator: th.randint(len(pixels), (50,), generator=generator), final, 1e-2, 250, differentiable=False,
    )  # fmt: skip


TASKS: dict[str, Callable[[], Task]] = {
    "toy, t = 0.45": lambda: toy(0.45),
    "toy, t = 0.49": lambda: toy(0.49),
    "toy, t = 0.499": lambda: toy(0.499),
    "quadratic, 200 dimensions": quadratic,
    "sigmoid belief network": belief_network,
    "Bernoulli VAE": bernoulli_vae,
    "categorical VAE": categorical_vae,
    "0-1 loss": zero_one,
}


def make(name: str, seed: int) -> Task:
    th.manual_seed(seed)
    return TASKS[name]()
