"""
A latent-variable model with Bernoulli latents: the sampled gradient against the enumerated one, then training.

z ~ Bernoulli(1/2)^4, x | z ~ Normal(W z + c, 1), and an encoder q(z | x). The cost of a sample z is the negative ELBO,
log q(z | x) - log p(x, z): it depends on the parameters directly too, hence cost_gradient=True. With 16 states of z
everything can also be summed exactly.
"""

from functools import partial

import torch as th
from torch.distributions import Bernoulli, Independent, Normal

from sb3_reinforce import ScoreFunctionEstimator

STATES = th.cartesian_prod(*4 * [th.tensor([0.0, 1.0])])[:, None].expand(-1, 256, -1)  # [16, B, 4]


class Model(th.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = th.nn.Linear(6, 4), th.nn.Linear(4, 6)

    def posterior(self, x: th.Tensor) -> Independent:
        return Independent(Bernoulli(logits=self.encoder(x)), 1)

    def log_joint(self, x: th.Tensor, z: th.Tensor) -> th.Tensor:
        return 4 * th.tensor(0.5).log() + Normal(self.decoder(z), 1.0).log_prob(x).sum(-1)

    def negative_elbo(self, x: th.Tensor, z: th.Tensor) -> th.Tensor:
        return self.posterior(x).log_prob(z) - self.log_joint(x, z)

    def exact_loss(self, x: th.Tensor) -> th.Tensor:
        return (self.posterior(x).log_prob(STATES).exp() * self.negative_elbo(x, STATES)).sum(0).mean()


def main(n_updates: int = 1000, seed: int = 0) -> tuple[float, float, float, float]:
    th.manual_seed(seed)
    x = Bernoulli(0.5 * th.ones(256, 4)).sample() @ (3 * th.randn(4, 6)) + th.randn(256, 6)
    model = Model()
    cost, parameters = partial(model.negative_elbo, x), list(model.parameters())
    estimate = ScoreFunctionEstimator(200, cost_gradient=True).estimate(model.posterior(x), cost, parameters)
    exact = th.autograd.grad(model.exact_loss(x), parameters)
    found = zip(estimate.gradients, exact, estimate.standard_errors, strict=True)
    worst = max(((g - e) / s).abs().max().item() for g, e, s in found)
    print(f"largest error of the gradient's components: {worst:.1f} standard errors")
    start, optimizer = model.exact_loss(x).item(), th.optim.Adam(parameters, lr=0.02)
    for _ in range(n_updates):
        loss = ScoreFunctionEstimator(8, cost_gradient=True)(model.posterior(x), cost)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end, bound = model.exact_loss(x).item(), -model.log_joint(x, STATES).logsumexp(0).mean().item()
    print(f"negative ELBO {start:.3f}, after {n_updates} updates {end:.3f}; negative log-likelihood {bound:.3f}")
    return worst, start, end, bound


if __name__ == "__main__":
    main()
