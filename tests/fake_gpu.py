"""
A GPU that needs none: torch's ``meta`` device, with numbers on the CPU behind it.

Inside :class:`FakeGpu`, tensors on ``meta`` compute. As on CUDA, an operation that mixes them with tensors of the CPU is an
error, and so is ``numpy()`` of them. It shows nothing of CUDA's own: its kernels, its generators, its speed.

:func:`record` stands for a CUDA graph: it repeats operations on the memory that they had, whatever the code would do now, and
an operation that waits for the GPU cannot be recorded.
"""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = th.device("meta")
INDEXING = (th.ops.aten.index.Tensor, th.ops.aten.index_put_.default, th.ops.aten._index_put_impl_.default)


class OnGpu(th.Tensor):
    """A tensor on the device, around the one that has its numbers."""

    numbers: th.Tensor

    @staticmethod
    def __new__(cls, numbers: th.Tensor) -> "OnGpu":
        layout = dict(strides=numbers.stride(), storage_offset=numbers.storage_offset())
        tensor = th.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype, device=GPU, **layout)
        tensor.numbers = numbers
        return tensor

    def __repr__(self) -> str:
        return f"OnGpu({self.numbers})"

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers.__reduce_ex__(protocol)  # files are read to the CPU first

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class FakeGpu(_Mode):
    """Inside, there is such a GPU."""

    def __enter__(self) -> "FakeGpu":
        nn.Module._apply = _apply
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        nn.Module._apply = _original


_original = nn.Module._apply


def _apply(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """As on CUDA, a module that is moved keeps its parameters as objects, which optimisers have."""
    th.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _original(module, function, recurse)
    finally:
        th.__future__.set_swap_module_params_on_conversion(False)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """:return: the result of an operation, computed on the CPU, where CUDA would have it"""
    if th._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _Mode():  # in inference mode, torch leaves it to us to take it apart
            return func.decompose(*args, **kwargs)
    tensors = _tensors_of((args, kwargs))
    on_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
    copies = func in (th.ops.aten._to_copy.default, th.ops.aten.copy_.default)
    if on_gpu and not copies and not (func in INDEXING and isinstance(args[0], OnGpu)):
        # CUDA takes the CPU's indices, and its numbers without an axis.
        if any(not isinstance(tensor, OnGpu) and tensor.ndim > 0 for tensor in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, {func} got some on {GPU} and some on the CPU")
    to_cpu = kwargs.get("device") == th.device("cpu") or (copies and args[0].device != GPU)
    if _tape is not None and on_gpu and (to_cpu or func is th.ops.aten._local_scalar_dense.default):
        raise RuntimeError("operation not permitted when stream is capturing")
    if kwargs.get("device") is not None:
        on_gpu = th.device(kwargs["device"]).type == GPU.type
        kwargs = {**kwargs, "device": th.device("cpu")}
    args, kwargs, given = *tree_map(_numbers_of, (args, kwargs)), args
    results = func(*args, **kwargs)
    if _tape is not None:
        _tape.append((func, args, kwargs, _tensors_of(results)))
    if results is not None and func.__name__.partition(".")[0].endswith("_"):  # in place
        return given[0]
    return tree_map(lambda leaf: OnGpu(leaf) if on_gpu and isinstance(leaf, th.Tensor) else leaf, results)


def _numbers_of(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, OnGpu) else leaf


def _tensors_of(tree: Any) -> list[th.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, th.Tensor)]


_tape: list[tuple[Any, Any, Any, list[th.Tensor]]] | None = None


def record(function: Callable[[], th.Tensor], device: th.device) -> tuple[Callable[[], None], th.Tensor]:
    """As ``sb3_reinforce.rollout.graphs.record``."""
    global _tape
    _tape = []
    try:
        result = function()
        tape = _tape
    finally:
        _tape = None

    def replay() -> None:
        for func, args, kwargs, results in tape:
            for old, new in zip(results, _tensors_of(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # not: in place, or a view
                    old.copy_(new)

    return replay, result
