"""Ranks: joining the group, devices, launches, and the loss of a rank."""

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_reinforce.running import exchange, ranks
from tests.processes import CASES, TORCHRUN, variables


def test_a_plain_run_is_one_rank():
    parameter = th.nn.Parameter(th.zeros(2))
    parameter.grad = gradient = th.tensor([1.0, 2.0])
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    assert ranks.start("auto") == "auto"
    assert exchange.gather("x") == ["x"]
    assert exchange.broadcast("x") == "x"
    assert exchange.sum_gradients([parameter], (3.0,)) == [3.0]
    assert parameter.grad is gradient
    # 1, 2, 6: mean 3, squared deviations 4 + 1 + 9
    assert exchange.moments(np.array([1.0, 2.0, 6.0]), th.tensor([[5.0]])) == [(3, 3.0, 14.0), (1, 5.0, 0.0)]


def test_a_group_made_by_the_user_must_serve_the_cpu():
    """init_process_group("nccl") gives one that does not. "cuda:gloo" is another, which needs no GPU."""
    code = (
        "import torch.distributed as dist; from sb3_reinforce import REINFORCE\n"
        'dist.init_process_group("{}", store=dist.HashStore(), rank=0, world_size=1)\n'
        'REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8).learn(1)'
    )
    for backend, words in (
        ("gloo", ""),
        ("cuda:gloo", "the process group must serve tensors on the CPU, too, got 'cuda:gloo'"),
    ):
        command = [sys.executable, "-c", code.format(backend)]
        done = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == (not words), done.stderr
        assert words in done.stderr


def test_a_restart_uses_a_new_part_of_the_store():
    """torchrun keeps its store when it restarts the ranks. They must not meet in the part that the first attempt used."""
    store = ranks.dist.HashStore()
    parts = []
    for first, then in (((1, 2), (0,)), ((0,), (1, 2))):  # rank 0 comes last, then first
        with ThreadPoolExecutor() as threads:
            meeting = [threads.submit(ranks._unused_part, store, rank, 3) for rank in first]
            time.sleep(0.2)
            meeting += [threads.submit(ranks._unused_part, store, rank, 3) for rank in then]
            met = [rank.result(timeout=20) for rank in meeting]
        met[0].set("word", str(first))
        assert [part.get("word").decode() for part in met] == [str(first)] * 3
        parts.append(met[0])
    assert [part.get("word").decode() for part in parts] == ["(1, 2)", "(0,)"]  # two parts, not one


def test_a_rank_that_does_not_come():
    """Rank 1 of 3 has failed before it joined: both others say so when the store's timeout is over."""
    store = ranks.dist.HashStore()
    store.set_timeout(timedelta(seconds=0.3))
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(ranks._unused_part, store, rank, 3) for rank in (0, 2)]
        messages = [str(rank.exception(timeout=20)) for rank in waiting]
    assert messages[0] == messages[1]
    assert messages[0].startswith("rank 1 did not come within 30 s: its own output may say why.")


def test_rank_0_does_not_come(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = str(closed.getsockname()[1])
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "JOINING", timedelta(seconds=1))
    with pytest.raises(ranks.LostRankError, match="rank 0 did not come within 1 s"):
        ranks.start("cpu")


def test_a_rank_that_does_not_begin_to_learn(monkeypatch: pytest.MonkeyPatch):
    """Of three ranks, rank 2 is elsewhere: rank 0 says so, and waits on. When all are there, nothing is said."""
    store = th.distributed.HashStore()
    for name, value in {"_store": store, "_meetings": count(), "JOINING": timedelta(seconds=0.05), "rank": lambda: 0}.items():
        monkeypatch.setattr(ranks, name, value)
    monkeypatch.setattr(ranks, "world_size", lambda: 3)

    def wait() -> None:
        with ranks.late_ranks_named():
            time.sleep(0.2)

    store.set("learn/0/1", "")
    with pytest.warns(UserWarning, match=r"^rank 2 has not begun learn\(\) after 0 s: its own"):
        wait()
    store.set("learn/1/1", "")
    store.set("learn/1/2", "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wait()
    assert not caught


@pytest.mark.parametrize("local_rank", ["0", "3"])
def test_device_of_a_rank(local_rank: str, monkeypatch: pytest.MonkeyPatch):
    """The GPU's number is the local rank, and no two ranks share a GPU. The test pretends that there are two GPUs."""
    used = []
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks, "_store", th.distributed.HashStore())  # as if we had made the group
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(th.cuda, "set_device", used.append)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("RANK", "5")
    assert ranks.start("cpu") == "cpu"
    assert ranks.start("cuda:1") == "cuda:1"
    assert ranks.start("auto") == "auto"  # more ranks than GPUs are right for an MLP
    assert used == []
    if local_rank == "0":
        assert ranks.start("cuda") == ranks.own_gpu() == "cuda:0"
        assert used == [0, 0]
    else:
        with pytest.raises(ValueError, match=r"a GPU of its own, got local rank 3 on a machine with 2: start fewer"):
            ranks.start("cuda")


def test_launch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert ranks.launch_id() == f"{socket.gethostname()} {os.getppid()}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "12")
    assert ranks.launch_id() == "12"
    assert not ranks.restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ranks.restarted()


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 120
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, f"no {paths}"
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["kill", "nan"])
def test_a_lost_rank_ends_the_run(kind: str, tmp_path: Path):
    """SIGKILL, which no process can handle, or an error: torchrun ends the run, and its report names the rank."""
    run = subprocess.Popen([*TORCHRUN, str(CASES), kind, str(tmp_path)], env=variables(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "started0", tmp_path / "started1")
        lost = time.monotonic()
        if kind == "kill":
            os.kill(int((tmp_path / "started1").read_text()), signal.SIGKILL)
        _, report = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1
    assert time.monotonic() - lost < 30
    cause = report[report.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in cause
    assert ("Signal 9 (SIGKILL)" if kind == "kill" else "exitcode  : 1") in cause
    assert ("ValueError: reward must be finite, got nan from environment 0" in report) == (kind == "nan")


@pytest.mark.parametrize("kind", ["kill", pytest.param("nan", marks=pytest.mark.slow)])
def test_without_a_launcher(kind: str, tmp_path: Path):
    """Without torchrun, as SLURM's srun starts ranks: the surviving rank names the lost one in its error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(CASES), kind, str(tmp_path)],
            env=variables(RANK=str(rank), LOCAL_RANK=str(rank), **address),
            stderr=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    try:
        wait_for(tmp_path / "started0", tmp_path / "started1")
        if kind == "kill":
            ranks[1].kill()
        codes = [process.wait(timeout=60) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    message = (tmp_path / "error0").read_text()
    if kind == "kill":
        assert codes == [1, -signal.SIGKILL]
        assert message == (
            "LostRankError: the connection to rank 1 is lost: its process has ended or was killed, or its machine or network "
            "is gone"
        )
    else:
        assert codes == [1, 1]
        assert message.startswith("LostRankError: rank 1 has failed: ValueError: reward must be finite, got nan from")
