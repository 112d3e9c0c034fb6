"""
Every estimator of ScoreFunctionEstimator on eight problems, beside Storchastic, Pyro and two biased gradients.

    python benchmarks/estimators.py                  # variance at equal evaluations and at equal seconds, then training
    python benchmarks/estimators.py --only variance  # or training
    python benchmarks/estimators.py --task "0-1 loss"
    python benchmarks/estimators.py --table          # from the rows in benchmarks/results

Variance: of the gradient of the encoder's parameters on one batch, after some updates; estimators take turns, call by call. A
row's variance times its evaluations over those of the task is that at equal evaluations; times its seconds, at equal
seconds (of the processor, one thread). Training: Adam, at equal evaluations per update, seeds 0 to 4.

The others run in an environment of their own, because Storchastic has had no release since 2024 and asks for Pyro:

    python -m venv .venv-peers
    .venv-peers/bin/pip install -c constraints.txt torch storchastic pyro-ppl scikit-learn
    python benchmarks/estimators.py --peers .venv-peers/bin/python
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from estimator_tasks import TASKS, Task, make
from torch.distributions import Distribution

from sb3_reinforce import ScoreFunctionEstimator, compare_estimators
from sb3_reinforce.estimators.comparison import NAMED, sized

ROOT = Path(__file__).resolve().parents[1]
VARIANCE = ROOT / "benchmarks" / "results" / "estimators_variance.csv"
TRAINING = ROOT / "benchmarks" / "results" / "estimators_training.csv"
VARIANCE_COLUMNS = (
    "task", "estimator", "library", "same_as", "n_samples", "evaluations", "milliseconds", "variance", "at_equal_evaluations",
    "at_equal_seconds", "bias", "error",
)  # fmt: skip
TRAINING_COLUMNS = ("task", "estimator", "seed", "n_updates", "n_evaluations", "loss", "seconds")
BIASED = ("Gumbel-softmax", "straight-through")
TRAINED = (
    "score, leave_one_out", "score, moving_average", "sum_and_sample", "disarm", "without_replacement",
    "rebar", "relax", "double_cv", "measure_valued",
)  # fmt: skip
LIBRARIES = ("sb3-reinforce", "Storchastic", "Pyro")
SEEDS = range(5)
N_REPEATS, N_WARMUP = 200, 200

th.set_num_threads(1)


def gumbel_softmax(kind: str, temperature: float = 0.5) -> Callable[..., th.Tensor]:
    """The cost of a relaxed sample (Maddison et al. 2017; Jang et al. 2017): low variance, biased."""

    def loss(distribution: Distribution, cost: Callable[..., th.Tensor], n_samples: int) -> th.Tensor:
        logits = distribution.base_dist.logits  # type: ignore[attr-defined]
        relaxed = th.distributions.RelaxedBernoulli if kind == "bernoulli" else th.distributions.RelaxedOneHotCategorical
        return cost(relaxed(th.tensor(temperature), logits=logits).rsample((n_samples,))).mean()

    return loss


def straight_through(distribution: Distribution, cost: Callable[..., th.Tensor], n_samples: int) -> th.Tensor:
    """The gradient in x, taken for that in the mean of x (Bengio et al. 2013): biased."""
    base = distribution.base_dist  # type: ignore[attr-defined]
    return cost(distribution.sample((n_samples,)) + base.probs - base.probs.detach()).mean()


def biased(task: Task) -> dict[str, Callable[..., th.Tensor]]:
    """Those two, where there is a relaxation."""
    if not task.name.endswith(("network", "VAE")):
        return {}
    n = task.n_evaluations
    found = {"Gumbel-softmax": gumbel_softmax(task.kind), "straight-through": straight_through}
    return {name: lambda p, f, loss=loss: loss(p, f, n) for name, loss in found.items()}


def options_of(task: Task) -> dict[str, Any]:
    return {"cost_gradient": any(True for _ in task.decoder.parameters())}


def update(task: Task, estimator: Callable[..., th.Tensor], optimizer: th.optim.Optimizer, generator: th.Generator) -> None:
    batch = task.batch(generator)
    loss = estimator(task.distribution(batch), task.cost(batch)) + task.extra(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def started(task: Task, n_updates: int = 200) -> tuple[Task, Any]:
    """The task after some training, if it has anything to learn slowly, and a batch."""
    generator = th.Generator().manual_seed(0)
    if task.batch(generator) is not None:
        parameters = [*task.encoder.parameters(), *task.decoder.parameters()]
        optimizer = th.optim.Adam(parameters, lr=task.learning_rate)
        estimator = ScoreFunctionEstimator(task.n_evaluations, **options_of(task))
        for _ in range(n_updates):
            update(task, estimator, optimizer, generator)
    return task, task.batch(generator)


def bias_of(task: Task, batch: Any, estimator: Callable[..., th.Tensor], unbiased: Callable[..., th.Tensor], n: int) -> float:
    """
    abs(E[g] - grad E[f]) / abs(grad E[f]) of a biased estimator, from n gradients of it and of an unbiased one.

    Squared norms are taken from two halves each, so that noise does not count as bias.
    """

    def halves(loss: Callable[..., th.Tensor]) -> list[th.Tensor]:
        sums: list[Any] = [0.0, 0.0]
        for i in range(n):
            found = th.autograd.grad(loss(task.distribution(batch), task.cost(batch)), list(task.encoder.parameters()))
            sums[i % 2] = sums[i % 2] + th.cat([g.flatten() for g in found]).double()
        return [s / (n // 2) for s in sums]

    theirs, truth = halves(estimator), halves(unbiased)
    difference = ((theirs[0] - truth[0]) @ (theirs[1] - truth[1])).clamp(min=0.0)
    return float((difference / (truth[0] @ truth[1])).sqrt())


def variances(name: str, peers: str | None, n_repeats: int, n_warmup: int) -> list[dict[str, Any]]:
    """The rows of one task."""
    task, batch = started(make(name, 0))
    for parameter in task.decoder.parameters():
        parameter.requires_grad_(False)
    distribution, cost = task.distribution(batch), task.cost(batch)
    estimators = {**{n: n for n in NAMED if n != "score, stratified"}, **biased(task)}
    if len(distribution.batch_shape) and distribution.batch_shape.numel() > 1:
        del estimators["score, optimal"]  # a backward pass for each of 200 elements
    found = compare_estimators(
        distribution,
        cost,
        task.n_evaluations,
        estimators,
        list(task.encoder.parameters()),
        n_repeats,
        n_warmup,
        clock=time.process_time,
    )
    print(f"\n{name}\n{found}", flush=True)
    reference = found.rows[0]
    # the unbiased one with the least variance, to measure the bias of others by
    best = min((r for r in found.rows if r.name not in BIASED), key=lambda r: r.at_equal_evaluations)
    rows = []
    for row in found.rows:
        bias: Any = "" if row.bias is None else f"{row.bias:.2f} standard errors"
        if row.name in BIASED:
            unbiased = sized(best.name, distribution, cost, task.n_evaluations)
            for _ in range(n_warmup):
                unbiased(distribution, cost)
            bias = f"{100 * bias_of(task, batch, estimators[row.name], unbiased, 2 * n_repeats):.0f} % of the gradient"
        rows.append(
            dict(task=name, estimator=row.name, library="biased" if row.name in BIASED else "sb3-reinforce", same_as="",
                 n_samples=row.n_samples, evaluations=row.evaluations, milliseconds=1000 * row.seconds, variance=row.variance,
                 at_equal_evaluations=row.relative_evaluations, at_equal_seconds=row.relative_seconds, bias=bias, error="")
        )  # fmt: skip
    rows += [dict(task=name, estimator=n, library="sb3-reinforce", error=why) for n, why in found.refused.items()]
    if peers is not None:
        per_call = reference.variance * reference.evaluations, reference.variance * reference.seconds
        exact = exact_gradient(task, distribution, cost)
        n_of_peers = max(2, n_repeats // 3)  # they are slow
        for answer in ask(peers, task, batch, n_of_peers, n_warmup // 3):
            row = dict(task=name, estimator=answer["name"], library=answer["name"].split()[0], same_as=answer["same_as"])
            if "error" in answer:
                rows.append({**row, "error": answer["error"]})
                continue
            v, e, s = (answer[key] for key in ("variance", "evaluations", "seconds"))
            rows.append({**row, "n_samples": answer["n_samples"], "evaluations": e, "milliseconds": 1000 * s, "variance": v,
                         "at_equal_evaluations": v * e / per_call[0], "at_equal_seconds": v * s / per_call[1],
                         "bias": bias_in_errors(answer, exact, n_of_peers)})  # fmt: skip
    return rows


def exact_gradient(task: Task, distribution: Distribution, cost: Callable[..., th.Tensor]) -> th.Tensor | None:
    """By enumeration, where x has few values."""
    try:
        loss = ScoreFunctionEstimator(1, method="enumerate")(distribution, cost)
    except ValueError:
        return None
    found = th.autograd.grad(loss, list(task.encoder.parameters()), retain_graph=True)
    return th.cat([g.flatten() for g in found]).double()


def bias_in_errors(answer: Mapping[str, Any], exact: th.Tensor | None, n_repeats: int) -> str:
    if exact is None or "mean" not in answer:
        return ""
    distance = (th.tensor(answer["mean"], dtype=th.float64) - exact).norm().item()
    error = (answer["variance"] / n_repeats) ** 0.5
    return f"{distance / max(error, 1e-4 * exact.norm().item()):.2f} standard errors"


def ask(peers: str, task: Task, batch: Any, n_repeats: int, n_warmup: int) -> list[dict[str, Any]]:
    """Storchastic's and Pyro's answers."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pt"
        th.save({"encoder": task.encoder.state_dict(), "decoder": task.decoder.state_dict(), "batch": batch}, state)
        asked = json.dumps({"task": task.name, "state": str(state), "n_repeats": n_repeats, "n_warmup": n_warmup})
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        variables.pop("PYTHONPATH", None)
        command = [peers, str(Path(__file__).with_name("estimator_peers.py"))]
        done = subprocess.run(command, input=asked, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} has ended:\n{done.stderr[-2000:]}")
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def train(name: str, estimator_name: str, seed: int) -> dict[str, Any] | None:
    """The expected loss after training; None if the estimator cannot be used."""
    task = make(name, seed)
    generator = th.Generator().manual_seed(seed)
    batch = task.batch(generator)
    others = biased(task)
    if estimator_name in others:
        estimator = others[estimator_name]
    elif estimator_name in BIASED:
        return None
    else:
        try:
            estimator = sized(
                estimator_name, task.distribution(batch), task.cost(batch), task.n_evaluations, **options_of(task)
            )
            probe = _Counted(task.cost(batch))
            estimator(task.distribution(batch), probe)
        except ValueError:
            return None
        if probe.n > 2 * task.n_evaluations:
            return None  # it has no estimate that is this cheap
    optimizer = th.optim.Adam([*task.encoder.parameters(), *task.decoder.parameters()], lr=task.learning_rate)
    start = time.process_time()
    for _ in range(task.n_updates):
        update(task, estimator, optimizer, generator)
    seconds = time.process_time() - start
    return dict(task=name, estimator=estimator_name, seed=seed, n_updates=task.n_updates, n_evaluations=task.n_evaluations,
                loss=task.final(), seconds=round(seconds, 2))  # fmt: skip


class _Counted:
    def __init__(self, cost: Callable[..., th.Tensor]):
        self.cost, self.n = cost, 0

    def __call__(self, x: th.Tensor) -> th.Tensor:
        self.n += len(x)
        return self.cost(x)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def save(path: Path, columns: tuple[str, ...], name: str, rows: list[dict[str, Any]]) -> None:
    """Rows of the other tasks stay."""
    kept: list[Mapping[str, Any]] = [row for row in read(path) if row["task"] != name]
    ordered = sorted([*kept, *rows], key=lambda row: list(TASKS).index(row["task"]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in ordered:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def number(text: str) -> str:
    if not text:
        return ""
    value = float(text)
    return "0" if value == 0 else f"{value:.3g}"


def best_of(rows: list[dict[str, str]], column: str) -> str:
    """The least of a column, and whose it is."""
    if not rows:
        return ""
    best = min(rows, key=lambda row: float(row[column]))
    return f"{number(best[column])} ({best['estimator'].removeprefix(best['library'] + ' ')})"


def biased_by_a_lot(row: Mapping[str, str]) -> bool:
    """Against the exact gradient: no competitor."""
    return row["bias"].endswith("standard errors") and float(row["bias"].split()[0]) > 4


def table() -> str:
    """Markdown: the least variances, speed beside the same method elsewhere, what is biased, losses."""
    rows = read(VARIANCE)
    least = [
        "| task | " + " | ".join(f"{who}, at equal {what}" for what in ("evaluations", "seconds") for who in LIBRARIES) + " |"
    ]
    least.append("|" + " --- |" * (2 * len(LIBRARIES) + 1))
    speed = ["| task | " + " | ".join(names := _peer_names(rows)) + " |", "|" + " --- |" * (len(names) + 1)]
    wrong = ["| task | estimator | variance at equal evaluations | bias |", "|" + " --- |" * 4]
    for name in TASKS:
        of_task = [row for row in rows if row["task"] == name]
        fine = [row for row in of_task if not row["error"] and not biased_by_a_lot(row)]
        cells = [
            best_of([row for row in fine if row["library"] == who], f"at_equal_{what}")
            for what in ("evaluations", "seconds")
            for who in LIBRARIES
        ]
        least.append(f"| {name} | " + " | ".join(cells) + " |")
        ours = {row["estimator"]: row for row in of_task if row["library"] == LIBRARIES[0]}
        theirs = {row["estimator"]: row for row in of_task if row["same_as"]}
        speed.append(f"| {name} | " + " | ".join(_speed(theirs.get(peer), ours) for peer in names) + " |")
        for row in of_task:
            if not row["error"] and (row["library"] == "biased" or biased_by_a_lot(row)):
                wrong.append(f"| {name} | {row['estimator']} | {number(row['at_equal_evaluations'])} | {row['bias']} |")
    parts = {
        "Least variance, relative to leave-one-out here": least,
        "How many times as fast as the same method elsewhere": speed,
        "Biased": wrong,
    }
    return "\n\n".join([*(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items()), losses()])


def _peer_names(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["estimator"] for row in rows if row["same_as"]))


def _speed(row: dict[str, str] | None, ours: Mapping[str, Mapping[str, str]]) -> str:
    if row is None:
        return ""
    if row["error"]:
        return "fails"
    same = ours.get(row["same_as"])
    if same is None or same["error"]:
        return ""
    return f"{float(row['milliseconds']) / float(same['milliseconds']):.1f}"


def losses() -> str:
    rows = read(TRAINING)
    names = [n for n in (*NAMED, *BIASED) if any(row["estimator"] == n for row in rows)]
    lines = ["| task | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1)]
    for task in TASKS:
        cells = []
        for name in names:
            found = [float(r["loss"]) for r in rows if r["task"] == task and r["estimator"] == name]
            cells.append(f"{np.mean(found):.4g} ({np.std(found, ddof=1):.2g})" if len(found) > 1 else "")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "### Loss after training, mean of the seeds (standard deviation)\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["variance", "training"])
    parser.add_argument("--task", choices=list(TASKS), action="append", help="default: all")
    parser.add_argument("--peers", metavar="PYTHON", help="Python of an environment with Storchastic and Pyro")
    parser.add_argument(
        "--repeats", type=int, default=N_REPEATS, metavar="N", help=f"gradients of each (default: {N_REPEATS})"
    )
    parser.add_argument("--warmup", type=int, default=N_WARMUP, metavar="N", help=f"calls before (default: {N_WARMUP})")
    parser.add_argument("--table", action="store_true", help="print the tables of the rows there are")
    options = parser.parse_args()
    if options.peers is not None and not Path(options.peers).is_file():
        sys.exit(f"--peers {options.peers}: there is no such file")
    for name in [] if options.table else options.task or TASKS:
        if options.only != "training":
            save(VARIANCE, VARIANCE_COLUMNS, name, variances(name, options.peers, options.repeats, options.warmup))
        if options.only != "variance":
            runs = [train(name, estimator, seed) for estimator in ("enumerate", *TRAINED, *BIASED) for seed in SEEDS]
            save(TRAINING, TRAINING_COLUMNS, name, [row for row in runs if row is not None])
    print(table())


if __name__ == "__main__":
    main()
