"""
Score function: the gradient of an expected cost, from samples and their costs alone.

    grad E_{x~p(x;theta)}[f(x)] = E[(f(x) - b) grad log p(x;theta)]

f is never differentiated: it may be an accuracy, a simulator, a choice. ``docs/theory.md`` derives the formula,
``score_checks.py`` says what is refused.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch as th
from torch.distributions import Distribution

from sb3_reinforce import score_checks, sequences
from sb3_reinforce.baselines import Baseline, Episodes, MovingAverageBaseline
from sb3_reinforce.estimators import Method, Problem, make_method, points
from sb3_reinforce.estimators.checks import check_cost_in_x, check_distribution, check_options
from sb3_reinforce.tables import ShownAsTable, Table

Node = Distribution | Callable[..., Distribution]


def score_function_loss(
    log_prob: th.Tensor,
    cost: Any,
    baseline: Any = "leave_one_out",
    cost_gradient: bool = False,
    mask: th.Tensor | None = None,
) -> th.Tensor:
    """
    The mean cost, as a loss whose gradient estimates grad E[cost].

    With M = K * ... elements and b the baseline, the gradient is 1/M sum (cost - b) grad log_prob. The value is the mean
    cost itself; that of the usual surrogate, the mean of log_prob * cost, measures nothing. Higher derivatives are
    right as well, because cost + (exp(log_prob - log_prob.detach()) - 1)(cost - b) is differentiated (DiCE).
    Draw x with ``sample()``. With ``rsample()`` x itself depends on the parameters, which changes the gradient of log_prob.

    Sources: Williams (1992); Schulman et al. (2015), "Gradient estimation using stochastic computation graphs"; Foerster
    et al. (2018), "DiCE". With ``"leave_one_out"``, Kool et al. (2019).

    :param log_prob: log p(x_k; theta) with gradient, shape [K, ...], K independent samples first
    :param cost: f(x_k), shape of ``log_prob``: a tensor, array or list of numbers or bools. Where one cost depends on
        several random variables, ``log_prob`` must be the sum of their log-probs
    :param baseline: b. ``"none"``: 0; ``"leave_one_out"``: mean of the other samples, at the same element (K >= 2);
        ``"optimal"``: the constant of least variance, from the other samples (K >= 2), at one backward pass per element,
        see :func:`optimal`; ``"mean"``: mean over all samples, *biased*: (K - 1)/K of the leave-one-out gradient. Or your
        own values (a number, or the shape of ``cost``), a function of the costs that returns them, or a
        :class:`~sb3_reinforce.baselines.Baseline` object, to which each element is an episode of one step, in the group
        of its sample. Your own b adds no bias if b_k does not depend on x_k
    :param cost_gradient: True adds E[grad f], for a cost that depends on theta directly. False detaches ``cost``
    :param mask: for sequences, whose ``log_prob`` [K, ..., T] is that of each token: bool, True for the tokens that were
        drawn. ``cost`` is per sequence, [K, ...], or per token, [K, ..., T]: then the costs from each token on weight it, and
        ``baseline`` is ``"none"``, ``"leave_one_out"``, or your own for these. See :mod:`sb3_reinforce.sequences`
    :return: scalar, dtype and device of ``log_prob``: the mean over samples and elements, never over tokens
    :raises ValueError: for shapes that differ, a log_prob without gradient, numbers that are not finite, an unknown
        baseline, too few samples for it, or one that returns a wrong shape or a gradient
    """
    if mask is not None:
        log_prob, cost, mask = sequences.without_padding(log_prob, cost, mask)
    score_checks.check_log_prob(log_prob)
    score_checks.check_baseline(baseline, n_samples=len(log_prob))
    if mask is not None and cost.shape == mask.shape:
        return sequences.token_loss(log_prob, cost, baseline, cost_gradient, mask).to(log_prob.dtype)
    if mask is not None:
        log_prob = log_prob.sum(-1)
    costs = score_checks.checked_cost(log_prob, cost, cost_gradient)
    return _surrogate(log_prob, costs, baseline).mean().to(log_prob.dtype)


def leave_one_out(cost: th.Tensor) -> th.Tensor:
    """
    Mean of the other samples: b_k = (sum_j f_j - f_k) / (K - 1), from costs f of shape [K, ...].

    Adds no bias: b_k does not depend on sample k. The estimate is then the sample covariance of cost and score (divisor
    K - 1), and a constant added to all costs changes nothing. Source: Kool et al. (2019).
    """
    return (cost.sum(0) - cost) / (cost.shape[0] - 1)


def optimal(cost: th.Tensor, squared_scores: th.Tensor) -> th.Tensor:
    """
    The constant of least variance, ``E[|s|^2 f] / E[|s|^2]``, from the other samples. All shapes are [K, ...].

    ``b_k = sum_{j!=k} |s_j|^2 f_j / sum_{j!=k} |s_j|^2``; where these scores are all zero, the mean of the other costs. Adds
    no bias: b_k does not depend on sample k. Source: Weaver and Tao (2001); Greensmith et al. (2004).
    """
    norms, products = _sum_of_others(squared_scores), _sum_of_others(squared_scores * cost)
    return th.where(norms > 0, products / norms.where(norms > 0, 1.0), leave_one_out(cost))


def _sum_of_others(values: th.Tensor) -> th.Tensor:
    """sum_{j!=k} v_j, without subtracting v_k: the difference would lose small values beside a very large one."""
    nothing = th.zeros_like(values[:1])
    before = th.cat([nothing, values[:-1].cumsum(0)])
    after = th.cat([nothing, values.flip(0)[:-1].cumsum(0)]).flip(0)
    return before + after


def squared_score_norms(log_prob: th.Tensor) -> th.Tensor:
    """
    ``|s|^2`` of each element's score s = grad log p(x; theta), over all parameters that autograd reaches from ``log_prob``.

    One backward pass per element, and the memory of one gradient. The mean over samples estimates the trace of the Fisher
    information.

    :return: shape of ``log_prob`` [K, ...], float64 (float32 on MPS), without gradient
    :raises ValueError: if ``log_prob`` has no gradient
    """
    score_checks.check_log_prob(log_prob)
    norms = [
        th.stack([gradient.to(score_checks.precise_dtype(log_prob)).square().sum() for gradient in gradients]).sum()
        for gradients in _gradients_of_each(log_prob.flatten(), score_checks.leaves(log_prob))
    ]
    return th.stack(norms).view_as(log_prob)


def _gradients_of_each(values: th.Tensor, parameters: list[th.Tensor]) -> Iterator[tuple[th.Tensor, ...]]:
    """The gradients of each element of a vector, zero for unused parameters. Keeps the graph."""
    for k in range(len(values)):
        only_k = th.zeros_like(values)
        only_k[k] = 1.0
        yield th.autograd.grad(values, parameters, only_k, retain_graph=True, allow_unused=True, materialize_grads=True)


def _surrogate(log_prob: th.Tensor, cost: th.Tensor, baseline: Any) -> th.Tensor:
    """Equal to the cost, with gradient (cost - b) grad log_prob + grad cost, shape [K, ...]."""
    b = _baseline_values(baseline, cost.detach(), log_prob)
    # DiCE's "magic box" is 1; its derivative is the score, and its higher ones are those of p / p.detach()
    box = th.exp(log_prob - log_prob.detach()).to(cost.dtype)
    return cost + (box - 1.0) * (cost - b)


def _baseline_values(baseline: Any, cost: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
    """b, shape of ``cost`` [K, ...]; a Baseline object learns from the costs after it has predicted."""
    if isinstance(baseline, str):
        if baseline == "none":
            return th.zeros_like(cost)
        if baseline == "mean":
            return cost.mean(0).expand_as(cost)
        if baseline == "leave_one_out":
            return leave_one_out(cost)
        assert baseline == "optimal", "check_baseline knows the names"
        return optimal(cost, squared_score_norms(log_prob))
    if isinstance(baseline, Baseline):
        samples = th.arange(cost.shape[0]).repeat_interleave(cost[0].numel())
        returns = cost.flatten().cpu()
        episodes = Episodes(returns, th.ones_like(samples), env_indices=samples, fixed_count=False)
        values = score_checks.checked_values(baseline.predict(episodes), returns, f"{type(baseline).__name__}.predict")
        baseline.update(episodes)
        return values.view(cost.shape).to(cost.device)
    if callable(baseline):
        return score_checks.checked_values(baseline(cost), cost, "the baseline function")
    return score_checks.checked_values(baseline, cost, "baseline")


@dataclass(frozen=True)
class GradientEstimate(ShownAsTable):
    """
    The result of :meth:`ScoreFunctionEstimator.estimate`, of K terms: with ``method="score"``, one for each sample.

    :param loss: what the estimator itself returns; ``loss.backward()`` still works
    :param value: estimate of E[cost], the mean over all elements
    :param value_standard_error: its standard error, in units of cost
    :param gradients: the estimate of the gradient, one tensor per parameter
    :param standard_errors: of each of its components, one tensor per parameter
    :param variance: of the gradient of a *single* term, summed over all components: ``sum_k |g_k - mean(g)|^2 / (K - 1)``.
        The estimate itself has ``variance / K``
    """

    loss: th.Tensor
    value: float
    value_standard_error: float
    gradients: list[th.Tensor]
    standard_errors: list[th.Tensor]
    variance: float

    def _table(self) -> Table:
        rows = [("E[cost]", f"{self.value:.4g}", f"{self.value_standard_error:.2g}")]
        for i, (gradient, errors) in enumerate(zip(self.gradients, self.standard_errors, strict=True)):
            if gradient.numel() > 8:
                rows.append((f"norm of gradients[{i}]", f"{gradient.norm():.4g}", f"{errors.norm():.2g}"))
                continue
            for place in np.ndindex(*gradient.shape):
                name = f"gradients[{i}]" + "".join(f"[{n}]" for n in place)
                rows.append((name, f"{gradient[place]:.4g}", f"{errors[place]:.2g}"))
        head, below = ("", "estimate", "standard error"), f"Variance of one term: {self.variance:.4g}"
        return Table("E[cost] and its gradient", head, rows, below)


class ScoreFunctionEstimator:
    """
    Draws K samples, computes their costs and returns a loss whose gradient estimates grad E[cost]::

        loss = ScoreFunctionEstimator(n_samples=16)(Categorical(logits=model(inputs)), lambda x: x != targets)

    A distribution with batch shape [...] has samples [K, ...] and costs [K, ...]: one cost and one baseline per element.
    If the whole batch has one cost (an F1 score), make it one joint random variable: ``Independent(distribution, 1)``.

    :param n_samples: K, samples per call
    :param baseline: as in :func:`score_function_loss`, or ``"moving_average"``: an exponential average of the mean costs of
        past calls (:class:`~sb3_reinforce.baselines.MovingAverageBaseline`), kept in ``estimator.baseline``
    :param cost_input: what the cost function gets: ``"torch"``: all samples, a tensor [K, ...]; ``"numpy"``: all samples, an
        array; ``"sample"``: one Python call per sample, without the axis K, as NumPy. It returns costs in whatever
        :func:`score_function_loss` takes; for ``"sample"`` the costs of that sample, a number if there is no batch shape
    :param cost_gradient: True lets gradients flow through the cost too, for one that depends on the parameters directly;
        it needs ``cost_input="torch"``. False computes the cost without gradient
    :param control_variate: (h, expectation): ``h(x)`` approximates the cost, and ``expectation(distribution)`` is its
        known mean E[h(x)], with gradient, of the distribution's batch shape. The score then weights f - h - b, and grad E[h]
        is added exactly, so there is no bias. h is a fixed function: detach its parameters, in both
    :param method: how the gradient is estimated; none has a bias: ``"score"``, ``"enumerate"``, ``"sum_and_sample"``,
        ``"disarm"``, ``"without_replacement"``, ``"rebar"``, ``"relax"``, ``"double_cv"``, ``"measure_valued"``; or an object
        of :mod:`sb3_reinforce.estimators` such as ``Rebar(temperature=0.1)``, where each says what it needs. All but
        ``"score"`` take one distribution, and as baseline ``"leave_one_out"`` (without a meaning for some) or ``"none"``.
        :func:`~sb3_reinforce.compare_estimators` tells which has the least variance here
    :param sampling: ``"iid"``, or for ``"score"``, ``"disarm"``, ``"rebar"``, ``"relax"`` the inverse distribution function at
        ``"antithetic"``, ``"stratified"`` or ``"sobol"`` points. These depend on each other, so ``"leave_one_out"`` leaves out
        a sample's whole set: its pair, or its half of the samples
    :raises ValueError: for arguments that cannot be right
    """

    def __init__(
        self,
        n_samples: int = 16,
        baseline: Any = "leave_one_out",
        cost_input: Literal["torch", "numpy", "sample"] = "torch",
        cost_gradient: bool = False,
        control_variate: tuple[Callable[..., th.Tensor], Callable[..., th.Tensor]] | None = None,
        method: str | Method = "score",
        sampling: points.Sampling = "iid",
    ):
        score_checks.check_estimator(n_samples, cost_input, cost_gradient, control_variate)
        self.n_samples = int(n_samples)
        self.method = make_method(method)
        check_options(self.method, self.n_samples, baseline, sampling, cost_input, control_variate)
        self.baseline: Any = (
            MovingAverageBaseline() if isinstance(baseline, str) and baseline == "moving_average" else baseline
        )
        if self.method is None:
            score_checks.check_baseline(self.baseline, n_samples)
        self.sampling = sampling
        self.cost_input = cost_input
        self.cost_gradient = cost_gradient
        self.control_variate = control_variate

    def __call__(self, distribution: Node | Sequence[Node], cost: Callable[..., Any]) -> th.Tensor:
        """
        :param distribution: p(x; theta), or a list of them, whose samples the cost gets as ``cost(x, y)``. An item may be
            a function of the samples before it that returns the next distribution, for example
            ``[Bernoulli(logits=a), lambda x: Normal(b * x, 1)]``; its batch shape then begins with K
        :param cost: f, see ``cost_input``
        :return: scalar: the mean cost, with the estimate of grad E[cost] as its gradient. It is the mean over the batch
            shape too: B parameters learnt side by side get 1/B of their own gradients
        :raises ValueError: see :func:`score_function_loss`
        """
        surrogate, dtype = self._draw(distribution, cost)
        return surrogate.mean().to(dtype)

    def estimate(
        self,
        distribution: Node | Sequence[Node],
        cost: Callable[..., Any],
        parameters: Iterable[th.Tensor],
        n_calls: int = 1,
    ) -> GradientEstimate:
        """
        Call the estimator and measure variance and standard errors: a backward pass and the memory of a gradient per term.

        The standard errors treat the terms as independent. A baseline made of the other samples correlates them a
        little: for ``"leave_one_out"``, the squared standard error is too small by g^2 / (K - 1)^2 on average, with g the
        true gradient. Points other than ``"iid"`` depend on each other much more: there, and for methods whose call is one
        term (``"sum_and_sample"``, ``"without_replacement"``), the mean of a whole call is a term, so ask for several calls.

        :param parameters: what to differentiate with respect to, such as ``model.parameters()``
        :param n_calls: estimates to take the mean of
        :return: the estimate; ``estimate.loss.backward()`` gives the same gradient
        :raises ValueError: if there is one term only, or as in :func:`score_function_loss`
        """
        parameters = [parameters] if isinstance(parameters, th.Tensor) else list(parameters)
        if not parameters or not all(isinstance(p, th.Tensor) and p.requires_grad for p in parameters):
            raise ValueError("parameters must be one or more tensors that require gradient, such as model.parameters()")
        if isinstance(n_calls, bool) or not isinstance(n_calls, int) or n_calls < 1:
            raise ValueError(f"n_calls must be a whole number >= 1, got {n_calls!r}")
        terms_of_calls, dtype = [], th.float64
        for _ in range(n_calls):
            surrogate, dtype = self._draw(distribution, cost)
            terms = surrogate.reshape(len(surrogate), -1).mean(1)
            terms_of_calls.append(terms if self.sampling == "iid" else terms.mean(0, keepdim=True))
        per_term = th.cat(terms_of_calls)
        n_terms = len(per_term)
        if n_terms < 2:
            raise ValueError(
                "a standard error needs two terms or more, got one: n_calls >= 2, or n_samples >= 2 with a method that has a "
                f"term per sample, got n_calls={n_calls} and n_samples={self.n_samples}"
            )
        gradients_of_all = th.autograd.grad(per_term.sum(), parameters, retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients_of_all):
            raise ValueError("parameters must be what the distribution was computed from, got tensors it does not depend on")
        of_each = [g for terms in terms_of_calls for g in _gradients_of_each(terms, parameters)]
        gradients = [th.stack(g) for g in zip(*of_each, strict=True)]
        costs = per_term.detach()
        return GradientEstimate(
            loss=per_term.mean().to(dtype),
            value=costs.mean().item(),
            value_standard_error=costs.std().item() / n_terms**0.5,
            gradients=[g.mean(0) for g in gradients],
            standard_errors=[g.std(0) / n_terms**0.5 for g in gradients],
            variance=sum(g.var(0).sum().item() for g in gradients),
        )

    def _draw(self, distribution: Node | Sequence[Node], cost: Callable[..., Any]) -> tuple[th.Tensor, th.dtype]:
        """The surrogate, [K, ...], and the dtype of the loss."""
        if not callable(cost):
            raise ValueError(f"cost must be a function of the samples, got {cost!r}: for costs at hand, score_function_loss")
        if self.method is not None:
            return self._terms(self.method, distribution, cost)
        samples: list[th.Tensor] = []
        distributions: list[Distribution] = []
        log_probs: list[th.Tensor] = []
        for node in distribution if isinstance(distribution, (list, tuple)) else [distribution]:
            given = node(*samples) if callable(node) and not isinstance(node, Distribution) else node
            p = score_checks.checked_distribution(given)
            # detach() makes a new tensor object: given the old one, a transform with cache_size=1 would return its cached
            # inverse, which has no gradient with respect to the transform's parameters.
            samples.append((self._sample(p) if p is node else p.sample()).detach())
            distributions.append(p)
            log_probs.append(p.log_prob(samples[-1]))
            if log_probs[-1].shape != log_probs[0].shape or log_probs[0].shape[:1] != (self.n_samples,):
                raise ValueError(
                    "the distributions of a list must have equal batch shapes (for a function, with K in front), "
                    f"got log_prob of shapes {[tuple(lp.shape) for lp in log_probs]} with K = {self.n_samples}: "
                    "torch.distributions.Independent turns batch dimensions into event dimensions"
                )
        log_prob = th.stack(log_probs).sum(0)
        score_checks.check_log_prob(log_prob)  # before the costs, which may be expensive
        with th.set_grad_enabled(self.cost_gradient):
            costs = score_checks.checked_cost(log_prob, self._costs(cost, samples), self.cost_gradient)
        baseline = self.baseline
        if self.sampling != "iid" and isinstance(baseline, str) and baseline == "leave_one_out":
            baseline = self._leave_set_out
        if self.control_variate is None:
            return _surrogate(log_prob, costs, baseline), log_prob.dtype
        h, expectation = self.control_variate[0](*samples), self.control_variate[1](*distributions)
        score_checks.check_control_variate(h, expectation, log_prob)
        surrogate = _surrogate(log_prob, costs - h.to(costs.dtype), baseline)
        return surrogate + expectation.to(costs.dtype), log_prob.dtype

    def _set_sizes(self) -> list[int]:
        baseline = self.baseline
        return points.set_sizes(self.sampling, self.n_samples, isinstance(baseline, str) and baseline == "leave_one_out")

    def _leave_set_out(self, values: th.Tensor) -> th.Tensor:
        sizes = self._set_sizes()
        if len(sizes) < 2 or self.baseline == "none":
            return th.zeros_like(values)
        return leave_one_out(values) if self.sampling == "iid" else points.leave_set_out(values, sizes)

    def _sample(self, p: Distribution) -> th.Tensor:
        if self.sampling == "iid":
            return p.sample((self.n_samples,))
        return points.sample(p, self.sampling, self._set_sizes())

    def _terms(self, method: Method, distribution: Any, cost: Callable[..., Any]) -> tuple[th.Tensor, th.dtype]:
        """The terms of another method than the score function."""
        p = check_distribution(method, distribution, self.n_samples, self.baseline)
        like = points.parameter_of(p)

        def evaluate(x: th.Tensor, in_x: bool) -> th.Tensor:
            gradient = in_x or self.cost_gradient
            with th.set_grad_enabled(gradient):
                costs = self._costs(cost, [x])
            if in_x:
                check_cost_in_x(method, costs)
            one_each = like.new_empty(()).expand(len(x), *p.batch_shape)
            return score_checks.checked_cost(one_each, costs, gradient)

        problem = Problem(
            p=p,
            n_samples=self.n_samples,
            cost=lambda x: evaluate(x, False),
            cost_in_x=lambda x: evaluate(x, True),
            cost_gradient=self.cost_gradient,
            uniform=lambda batch, event: points.uniform(self.sampling, self._set_sizes(), batch, event, like),
            baseline=self.baseline,
            leave_one_out=self._leave_set_out,
        )
        return method.terms(problem, method.draw(problem)), like.dtype

    def _costs(self, cost: Callable[..., Any], samples: list[th.Tensor]) -> Any:
        if self.cost_input == "torch":
            return cost(*samples)
        # Copies, because the backward pass needs the samples unchanged, and a cost may write into its arguments.
        arrays = [(x.float() if x.dtype == th.bfloat16 else x).numpy(force=True).copy() for x in samples]
        if self.cost_input == "numpy":
            return cost(*arrays)
        return [cost(*each) for each in zip(*arrays, strict=True)]
