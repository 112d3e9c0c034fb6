"""
Score function: the gradient of an expected cost, from samples and their costs alone.

    grad E_{x~p(x;theta)}[f(x)] = E[(f(x) - b) grad log p(x;theta)]

f is never differentiated: it may be an accuracy, a simulator, a choice. The derivation is in ``docs/theory.md``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch as th
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution, constraints
from torch.distributions.constraints import Constraint

from sb3_reinforce.baselines import Baseline, Episodes, MovingAverageBaseline

Node = Distribution | Callable[..., Distribution]


def score_function_loss(
    log_prob: th.Tensor,
    cost: Any,
    baseline: Any = "leave_one_out",
    cost_gradient: bool = False,
) -> th.Tensor:
    """
    The mean cost, with the estimate of grad E[cost] as its gradient: minimise it as any other loss.

    With M = K * ... elements and b the baseline, the gradient is 1/M sum (cost - b) grad log_prob. The value is the mean
    cost itself (unlike that of the usual surrogate, the mean of log_prob * cost, which measures nothing). Higher
    derivatives are right as well: cost + (exp(log_prob - log_prob.detach()) - 1)(cost - b) is differentiated (DiCE).

    Draw x with ``sample()``. With ``rsample()`` x moves with the parameters, and the gradient of log_prob is another one.

    Sources: Williams (1992); Schulman et al. (2015), "Gradient estimation using stochastic computation graphs"; Foerster
    et al. (2018), "DiCE". With ``"leave_one_out"``, Kool et al. (2019).

    :param log_prob: log p(x_k; theta) with gradient, shape [K, ...], K independent samples first. For several random
        variables that one cost depends on: the sum of their log-probs
    :param cost: f(x_k), shape as ``log_prob``: a tensor, array or list of numbers or bools. What depends on x_k is the
        element at the same place: if one cost depends on a whole batch of variables, sum their log-probs first
    :param baseline: b. ``"none"``: 0; ``"leave_one_out"``: mean of the other samples, at the same element (K >= 2);
        ``"optimal"``: the b of least variance, from the other samples (K >= 2), at one backward pass per element, see
        :func:`optimal`; ``"mean"``: mean over all samples, *biased*: (K - 1)/K of the leave-one-out step. Or values of
        your own (a number, or the shape of ``cost``), a function of the costs that returns them, or a
        :class:`~sb3_reinforce.baselines.Baseline` object, for which each element is an episode of one step, in the group
        of its sample. Yours add no bias if b_k does not depend on x_k
    :param cost_gradient: whether to add E[grad f] for a cost that depends on theta directly. False: ``cost`` is detached
    :return: scalar, dtype and device of ``log_prob``
    :raises ValueError: for shapes that differ, a log_prob without gradient, numbers that are not finite, an unknown
        baseline, too few samples for it, or one that returns a wrong shape or a gradient
    """
    _check_log_prob(log_prob)
    costs = _checked_cost(log_prob, cost, cost_gradient)
    _check_baseline(baseline, n_samples=len(costs))
    return _surrogate(log_prob, costs, baseline).mean().to(log_prob.dtype)


def leave_one_out(cost: th.Tensor) -> th.Tensor:
    """
    Mean of the other samples: b_k = (sum_j f_j - f_k) / (K - 1).

    Adds no bias: b_k does not depend on sample k. The estimate is then the sample covariance of cost and score (divisor
    K - 1), and a constant added to all costs changes nothing. Source: Kool et al. (2019).

    :param cost: f_k, shape [K, ...]
    :return: b_k, shape [K, ...]
    """
    return (cost.sum(0) - cost) / (cost.shape[0] - 1)


def optimal(cost: th.Tensor, squared_scores: th.Tensor) -> th.Tensor:
    """
    The constant of least variance, E[|s|^2 f] / E[|s|^2], from the other samples.

    b_k = sum_{j!=k} |s_j|^2 f_j / sum_{j!=k} |s_j|^2; where these scores are all zero, the mean of the other costs. Adds no
    bias: b_k does not depend on sample k. Source: Weaver and Tao (2001); Greensmith et al. (2004).

    :param cost: f_k, shape [K, ...]
    :param squared_scores: |s_k|^2 of :func:`squared_score_norms`, shape [K, ...]
    :return: b_k, shape [K, ...]
    """
    norms, products = _sum_of_others(squared_scores), _sum_of_others(squared_scores * cost)
    return th.where(norms > 0, products / norms.where(norms > 0, 1.0), leave_one_out(cost))


def _sum_of_others(values: th.Tensor) -> th.Tensor:
    """
    sum_{j!=k} v_j, as the sum before k plus the sum after k: beside a very large v_k, subtracting it from the sum of all
    would leave nothing but rounding errors of the others.
    """
    nothing = th.zeros_like(values[:1])
    before = th.cat([nothing, values[:-1].cumsum(0)])
    after = th.cat([nothing, values.flip(0)[:-1].cumsum(0)]).flip(0)
    return before + after


def squared_score_norms(log_prob: th.Tensor) -> th.Tensor:
    """
    |s|^2 of each element's score s = grad log p(x; theta), over all parameters that autograd reaches from ``log_prob``.

    One backward pass per element, so K times the time of the usual one for ``log_prob`` [K], and the memory of one
    gradient. The mean over samples estimates the trace of the Fisher information.

    :param log_prob: shape [K, ...], with gradient
    :return: shape [K, ...], float64 (float32 on MPS), without gradient
    :raises ValueError: if ``log_prob`` has no gradient
    """
    _check_log_prob(log_prob)
    norms = [
        th.stack([gradient.to(_precise(log_prob)).square().sum() for gradient in gradients]).sum()
        for gradients in _gradients_of_each(log_prob.flatten(), _leaves(log_prob))
    ]
    return th.stack(norms).view_as(log_prob)


@dataclass(frozen=True)
class GradientEstimate:
    """
    What :meth:`ScoreFunctionEstimator.estimate` found with K samples.

    :param loss: as the estimator itself returns it: ``loss.backward()`` still works
    :param value: estimate of E[cost], the mean over all elements
    :param value_standard_error: its standard error, in units of cost
    :param gradients: the estimate of the gradient, one tensor per parameter
    :param standard_errors: of each of its components, one tensor per parameter
    :param variance: of the gradient of a *single* sample, summed over all components: sum_k |g_k - mean(g)|^2 / (K - 1).
        The estimate itself has ``variance / K``
    """

    loss: th.Tensor
    value: float
    value_standard_error: float
    gradients: list[th.Tensor]
    standard_errors: list[th.Tensor]
    variance: float


class ScoreFunctionEstimator:
    """
    Draws K samples, asks for their costs and returns a loss whose gradient estimates grad E[cost]::

        estimator = ScoreFunctionEstimator(n_samples=16)
        for inputs, targets in batches:
            distribution = Categorical(logits=model(inputs))  # batch shape [B]
            loss = estimator(distribution, lambda x: x != targets)  # x and its costs: [16, B]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    A distribution with batch shape [...] has samples [K, ...] and costs [K, ...]: element by element, each
    with a baseline of its own. If the cost is one number per sample of the whole batch (an F1 score), make it one joint
    random variable: ``Independent(distribution, 1)``.

    :param n_samples: K, samples per call
    :param baseline: as in :func:`score_function_loss`; ``"moving_average"`` too: an exponential average of the mean costs of
        past calls (:class:`~sb3_reinforce.baselines.MovingAverageBaseline`), which lives in ``estimator.baseline``
    :param cost_input: what the cost function gets: ``"torch"``: all samples, a tensor [K, ...]; ``"numpy"``: all samples, an
        array; ``"sample"``: one Python call per sample, without the axis K, as NumPy. It returns costs in whatever
        :func:`score_function_loss` takes; for ``"sample"`` the costs of that sample, a number if there is no batch shape
    :param cost_gradient: whether gradients flow through the cost too, for a cost that depends on the parameters directly.
        It needs ``cost_input="torch"``. False: the cost is computed without gradient
    :param control_variate: (h, expectation): ``h(x)`` is like the cost and close to it, ``expectation(distribution)`` is its
        known mean E[h(x)], with gradient, of the distribution's batch shape. Then the score weights f - h - b, and grad E[h]
        is added exactly: no bias. h must be one fixed function: parameters that occur in it are detached, in both of them
    :raises ValueError: for arguments that cannot be right
    """

    def __init__(
        self,
        n_samples: int = 16,
        baseline: Any = "leave_one_out",
        cost_input: Literal["torch", "numpy", "sample"] = "torch",
        cost_gradient: bool = False,
        control_variate: tuple[Callable[..., th.Tensor], Callable[..., th.Tensor]] | None = None,
    ):
        if isinstance(n_samples, bool) or not isinstance(n_samples, (int, np.integer)) or n_samples < 1:
            raise ValueError(f"n_samples must be a whole number >= 1, got {n_samples!r}")
        if cost_input not in ("torch", "numpy", "sample"):
            raise ValueError(f"cost_input must be one of 'torch', 'numpy', 'sample', got {cost_input!r}")
        if cost_gradient and cost_input != "torch":
            raise ValueError(
                f'cost_gradient=True needs cost_input="torch": no gradient passes through NumPy, got cost_input={cost_input!r}'
            )
        if control_variate is not None and (
            not isinstance(control_variate, tuple) or len(control_variate) != 2 or not all(map(callable, control_variate))
        ):
            raise ValueError(f"control_variate must be a tuple of two functions, (h, expectation), got {control_variate!r}")
        self.n_samples = int(n_samples)
        self.baseline = MovingAverageBaseline() if isinstance(baseline, str) and baseline == "moving_average" else baseline
        _check_baseline(self.baseline, n_samples)
        self.cost_input = cost_input
        self.cost_gradient = cost_gradient
        self.control_variate = control_variate

    def __call__(self, distribution: Node | Sequence[Node], cost: Callable[..., Any]) -> th.Tensor:
        """
        :param distribution: p(x; theta); or a list of them, whose samples are passed to the cost one by one: ``cost(x, y)``.
            An item may be a function of the samples before it that returns the next distribution, for example
            ``[Bernoulli(logits=a), lambda x: Normal(b * x, 1)]``; its batch shape then begins with K
        :param cost: f, see ``cost_input``
        :return: scalar: the mean cost, with the estimate of grad E[cost] as its gradient. It is the mean over the batch
            shape too: B parameters learnt side by side get 1/B of their own gradients
        :raises ValueError: see :func:`score_function_loss`
        """
        surrogate, dtype = self._draw(distribution, cost)
        return surrogate.mean().to(dtype)

    def estimate(
        self, distribution: Node | Sequence[Node], cost: Callable[..., Any], parameters: Iterable[th.Tensor]
    ) -> GradientEstimate:
        """
        One call of the estimator that also tells its variance and standard errors, at K backward passes and the memory
        of K gradients.

        The standard errors treat the K terms of the sum as independent. A baseline made of the other samples ties them
        together a little: for ``"leave_one_out"``, the squared standard error is too small by g^2 / (K - 1)^2 on average,
        with g the true gradient.

        :param distribution: as in the call
        :param cost: as in the call
        :param parameters: what to differentiate with respect to, such as ``model.parameters()``
        :return: the estimate; ``estimate.loss.backward()`` gives the same gradient
        :raises ValueError: if K = 1, or as in :func:`score_function_loss`
        """
        parameters = [parameters] if isinstance(parameters, th.Tensor) else list(parameters)
        if not parameters or not all(isinstance(p, th.Tensor) and p.requires_grad for p in parameters):
            raise ValueError("parameters must be one or more tensors that require gradient, such as model.parameters()")
        if self.n_samples < 2:
            raise ValueError("a standard error needs n_samples >= 2, got 1")
        surrogate, dtype = self._draw(distribution, cost)
        per_sample = surrogate.reshape(self.n_samples, -1).mean(1)
        used = th.autograd.grad(per_sample.sum(), parameters, retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in used):
            raise ValueError("parameters must be what the distribution was computed from, got tensors it does not depend on")
        gradients = [th.stack(g) for g in zip(*_gradients_of_each(per_sample, parameters), strict=True)]
        costs = per_sample.detach()
        return GradientEstimate(
            loss=per_sample.mean().to(dtype),
            value=costs.mean().item(),
            value_standard_error=costs.std().item() / self.n_samples**0.5,
            gradients=[g.mean(0) for g in gradients],
            standard_errors=[g.std(0) / self.n_samples**0.5 for g in gradients],
            variance=sum(g.var(0).sum().item() for g in gradients),
        )

    def _draw(self, distribution: Node | Sequence[Node], cost: Callable[..., Any]) -> tuple[th.Tensor, th.dtype]:
        """The surrogate, [K, ...], and the dtype of the loss."""
        if not callable(cost):
            raise ValueError(f"cost must be a function of the samples, got {cost!r}: for costs at hand, score_function_loss")
        samples: list[th.Tensor] = []
        distributions: list[Distribution] = []
        log_probs: list[th.Tensor] = []
        for node in distribution if isinstance(distribution, (list, tuple)) else [distribution]:
            given = node if isinstance(node, Distribution) else node(*samples) if callable(node) else node
            if not isinstance(given, Distribution):
                raise ValueError(
                    "distribution must be a torch Distribution, or a list of them and of functions that return one, "
                    f"got {given!r}"
                )
            _check_support(given)
            # A new tensor object by detach(): a transform with cache_size=1 knows its own, and returns the inverse that it
            # has kept, without gradient with respect to its parameters.
            samples.append((given.sample((self.n_samples,)) if given is node else given.sample()).detach())
            distributions.append(given)
            log_probs.append(given.log_prob(samples[-1]))
            if log_probs[-1].shape != log_probs[0].shape or log_probs[0].shape[:1] != (self.n_samples,):
                raise ValueError(
                    "the distributions of a list must have equal batch shapes (for a function, with K in front), "
                    f"got log_prob of shapes {[tuple(lp.shape) for lp in log_probs]} with K = {self.n_samples}: "
                    "torch.distributions.Independent turns batch dimensions into event dimensions"
                )
        log_prob = th.stack(log_probs).sum(0)
        _check_log_prob(log_prob)  # before the costs, which may be expensive
        with th.set_grad_enabled(self.cost_gradient):
            costs = _checked_cost(log_prob, self._costs(cost, samples), self.cost_gradient)
        if self.control_variate is None:
            return _surrogate(log_prob, costs, self.baseline), log_prob.dtype
        h, expectation = self._control_variate(log_prob, samples, distributions)
        return _surrogate(log_prob, costs - h, self.baseline) + expectation, log_prob.dtype

    def _costs(self, cost: Callable[..., Any], samples: list[th.Tensor]) -> Any:
        if self.cost_input == "torch":
            return cost(*samples)
        # Copies: a cost that writes into its argument must not reach what autograd keeps for the backward pass.
        arrays = [(x.float() if x.dtype == th.bfloat16 else x).numpy(force=True).copy() for x in samples]
        if self.cost_input == "numpy":
            return cost(*arrays)
        return [cost(*each) for each in zip(*arrays, strict=True)]

    def _control_variate(
        self, log_prob: th.Tensor, samples: list[th.Tensor], distributions: list[Distribution]
    ) -> tuple[th.Tensor, th.Tensor]:
        assert self.control_variate is not None
        h, expected = self.control_variate[0](*samples), self.control_variate[1](*distributions)
        for name, value, shape in (("h", h, log_prob.shape), ("expectation", expected, log_prob.shape[1:])):
            if not isinstance(value, th.Tensor) or value.shape != shape or not value.isfinite().all():
                got = f"shape {tuple(value.shape)}: {value}" if isinstance(value, th.Tensor) else repr(value)
                raise ValueError(f"control_variate: {name} must return a finite tensor of shape {tuple(shape)}, got {got}")
        if h.requires_grad:
            raise ValueError("control_variate: h must be a fixed function, got values with gradient: detach its parameters")
        if not expected.requires_grad:
            raise ValueError(
                "control_variate: expectation must carry the gradient of E[h(x)] with respect to the distribution's "
                "parameters, got a tensor without: without it the estimate is biased"
            )
        return h.to(_precise(log_prob)), expected.to(_precise(log_prob))


def _surrogate(log_prob: th.Tensor, cost: th.Tensor, baseline: Any) -> th.Tensor:
    """Equal to the cost, with gradient (cost - b) grad log_prob + grad cost, shape [K, ...]."""
    b = _baseline_values(baseline, cost.detach(), log_prob)
    # "Magic box": 1, whose derivative is the score, and whose higher derivatives are those of p / p.detach()
    box = th.exp(log_prob - log_prob.detach()).to(cost.dtype)
    return cost + (box - 1.0) * (cost - b)


def _baseline_values(baseline: Any, cost: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
    if isinstance(baseline, str):
        if baseline == "none":
            return th.zeros_like(cost)
        if baseline == "mean":
            return cost.mean(0).expand_as(cost)
        if baseline == "leave_one_out":
            return leave_one_out(cost)
        assert baseline == "optimal", "_check_baseline knows the names"
        return optimal(cost, squared_score_norms(log_prob))
    if isinstance(baseline, Baseline):
        samples = th.arange(cost.shape[0]).repeat_interleave(cost[0].numel())
        returns = cost.flatten().cpu()
        episodes = Episodes(returns, th.ones_like(samples), env_indices=samples, fixed_count=False)
        values = _checked_values(baseline.predict(episodes), returns, f"{type(baseline).__name__}.predict")
        baseline.update(episodes)  # after its use
        return values.view(cost.shape).to(cost.device)
    if callable(baseline):
        return _checked_values(baseline(cost), cost, "the baseline function")
    return _checked_values(baseline, cost, "baseline")


def _checked_values(values: Any, cost: th.Tensor, name: str) -> th.Tensor:
    b = _as_tensor(values, name)
    if b.requires_grad:
        raise ValueError(f"{name} must be without gradient, got a tensor that requires it: detach() it")
    if b.ndim > 0 and b.shape != cost.shape:
        raise ValueError(f"{name} must be a number or have the shape of the costs, {tuple(cost.shape)}, got {tuple(b.shape)}")
    if not b.isfinite().all():
        raise ValueError(f"{name} must be finite, got {b[~b.isfinite()].flatten()[0]}")
    return b.to(cost.dtype).to(cost.device).expand_as(cost)


def _check_baseline(baseline: Any, n_samples: int) -> None:
    names = ("none", "mean", "leave_one_out", "optimal")
    if isinstance(baseline, str):
        if baseline == "moving_average":
            raise ValueError(
                'baseline="moving_average" must remember past calls, which a function cannot: pass one '
                "MovingAverageBaseline() object to all calls, or use ScoreFunctionEstimator"
            )
        if baseline not in names:
            raise ValueError(
                f"baseline must be one of {', '.join(map(repr, names))} (ScoreFunctionEstimator: 'moving_average' too), "
                f"values, a function or a Baseline object, got {baseline!r}"
            )
    elif isinstance(baseline, type) or baseline is None:
        raise ValueError(f"baseline must be a name, values, a function or a Baseline object, got {baseline!r}")
    elif isinstance(baseline, Baseline) and baseline.needs:
        raise ValueError(
            f"a Baseline object can only be given costs here, got {baseline!r}, which needs {sorted(baseline.needs)}: "
            "pass a name, or your own values of b"
        )
    made_of_others = ("leave_one_out", "optimal")
    needs_others = baseline in made_of_others if isinstance(baseline, str) else getattr(baseline, "needs_others", False)
    if needs_others and n_samples < 2:
        raise ValueError(f"baseline={baseline!r} is made of the other samples: K must be >= 2, got {n_samples}")


def _check_log_prob(log_prob: Any) -> None:
    if not isinstance(log_prob, th.Tensor) or not log_prob.requires_grad:
        got = "a tensor without" if isinstance(log_prob, th.Tensor) else type(log_prob).__name__
        raise ValueError(
            f"log_prob must be a tensor with gradient, got {got}: compute it as distribution.log_prob(x), outside of "
            "torch.no_grad(), with parameters that require gradient; log_prob comes first, cost second"
        )
    if log_prob.ndim == 0 or log_prob.numel() == 0:
        raise ValueError(f"log_prob must have the shape [K, ...] with K >= 1 samples, got shape {tuple(log_prob.shape)}")
    _check_finite("log_prob", log_prob, ": the distribution cannot have drawn it")


def _checked_cost(log_prob: th.Tensor, cost: Any, cost_gradient: bool) -> th.Tensor:
    """The costs as a tensor beside log_prob, in float64, so that a baseline takes away a large offset without loss."""
    cost = _as_tensor(cost, "cost")
    if cost.shape != log_prob.shape:
        shapes = f"got log_prob of shape {tuple(log_prob.shape)} and cost of shape {tuple(cost.shape)}"
        extra = log_prob.ndim - cost.ndim
        if extra > 0 and log_prob.shape[: cost.ndim] == cost.shape:
            raise ValueError(
                f"log_prob must have one element per cost, {shapes}: make the last {extra} dimension(s) part of one event "
                f"with torch.distributions.Independent(distribution, {extra}), or sum log_prob over them"
            )
        raise ValueError(f"log_prob and cost must have equal shapes [K, ...], {shapes}: one cost for each log_prob")
    if cost_gradient and not cost.requires_grad:
        raise ValueError("cost_gradient=True needs a cost with gradient, got one without: leave it out, or do not detach cost")
    _check_finite("cost", cost)
    cost = cost.to(_precise(log_prob)).to(log_prob.device)
    return cost if cost_gradient else cost.detach()


def _check_finite(name: str, values: th.Tensor, hint: str = "") -> None:
    if not values.isfinite().all():
        sample, *element = (~values.isfinite()).nonzero()[0].tolist()
        place = f"sample {sample}" + (f", element {element}" if element else "")
        raise ValueError(f"{name} must be finite, got {values[(sample, *element)].item()} for {place}{hint}")


def _as_tensor(values: Any, name: str) -> th.Tensor:
    """A real tensor of what a user passed: tensor, array, or list of numbers, bools or tensors."""
    if values is None:
        raise ValueError(f"{name} must be numbers, got None: does the function return them?")
    if not isinstance(values, th.Tensor):
        try:
            if isinstance(values, (list, tuple)) and values and all(isinstance(value, th.Tensor) for value in values):
                values = th.stack(list(values))
            else:
                values = th.as_tensor(np.asarray(values, dtype=np.float64))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be numbers of one shape per sample, got {values!r}") from error
    if values.is_complex():
        raise ValueError(f"{name} must be real, got {values.dtype}")
    return values


def _check_support(distribution: Distribution) -> None:
    """The gradient passes into the expectation only if the set of possible x does not move with the parameters."""
    if any(_moves(end) for end in _ends(distribution)):
        raise ValueError(
            f"the support of a distribution must not depend on parameters that are learnt, got {distribution}: there the "
            "score function gives a wrong gradient. Use rsample() and differentiate the cost, or a distribution such as Beta"
        )


def _ends(distribution: Distribution) -> list[th.Tensor]:
    """Where the set of possible x begins and ends; nothing where that is not known, or nowhere."""
    if isinstance(distribution, Independent):
        return _ends(distribution.base_dist)
    if isinstance(distribution, MixtureSameFamily):
        return _ends(distribution.component_distribution)
    if type(distribution).support is TransformedDistribution.support:  # torch's knows the last transform alone
        transformed: Any = distribution
        if any(transform.domain.event_dim or not transform.bijective for transform in transformed.transforms):
            return []
        ends = _ends(transformed.base_dist)
        for transform in transformed.transforms:
            ends = [_image(transform, end) for end in ends]
        return ends
    try:
        return _bounds(distribution.support)
    except NotImplementedError:
        return []


def _image(transform: Any, end: th.Tensor) -> th.Tensor:
    """Where a transform takes an end: that of logit's domain to infinity, for which torch has a finite number."""
    image = transform(end)
    for edge in _bounds(transform.domain) if transform.codomain is constraints.real else ():
        image = image.where(end != edge, th.inf)
    return image


def _bounds(bound: Any) -> list[th.Tensor]:
    """The numbers that a constraint, or one that it is made of, is made of."""
    if isinstance(bound, Constraint):
        return [number for part in vars(bound).values() for number in _bounds(part)]
    if isinstance(bound, th.Tensor) or type(bound) is float:
        return [th.as_tensor(bound)]
    return []


def _moves(end: th.Tensor) -> bool:
    """Whether an end depends on a parameter; 0 * scale does not, nor does infinity."""
    finite = end[end.isfinite()]
    if not end.requires_grad or not len(finite):
        return False
    functions: dict[Any, None] = dict.fromkeys([end.grad_fn])  # of the graph, each once
    for function in (queue := list(functions)):
        for before, _ in getattr(function, "next_functions", ()):
            if before is not None and before not in functions:
                functions[before] = None
                queue.append(before)
    parameters = [end] if end.is_leaf else [f.variable for f in functions if hasattr(f, "variable")]
    gradients = th.autograd.grad(finite.sum(), parameters, allow_unused=True, retain_graph=True)
    return any(gradient is not None and bool(gradient.count_nonzero()) for gradient in gradients)


def _gradients_of_each(values: th.Tensor, parameters: list[th.Tensor]) -> Iterator[tuple[th.Tensor, ...]]:
    """The gradients of each element of a vector, zeros where a parameter is not used; the graph is kept."""
    for k in range(len(values)):
        only_k = th.zeros_like(values)
        only_k[k] = 1.0
        yield th.autograd.grad(values, parameters, only_k, retain_graph=True, allow_unused=True, materialize_grads=True)


def _leaves(tensor: th.Tensor) -> list[th.Tensor]:
    """All parameters that a tensor was computed from, as autograd knows them."""
    if tensor.grad_fn is None:
        return [tensor]
    leaves: list[th.Tensor] = []
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad: where a gradient ends up in .grad
            leaves.append(node.variable)
        stack.extend(function for function, _ in node.next_functions)
    return leaves


def _precise(tensor: th.Tensor) -> th.dtype:
    return th.float32 if tensor.device.type == "mps" else th.float64  # MPS has no float64
