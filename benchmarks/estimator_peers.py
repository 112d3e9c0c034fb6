"""
Storchastic's and Pyro's estimators on the tasks of estimator_tasks.py; runs in an environment that has them.

Started by benchmarks/estimators.py: reads one JSON line, ``{"task", "state", "n_repeats", "n_warmup"}``, and writes one, a
list of ``{"name", "same_as", "n_samples", "evaluations", "seconds", "variance"}``, where ``same_as`` is the same method here;
with the gradient's ``"mean"`` unless that is long. A library that fails has ``"error"``.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import estimator_tasks
import pyro
import pyro.distributions as dist
import storch
import torch as th
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from storch.method import REBAR, RELAX, DisARM, Expect, ScoreFunction, UnorderedSetEstimator

warnings.simplefilter("ignore")
th.set_num_threads(1)


class Counter:
    """Cost evaluations: the leading axis of the samples, where the library evaluates several at once."""

    def __init__(self) -> None:
        self.n = 0


def storchastic(task: estimator_tasks.Task, batch: Any, make: Callable[[], Any], counter: Counter) -> Callable[[], None]:
    """One gradient, into ``.grad`` of the encoder, and a step of what the method learns."""
    method = make()
    learned = list(method.parameters())
    optimizer = th.optim.Adam(learned, lr=0.01) if learned else None

    def run() -> None:
        storch.reset()
        logits = storch.denote_independent(task.logits(batch), 0, "data")
        if task.kind == "bernoulli":
            p = th.distributions.Bernoulli(probs=th.distributions.utils.clamp_probs(logits.sigmoid()))
        else:
            p = th.distributions.OneHotCategorical(probs=logits.softmax(dim=-1))

        @storch.deterministic
        def cost(z: th.Tensor) -> th.Tensor:
            z = z.float()
            n_event, n_batch = 2 if task.kind == "one-hot" else 1, logits.shape[0]
            plates = z.shape[:-n_event]
            counter.n += plates.numel() // n_batch
            batch_first = len(plates) == 2 and plates[0] == n_batch != plates[1]
            if batch_first:  # samples without replacement come last
                z = z.transpose(0, 1)
            if task.kind == "categorical":
                z = z.argmax(-1)
            costs = task.cost(batch)(z)
            return costs.transpose(0, 1) if batch_first else costs

        storch.add_cost(cost(method(p)), "cost")
        storch.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return run


def pyro_elbo(
    task: estimator_tasks.Task, batch: Any, elbo: Any, infer: dict[str, Any], counter: Counter
) -> Callable[[], None]:
    """
    One gradient of E_q[f] as Pyro's ELBO: the model's prior is q itself, without gradient, and a factor -f.

    log p - log q is then -f, and the gradient of KL(q, q) is 0.
    """

    def distribution(logits: th.Tensor) -> Any:
        if task.kind == "categorical":
            return dist.Categorical(logits=logits)
        return (dist.Bernoulli if task.kind == "bernoulli" else dist.OneHotCategorical)(logits=logits).to_event(1)

    def model(logits: th.Tensor) -> None:
        with pyro.plate("data", len(logits)):
            z = pyro.sample("z", distribution(logits.detach()))
            f = task.cost(batch)(z)
            counter.n += max(1, f.numel() // len(logits))
            pyro.factor("f", -f)

    def guide(logits: th.Tensor) -> None:
        pyro.module("encoder", task.encoder)
        with pyro.plate("data", len(logits)):
            pyro.sample("z", distribution(logits), infer=infer)

    def run() -> None:
        logits = task.logits(batch)
        elbo.loss_and_grads(model, guide, logits)
        for parameter in task.encoder.parameters():
            parameter.grad /= len(logits)

    return run


def contestants(task: estimator_tasks.Task, batch: Any, counter: Counter) -> dict[str, tuple[str, int, Callable[[], Any]]]:
    """name: the same method here, K, and what makes a gradient."""
    n = task.n_evaluations
    event = (task.logits(batch).shape[-1],) if task.kind != "one-hot" else tuple(task.logits(batch).shape[-2:])
    makers: dict[str, tuple[str, int, Callable[[], Any]]] = {
        "Storchastic ScoreFunction": ("score, none", n, lambda: ScoreFunction("z", n_samples=n)),
        "Storchastic ScoreFunction, batch_average": (
            "score, leave_one_out", n, lambda: ScoreFunction("z", n_samples=n, baseline_factory="batch_average")
        ),
        "Storchastic RELAX": ("relax", n, lambda: RELAX("z", n_samples=n, in_dim=event)),
        "Storchastic UnorderedSetEstimator": ("without_replacement", n, lambda: UnorderedSetEstimator("z", k=n)),
    }  # fmt: skip
    if task.kind == "bernoulli":
        makers["Storchastic DisARM"] = ("disarm", n // 2, lambda: DisARM("z", n_samples=n // 2))
    if task.differentiable:
        makers["Storchastic REBAR"] = ("rebar", max(1, n // 3), lambda: REBAR("z", n_samples=max(1, n // 3)))
    if task.kind == "categorical" or task.name.startswith("toy"):
        makers["Storchastic Expect"] = ("enumerate", 2, lambda: Expect("z"))
    found = {
        name: (same, k, lambda make=make: storchastic(task, batch, make, counter)) for name, (same, k, make) in makers.items()
    }
    particles = {"num_particles": n, "vectorize_particles": True, "max_plate_nesting": 1}
    average = {"baseline": {"use_decaying_avg_baseline": True}}
    found["Pyro Trace_ELBO"] = ("score, none", n, lambda: pyro_elbo(task, batch, Trace_ELBO(**particles), {}, counter))
    found["Pyro TraceGraph_ELBO, decaying average"] = (
        "score, moving_average", n, lambda: pyro_elbo(task, batch, TraceGraph_ELBO(**particles), average, counter)
    )  # fmt: skip
    if task.kind == "categorical":
        enumerated = {"enumerate": "parallel"}
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        found["Pyro TraceEnum_ELBO"] = ("enumerate", 2, lambda: pyro_elbo(task, batch, elbo, enumerated, counter))
    return found


def measured(
    task: estimator_tasks.Task, gradient: Callable[[], Any], counter: Counter, n_warmup: int, n: int
) -> dict[str, float]:
    parameters = list(task.encoder.parameters())
    total: Any = 0.0
    squares: Any = 0.0
    centre: Any = None
    seconds = []
    for i in range(n_warmup + n):
        for parameter in [*parameters, *task.decoder.parameters()]:
            parameter.grad = None
        if i == n_warmup:
            counter.n = 0
        start = time.process_time()
        gradient()
        taken = time.process_time() - start
        if i < n_warmup:
            continue
        seconds.append(taken)
        g = th.cat([p.grad.flatten() for p in parameters]).double()
        centre = g if centre is None else centre
        total, squares = total + (g - centre), squares + (g - centre).square()
    variance = (squares - total.square() / n) / (n - 1)
    found = {"evaluations": counter.n / n, "seconds": median(seconds), "variance": variance.sum().item()}
    if len(centre) < 1000:
        found["mean"] = (centre + total / n).tolist()
    return found


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    task = estimator_tasks.make(asked["task"], 0)
    state = th.load(asked["state"])
    for parameter in task.decoder.parameters():
        parameter.requires_grad_(False)
    task.encoder.load_state_dict(state["encoder"])
    task.decoder.load_state_dict(state["decoder"])
    batch, counter = state["batch"], Counter()
    answers = []
    for name, (same_as, n_samples, make) in contestants(task, batch, counter).items():
        pyro.clear_param_store()
        th.manual_seed(1)
        try:
            found = measured(task, make(), counter, asked["n_warmup"], asked["n_repeats"])
        except Exception as error:  # whatever a library raises is an answer
            answers.append({"name": name, "same_as": same_as, "error": f"{type(error).__name__}: {error}"[:300]})
        else:
            answers.append({"name": name, "same_as": same_as, "n_samples": n_samples, **found})
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
