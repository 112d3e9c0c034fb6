"""compare_estimators: variances against closed forms, bias seen where there is some, and the table in three forms."""

import math

import pytest
import torch as th
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from sb3_reinforce import ScoreFunctionEstimator, compare_estimators
from sb3_reinforce.estimators.comparison import NAMED, REFERENCE, USUAL, sized
from sb3_reinforce.zoo.cli import main
from tests.score_cases import COSTS, LOGITS, tensor


def bits(n=2):
    logits = th.linspace(-0.5, 1.0, n).double().requires_grad_()
    return Independent(Bernoulli(logits=logits), 1), logits


def cost(x):
    return (x.sum(-1) - 0.3) ** 2


@pytest.fixture(scope="module")
def compared():
    return compare_estimators(bits()[0], cost, n_evaluations=4, n_repeats=40, n_warmup=5)


def test_all_usual_ones_are_measured(compared):
    assert compared.rows[0].name == REFERENCE
    assert {row.name for row in compared.rows} == set(USUAL)
    assert not compared.refused
    by_name = {row.name: row for row in compared.rows}
    # 4 evaluations pay for 4 samples, 2 pairs, 1 of three relaxed ones, 1 of 1 + 2 bits
    expected = {"score, none": 4, "disarm": 2, "rebar": 1, "relax": 4, "double_cv": 4, "measure_valued": 1}
    assert {name: by_name[name].n_samples for name in expected} == expected
    assert {name: by_name[name].evaluations for name in ("disarm", "rebar", "measure_valued", "enumerate")} == {
        "disarm": 4, "rebar": 3, "measure_valued": 3, "enumerate": 4,
    }  # fmt: skip
    assert by_name["enumerate"].variance == 0
    assert all(row.unbiased for row in compared.rows)
    assert compared.advice == "Advice: enumerate has no variance, in 4 evaluations."


def test_forms(compared, tmp_path):
    text = str(compared)
    assert text.splitlines()[0].startswith("4 evaluations, 40 gradients of 2 numbers each; bias against the exact gradient")
    assert text.splitlines()[-1] == compared.advice
    page = compared._repr_html_()
    assert page.count("<tr>") == len(compared.rows) + 1
    pytest.importorskip("matplotlib")
    compared.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_variance_of_one_bernoulli():
    """K = 2, D = f(1) - f(0): leave_one_out D^2 p q (1/2 - p q); disarm has max(p, q) / 2 in place of 1/2."""
    logit = tensor(-1.0, grad=True)
    p = 1 / (1 + math.e)
    found = compare_estimators(
        Bernoulli(logits=logit), lambda x: 3 * x, 2, ["disarm", "score, none"], n_repeats=500, n_warmup=0
    )
    reference, disarm = found.rows[0], found.rows[1]
    truth = 9 * p * (1 - p) * (1 / 2 - p * (1 - p))
    assert reference.variance == pytest.approx(truth, rel=0.2)
    ratio = (max(p, 1 - p) / 2 - p * (1 - p)) / (1 / 2 - p * (1 - p))
    assert disarm.low < ratio < disarm.high
    assert disarm.relative_evaluations == pytest.approx(ratio, rel=0.2)
    assert disarm.components[0].sum().item() == pytest.approx(disarm.at_equal_evaluations)
    assert disarm.relative_seconds == pytest.approx(disarm.relative_evaluations * disarm.seconds / reference.seconds)


def test_bias_is_seen():
    """A function of the user's own: straight-through, and the biased mean baseline."""

    def straight_through(p, f):
        return f(p.sample((4,)) + p.base_dist.probs - p.base_dist.probs.detach()).mean()

    estimators = {"straight-through": straight_through, "mean": ScoreFunctionEstimator(4, "mean"), "good": "disarm"}
    found = compare_estimators(bits()[0], cost, 4, estimators, n_repeats=200, n_warmup=0)
    assert {row.name: row.unbiased for row in found.rows} == {
        REFERENCE: True, "straight-through": False, "mean": False, "good": True,
    }  # fmt: skip
    assert "BIASED" in str(found)
    assert found.rows[1].n_samples is None
    assert "straight-through" not in found.advice


def test_refusals_say_why():
    loc = tensor(0.5, grad=True)
    found = compare_estimators(Normal(loc, 1.0), lambda x: x**2, 4, ["disarm", "measure_valued"], n_repeats=50, n_warmup=0)
    assert "needs Bernoulli" in found.refused["disarm"]
    assert "not here: disarm" in str(found)
    assert found.rows[1].bias is None
    assert found.rows[1].unbiased
    assert "the exact gradient is not known" in found.title
    # x+ and x- of x^2 differ by 4 mu sigma R: little variance
    assert found.advice.startswith("Advice: measure_valued has the least variance at equal evaluations")


def test_evaluations_of_a_python_cost():
    table = dict(enumerate(COSTS.tolist()))
    logits = LOGITS.clone().requires_grad_()
    found = compare_estimators(
        Categorical(logits=logits), lambda x: table[int(x)], 2, ["without_replacement", "score, optimal"], n_repeats=20,
        n_warmup=0, cost_input="sample",
    )  # fmt: skip
    assert [row.evaluations for row in found.rows] == [2, 2, 2]


def test_sized():
    p, _ = bits(3)
    assert sized("disarm", p, cost, 8).n_samples == 4
    assert sized("measure_valued", p, cost, 8).n_samples == 2  # 1 + 3 each
    assert sized("double_cv", p, cost, 2).n_samples == 2
    assert sized("without_replacement", p, cost, 8).n_samples == 8
    assert sized("score, antithetic", p, cost, 5).n_samples == 4
    assert set(USUAL) < set(NAMED)


def test_the_generator_is_put_back_and_the_seed_decides():
    th.manual_seed(0)
    before = th.get_rng_state()
    first, second = (
        compare_estimators(bits()[0], cost, 4, ["disarm"], n_repeats=10, n_warmup=0, seed=3).rows[1].variance for _ in range(2)
    )
    assert first == second
    assert th.equal(before, th.get_rng_state())


def test_parameters_of_a_network():
    """All that the distribution was computed from, unless told otherwise."""
    network, inputs = th.nn.Linear(3, 2), th.ones(5, 3)
    p = Categorical(logits=network(inputs))
    found = compare_estimators(p, lambda x: x, 2, ["enumerate"], n_repeats=10, n_warmup=0)
    assert {c.shape for c in found.rows[0].components} == {(2, 3), (2,)}
    found = compare_estimators(p, lambda x: x, 2, ["enumerate"], parameters=network.bias, n_repeats=10, n_warmup=0)
    assert [c.shape for c in found.rows[0].components] == [(2,)]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(n_evaluations=1), "n_evaluations must be a whole number >= 2, got 1"),
        (dict(n_repeats=5), "n_repeats must be a whole number >= 10"),
        (dict(parameters=[]), "parameters must be one or more tensors that require gradient"),
        (dict(estimators=["rebarr"]), "estimators must be of .* got 'rebarr'"),
    ],
)
def test_errors(kwargs, words):
    with pytest.raises(ValueError, match=words):
        compare_estimators(bits()[0], cost, **kwargs)
    with pytest.raises(ValueError, match="distribution must be a torch Distribution"):
        compare_estimators(None, cost)


def test_what_is_too_dear_is_not_measured():
    """2^9 values with two evaluations asked for: neither the method nor the exact gradient is worth that many."""
    found = compare_estimators(bits(9)[0], cost, 2, ["enumerate"], n_repeats=10, n_warmup=0)
    assert "evaluates the cost 512 times per call" in found.refused["enumerate"]
    assert "the exact gradient is not known" in found.title


def test_no_advice_for_what_may_be_biased():
    """Where the exact gradient is not known, nothing can be said for a function of the user's own."""
    loc = tensor(0.5, grad=True)
    found = compare_estimators(
        Normal(loc, 1.0), lambda x: x**2, 4, {"own": lambda p, f: 0 * loc, "mean": ScoreFunctionEstimator(4, "mean")},
        n_repeats=10, n_warmup=0,
    )  # fmt: skip
    assert [row.unbiased for row in found.rows] == [True, None, None]
    assert "unknown" in str(found)
    assert found.advice.startswith(f"Advice: {REFERENCE} has the least variance")


PROBLEM = """
import torch
from torch.distributions import Bernoulli
distribution = Bernoulli(logits=torch.zeros((), requires_grad=True))
"""


def test_the_command(tmp_path, capsys):
    problem, picture = tmp_path / "problem.py", tmp_path / "picture.png"
    problem.write_text(f"{PROBLEM}cost = lambda x: 3 * x\n")
    pytest.importorskip("matplotlib")
    assert main(["compare-estimators", str(problem), "--evaluations", "2", "--repeats", "10", "--png", str(picture)]) == 0
    assert "Advice: enumerate has no variance, in 2 evaluations." in capsys.readouterr().out
    assert picture.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PROBLEM, "must define `distribution` and `cost`, got no cost"),
        (f"{PROBLEM}cost = lambda x: x * float('nan')", "cost must be finite"),
        ("import no_such_module", "No module named 'no_such_module'"),
        (None, "there is no such file"),
    ],
)
def test_the_command_refuses_in_one_line(text, words, tmp_path, capsys):
    problem = tmp_path / "problem.py"
    if text is not None:
        problem.write_text(text)
    assert main(["compare-estimators", str(problem)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
