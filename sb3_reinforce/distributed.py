"""
One training run in several processes ("ranks"), on torch.distributed, as ``torchrun`` starts them.

A plain run is a world of one rank: every function here then returns at once, with what it was given. Gradients are
summed explicitly and not by ``DistributedDataParallel``: SB3 calls methods of the policy other than ``forward``, which
DDP does not see.

What the ranks exchange is computed from the same numbers in the same order everywhere, so that equal parameters stay
equal to the bit.
"""

import atexit
import copyreg
import functools
import io
import os
import pickle
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecNormalize

T = TypeVar("T")
Moments = tuple[int, float, float]
"""Count, mean and sum of squared deviations from it."""

# How long a rank waits for the others: longer than an evaluation on rank 0, not for ever.
TIMEOUT = timedelta(hours=2)
# Seconds before a rank that lost another one ends itself: the launcher, which knows which one it was, comes first.
GRACE = 5.0
# Bytes of gather's first exchange: what most updates have to say fits in, and then it is the only one.
FIRST_BYTES = 8192
# Numbers of all ranks together up to which a sum is made of everybody's numbers, W - 1 messages one after the other; a ring
# takes twice as many, and for more numbers fewer bytes.
MOST_GATHERED = 100_000

_store: dist.Store | None = None
_rank_before_leaving: int | None = None


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

    The group is gloo on the CPU, and on GPUs NCCL for what lies there. One that exists already is used as it is, and must
    serve the CPU, too.

    :param device: the device asked for
    :return: the device to use: for ``"auto"`` and ``"cuda"`` each rank of a machine gets a GPU of its own
    :raises ValueError: if there are more ranks than GPUs on this machine, or for a group that does not serve the CPU
    :raises LostRankError: in a process that has left its group because of an error
    """
    global _store
    if not dist.is_available() or not (dist.is_initialized() or launched()):
        return device
    if _rank_before_leaving is not None:
        raise LostRankError("this process has left its group of ranks because of an error: start the run again")
    use_cuda = th.cuda.is_available() and th.device("cuda" if device == "auto" else device).type == "cuda"
    if use_cuda and str(device) in ("auto", "cuda"):
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if local_rank >= th.cuda.device_count():
            raise ValueError(
                f"each rank needs a GPU of its own, got local rank {local_rank} on a machine with {th.cuda.device_count()}: "
                'start fewer ranks (torchrun --nproc-per-node), or use device="cpu"'
            )
        device = f"cuda:{local_rank}"
        th.cuda.set_device(local_rank)
    if dist.is_initialized() and _store is None and "cpu:" not in dist.get_backend_config():
        raise ValueError(
            f"the process group must serve tensors on the CPU, too, got {dist.get_backend_config()!r}: leave "
            'init_process_group out, or call init_process_group("cpu:gloo,cuda:nccl")'
        )
    if not dist.is_initialized():
        # What init_process_group does by itself, in a part of the store of our own.
        store, own_rank, n_ranks = next(dist.rendezvous("env://"))
        store = _unused_part(store, own_rank, n_ranks)
        backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=n_ranks, timeout=TIMEOUT)
        _store = dist.PrefixStore("sb3_reinforce", store)  # where a failing rank leaves its message
        atexit.register(_leave_at_exit)
    return device


def _unused_part(store: dist.Store, own_rank: int, n_ranks: int) -> dist.Store:
    """
    A part of the store that no earlier attempt has written to, the same for all ranks.

    torchrun keeps its store when it starts the ranks again, with the dead ones' addresses in it, to which gloo would then
    connect; and its count of restarts may differ from machine to machine. So rank 0 names a new part, and answers everybody
    who has read the name: who has read that of an earlier attempt gets no answer, and reads again.
    """
    token = uuid.uuid4().hex
    if own_rank == 0:
        store.set("sb3_reinforce/part", token)
        for other in range(1, n_ranks):
            store.set(f"{token}/{other}/{store.get(f'{token}/{other}').decode()}", "")
        return dist.PrefixStore(token, store)
    while True:
        part = store.get("sb3_reinforce/part").decode()
        store.set(f"{part}/{own_rank}", token)
        while store.get("sb3_reinforce/part").decode() == part:
            if store.check([f"{part}/{own_rank}/{token}"]):
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
    _leave()


# ------------------------------------------------------------------------------------------------------- exchanges


@contextmanager
def _lost_ranks_named() -> Iterator[None]:
    """:raises LostRankError: for the RuntimeError of a broken connection, with the failed rank's message if it left one"""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(_what_happened()) from error


def _what_happened() -> str:
    """What a broken connection was the end of. Waits :data:`GRACE` seconds."""
    if _store is None:
        time.sleep(GRACE)
        return "the connection to another rank is lost: its process has ended"
    others = [other for other in range(world_size()) if other != rank()]
    try:
        _store.set(f"alive/{rank()}", "")
        time.sleep(GRACE)
        if _store.check(["failure"]):
            return _store.get("failure").decode()
        silent = [other for other in others if not _store.check([f"alive/{other}"])]
    except RuntimeError:  # the store was kept by the process or machine that is gone
        silent = others
    names = "rank " + " or ".join(map(str, silent or others))
    return f"the connection to {names} is lost: its process was killed, or its machine or network is gone"


def fails_for_all(method: Callable[..., T]) -> Callable[..., T]:
    """
    Decorate what all ranks do together: an error on one of them ends it on all.

    The failing rank leaves its message for the others and closes its connections, so that nobody waits for it, not
    even if the error is caught.
    """

    @functools.wraps(method)
    def together(*args: Any, **kwargs: Any) -> T:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if world_size() > 1:
                if _store is not None and not isinstance(error, LostRankError):
                    with suppress(RuntimeError):  # the store is gone with its process
                        _store.compare_set("failure", "", f"rank {rank()} has failed: {type(error).__name__}: {error}")
                _leave()
            raise

    return together


def gather(value: T) -> list[T]:
    """
    Everybody's value, on every rank.

    :param value: anything that can be pickled, with tensors on the CPU
    :return: one value per rank, in the order of the ranks
    """
    if world_size() == 1:
        return [value]
    message = _pickled(value)
    message = len(message).to_bytes(8, "little") + message
    messages = _everyones_bytes(message[:FIRST_BYTES], FIRST_BYTES)
    longest = 8 + max(int.from_bytes(begin[:8], "little") for begin in messages)
    if longest > FIRST_BYTES:
        ends = _everyones_bytes(message[FIRST_BYTES:], longest - FIRST_BYTES)
        messages = [begin + end for begin, end in zip(messages, ends, strict=True)]
    return [pickle.loads(memoryview(message)[8:]) for message in messages]


def _everyones_bytes(own: bytes, size: int) -> list[bytes]:
    """One message of each rank, filled up to the size."""
    return [part.numpy().tobytes() for part in _everyones(th.frombuffer(bytearray(own.ljust(size)), dtype=th.uint8))]


def _everyones(own: th.Tensor) -> list[th.Tensor]:
    """A tensor of each rank, all of one shape; a plain run has its own."""
    if world_size() == 1:
        return [own]
    parts = [th.empty_like(own) for _ in range(world_size())]
    with _lost_ranks_named():
        dist.all_gather(parts, own)
    return parts


def _pickled(value: Any) -> bytes:
    # Tensors as arrays: torch's own way of pickling writes a whole file for each
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=5)
    pickler.dispatch_table = copyreg.dispatch_table | {th.Tensor: lambda tensor: (th.from_numpy, (tensor.numpy(),))}
    pickler.dump(value)
    return file.getvalue()


def broadcast(value: T) -> T:
    """
    Rank 0's value, on every rank.

    :param value: anything that ``torch.save`` can write; only rank 0's counts
    :return: rank 0's value, its tensors on the CPU; on rank 0 the very object
    """
    if world_size() == 1:
        return value
    file = io.BytesIO()
    if rank() == 0:
        th.save(value, file)
    with _lost_ranks_named():
        size = th.tensor([file.tell()])
        dist.broadcast(size, src=0)
        data = th.frombuffer(bytearray(file.getvalue() or int(size)), dtype=th.uint8)
        dist.broadcast(data, src=0)
    return value if rank() == 0 else th.load(io.BytesIO(data.numpy().data), map_location="cpu", weights_only=False)


def broadcast_buffers(module: th.nn.Module) -> None:
    """Rank 0's buffers (running statistics of batch norm, for example), which no gradient keeps equal."""
    if world_size() > 1:
        with _lost_ranks_named():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def sum_gradients(parameters: Iterable[th.nn.Parameter], numbers: Sequence[float] = ()) -> list[float]:
    """
    Add up the gradients of all ranks, in one exchange of 1 number per parameter, and some numbers with them.

    A parameter without a gradient on any rank keeps none: an optimiser treats that differently from 0.

    :param parameters: in the same order on all ranks; their ``grad`` is replaced by the sum
    :param numbers: to be added up, too
    :return: the sums of the numbers, in the gradients' precision
    """
    if world_size() == 1:
        return list(numbers)
    parameters = list(parameters)
    grads = [th.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    is_there = [float(p.grad is not None) for p in parameters]
    flat = th.cat([*(grad.flatten() for grad in grads), grads[0].new_tensor([*is_there, *numbers])])
    *sums, rest = sum_over_ranks(flat).split([*(grad.numel() for grad in grads), len(parameters) + len(numbers)])
    rest = rest.tolist()
    for parameter, total, n_there in zip(parameters, sums, rest, strict=False):
        if n_there > 0:
            parameter.grad = total.view_as(parameter).to(parameter.dtype)
    return rest[len(parameters) :]


def sum_over_ranks(tensor: th.Tensor) -> th.Tensor:
    """
    :param tensor: of one shape on all ranks; it may be overwritten
    :return: the sum of the tensors of all ranks, equal to the bit on each
    """
    if world_size() > 1 and tensor.numel() * world_size() > MOST_GATHERED:
        with _lost_ranks_named():
            dist.all_reduce(tensor)
        return tensor
    total, *others = _everyones(tensor)
    for part in others:
        total += part
    return total


def moments(*samples: th.Tensor | np.ndarray) -> list[Moments]:
    """
    Count n, mean and sum of squared deviations from it, of samples that are spread over the ranks; in one exchange.

    Source: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".

    :param samples: each of any shape, with at least one value on each rank
    :return: for each n, mean, sum of (x - mean)^2: the variance is the last over n, or over n - 1
    """
    own = []
    for sample in samples:
        values = th.as_tensor(sample).double()
        mean = values.mean()
        own.append(th.stack([th.tensor(float(values.numel())), mean, (values - mean).square().sum()]))
    counts, means, squares = th.stack(_everyones(th.stack(own))).unbind(dim=2)  # each [ranks, samples]
    n = counts.sum(0)
    mean = (counts * means).sum(0) / n
    total = (squares + counts * (means - mean) ** 2).sum(0)
    return list(zip(n.long().tolist(), mean.tolist(), total.tolist(), strict=True))


def any_rank(flag: bool) -> bool:
    """:return: whether the flag is True on any rank"""
    if world_size() == 1:
        return flag
    value = th.tensor([int(flag)])
    with _lost_ranks_named():
        dist.all_reduce(value)
    return bool(value > 0)


def check_equal(settings: dict[str, Any]) -> None:
    """
    :param settings: by name, what must be the same on all ranks
    :raises ValueError: on all ranks, if something is not
    """
    described = {name: repr(value) for name, value in settings.items()}
    everyones = gather(described)
    for name in described:
        values = [others.get(name) for others in everyones]
        if len(set(values)) > 1:
            listed = ", ".join(f"{value} on rank {r}" for r, value in enumerate(values))
            raise ValueError(f"{name} must be the same on all ranks, got {listed}")


# ------------------------------------------------------------------------------------------------ running statistics


def merged_statistics(
    before: tuple[float, np.ndarray, np.ndarray], parts: Sequence[tuple[float, np.ndarray, np.ndarray]]
) -> tuple[float, np.ndarray, np.ndarray]:
    """
    Running statistics (count, mean, variance) that several ranks went on with from a common start, put together.

    Each rank's own share is what its statistics have beyond the start, in terms of counts, sums and sums of squares
    about the mean of the start. Source: Chan, Golub and LeVeque (1983).

    :param before: the start, which all ranks had
    :param parts: what each rank has now, its own share included
    :return: the start and all ranks' shares together
    """
    count, mean, variance = before
    if all(part[0] == count for part in parts):
        return before  # frozen: not even rounded
    n, total, squares = count, np.zeros_like(mean), count * variance
    for part_count, part_mean, part_variance in parts:
        shift = part_mean - mean
        n = n + part_count - count
        total = total + part_count * shift
        squares = squares + part_count * (part_variance + shift**2) - count * variance
    shift = total / n
    return n, mean + shift, np.maximum(squares / n - shift**2, 0.0)


def statistics_of(env: VecNormalize | None) -> dict[str, tuple[float, np.ndarray, np.ndarray]]:
    """:return: count, mean and variance of each of the running statistics, by name; none without an environment"""
    return {name: (rms.count, rms.mean, rms.var) for name, rms in _running(env).items()}


def set_statistics(env: VecNormalize | None, statistics: dict[str, tuple[float, np.ndarray, np.ndarray]]) -> None:
    """
    :param env: whose running statistics to replace
    :param statistics: as :func:`statistics_of` returns them
    """
    for name, rms in _running(env).items():
        rms.count, rms.mean, rms.var = statistics[name]


def _running(env: VecNormalize | None) -> dict[str, RunningMeanStd]:
    if env is None:
        return {}
    observations = getattr(env, "obs_rms", None)  # not there with norm_obs=False
    if not isinstance(observations, dict):
        observations = {} if observations is None else {"": observations}
    return {"returns": env.ret_rms} | {f"observations/{key}": rms for key, rms in observations.items()}


# --------------------------------------------------------------------------------------------------------- callbacks

RANK_ZERO_ONLY = (EvalCallback, CheckpointCallback, ProgressBarCallback)


def callbacks_of_this_rank(callback: MaybeCallback) -> MaybeCallback:
    """
    What of a callback, a list or a tree of them runs on a rank other than 0.

    Not evaluation, checkpoints, the progress bar, and what has an attribute ``rank_zero_only`` that is True. Event
    callbacks and lists stay, without such children.

    :param callback: as given to ``learn``; lists and event callbacks are changed in place
    :return: what is left; None for nothing
    """
    if isinstance(callback, list):
        return [child for child in callback if callbacks_of_this_rank(child) is not None]
    if isinstance(callback, RANK_ZERO_ONLY) or getattr(callback, "rank_zero_only", False):
        return None
    if isinstance(callback, CallbackList):
        callback.callbacks = [child for child in callback.callbacks if callbacks_of_this_rank(child) is not None]
    elif isinstance(callback, EventCallback) and callbacks_of_this_rank(callback.callback) is None:
        callback.callback = None
    return callback


def advance_progress_bars(callback: BaseCallback, n_steps: int) -> None:
    """
    :param callback: a callback or a tree of them
    :param n_steps: environment steps that the progress bar has not seen: other ranks', or the greedy policy's
    """
    if isinstance(callback, ProgressBarCallback):
        callback.pbar.update(n_steps)
    elif isinstance(callback, CallbackList):
        for child in callback.callbacks:
            advance_progress_bars(child, n_steps)
