"""
What may be unpickled from a file that nobody has vouched for: names that ordinary models hold, and nothing else.

``pickle`` imports what a file names and calls it. :func:`unpickle` does neither: it interprets the opcodes itself, finds each
name in a table of objects that are imported already, and refuses every opcode, name, call and state that is not listed here.
"""

import base64
import io
import json
import math
import pickletools
import re
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers, policies, torch_layers, utils
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_reinforce import baselines
from sb3_reinforce.policies import NAMES, class_named
from sb3_reinforce.schedules import CheckedSchedule

CURE = "if you would run it as a program, too, say so: trust=True, on the command line --trust"


class UntrustedError(ValueError):
    """A file whose reading would run code, or might: it must be trusted first."""


def names_of(objects: Iterable[Any]) -> dict[str, Any]:
    """:return: classes and functions by the full names that pickles and YAML files have for them"""
    return {f"{each.__module__}.{each.__qualname__}": each for each in objects}


def _subclasses(module: Any, base: type) -> list[type]:
    return [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, base)]


ACTIVATIONS = _subclasses(th.nn.modules.activation, th.nn.Module)
OPTIMIZERS = [*_subclasses(th.optim, th.optim.Optimizer), RMSpropTFLike]
# Classes that a file may name: they are handed to a constructor later, and never called while it is read.
CLASSES: dict[str, Any] = names_of(
    [
        *ACTIVATIONS, *OPTIMIZERS, *_subclasses(policies, policies.BasePolicy), *_subclasses(buffers, buffers.BaseBuffer),
        *_subclasses(torch_layers, torch_layers.BaseFeaturesExtractor), np.random.PCG64, np.ndarray,
    ]
)  # fmt: skip
# Classes of which a file may hold objects: made without their constructor, then given their attributes.
INSTANCES: dict[str, Any] = names_of(
    [
        spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Text, spaces.Dict, spaces.Tuple,
        utils.FloatSchedule, utils.ConstantSchedule, utils.LinearSchedule, CheckedSchedule, RunningMeanStd, VecNormalize,
        *_subclasses(baselines, baselines.Baseline),
    ]
)  # fmt: skip


class _SeedSequence:
    """In place of a generator's SeedSequence, which only ``spawn`` would use."""


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    if not re.fullmatch(r"[biufcSU]\d+", code):
        raise UntrustedError(f"holds an array of {code!r}")
    return np.dtype(code)


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any = "C", axes: Any = None) -> np.ndarray:
    array = np.frombuffer(_of_type(buffer, bytes, bytearray), _of_type(dtype, np.dtype))
    return array.reshape(shape, order="C").transpose(axes) if axes is not None else array.reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(_of_type(data, bytes), _of_type(dtype, np.dtype))[0]  # type: ignore[no-any-return]


def _bit_generator(kind: Any = None) -> np.random.BitGenerator:
    if kind not in (np.random.PCG64, "PCG64"):
        raise UntrustedError(f"holds a random generator of the kind {kind!r}")
    return np.random.PCG64()


def _generator(bits: Any, make: Any = None) -> np.random.Generator:
    return np.random.Generator(bits if isinstance(bits, np.random.PCG64) else _bit_generator(bits))


# Functions that a file may call. NumPy's own would trust a forged dtype, by which a file can corrupt memory.
CALLS: dict[str, Callable[..., Any]] = {
    "collections.deque": lambda items=(), maxlen=None: deque(items, maxlen),
    "collections.OrderedDict": lambda items=(): OrderedDict(items),
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": lambda *_: np.empty(0, np.int8),
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.random._pickle.__bit_generator_ctor": _bit_generator,
    "numpy.random._pickle.__generator_ctor": _generator,
    "numpy.random.bit_generator.SeedSequence": lambda *_: _SeedSequence(),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": lambda *_: _SeedSequence(),
}


def _of_type(value: Any, *types: type) -> Any:
    if type(value) not in types and not (np.dtype in types and isinstance(value, np.dtype)):
        raise UntrustedError(f"holds {type(value).__name__} where {types[0].__name__} belongs")
    return value


def _set_state(target: Any, state: Any) -> None:
    """Give an object its attributes, as pickle's BUILD does, if it is one of those that ordinary files hold."""
    if isinstance(target, _SeedSequence):
        return
    if isinstance(target, np.dtype):  # complete already, unless it is one of another machine
        if not (isinstance(state, tuple) and state[1] in ("<", "|", "=") and state[2:5] == (None, None, None)):
            raise UntrustedError(f"holds an array of the type {state!r}")
    elif type(target) is np.ndarray and target.shape == (0,):  # once: other memory than its own may be behind a filled one
        _, shape, dtype, _, data = state
        size = _of_type(dtype, np.dtype).itemsize
        if not size or min(shape, default=0) < 0 or len(_of_type(data, bytes)) != math.prod(shape) * size:
            raise UntrustedError(f"holds an array of the shape {shape} in {len(data)} bytes")
        target.__setstate__(state)
    elif isinstance(target, np.random.PCG64):
        target.state = state[0] if isinstance(state, tuple) else state
    elif type(target) in INSTANCES.values():
        if hasattr(target, "__setstate__"):
            target.__setstate__(_of_type(state, dict))
        else:
            vars(target).update(_of_type(state, dict))
    else:
        raise UntrustedError(f"sets the state of {type(target).__name__}")


def unpickle(data: bytes, classes: Mapping[str, Any] = CLASSES) -> Any:
    """
    Read a pickle that ordinary models hold: plain values, arrays, spaces, schedules, statistics, and names of classes.

    :param classes: the classes that it may name
    :raises UntrustedError: if it holds anything else, which ``pickle`` might have to run code for
    """
    try:
        return _interpret(data, classes)
    except UntrustedError:
        raise
    except Exception as error:  # whatever a forged operand leads to
        raise UntrustedError(f"is no pickle of plain objects ({type(error).__name__}: {error})") from error


def _interpret(data: bytes, classes: Mapping[str, Any]) -> Any:
    """A stack machine, as in ``pickle.py``."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def named(name: str) -> Any:
        name = name.replace("numpy.core.", "numpy._core.")
        for table in (classes, INSTANCES, CALLS):
            if name in table:
                # a function and its name, so that a file cannot pass one off as a value
                return _Call(table[name]) if table is CALLS and name not in classes else table[name]
        if name in NAMES.values():
            return class_named(name)
        raise UntrustedError(f"names {name}")

    operand: Any
    for opcode, operand, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if operand is None else operand] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[operand])
        elif name in _VALUES:
            stack.append(operand)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            length = _TUPLES[name]
            items = stack[-length:]
            stack[-length:] = [tuple(items)]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "FROZENSET":
            stack.append(frozenset(since_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            _of_type(stack[-1], list, deque).extend(items)
        elif name == "ADDITEMS":
            items = since_mark()
            _of_type(stack[-1], set).update(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
            _of_type(stack[-1], dict, OrderedDict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(named(operand.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(named(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments = _of_type(stack.pop(), tuple)
            stack.append(_of_type(stack.pop(), _Call).function(*arguments))
        elif name == "NEWOBJ":
            arguments, kind = stack.pop(), stack.pop()
            if arguments != () or kind not in INSTANCES.values():
                raise UntrustedError(f"makes an object of {kind!r}")
            stack.append(kind.__new__(kind))
        elif name == "BUILD":
            state = stack.pop()
            _set_state(stack[-1], state)
        else:
            raise UntrustedError(f"uses pickle's {name}")
    raise UntrustedError("is no whole pickle")


class _Call:
    """A function that a file may call, and do nothing else with."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function


_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_objects(data: str | bytes, given: Mapping[str, Any], classes: Mapping[str, Any] = CLASSES) -> dict[str, Any]:
    """
    Read all that is pickled in the part ``data`` of a model file, for the ``custom_objects`` of Stable-Baselines3's loader,
    which unpickles what it is not given.

    :param given: objects by name that are used instead of the saved ones, which are not read
    :return: these and those read
    :raises UntrustedError: if anything in it might run code
    """
    objects = dict(given)
    for key, item in json.loads(data).items():
        if key in given:
            continue
        if key == "env":  # the id of an environment may name a module to import
            raise UntrustedError(f"its entry env is {item!r}, and save() writes none: {CURE}")
        if isinstance(item, dict) and ":serialized:" in item:
            try:
                objects[key] = unpickle(base64.b64decode(item[":serialized:"]), classes)
            except UntrustedError as error:
                raise UntrustedError(f"its entry {key} {error}: {CURE}, or give custom_objects={{{key!r}: ...}}") from error
    return objects


def objects_in(path: str | Path | io.BufferedIOBase, given: Mapping[str, Any]) -> tuple[io.BytesIO, dict[str, Any]]:
    """
    :param path: a model file, as SB3's ``load`` takes it
    :return: its contents, so that what is checked is what is loaded; see :func:`read_objects`
    :raises ValueError: if it is no model file
    """
    file = open_path(path, "r", suffix="zip")
    contents = io.BytesIO(file.read())
    if isinstance(path, (str, Path)):
        file.close()
    try:
        with zipfile.ZipFile(contents) as archive:
            return contents, read_objects(archive.read("data"), given)
    except UntrustedError as error:
        name = path if isinstance(path, (str, Path)) else "the file"
        raise UntrustedError(f"{name} must hold nothing that runs code when it is read: {error}") from None
    except Exception as error:  # whatever a forged file leads to
        raise ValueError(f"{path} must be a model file made by save(): {type(error).__name__}: {error}") from error


def load_statistics(path: Path, env: VecEnv, trust: bool = False) -> VecNormalize:
    """
    ``VecNormalize.load``, which runs no code of the file.

    :param trust: see ``REINFORCE.load``
    :raises UntrustedError: if the file needs trust
    """
    if trust:
        return VecNormalize.load(str(path), env)
    try:
        statistics: VecNormalize = _of_type(unpickle(path.read_bytes()), VecNormalize)
    except UntrustedError as error:
        raise UntrustedError(f"{path} {error}: {CURE}") from None
    statistics.set_venv(env)
    return statistics
