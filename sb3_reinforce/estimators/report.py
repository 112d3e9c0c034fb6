"""What compare_estimators has found, as a table, a picture, HTML and one line of advice."""

from dataclasses import dataclass, field
from pathlib import Path

import torch as th

from sb3_reinforce.tables import ShownAsTable, Table


@dataclass(frozen=True)
class EstimatorVariance:
    """
    One estimator. Variances are traces of the covariance of the gradient of the loss.

    :param name: of the estimator
    :param n_samples: K; None for a function of the user's own
    :param evaluations: cost evaluations of one call
    :param seconds: of one call with its backward pass, the median
    :param variance: of one call's gradient
    :param at_equal_evaluations: variance * evaluations / n_evaluations: of a mean of calls that evaluate as often as asked
    :param relative_evaluations: that, over the reference's
    :param low: lower end of its interval, 95 %
    :param high: upper end
    :param relative_seconds: variance * seconds, over the reference's: of means of calls that take equally long
    :param bias: of the mean gradient, in standard errors: the larger of its distance to the exact gradient in all components
        together, and along the exact gradient. None where that is not known
    :param unbiased: False if bias is above 4; else True if it has been measured or the method has none; else None
    :param components: variance of each component at equal evaluations, one tensor per parameter
    """

    name: str
    n_samples: int | None
    evaluations: float
    seconds: float
    variance: float
    at_equal_evaluations: float
    relative_evaluations: float
    low: float
    high: float
    relative_seconds: float
    bias: float | None
    unbiased: bool | None
    components: list[th.Tensor] = field(repr=False)


HEAD = ("estimator", "samples", "evaluations", "ms", "variance", "at equal evaluations", "at equal seconds", "bias")


@dataclass(frozen=True)
class EstimatorComparison(ShownAsTable):
    """
    What :func:`compare_estimators` has measured. ``print`` shows table and advice, a notebook the same as HTML.

    :param rows: one per estimator, the reference first
    :param refused: name and reason of those that cannot be used here
    :param advice: one line
    :param title: what was measured
    """

    rows: list[EstimatorVariance]
    refused: dict[str, str]
    advice: str
    title: str

    def _table(self) -> Table:
        rows = [
            (
                row.name,
                "" if row.n_samples is None else str(row.n_samples),
                f"{row.evaluations:g}",
                f"{1000 * row.seconds:.2f}",
                f"{row.at_equal_evaluations:.3g}",
                f"{row.relative_evaluations:.3g} ({row.low:.3g} - {row.high:.3g})",
                f"{row.relative_seconds:.3g}",
                ("" if row.bias is None else f"{row.bias:.1f}") + {True: "", False: " BIASED", None: "unknown"}[row.unbiased],
            )
            for row in self.rows
        ]
        return Table(self.title, HEAD, rows, self.advice, self.refused)

    def plot(self, path: str | Path) -> None:
        """
        Draw the variances at equal evaluations and at equal seconds as a PNG.

        :param path: file to write
        :raises ModuleNotFoundError: if matplotlib is not installed
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if row.variance > 0][::-1]
        figure = Figure(figsize=(8, 0.4 * len(rows) + 1.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        names = [row.name + {True: "", False: " (biased)", None: " (bias unknown)"}[row.unbiased] for row in rows]
        axes.plot([row.relative_evaluations for row in rows], names, "o", color="tab:blue", label="at equal evaluations")
        axes.hlines(names, [row.low for row in rows], [row.high for row in rows], color="tab:blue")
        axes.plot([row.relative_seconds for row in rows], names, "x", color="tab:orange", label="at equal seconds")
        axes.axvline(1.0, color="gray", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_xlabel(f"variance of the gradient, relative to {self.rows[0].name}")
        axes.set_title(self.title.replace("; ", "\n"), fontsize="medium")
        axes.grid(axis="x", which="both", alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=150)


def advice_of(rows: list[EstimatorVariance], n_evaluations: int) -> str:
    """One line: the unbiased ones with the least variance, per evaluation and per second."""
    unbiased = [row for row in rows if row.unbiased]
    exact = [row for row in unbiased if row.variance == 0.0 and row.evaluations <= n_evaluations]
    if exact:
        return f"Advice: {exact[0].name} has no variance, in {exact[0].evaluations:g} evaluations."
    # what is exact but dear is no answer to the question which varies least within the evaluations asked for
    sampled = [row for row in unbiased if row.variance > 0.0]
    if not sampled:
        return "Advice: none is needed, no gradient varies."
    by_evaluations = min(sampled, key=lambda row: row.relative_evaluations)
    by_seconds = min(sampled, key=lambda row: row.relative_seconds)
    first = (
        f"Advice: {by_evaluations.name} has the least variance at equal evaluations, "
        f"{100 * by_evaluations.relative_evaluations:.3g} % of {rows[0].name}"
    )
    if by_seconds is by_evaluations:
        return f"{first}, and at equal seconds, {100 * by_seconds.relative_seconds:.3g} %."
    return f"{first}; at equal seconds, with a cost this cheap, {by_seconds.name}, {100 * by_seconds.relative_seconds:.3g} %."
