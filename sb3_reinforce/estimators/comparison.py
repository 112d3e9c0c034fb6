"""Which estimator leaves the least gradient variance here? Measured on the user's own distribution and cost."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, stdev
from typing import Any

import torch as th
from torch.distributions import Distribution

from sb3_reinforce import score_checks
from sb3_reinforce.estimators import METHODS
from sb3_reinforce.estimators.report import EstimatorComparison, EstimatorVariance, advice_of
from sb3_reinforce.estimators.support import support_size
from sb3_reinforce.estimators.without_replacement import MAX_SAMPLES
from sb3_reinforce.score_function import ScoreFunctionEstimator

Estimator = Callable[[Distribution, Callable[..., Any]], th.Tensor]
REFERENCE = "score, leave_one_out"
# name: method, baseline, sampling
NAMED: dict[str, tuple[str, str, str]] = {
    "score, none": ("score", "none", "iid"),
    REFERENCE: ("score", "leave_one_out", "iid"),
    "score, optimal": ("score", "optimal", "iid"),
    "score, moving_average": ("score", "moving_average", "iid"),
    "score, antithetic": ("score", "leave_one_out", "antithetic"),
    "score, stratified": ("score", "leave_one_out", "stratified"),
    "score, sobol": ("score", "leave_one_out", "sobol"),
    "disarm, sobol": ("disarm", "leave_one_out", "sobol"),
    **{name: (name, "leave_one_out", "iid") for name in METHODS},
}
# "optimal" needs a backward pass for each sample, and is measured if it is asked for
USUAL = tuple(name for name in NAMED if name not in ("score, optimal", "score, stratified", "disarm, sobol"))

# A call that evaluates the cost more often than so many times n_evaluations is not measured
MOST_TIMES = 100


def compare_estimators(
    distribution: Distribution,
    cost: Callable[..., Any],
    n_evaluations: int = 16,
    estimators: Sequence[str] | Mapping[str, str | Estimator] = USUAL,
    parameters: Iterable[th.Tensor] | None = None,
    n_repeats: int = 300,
    n_warmup: int = 100,
    cost_input: str = "torch",
    cost_gradient: bool = False,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> EstimatorComparison:
    """
    The variance of the gradient under every estimator, on one distribution and cost; those that cannot be used say why.

    All take turns, call by call, after ``n_warmup`` calls each in which those that learn do so. Each named one gets as
    many samples as ``n_evaluations`` evaluations of the cost pay for. The variance of one call, times its evaluations over
    ``n_evaluations``, is that of a mean of such calls at equal evaluations; times its seconds, at equal seconds (which
    depend on the machine and on how dear the cost is). Bias: the mean of all calls against the exact gradient, where x has
    at most ``n_repeats * n_evaluations`` values to sum over; else a bias cannot be told.

    :param distribution: p(x; theta)
    :param cost: f, as for :class:`~sb3_reinforce.ScoreFunctionEstimator`
    :param n_evaluations: cost evaluations per estimate
    :param estimators: names, or a dictionary of names to names, estimators, or functions of (distribution, cost) that
        return a loss. ``"score, leave_one_out"`` is always measured, the others relative to it
    :param parameters: what to differentiate with respect to. None: all that the distribution was computed from
    :param n_repeats: calls of each, at least 10
    :param n_warmup: calls of each before
    :param cost_input: as for the estimator
    :param cost_gradient: as for the estimator
    :param seed: of torch's generator, which is put back afterwards
    :param clock: what tells the seconds; ``time.process_time`` on a machine that others use as well
    :return: table, advice and picture
    :raises ValueError: for numbers out of range or an unknown name
    """
    for name, value, least in (("n_evaluations", n_evaluations, 2), ("n_repeats", n_repeats, 10), ("n_warmup", n_warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    asked: Mapping[str, str | Estimator] = estimators if isinstance(estimators, Mapping) else {n: n for n in estimators}
    wanted = {REFERENCE: REFERENCE, **asked}
    unknown = [e for e in wanted.values() if isinstance(e, str) and e not in NAMED]
    if unknown:
        raise ValueError(f"estimators must be of {', '.join(map(repr, NAMED))}, or functions, got {unknown[0]!r}")
    counted = _Counter(cost, cost_input)
    options = {"cost_input": cost_input, "cost_gradient": cost_gradient}
    with th.random.fork_rng():
        th.manual_seed(seed)
        given = _parameters(distribution, parameters)
        exact = _exact(distribution, counted, given, options, most=n_repeats * n_evaluations)
        measured: dict[str, _Measured] = {}
        refused: dict[str, str] = {}
        for name, estimator in wanted.items():
            try:
                made = (
                    sized(estimator, distribution, counted, n_evaluations, **options)
                    if isinstance(estimator, str)
                    else estimator
                )
                found = _Measured(made, distribution, counted, given, exact, clock)
                _check_price(name, made, distribution, counted, n_evaluations)
            except ValueError as error:
                if name == REFERENCE or not isinstance(estimator, str):
                    raise
                refused[name] = str(error)
            else:
                measured[name] = found
        for found in measured.values():
            for _ in range(max(1, n_warmup)):
                found.call()
            found.begin()
        for _ in range(n_repeats):
            for found in measured.values():
                found.record()
    rows = [found.row(name, n_evaluations, measured[REFERENCE]) for name, found in measured.items()]
    title = f"{n_evaluations} evaluations, {n_repeats} gradients of {sum(p.numel() for p in given):,} numbers each; " + (
        "bias against the exact gradient" if exact is not None else "the exact gradient is not known"
    )
    return EstimatorComparison(rows, refused, advice_of(rows, n_evaluations), title)


class _Counter:
    """The cost, and how many samples it was asked for."""

    def __init__(self, cost: Callable[..., Any], cost_input: str):
        self.cost, self.n, self.each = cost, 0, cost_input == "sample"

    def __call__(self, *x: Any) -> Any:
        self.n += 1 if self.each else len(x[0])
        return self.cost(*x)


def _parameters(distribution: Distribution, parameters: Iterable[th.Tensor] | None) -> list[th.Tensor]:
    if parameters is None:
        if not isinstance(distribution, Distribution):
            raise ValueError(f"distribution must be a torch Distribution, got {distribution!r}")
        log_prob = distribution.log_prob(distribution.sample())
        score_checks.check_log_prob(log_prob[None])
        return score_checks.leaves(log_prob)
    given = [parameters] if isinstance(parameters, th.Tensor) else list(parameters)
    if not given or not all(isinstance(p, th.Tensor) and p.requires_grad for p in given):
        raise ValueError("parameters must be one or more tensors that require gradient, such as model.parameters()")
    return given


def _check_price(name: str, estimator: Estimator, distribution: Distribution, cost: _Counter, n_evaluations: int) -> None:
    """:raises ValueError: if one call evaluates the cost far more often than was asked for"""
    before = cost.n
    estimator(distribution, cost)
    if cost.n - before > MOST_TIMES * n_evaluations:
        raise ValueError(
            f"{name} evaluates the cost {cost.n - before:,} times per call, more than {MOST_TIMES} times n_evaluations, "
            f"{n_evaluations}: call it alone"
        )


def _gradients(loss: th.Tensor, parameters: list[th.Tensor]) -> tuple[th.Tensor, ...]:
    return th.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


def _flat(gradients: Iterable[th.Tensor]) -> th.Tensor:
    return th.cat([g.flatten() for g in gradients]).double()


def _exact(
    distribution: Distribution, cost: _Counter, parameters: list[th.Tensor], options: dict[str, Any], most: int
) -> th.Tensor | None:
    """By enumeration, if that is no dearer than what is measured: at most so many evaluations."""
    size = support_size(distribution)
    if size is None or size > most:
        return None
    try:
        return _flat(_gradients(ScoreFunctionEstimator(1, method="enumerate", **options)(distribution, cost), parameters))
    except ValueError:
        return None


def sized(name: str, distribution: Distribution, cost: Callable[..., Any], n_evaluations: int, **options: Any) -> Any:
    """
    :param name: of ``NAMED``
    :param options: of the estimator: ``cost_input``, ``cost_gradient``
    :return: the estimator with as many samples as ``n_evaluations`` evaluations of the cost pay for; at least one, whatever
        that costs
    :raises ValueError: if the method cannot be used here
    """
    method, baseline, sampling = NAMED[name]
    counted = _Counter(cost, options.get("cost_input", "torch"))

    def estimator(n_samples: int) -> ScoreFunctionEstimator:
        return ScoreFunctionEstimator(n_samples, baseline, method=method, sampling=sampling, **options)  # type: ignore[arg-type]

    def evaluations(n_samples: int) -> int:
        counted.n = 0
        estimator(n_samples)(distribution, counted)
        return counted.n

    if method == "score":
        return estimator(n_evaluations - n_evaluations % 2 if sampling == "antithetic" else n_evaluations)
    # all others: so many per sample, or a number that does not depend on it
    few, more = evaluations(2), evaluations(4)
    if few == more:
        return estimator(2)
    n_samples = max(1, 2 * n_evaluations // (more - few))
    if method == "without_replacement":
        n_samples = min(n_samples, MAX_SAMPLES)
    try:
        while n_samples > 1 and evaluations(n_samples) > n_evaluations:
            n_samples -= 1  # there are fewer values than samples, for which the above is no rate
        evaluations(n_samples)
    except ValueError:
        n_samples = 2  # one is not enough
    return estimator(n_samples)


@dataclass
class _Measured:
    """The gradients of one estimator: running sums, so that memory does not grow with the number of calls."""

    estimator: Estimator
    distribution: Distribution
    cost: _Counter
    parameters: list[th.Tensor]
    exact: th.Tensor | None
    clock: Callable[[], float]
    warm_sum: Any = 0.0
    n_warm: int = 0

    def call(self) -> th.Tensor:
        gradient = _flat(_gradients(self.estimator(self.distribution, self.cost), self.parameters))
        self.warm_sum, self.n_warm = self.warm_sum + gradient, self.n_warm + 1
        return gradient

    def begin(self) -> None:
        # sums of differences to a number nearby lose no digits
        self.centre = self.exact if self.exact is not None else self.warm_sum / self.n_warm
        self.sum, self.squares = th.zeros_like(self.centre), th.zeros_like(self.centre)
        self.distances: list[float] = []
        self.along: list[float] = []
        self.seconds: list[float] = []
        self.n_evaluations = 0

    def record(self) -> None:
        before, start = self.cost.n, self.clock()
        gradients = _gradients(self.estimator(self.distribution, self.cost), self.parameters)
        self.seconds.append(self.clock() - start)
        self.n_evaluations += self.cost.n - before
        difference = _flat(gradients) - self.centre
        self.sum += difference
        self.squares += difference.square()
        self.distances.append(difference.square().sum().item())
        if self.exact is not None:
            self.along.append((difference @ self.exact).item() / (self.exact.norm().item() + 1e-300))

    def variance(self) -> th.Tensor:
        """Of each component of one call's gradient."""
        n = len(self.distances)
        found = ((self.squares - self.sum.square() / n) / (n - 1)).clamp(min=0.0)
        # what is left of an exact gradient is rounding
        return found if found.sum() > 1e-20 * self.centre.square().sum() else th.zeros_like(found)

    def total(self) -> tuple[float, float]:
        """The sum of it, and its standard error."""
        return self.variance().sum().item(), stdev(self.distances) / math.sqrt(len(self.distances))

    def row(self, name: str, n_evaluations: int, reference: "_Measured") -> EstimatorVariance:
        n = len(self.distances)
        mean, variance = self.sum / n, self.variance()
        evaluations, seconds = self.n_evaluations / n, median(self.seconds)
        total, error = self.total()
        total_of, error_of = reference.total()
        evaluations_of, seconds_of = reference.n_evaluations / n, median(reference.seconds)
        relative = total * evaluations / (total_of * evaluations_of) if total_of else math.nan
        margin = 0.0
        if total and total_of and reference is not self:
            margin = 1.96 * relative * math.hypot(error / total, error_of / total_of)
        bias = None
        if self.exact is not None:
            # costs that differ little have lost digits to rounding before they got here
            tiny = (1e-4 if self.parameters[0].dtype != th.float64 else 1e-9) * self.exact.norm().item() + 1e-300
            along = abs(mean @ self.exact).item() / (self.exact.norm().item() + 1e-300)
            bias = max(
                mean.norm().item() / max(math.sqrt(total / n), tiny), along / max(stdev(self.along) / math.sqrt(n), tiny)
            )
        # an estimator of our own has no bias, unless its baseline is that mean or a function of which we know nothing
        by_construction = isinstance(self.estimator, ScoreFunctionEstimator) and not (
            callable(self.estimator.baseline) or self.estimator.baseline == "mean"
        )
        unbiased = (True if by_construction else None) if bias is None else bias < 4.0
        return EstimatorVariance(
            name=name,
            n_samples=getattr(self.estimator, "n_samples", None),
            evaluations=evaluations,
            seconds=seconds,
            variance=total,
            at_equal_evaluations=total * evaluations / n_evaluations,
            relative_evaluations=relative,
            low=max(0.0, relative - margin),
            high=relative + margin,
            relative_seconds=total * seconds / (total_of * seconds_of) if total_of else math.nan,
            bias=bias,
            unbiased=unbiased,
            components=self._split(variance * evaluations / n_evaluations),
        )

    def _split(self, values: th.Tensor) -> list[th.Tensor]:
        parts = values.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]
