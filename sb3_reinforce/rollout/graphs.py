"""
A CUDA graph of the policy's forward pass while it plays: off, unless :func:`use_cuda_graph` asks for it.

Python launches the kernels of a small network one by one, while the GPU waits; a graph launches them all at once. It repeats
what was recorded, on the same memory, whatever has become of the policy since. Hence a check: in the first step of each
rollout the policy computes the same without it, and the two results must be equal to the bit.
"""

import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce.policies import LIBRARIES
from sb3_reinforce.rollout.extractor import changed_module, is_plain

Forward = Callable[[th.Tensor], th.Tensor]

#: the kind of device that has graphs
DEVICE_TYPE = "cuda"
#: the policies that are to use a graph, and the last one that was recorded of each
_GRAPHS: "WeakKeyDictionary[ActorCriticPolicy, ForwardGraph | None]" = WeakKeyDictionary()


def use_cuda_graph(model: Any, use: bool = True) -> None:
    """
    Let a model's policy compute actions by a CUDA graph; on other devices this changes nothing.

    Call it again after loading or resuming a model. If the graph cannot be recorded, or its result is not the policy's to the
    bit, a warning says so and training continues without it.

    :param model: a REINFORCE, or another ``EpisodicAlgorithm``, or its policy
    :param use: False switches it off again
    :raises ValueError: for a policy that may run code of its own, which a graph would leave out
    """
    policy = getattr(model, "policy", model)
    if use and (reason := _unfit(policy)):
        raise ValueError(
            "use_cuda_graph needs a policy class of Stable-Baselines3, layers of its own or torch's without hooks, and "
            f"observations that are one array, got {reason}: train without it"
        )
    _GRAPHS.pop(policy, None)
    if use:
        _GRAPHS[policy] = None


def _unfit(policy: Any) -> str | None:
    """:return: why a graph might not do all that the policy does, in a few words; None if it does"""
    if not is_plain(policy):
        return f"policy class {type(policy).__name__} with {type(getattr(policy, 'action_dist', None)).__name__}"
    if not isinstance(policy.observation_space, spaces.Box):
        return f"observation space {policy.observation_space}"
    for module in policy.modules():
        if not type(module).__module__.startswith(("torch.nn.", *LIBRARIES)):
            return f"layer {type(module).__name__}"
    changed = changed_module(policy)
    return None if changed is None else f"a hook or method set on {type(changed).__name__}"


class ForwardGraph:
    """
    A forward pass as a graph, with the memory that it reads the observations from and writes its result to.

    :param forward: from observations on the device to its result
    :param observations: those of all environments, for shape and layout
    :param key: of what it was recorded
    """

    def __init__(self, forward: Forward, observations: np.ndarray, device: th.device, key: Any):
        self.key = key
        # Page-locked memory goes to the device without a detour. Zeros: a graph that does not read it is found out.
        self._host = page_locked(th.zeros_like(th.from_numpy(observations)))
        self._on_device = self._host.to(device)
        self._replay, self._result = record(lambda: forward(self._on_device), device)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        # This memory is free: the last call waited for its result, and so for the copy from here.
        self._host.copy_(th.from_numpy(observations))
        self._on_device.copy_(self._host, non_blocking=True)
        self._replay()
        return self._result.cpu().numpy()  # type: ignore[no-any-return]


class GraphedForward:
    """
    The forward pass of one rollout: the policy's own in the first step, then its graph, if one is wanted and gave the same.

    :param forward: of this policy, from observations on its device to one tensor
    :param kind: what tells this forward pass from others of the same policy
    """

    def __init__(self, policy: ActorCriticPolicy, forward: Forward, kind: Any):
        self.policy, self.forward, self.kind = policy, forward, kind
        self._graph: ForwardGraph | None = None
        self._is_due = policy in _GRAPHS and policy.device.type == DEVICE_TYPE and _unfit(policy) is None

    def __call__(self, observations: Any) -> np.ndarray:
        """:return: the result for the observations of all environments"""
        if self._graph is not None:
            return self._graph(observations)
        obs_tensor: Any = obs_as_tensor(observations, self.policy.device)
        result: np.ndarray = self.forward(obs_tensor).cpu().numpy()
        if self._is_due:
            self._is_due = False
            self._graph = self._verified(observations, result)
        return result

    def _verified(self, observations: np.ndarray, expected: np.ndarray) -> ForwardGraph | None:
        """:return: a graph that gives the expected result; None, after a warning, if there is none"""

        def gives_it(graph: ForwardGraph) -> bool:
            return np.array_equal(graph(observations), expected, equal_nan=True)

        policy, graph = self.policy, _GRAPHS.pop(self.policy, None)
        # What a graph has fixed: the memory of the parameters, the shape of the observations
        memory = [(x.data_ptr(), x.shape, x.stride()) for x in chain(policy.parameters(), policy.buffers())]
        key = (self.kind, observations.shape, observations.strides, observations.dtype, memory)
        try:
            if graph is None or graph.key != key or not gives_it(graph):
                graph = None  # before the next one: this frees its memory
                with th.inference_mode(False), th.no_grad():  # torch could not use its own tensors of inference mode again
                    graph = ForwardGraph(self.forward, observations, policy.device, key)
                if not gives_it(graph):
                    raise RuntimeError("its result is not the policy's, to the bit")
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"the policy plays without the CUDA graph that use_cuda_graph asks for: {reason}", stacklevel=2)
            return None
        _GRAPHS[policy] = graph
        return graph


def page_locked(tensor: th.Tensor) -> th.Tensor:
    """:return: a copy in page-locked memory, from which a GPU copies by itself"""
    return tensor.pin_memory()


def record(function: Callable[[], th.Tensor], device: th.device) -> tuple[Callable[[], None], th.Tensor]:
    """:return: what launches the function's kernels again, and the tensor that then has its result"""
    # Left even where recording fails, so that the stream in use is again the one that was
    with th.cuda.device(device), th.cuda.stream(th.cuda.current_stream(device)):
        # As torch's page on CUDA graphs says: run it on another stream first, where libraries make what they need.
        stream = th.cuda.Stream(device)
        stream.wait_stream(th.cuda.current_stream(device))
        with th.cuda.stream(stream):
            for _ in range(3):
                function()
        th.cuda.current_stream(device).wait_stream(stream)
        graph = th.cuda.CUDAGraph()
        # Other threads, such as those that send logs, may use the GPU meanwhile.
        with th.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = function()
    return graph.replay, result
