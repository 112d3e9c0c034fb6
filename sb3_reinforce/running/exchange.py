"""
What ranks exchange: values of any kind, sums of gradients, moments of samples.

In a plain run, a world of one rank, every function returns at once, with what it was given. Gradients are summed explicitly
and not by ``DistributedDataParallel``: SB3 calls methods of the policy other than ``forward``, which DDP does not see.

The result is computed from the same numbers in the same order everywhere, so that equal parameters stay equal to the bit.
"""

import copyreg
import io
import pickle
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist

from sb3_reinforce.running.ranks import lost_ranks_named, rank, world_size

T = TypeVar("T")
Moments = tuple[int, float, float]
"""Count, mean and sum of squared deviations from it."""

# Bytes of gather's first exchange: most updates have no more to say, and then it is the only one.
FIRST_BYTES = 8192
# Numbers of all ranks together up to which a sum gathers them, in W - 1 messages one after the other. A ring takes twice as
# many messages, and for more numbers fewer bytes.
MOST_GATHERED = 100_000


def gather(value: T) -> list[T]:
    """:return: on every rank the values of all, in their order; any that can be pickled, with tensors on the CPU"""
    if world_size() == 1:
        return [value]
    message = _pickled(value)
    message = len(message).to_bytes(8, "little") + message
    messages = _bytes_of_all(message[:FIRST_BYTES], FIRST_BYTES)
    longest = 8 + max(int.from_bytes(begin[:8], "little") for begin in messages)
    if longest > FIRST_BYTES:
        ends = _bytes_of_all(message[FIRST_BYTES:], longest - FIRST_BYTES)
        messages = [begin + end for begin, end in zip(messages, ends, strict=True)]
    return [pickle.loads(memoryview(message)[8:]) for message in messages]


def _bytes_of_all(own: bytes, size: int) -> list[bytes]:
    """One message of each rank, filled up to the size."""
    return [part.numpy().tobytes() for part in _tensors_of_all(th.frombuffer(bytearray(own.ljust(size)), dtype=th.uint8))]


def _tensors_of_all(own: th.Tensor) -> list[th.Tensor]:
    """A tensor of each rank, all of one shape; a plain run has its own."""
    if world_size() == 1:
        return [own]
    parts = [th.empty_like(own) for _ in range(world_size())]
    with lost_ranks_named():
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
    :param value: anything that ``torch.save`` can write; only rank 0's counts
    :return: rank 0's value on every rank, its tensors on the CPU; on rank 0 the object itself
    """
    if world_size() == 1:
        return value
    file = io.BytesIO()
    if rank() == 0:
        th.save(value, file)
    with lost_ranks_named():
        size = th.tensor([file.tell()])
        dist.broadcast(size, src=0)
        data = th.frombuffer(bytearray(file.getvalue() or int(size)), dtype=th.uint8)
        dist.broadcast(data, src=0)
    return value if rank() == 0 else th.load(io.BytesIO(data.numpy().data), map_location="cpu", weights_only=False)


def broadcast_buffers(module: th.nn.Module) -> None:
    """Copy rank 0's buffers (running statistics of batch norm, for example) to all ranks."""
    if world_size() > 1:
        with lost_ranks_named():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def sum_gradients(parameters: Iterable[th.nn.Parameter], numbers: Sequence[float] = ()) -> list[float]:
    """
    Add up the gradients of all ranks, in one exchange of 1 number per parameter, and some numbers with them.

    A parameter without a gradient on any rank keeps none: an optimiser treats that differently from 0.

    :param parameters: in the same order on all ranks; their ``grad`` is replaced by the sum
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
    """:return: the sum of all ranks' tensors of one shape, equal to the bit on each. It may overwrite its argument."""
    if world_size() > 1 and tensor.numel() * world_size() > MOST_GATHERED:
        with lost_ranks_named():
            dist.all_reduce(tensor)
        return tensor
    total, *others = _tensors_of_all(tensor)
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
    counts, means, squares = th.stack(_tensors_of_all(th.stack(own))).unbind(dim=2)  # each [ranks, samples]
    n = counts.sum(0)
    mean = (counts * means).sum(0) / n
    total = (squares + counts * (means - mean) ** 2).sum(0)
    return list(zip(n.long().tolist(), mean.tolist(), total.tolist(), strict=True))


def agree(flag: bool, parameters: Iterable[th.nn.Parameter] = ()) -> tuple[bool, bool]:
    """:return: whether the flag is True on any rank, and whether the parameters are equal, bit for bit, on all"""
    if world_size() == 1:
        return flag, True
    checksum = 0
    for parameter in parameters:
        checksum = zlib.crc32(parameter.detach().cpu().flatten().view(th.uint8).numpy().data, checksum)
    largest = th.tensor([int(flag), checksum, -checksum])
    with lost_ranks_named():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    any_flag, highest, lowest = largest.tolist()
    return bool(any_flag), highest == -lowest


def check_equal(settings: Mapping[str, str]) -> None:
    """
    :param settings: a text for each, by name
    :raises ValueError: on all ranks, if a setting is not the same on all: it names the first one
    """
    of_ranks = gather(dict(settings))
    for name in dict.fromkeys(name for others in of_ranks for name in others):
        ranks_with: dict[str, list[str]] = {}
        for number, others in enumerate(of_ranks):
            ranks_with.setdefault(others.get(name, "nothing"), []).append(str(number))
        if len(ranks_with) > 1:
            listed = ", ".join(f"{text} on rank {' and '.join(numbers)}" for text, numbers in ranks_with.items())
            raise ValueError(f"{name} must be the same on all ranks, got {listed}")
