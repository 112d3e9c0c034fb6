"""Results as text and as HTML."""

import re

import torch as th
from torch.distributions import Bernoulli, Normal

from sb3_reinforce import GradientEstimate, ScoreFunctionEstimator, compare_estimators
from sb3_reinforce.bias import BiasReport
from sb3_reinforce.compare import BaselineComparison, BaselineVariance
from sb3_reinforce.estimators.report import EstimatorComparison, EstimatorVariance
from sb3_reinforce.tables import Table


def cells(page: str) -> list[list[str]]:
    """The rows of the table in a page."""
    return [re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]


def test_text_is_aligned():
    table = Table("title", ("name", "x"), [("a", "1.25"), ("long", "3")], "advice", {"b": "no"})
    assert table.text().splitlines() == [
        "title",
        "name     x",
        "a     1.25",
        "long     3",
        "not here: b: no",
        "advice",
    ]
    assert Table("title", ("name", "x"), [("a", "1")]).text().splitlines() == ["title", "name  x", "a     1"]


def test_html_is_escaped_and_has_no_colours():
    bad = "<script>&"
    page = Table(bad, ("", bad), [(bad, bad)], bad, {bad: bad}).html()
    assert page.count("&lt;script&gt;&amp;") == 7
    assert "<script" not in page
    assert "color" not in page
    assert "background" not in page
    assert cells(page) == [["", "&lt;script&gt;&amp;"], 2 * ["&lt;script&gt;&amp;"]]
    assert "<b>" not in Table("", ("",), []).html()
    assert "<details>" not in Table("", ("",), []).html()


def test_of_baselines():
    rows = [BaselineVariance("none", 200.0, 1.0, 1.0, 1.0), BaselineVariance("Mine<T>", 50.0, 0.25, 0.2, 0.3125)]
    found = BaselineComparison(rows, "Advice: mine", "Pole-v1; all of it")
    assert cells(found._repr_html_()) == [
        ["baseline", "variance", "relative to none (95 % interval)"],
        ["none", "200", "1.000 (1.000 - 1.000)"],
        ["Mine&lt;T&gt;", "50", "0.250 (0.200 - 0.312)"],
    ]
    assert "<b>Advice: mine</b>" in found._repr_html_()
    assert str(found).splitlines()[0] == "Pole-v1; all of it"
    assert str(found).splitlines()[3].split() == ["Mine<T>", "50", "0.250", "(0.200", "-", "0.312)"]


def test_of_a_bias():
    """z = 0.5 / 0.25 = 2 and -0.3 / 0.05 = -6: biased by |(0.5, -0.3)| / |(3, 4)| = 0.583 / 5 = 11.7 %."""
    found = BiasReport(th.tensor([[3.0, 4.0]]), th.tensor([[0.5, -0.3]]), th.tensor([[0.25, 0.05]]), 1000)
    assert cells(found._repr_html_())[1:] == [
        ["state 0, action 0", "3.0000", "0.5000", "0.2500", "2.0"],
        ["state 0, action 1", "4.0000", "-0.3000", "0.0500", "-6.0"],
    ]
    first = "BIASED: at most 6.0 standard errors, 11.7 % of the gradient (1,000 batches)"
    assert str(found).splitlines()[0] == first
    assert f"<p>{first}</p>" in found._repr_html_()


def test_of_estimators():
    row = EstimatorVariance("score, mine", 4, 4.0, 0.0015, 0.02, 0.02, 0.5, 0.4, 0.6, 0.25, None, None, [])
    found = EstimatorComparison([row], {"disarm": "x > 1"}, "Advice: none", "title")
    assert cells(found._repr_html_())[1] == ["score, mine", "4", "4", "1.50", "0.02", "0.5 (0.4 - 0.6)", "0.25", "unknown"]
    assert "<li>disarm: x &gt; 1</li>" in found._repr_html_()


def test_of_an_estimate():
    """Up to eight components one by one; of more the norm: nine ones have the norm sqrt(9) = 3."""
    found = GradientEstimate(
        th.tensor(2.0), 2.0, 0.125, [th.tensor(0.25), th.ones(3, 3), th.tensor([1.0, 2.0])],
        [th.tensor(0.5), th.full((3, 3), 2.0), th.tensor([0.1, 0.2])], 7.0,
    )  # fmt: skip
    assert cells(found._repr_html_())[1:] == [
        ["E[cost]", "2", "0.12"],
        ["gradients[0]", "0.25", "0.5"],
        ["norm of gradients[1]", "3", "6"],
        ["gradients[2][0]", "1", "0.1"],
        ["gradients[2][1]", "2", "0.2"],
    ]
    assert str(found).splitlines()[-1] == "Variance of one term: 7"


def test_of_what_is_measured():
    """Each result shows what it holds."""
    logit = th.zeros((), requires_grad=True)
    estimate = ScoreFunctionEstimator(8).estimate(Normal(logit, 1.0), lambda x: x > 1, logit)
    assert cells(estimate._repr_html_())[2][1] == f"{estimate.gradients[0].item():.4g}"
    compared = compare_estimators(Bernoulli(logits=logit), lambda x: 3 * x, 2, ["enumerate"], n_repeats=10, n_warmup=0)
    assert [row[0] for row in cells(compared._repr_html_())[1:]] == ["score, leave_one_out", "enumerate"]
