"""The CUDA graph of the forward pass: on a device that stands for a GPU, with a graph that repeats what was recorded."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_reinforce import use_cuda_graph
from sb3_reinforce.rollout import graphs
from sb3_reinforce.rollout.sampling import TorchSampler
from tests.envs import parameters
from tests.fake_gpu import GPU, FakeGpu, record
from tests.test_extractor import IMAGES, OwnPolicy, made

IN_WORDS = "the policy plays without the CUDA graph that use_cuda_graph asks for: "
pytestmark = pytest.mark.filterwarnings("error:the policy plays without", "ignore:You are trying to run REINFORCE on the GPU")


@pytest.fixture
def recorded(monkeypatch):
    """:return: one entry per graph that has been recorded"""
    calls = []

    def counted(function, device):
        calls.append(device)
        return record(function, device)

    monkeypatch.setattr(graphs, "DEVICE_TYPE", GPU.type)
    monkeypatch.setattr(graphs, "page_locked", th.clone)
    monkeypatch.setattr(graphs, "record", counted)
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    yield calls
    th.set_num_threads(n_threads)
    graphs._GRAPHS.clear()


@pytest.fixture
def forwards(monkeypatch):
    """:return: one entry per forward pass that Python has launched while playing"""
    calls, forward = [], TorchSampler._forward

    def counted(sampler, observations):
        calls.append(len(observations))
        return forward(sampler, observations)

    monkeypatch.setattr(TorchSampler, "_forward", counted)
    return calls


def observed(n_envs: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_envs, *IMAGES.shape), dtype=np.uint8)


def played(model, with_values: bool = True, n_envs: int = 2, n_steps: int = 3) -> bool:
    """Play some steps; :return: whether all results are those of the policy"""
    sampler = TorchSampler(model.policy, np.random.default_rng(0), n_envs, with_values)
    alone = TorchSampler(model.policy, np.random.default_rng(0), n_envs, with_values)
    alone._outputs._is_due = False
    for seed in range(n_steps):
        results = [s.distribution_parameters(observed(n_envs, seed)) for s in (sampler, alone)]
        if not np.array_equal(*results):
            return False
    return not with_values or np.array_equal(sampler.values, alone.values)


CASES = {
    "value": {},
    "none": dict(baseline="none"),
    "own extractors": dict(policy_kwargs=dict(share_features_extractor=False, features_extractor_kwargs={"features_dim": 8})),
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_training_is_the_same_to_the_bit(arguments, recorded, forwards):
    on_cpu = made(chunk_size=8, **arguments).learn(50)
    n_steps, n_rollouts = len(forwards), on_cpu._n_rollouts
    with FakeGpu():
        on_gpu = made(chunk_size=8, device=str(GPU), **arguments)
        use_cuda_graph(on_gpu)
        forwards.clear()
        on_gpu.learn(50)
        assert th.equal(parameters(on_gpu).cpu(), parameters(on_cpu))
    # Recorded once, for all rollouts; each is checked in its first step.
    assert recorded == [GPU]
    assert n_steps > 4 * n_rollouts >= 8
    assert len(forwards) == n_rollouts + 1


def test_it_sees_new_parameters_and_is_recorded_anew_for_new_memory(recorded):
    with FakeGpu():
        model = made(device=str(GPU))
        use_cuda_graph(model)
        assert played(model)
        model.policy.load_state_dict({name: 2 * tensor for name, tensor in model.policy.state_dict().items()})
        with th.no_grad():
            model.policy.action_net.bias.add_(1.0)
        assert played(model)
        assert len(recorded) == 1  # in place
        model.policy.action_net = nn.Linear(16, 3, device=GPU)
        assert played(model)
        assert len(recorded) == 2
        assert played(model, with_values=False)
        assert played(model, with_values=False, n_envs=3)
        assert len(recorded) == 4


def test_other_arithmetic_is_seen_in_the_first_step(recorded):
    with FakeGpu():
        model = made(device=str(GPU))
        use_cuda_graph(model)
        assert played(model)
        model.policy.features_extractor.cnn[1] = nn.Tanh()  # in the place of ReLU: the same memory
        assert played(model)
        assert len(recorded) == 2


def test_off_unless_asked_for(recorded):
    with FakeGpu():
        model = made(device=str(GPU))
        assert played(model)
        use_cuda_graph(model)
        use_cuda_graph(model, False)
        assert played(model)
    model = made(device="cpu")
    use_cuda_graph(model)  # which changes nothing there
    assert played(model)
    assert recorded == []


def test_a_hook_that_comes_later_is_called_in_each_step(recorded):
    calls = []
    with FakeGpu():
        model = made(device=str(GPU))
        use_cuda_graph(model)
        assert played(model)
        model.policy.action_net.register_forward_hook(lambda *_: calls.append(1))
        assert played(model, n_steps=3)
    assert len(calls) == 6


def waits(function, device):
    return record(lambda: function() + function().sum().item(), device)


def reads_nothing(function, device):
    result = function()
    return lambda: None, result


@pytest.mark.parametrize(
    "record, reason",
    [
        (waits, "operation not permitted when stream is capturing"),
        (reads_nothing, "its result is not the policy's, to the bit"),
    ],
)
def test_what_cannot_be_recorded_is_said_once_and_trains_on(record, reason, recorded, monkeypatch):
    monkeypatch.setattr(graphs, "record", record)
    on_cpu = made(chunk_size=8).learn(50)
    with FakeGpu():
        model = made(chunk_size=8, device=str(GPU))
        use_cuda_graph(model)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.learn(50)
        assert th.equal(parameters(model).cpu(), parameters(on_cpu))
    assert [str(w.message) for w in said if "CUDA graph" in str(w.message)] == [IN_WORDS + reason]


def test_a_policy_is_not_kept(recorded):
    with FakeGpu():
        model = made(device=str(GPU))
        use_cuda_graph(model)
        assert played(model)
        policy = weakref.ref(model.policy)
        del model
        gc.collect()
    assert policy() is None
    assert not graphs._GRAPHS


def with_hook():
    model = made()
    model.policy.action_net.register_forward_hook(lambda *_: None)
    return model


class OwnLayer(nn.ReLU):
    pass


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: made(OwnPolicy), "policy class OwnPolicy with CategoricalDistribution"),
        (lambda: 3, "policy class int with NoneType"),
        (with_hook, "a hook or method set on Linear"),
        (lambda: made(policy_kwargs=dict(activation_fn=OwnLayer, net_arch=[2])), "layer OwnLayer"),
    ],
)
def test_policies_with_code_of_their_own_are_refused(make, reason):
    with pytest.raises(
        ValueError, match=rf"use_cuda_graph needs a policy class of .* one array, got {reason}: train without it"
    ):
        use_cuda_graph(make())
