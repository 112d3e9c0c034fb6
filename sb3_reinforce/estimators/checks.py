"""Which combinations of method, baseline, points and distribution are refused, and what would do instead."""

from typing import Any

import torch as th
from torch.distributions import Distribution

from sb3_reinforce import score_checks
from sb3_reinforce.estimators.method import NO_GRADIENT, Method
from sb3_reinforce.estimators.points import SAMPLINGS, parameters_of, set_sizes


def check_options(
    method: Method | None, n_samples: int, baseline: Any, sampling: Any, cost_input: str, control_variate: Any
) -> None:
    """:raises ValueError: for options that do not go together, whatever the distribution"""
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(map(repr, SAMPLINGS))}, got {sampling!r}")
    if sampling == "antithetic" and n_samples % 2:
        raise ValueError(f'sampling="antithetic" draws pairs: n_samples must be even, got {n_samples}')
    if method is None:
        if sampling != "iid":
            _check_baseline_of_points(n_samples, baseline, sampling)
        return
    if not isinstance(baseline, str) or baseline not in ("leave_one_out", "none"):
        raise ValueError(
            f"method={method.name!r} takes baseline='leave_one_out' (the default) or 'none', got {baseline!r}: others are for "
            "method='score'"
        )
    if sampling != "iid" and not method.takes_points:
        raise ValueError(
            f"sampling={sampling!r} is for 'score', 'disarm', 'rebar' and 'relax', got method={method.name!r}, whose samples "
            "must be independent"
        )
    if control_variate is not None:
        raise ValueError(f"control_variate is for method='score', got method={method.name!r}")
    if method.differentiates_cost and cost_input != "torch":
        raise ValueError(
            f"method={method.name!r} differentiates the cost: it needs cost_input='torch', got {cost_input!r}: use 'relax' or "
            "'disarm' for a cost without gradient"
        )


def _check_baseline_of_points(n_samples: int, baseline: Any, sampling: Any) -> None:
    by_name = isinstance(baseline, str)
    if getattr(baseline, "needs_others", False) or (by_name and baseline in ("optimal", "mean")):
        raise ValueError(
            f"baseline={baseline!r} takes samples for independent, got sampling={sampling!r}: use 'leave_one_out', which "
            "leaves out a sample's whole set, 'moving_average' or 'none'"
        )
    if by_name and baseline == "leave_one_out" and len(set_sizes(sampling, n_samples, True)) < 2:
        raise ValueError(
            f"baseline='leave_one_out' needs two sets of samples, got n_samples={n_samples} with sampling={sampling!r}: more "
            "samples, 'moving_average' or 'none'"
        )


def check_distribution(method: Method, distribution: Any, n_samples: int, baseline: str) -> Distribution:
    """:raises ValueError: if the method cannot estimate the gradient for this distribution"""
    if isinstance(distribution, (list, tuple)):
        raise ValueError(f"method={method.name!r} takes one distribution, got a list of {len(distribution)}: use 'score'")
    p = score_checks.checked_distribution(distribution)
    method.check(p, n_samples, baseline)
    if not any(parameter.requires_grad for parameter in parameters_of(p)):
        raise ValueError(f"the distribution must have parameters with gradient, got {p} without")
    return p


def check_cost_in_x(method: Method, costs: Any) -> None:
    """:raises ValueError: if the cost has no gradient"""
    if not isinstance(costs, th.Tensor) or not costs.requires_grad:
        raise ValueError(NO_GRADIENT.format(method.name))
