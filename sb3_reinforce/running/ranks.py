"""
One training run in several processes ("ranks"), on torch.distributed, as ``torchrun`` starts them.

Joining them, leaving them, and how an error of one ends all. A plain run is a world of one rank.
"""

import atexit
import functools
import itertools
import os
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch as th
import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")

# How long a rank waits for the others: longer than an evaluation on rank 0, not for ever.
TIMEOUT = timedelta(hours=2)
# How long it waits for them to start. Not under torchrun, which ends all ranks if one fails to.
JOINING = timedelta(seconds=30)
# Seconds before a rank that lost another one ends itself: the launcher, which knows which one it was, comes first.
GRACE = 5.0

_store: dist.Store | None = None
_rank_before_leaving: int | None = None
_meetings = itertools.count()  # calls of learn(), of which all ranks make as many


class LostRankError(RuntimeError):
    """Another rank has failed, or its process or machine is gone."""


def world_size() -> int:
    """:return: number of ranks that train together, 1 in a plain run"""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """:return: this process' number among all ranks, from 0"""
    if _rank_before_leaving is not None:
        return _rank_before_leaving
    return dist.get_rank() if world_size() > 1 else 0


def launched() -> bool:
    """:return: whether a launcher such as torchrun has started this process as one of several ranks"""
    names = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return names <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def launch_id() -> str | None:
    """:return: what tells this launch of torchrun from all others, the same after a restart; None without torchrun"""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    # torchrun's name for a launch that was given none; its process starts all ranks of this machine, also again
    return f"{socket.gethostname()} {os.getppid()}" if run_id == "none" else run_id


def restarted() -> bool:
    """:return: whether torchrun has started the ranks again after one of them failed (``--max-restarts``)"""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def start(device: th.device | str = "auto") -> th.device | str:
    """
    Join the other ranks, if a launcher such as torchrun has set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    The group is gloo on the CPU, and NCCL for tensors on GPUs. A group that exists is used as it is; it must serve the CPU,
    too.

    :param device: the device asked for
    :return: the device to use: for ``"cuda"`` each rank of a machine gets a GPU of its own
    :raises ValueError: if there are more ranks than GPUs on this machine, or for a group that does not serve the CPU
    :raises LostRankError: if another rank does not come, or in a process that has left its group because of an error
    """
    global _store
    if not _in_group():
        return device
    if _rank_before_leaving is not None:
        raise LostRankError("this process has left its group of ranks because of an error: start the run again")
    use_cuda = th.cuda.is_available() and th.device("cuda" if device == "auto" else device).type == "cuda"
    if use_cuda and str(device) == "cuda":
        device = own_gpu()
    if dist.is_initialized() and _store is None and "cpu:" not in dist.get_backend_config():
        raise ValueError(
            f"the process group must serve tensors on the CPU, too, got {dist.get_backend_config()!r}: leave "
            'init_process_group out, or call init_process_group("cpu:gloo,cuda:nccl")'
        )
    if not dist.is_initialized():
        store, own_rank, n_ranks = _meet()
        backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=n_ranks, timeout=TIMEOUT)
        _store = dist.PrefixStore("sb3_reinforce", store)  # where a failing rank leaves its message
        atexit.register(_leave_at_exit)
    return device


def _in_group() -> bool:
    """Whether this process is one of several ranks, or is to join them."""
    return dist.is_available() and (dist.is_initialized() or launched())


def own_gpu() -> str:
    """
    :return: the GPU of this process: in a group, that of its number on this machine
    :raises ValueError: if there are more ranks than GPUs on this machine
    """
    if not _in_group():
        return "cuda"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= th.cuda.device_count():
        raise ValueError(
            f"each rank needs a GPU of its own, got local rank {local_rank} on a machine with {th.cuda.device_count()}: "
            'start fewer ranks (torchrun --nproc-per-node), or use device="cpu"'
        )
    th.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def _by_torchrun() -> bool:
    """Whether torchrun's own process keeps the store and watches the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _meet() -> tuple[dist.Store, int, int]:
    """What ``init_process_group`` does by itself, without naming who is missing; in a part of the store of our own."""
    own_rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeps, timeout = own_rank == 0 and not _by_torchrun(), TIMEOUT if _by_torchrun() else JOINING
    if not keeps and not _by_torchrun():
        _wait_for_store(address, port)
    try:
        store = dist.TCPStore(address, port, n_ranks, keeps, timeout, wait_for_workers=False, multi_tenant=True)
        part = _unused_part(store, own_rank, n_ranks)
    except RuntimeError as error:
        if own_rank == 0 or _by_torchrun() or isinstance(error, LostRankError):
            raise
        raise LostRankError(_not_there([0])) from error
    store.set_timeout(TIMEOUT)
    return part, own_rank, n_ranks


def _wait_for_store(address: str, port: int) -> None:
    """torch itself may try for twice its time limit."""
    end = time.monotonic() + JOINING.total_seconds()
    while True:
        with suppress(OSError):
            socket.create_connection((address, port), timeout=1).close()
            return
        if time.monotonic() > end:
            raise LostRankError(_not_there([0]))
        time.sleep(0.1)


def _not_there(missing: list[int]) -> str:
    return (
        f"rank {' and '.join(map(str, missing))} did not come within {JOINING.seconds} s: its own output may say why. If it "
        "only starts slowly, call torch.distributed.init_process_group(..., timeout=...) before the model is made"
    )


def _unused_part(store: dist.Store, own_rank: int, n_ranks: int) -> dist.Store:
    """
    A part of the store that no earlier attempt has written to, the same for all ranks.

    torchrun keeps its store when it starts the ranks again, with the dead ones' addresses in it, to which gloo would then
    connect; and its count of restarts may differ from machine to machine. So rank 0 names a new part, and answers every rank
    that has read the name. A rank that has read the name of an earlier attempt gets no answer, and reads again.

    :raises LostRankError: if a rank does not come before the store's timeout: rank 0 tells the others
    """
    token = uuid.uuid4().hex
    if own_rank == 0:
        store.set("sb3_reinforce/part", token)
        keys = [f"{token}/{other}" for other in range(1, n_ranks)]
        with suppress(dist.DistStoreError):  # the time is over
            store.wait(keys)
        missing = [other for other, key in enumerate(keys, 1) if not store.check([key])]
        problem = _not_there(missing) if missing else ""
        for key in keys:
            if store.check([key]):
                store.set(f"{key}/{store.get(key).decode()}", problem)
        if missing:
            time.sleep(0.5)  # the others read it: the store ends with this process
            raise LostRankError(problem)
        return dist.PrefixStore(token, store)
    while True:
        part = store.get("sb3_reinforce/part").decode()
        store.set(f"{part}/{own_rank}", token)
        while store.get("sb3_reinforce/part").decode() == part:
            if store.check([f"{part}/{own_rank}/{token}"]):
                if problem := store.get(f"{part}/{own_rank}/{token}").decode():
                    raise LostRankError(problem)
                return dist.PrefixStore(part, store)
            time.sleep(0.01)


def _leave() -> None:
    """Close the connections, which the others notice at their next exchange."""
    global _rank_before_leaving
    if dist.is_initialized():
        _rank_before_leaving = dist.get_rank()
        dist.destroy_process_group()


def _leave_at_exit() -> None:
    # The threads of the last exchange drop their tensors, which are Python objects, after it has ended: an interpreter that
    # ends in that moment aborts ("terminate called without an active exception", seen once in some dozen runs).
    time.sleep(0.1)
    error = getattr(sys, "last_value", None)  # what has ended the program
    if error is not None:
        _tell_others(error)
    _leave()


def _tell_others(error: BaseException) -> None:
    """Leave a message for ranks that wait for this one, unless another rank has done so before."""
    if _store is not None and dist.is_initialized() and not isinstance(error, LostRankError):
        with suppress(RuntimeError):  # the store is gone with its process
            _store.compare_set("failure", "", f"rank {rank()} has failed: {type(error).__name__}: {error}")


@contextmanager
def late_ranks_named() -> Iterator[None]:
    """
    Around the exchange that ``learn`` begins with: after :data:`JOINING` seconds a warning names ranks that have not come.

    No error: a rank may have more to do before than the others, such as an evaluation.
    """
    if _store is None or world_size() == 1:
        yield
        return
    store, key, others = _store, f"learn/{next(_meetings)}", [other for other in range(world_size()) if other != rank()]

    def warn() -> None:
        missing = [str(other) for other in others if not store.check([f"{key}/{other}"])]
        if missing:
            warnings.warn(
                f"rank {' and '.join(missing)} has not begun learn() after {JOINING.seconds} s: its own output may say why. "
                f"Waiting for up to {TIMEOUT.seconds // 3600} hours",
                stacklevel=2,
            )

    timer = threading.Timer(JOINING.total_seconds(), warn)
    timer.daemon = True
    with lost_ranks_named():
        store.set(f"{key}/{rank()}", "")
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """:raises LostRankError: for the RuntimeError of a broken connection, with the failed rank's message if it left one"""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(_what_happened()) from error


def _what_happened() -> str:
    """:return: why a connection is broken. Waits :data:`GRACE` seconds."""
    if _store is None:
        time.sleep(GRACE)
        return "the connection to another rank is lost: its process has ended"
    others = [other for other in range(world_size()) if other != rank()]
    silent, message, end = others, "", time.monotonic() + GRACE
    try:
        _store.set(f"alive/{rank()}", "")
        while time.monotonic() < end:
            if not message and _store.check(["failure"]):  # read at once: rank 0 may take the store with it
                message = _store.get("failure").decode()
            if not message:
                silent = [other for other in silent if not _store.check([f"alive/{other}"])]
            time.sleep(0.1)
    except RuntimeError:  # the store is gone with the process or machine that kept it
        silent = [0] if 0 in silent and not _by_torchrun() else silent
    if message:
        return message
    names = "rank " + " or ".join(map(str, silent or others))
    return f"the connection to {names} is lost: its process has ended or was killed, or its machine or network is gone"


def fails_for_all(method: Callable[P, T]) -> Callable[P, T]:
    """
    Decorator of what all ranks do together: an error on one of them ends it on all.

    The failing rank leaves its message for the others and closes its connections, so that no rank waits for it, even if
    the error is caught.
    """

    @functools.wraps(method)
    def together(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if world_size() > 1:
                _tell_others(error)
                _leave()
            raise

    return together
