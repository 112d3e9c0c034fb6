"""Costs in processes: in order, with errors at once that name the sample, and no process left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch as th
from torch.distributions import Bernoulli, Categorical, Independent

from sb3_reinforce import ParallelCost, ScoreFunctionEstimator, parallel
from tests import runs  # noqa: F401  its processes are forked from one that has imported all this
from tests.processes import variables
from tests.score_cases import LOGITS


def processes_of(cost):
    return [process.pid for executor in cost._executors for process in executor._processes.values()]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def all_end(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_alive, pids))


def test_costs_are_in_the_order_of_the_samples():
    """Later samples are done sooner, in two processes, which the second call uses again."""

    def cost(x, y):
        time.sleep(0.02 * (5 - x) / 5)
        return [x + y.sum(), os.getpid()]

    x = np.arange(6)
    y = th.tensor([[10.0, 20.0]] * 6, dtype=th.bfloat16)
    with ParallelCost(cost, n_jobs=2) as parallel_cost:
        found = parallel_cost(x, y)
        pids = processes_of(parallel_cost)
        assert found.dtype == np.float64
        assert found[:, 0].tolist() == [30, 31, 32, 33, 34, 35]
        assert set(found[:, 1]) == set(pids)
        assert len(pids) == 2
        assert set(parallel_cost(x, y)[:, 1]) <= set(pids)
    assert all_end(pids)


@pytest.mark.parametrize("method", ["score", "disarm"])
def test_the_estimator_has_the_same_gradient(method):
    def cost(x):
        return x.sum(-1) > 1  # one bool per element of the batch

    gradients = []
    with ParallelCost(cost, n_jobs=2) as parallel_cost:
        for f, cost_input in ((cost, "torch"), (parallel_cost, "torch"), (parallel_cost, "numpy")):
            logits = th.tensor([[0.3, -0.2], [0.5, 0.1], [0.0, 0.0]], requires_grad=True)
            th.manual_seed(0)
            estimator = ScoreFunctionEstimator(8, cost_input=cost_input, method=method)
            estimator(Independent(Bernoulli(logits=logits), 1), f).backward()
            gradients.append(logits.grad)
    assert th.equal(gradients[0], gradients[1])
    assert th.equal(gradients[0], gradients[2])
    assert gradients[0].abs().sum() > 0


def test_equal_samples_are_computed_once():
    def cost(x):
        return time.perf_counter_ns() + x

    samples = Categorical(logits=LOGITS).sample((20,))
    with ParallelCost(cost, n_jobs=1, cache=True) as parallel_cost:
        first = parallel_cost(samples)
        assert len(set(first)) == len(parallel_cost.cache) == 3
        assert parallel_cost(samples).tolist() == first.tolist()
        assert parallel_cost(samples.double())[0] != first[0]  # another type, another sample
        parallel_cost.cache.clear()
        assert not set(parallel_cost(samples)) & set(first)


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("a message")
        self.lock = threading.Lock()


def wrong(x):
    if x == 1:
        raise ZeroDivisionError("in the simulator")
    if x == 2:
        raise Unpicklable
    if x == 3:
        os._exit(3)
    if x == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 5:
        time.sleep(600)
    if x == 6:
        sys.exit("no")
    return {7: None, 8: "many", 9: [1, 2]}.get(int(x), 0.5)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (1, RuntimeError, "the cost of sample 2 failed, x = 1: ZeroDivisionError: in the simulator"),
        (2, RuntimeError, "the cost of sample 2 failed, x = 2: Unpicklable: a message"),
        (3, RuntimeError, r"the process that computed the cost of sample 2 died .*; x = 3"),
        (4, RuntimeError, r"the process that computed the cost of sample 2 died .*; x = 4"),
        (5, TimeoutError, "the cost of sample 2 took more than 0.5 seconds; x = 5"),
        (6, RuntimeError, "the cost of sample 2 failed, x = 6: SystemExit: no"),
        (7, RuntimeError, "the cost of sample 2 failed, x = 7: ValueError: the function returned None"),
        (8, RuntimeError, "the cost of sample 2 failed, x = 8: ValueError: could not convert string to float"),
        (9, ValueError, r"costs must have one shape, got \(\) for sample 0, \(2,\) for sample 2"),
    ],
)
def test_errors_name_the_sample(kind, error, message):
    """No process is left (but where only the shapes differ), and the next call works."""
    parallel_cost = ParallelCost(wrong, n_jobs=2, timeout=0.5)
    assert parallel_cost([0, 0]).tolist() == [0.5, 0.5]
    pids = processes_of(parallel_cost)
    started = time.monotonic()
    with pytest.raises(error, match=message) as caught:
        parallel_cost([0, 0, kind, 0])
    assert time.monotonic() - started < 5
    assert kind == 9 or all_end(pids)
    if kind == 1:
        assert 'raise ZeroDivisionError("in the simulator")' in caught.value.__notes__[0]
    assert parallel_cost([0, 0]).tolist() == [0.5, 0.5]
    parallel_cost.close()


def test_what_interrupts_the_wait_ends_the_processes():
    """Ctrl-C, for example: here an alarm that raises."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    parallel_cost = ParallelCost(wrong, n_jobs=1)
    parallel_cost([0])
    pids = processes_of(parallel_cost)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            parallel_cost([5])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert all_end(pids)


def test_a_process_that_dies_between_two_calls():
    parallel_cost = ParallelCost(wrong, n_jobs=1)
    parallel_cost([0])
    (pid,) = processes_of(parallel_cost)
    os.kill(pid, signal.SIGKILL)
    assert all_end([pid])
    with pytest.raises(RuntimeError, match="died"):  # noticed when the sample is handed over, or just after
        parallel_cost([0])
    assert parallel_cost([0]).tolist() == [0.5]
    parallel_cost.close()


class FailsToLoad:
    def __call__(self, x):
        return x

    def __reduce__(self):
        return (int, ("not a number",))


def test_processes_that_do_not_start(monkeypatch):
    with pytest.raises(RuntimeError, match="the cost function cannot be loaded in a new process: ValueError: invalid literal"):
        ParallelCost(FailsToLoad(), n_jobs=1)([1])
    monkeypatch.setattr(parallel, "START_SECONDS", 0.0)
    with pytest.raises(TimeoutError, match=r"2 processes have not started within 0 seconds.*__main__"):
        ParallelCost(wrong, n_jobs=2)([0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(function=3), "function must be callable, got 3"),
        (dict(n_jobs=0), "n_jobs must be a whole number >= 1, or -1 for all cores, got 0"),
        (dict(n_jobs=2.0), "n_jobs must be a whole number"),
        (dict(n_jobs=True), "n_jobs must be a whole number"),
        (dict(timeout=0), "timeout must be a number of seconds > 0, or None, got 0"),
        (dict(timeout="1"), "timeout must be a number of seconds"),
        (dict(function=threading.Lock().acquire), "function must be picklable, .*Open files, locks"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParallelCost(**{"function": wrong, **arguments})


@pytest.mark.parametrize("samples", [(), (np.float64(3),), ([],), ([1, 2], [1, 2, 3])])
def test_bad_samples(samples):
    with pytest.raises(ValueError, match=r"takes all samples at once, shape \[K, ...\]"):
        ParallelCost(wrong, n_jobs=1)(*samples)


SCRIPT = """
import sys, time
from sb3_reinforce import ParallelCost

def main():
    cost = ParallelCost(lambda x: time.sleep(x), n_jobs=1)
    cost._start(1)
    print([p.pid for e in cost._executors for p in e._processes.values()][0], flush=True)
    cost([600])

if sys.argv[1:] == ["unguarded"] or __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_scripts(tmp_path):
    """Without the guard an error at once; a process does not outlive a script that is killed."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run([*command, "unguarded"], env=variables(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "must stand below `if __name__ ==" in done.stderr
    script = subprocess.Popen(command, env=variables(), stdout=subprocess.PIPE, text=True)
    pid = int(script.stdout.readline())
    assert is_alive(pid)
    script.kill()
    script.wait()
    assert all_end([pid])
