"""REBAR and RELAX: a control variate of the continuous variable behind a discrete one, whose mean is differentiated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from torch.distributions import Distribution
from torch.nn.functional import softplus

from sb3_reinforce.estimators.factors import Factors, factors, one_hot
from sb3_reinforce.estimators.method import NO_GRADIENT, Method, Problem, with_gradient


class Noise(NamedTuple):
    """
    Uniform numbers of the indicators' shape.

    :param u: behind z
    :param v: behind z~
    """

    u: th.Tensor
    v: th.Tensor


class Relax(Method):
    """
    x = H(z), a step function of z(u, phi), is discrete; z~ has the distribution of z given x, and c is any function::

        g = (f(x) - c(z~)) grad log p(x) + grad c(z) - grad c(z~)

    E[c(z~) grad log p(x)] = grad E[c(z)] - E[grad c(z~)], so there is no bias, whatever c is. c is learned: each call takes a
    step of Adam along the gradient of abs(g)^2, after g has been computed. ``"leave_one_out"`` is subtracted from f(x) - c(z~)
    as well; with K = 1, an average over past calls. One evaluation per sample.

    Bernoulli: z = phi + logit(u), x = 1[z > 0]. Categories: z = log p - log(-log u), x = argmax z.

    Source: Grathwohl, Choi, Wu, Roeder and Duvenaud (2018), "Backpropagation through the void: optimizing control variates
    for black-box gradient estimation".

    :param surrogate: c: a torch module or function of z [N, ..., event] (categories: [..., C]) that returns [N, ...]. None: a
        network with one hidden layer, which sees z and phi
    :param learning_rate: of Adam. The optimiser is ``method.optimizer``, once there has been a call
    :param learn: False leaves c as it is
    :param n_hidden: units of the network
    """

    name = "relax"
    takes_points = True

    def __init__(
        self,
        surrogate: Callable[[th.Tensor], th.Tensor] | None = None,
        learning_rate: float = 0.01,
        learn: bool = True,
        n_hidden: int = 32,
    ):
        self.surrogate = surrogate
        self.learning_rate = learning_rate
        self.learn = learn
        self.n_hidden = n_hidden
        self.optimizer: th.optim.Optimizer | None = None
        self.average: float | None = None

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        factors(p, self.name)

    def draw(self, problem: Problem) -> Noise:
        found = factors(problem.p, self.name)
        batch = problem.p.batch_shape
        u = problem.uniform(batch, found.mean.shape[len(batch) :])
        tiny = th.finfo(u.dtype).eps / 2
        return Noise(u, th.rand_like(u).clamp(tiny, 1 - tiny))

    def terms(self, problem: Problem, drawn: Noise) -> th.Tensor:
        found = factors(problem.p, self.name)
        n_batch = len(problem.p.batch_shape)
        with th.enable_grad():
            # a copy of phi for each sample, so that each gets a gradient of its own
            phi = found.logits.detach().expand(drawn.u.shape).clone().requires_grad_()
            indicator, z, z_given_x = relaxed(found, phi, drawn)
            c, c_given_x = self.control(problem, found, th.cat([z, z_given_x])).chunk(2)
        costs = problem.cost(found.sample_of(indicator))
        learned = self._learned()
        with th.enable_grad():
            (path,) = th.autograd.grad((c - c_given_x).sum(), phi, create_graph=bool(learned), allow_unused=True)
            if path is None:
                raise ValueError(NO_GRADIENT.format(self.name))
            residual = costs.detach() - c_given_x
            residual = residual - self._baseline(problem, residual)
            gradient = found.over_event(residual, n_batch) * (indicator - found.mean) + path
            if learned:
                self._step(gradient.mean(0), learned)
        return with_gradient(costs, found.logits, gradient)

    def _baseline(self, problem: Problem, residual: th.Tensor) -> th.Tensor | float:
        if problem.n_samples > 1 or problem.baseline == "none":
            return problem.leave_one_out(residual)
        past, present = self.average, residual.detach().mean().item()
        self.average = present if past is None else 0.9 * past + 0.1 * present
        return past or 0.0

    def control(self, problem: Problem, found: Factors, z: th.Tensor) -> th.Tensor:
        """c(z), [2 K, ...], for z and z~ at once."""
        if self.surrogate is None:
            self.surrogate = _Surrogate(problem.p.batch_shape, z, self.n_hidden)
        if isinstance(self.surrogate, _Surrogate):
            return self.surrogate(z, found.logits.detach())
        values = self.surrogate(z)
        expected = z.shape[: 1 + len(problem.p.batch_shape)]
        if values.shape != expected or not values.requires_grad:
            raise ValueError(
                f"surrogate must return a tensor of shape {tuple(expected)} with gradient in z, got shape "
                f"{tuple(values.shape)}: one number for each sample and element of the batch"
            )
        return values

    def _learned(self) -> list[th.Tensor]:
        """What the optimiser moves, empty if nothing."""
        return [p for p in self.parameters() if p.requires_grad] if self.learn else []

    def parameters(self) -> list[th.Tensor]:
        """:return: the parameters of c; of a new network once there has been a call"""
        return list(self.surrogate.parameters()) if isinstance(self.surrogate, th.nn.Module) else []

    def _step(self, gradient: th.Tensor, learned: list[th.Tensor]) -> None:
        """One step that lessens abs(g)^2: its mean is the variance plus a constant, because E[g] does not depend on c."""
        if self.optimizer is None:
            self.optimizer = th.optim.Adam(learned, lr=self.learning_rate)
        slopes = th.autograd.grad(gradient.square().sum(), learned, allow_unused=True, materialize_grads=True)
        for parameter, slope in zip(learned, slopes, strict=True):
            parameter.grad = slope
        self.optimizer.step()
        self.optimizer.zero_grad()


class _Surrogate(th.nn.Module):
    """c(z) = network of z and phi; 0 at the start."""

    def __init__(self, batch: th.Size, z: th.Tensor, n_hidden: int):
        super().__init__()
        self.n_batch = len(batch)
        n_inputs = 2 * z[0].numel() // batch.numel()
        kind: dict[str, Any] = {"dtype": z.dtype, "device": z.device}
        self.hidden, self.out = th.nn.Linear(n_inputs, n_hidden, **kind), th.nn.Linear(n_hidden, 1, **kind)
        th.nn.init.zeros_(self.out.weight)
        th.nn.init.zeros_(self.out.bias)

    def forward(self, z: th.Tensor, phi: th.Tensor) -> th.Tensor:
        shape = z.shape[: 1 + self.n_batch]
        inputs = th.cat([th.tanh(z / 2).reshape(*shape, -1), th.tanh(phi / 2).expand(z.shape).reshape(*shape, -1)], -1)
        return self.out(th.tanh(self.hidden(inputs)))[..., 0]


class Rebar(Relax):
    """
    RELAX with the cost itself as control variate: c(z) = eta f(sigma_lambda(z)), at the relaxed value sigma(z / lambda) of
    Bernoulli, softmax(z / lambda) of categories. So f must be a torch function that takes them and has a gradient in x, and a
    second one for lambda to be learned. Three evaluations per sample.

    Source: Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein (2017), "REBAR: low-variance, unbiased gradient estimates for
    discrete latent variable models".

    :param temperature: lambda at the start
    :param scale: eta at the start
    :param learning_rate: of Adam, for log lambda and eta
    :param learn: False leaves both as they are
    """

    name = "rebar"
    differentiates_cost = True

    def __init__(self, temperature: float = 0.5, scale: float = 1.0, learning_rate: float = 0.01, learn: bool = True):
        super().__init__(None, learning_rate, learn)
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.log_temperature = th.tensor(temperature, dtype=th.float64).log().requires_grad_(learn)
        self.scale = th.tensor(scale, dtype=th.float64, requires_grad=learn)

    def check(self, p: Distribution, n_samples: int, baseline: str) -> None:
        if factors(p, self.name).integers:
            raise ValueError(
                f"method='rebar' gives the cost values between the categories, got {p}, whose samples are whole numbers: use "
                "OneHotCategorical with a cost of one-hot vectors, or 'relax' or 'disarm'"
            )

    def control(self, problem: Problem, found: Factors, z: th.Tensor) -> th.Tensor:
        scaled = z / self.log_temperature.exp().to(z)
        costs = problem.cost_in_x(scaled.softmax(-1) if found.categories else scaled.sigmoid())
        return self.scale.to(costs) * costs

    def parameters(self) -> list[th.Tensor]:
        return [self.log_temperature, self.scale]


def relaxed(found: Factors, phi: th.Tensor, noise: Noise) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    :param phi: logits, which z and z~ are differentiated by
    :return: the indicator of x, without gradient; z; z~, which is distributed as z given x
    """
    u, v = noise
    if not found.categories:
        z = phi + u.logit()
        x = (z > 0).detach()
        # log(v / (1 - v) / (1 - p) + 1) for x = 1, -log(v / (1 - v) / p + 1) for x = 0, without overflow
        z_given_x = th.where(x, softplus(v.logit() + softplus(phi)), -softplus(v.logit() + softplus(-phi)))
        return x.to(phi.dtype), z, z_given_x
    log_p = phi.log_softmax(-1)
    z = log_p - (-u.log()).log()
    x = one_hot(z.detach().argmax(-1), z)
    # the largest of all is Gumbel(0); each other one is below it
    largest = -(-(v * x).sum(-1, keepdim=True).log()).log()
    below = -((-v.log()) * (-log_p).exp() + (-largest).exp()).log()
    return x, z, th.where(x > 0, largest, below)
