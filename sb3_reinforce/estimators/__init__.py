"""The methods of ``ScoreFunctionEstimator``, one per file; ``method.py`` says what they share."""

from typing import Any

from sb3_reinforce.estimators.disarm import Disarm
from sb3_reinforce.estimators.double_cv import DoubleCV
from sb3_reinforce.estimators.enumeration import Enumerate
from sb3_reinforce.estimators.measure_valued import MeasureValued
from sb3_reinforce.estimators.method import Method, Problem
from sb3_reinforce.estimators.relax import Rebar, Relax
from sb3_reinforce.estimators.sum_and_sample import SumAndSample
from sb3_reinforce.estimators.without_replacement import WithoutReplacement

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (Enumerate, SumAndSample, Disarm, WithoutReplacement, Rebar, Relax, DoubleCV, MeasureValued)
}  # fmt: skip

__all__ = [
    "METHODS",
    "Disarm",
    "DoubleCV",
    "Enumerate",
    "MeasureValued",
    "Method",
    "Problem",
    "Rebar",
    "Relax",
    "SumAndSample",
    "WithoutReplacement",
    "make_method",
]  # fmt: skip


def make_method(method: Any) -> Method | None:
    """:return: the method of that name; None for ``"score"``, which the estimator itself is"""
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    if isinstance(method, str) and method == "score":
        return None
    raise ValueError(
        f"method must be one of {', '.join(map(repr, ['score', *METHODS]))}, or an object such as "
        f"sb3_reinforce.estimators.Rebar(temperature=0.5), got {method!r}"
    )
