"""What trains on a GPU, by a device that stands for one: nothing mixes devices, and the numbers are those of the CPU."""

import io

import numpy as np
import pytest
import torch as th

from sb3_reinforce import REINFORCE, GradientDiagnostics, TrainingCheckpoint, compare_baselines
from sb3_reinforce.rollout import frames
from sb3_reinforce.running import checkpoint_schema, ranks
from tests.envs import parameters
from tests.fake_gpu import GPU, FakeGpu
from tests.test_extractor import made as image_model
from tests.test_frames import made as frames_model
from tests.test_frames import stacked_env

WARNINGS = ".*copying from a non-meta parameter", "You are trying to run REINFORCE on the GPU", "the environments do not begin"
pytestmark = [pytest.mark.filterwarnings(f"ignore:{warning}") for warning in WARNINGS]


@pytest.fixture
def gpu(monkeypatch):
    """
    :return: a context in which ``device="auto"`` is a GPU for policies with convolutions. Their updates use torch's number of
        threads on the CPU, and one on a GPU: for equal bits it is one in both
    """

    class Gpu(FakeGpu):
        def __enter__(self):
            monkeypatch.setattr(th.cuda, "is_available", lambda: True)
            monkeypatch.setattr(ranks, "own_gpu", lambda: str(GPU))
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            monkeypatch.undo()

    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    yield Gpu
    th.set_num_threads(n_threads)


def test_the_device_is_as_strict_as_a_gpu(gpu):
    with gpu():
        x, y = th.ones(3, device=GPU), th.ones(3)
        assert (x + x.cpu().to(GPU)).sum().item() == 6
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            x + y
        with pytest.raises(RuntimeError):
            x.numpy()
        assert (x + y.sum())[th.tensor([0])].tolist() == [4]


CASES = {
    "default": {},
    "none": dict(baseline="none"),
    "minibatches": dict(n_epochs=2, batch_size=8, value_batch_size=8, normalize_advantage=True),
    "optimal": dict(baseline="optimal"),
    "greedy": dict(baseline="greedy", n_episodes=2),
    "natural gradient": dict(natural_gradient=True),
    "own extractors": dict(policy_kwargs=dict(share_features_extractor=False, features_extractor_kwargs={"features_dim": 8})),
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_training(arguments, gpu):
    def learned(device: str) -> REINFORCE:
        return image_model(device=device, chunk_size=8, **arguments).learn(1, GradientDiagnostics(1))

    on_cpu = learned("cpu")
    with gpu():
        on_gpu = learned("auto")
        assert on_gpu.device == GPU
        assert th.equal(parameters(on_gpu).cpu(), parameters(on_cpu))
    logs = [{name: x for name, x in m.logger.name_to_value.items() if "time/" not in name} for m in (on_gpu, on_cpu)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("limit, source", [(frames.GPU_BYTES, GPU), (0, th.device("cpu"))])
def test_stacked_frames(limit, source, gpu, monkeypatch):
    """All of them copied to the GPU, or those of each chunk."""
    arguments = dict(baseline="value", chunk_size=64, policy_kwargs=dict(features_extractor_kwargs={"features_dim": 4}))
    on_cpu = frames_model(stacked_env(), **arguments).learn(1)
    with gpu():
        monkeypatch.setattr(frames, "GPU_BYTES", limit)
        on_gpu = frames_model(stacked_env(), device="auto", **arguments).learn(1)
        assert on_gpu.device == GPU
        assert type(on_gpu.rollout_buffer) is frames.FrameBuffer
        assert on_gpu.rollout_buffer.frames._source.device == source
        assert th.equal(parameters(on_gpu).cpu(), parameters(on_cpu))


def test_an_mlp_on_a_gpu_where_it_is_asked_for(gpu):
    on_cpu = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32, seed=0, device="cpu").learn(1)
    with gpu():
        on_gpu = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32, seed=0, device=str(GPU), chunk_size=4096).learn(1)
        assert on_gpu.device == GPU
        np.testing.assert_allclose(parameters(on_gpu).cpu().numpy(), parameters(on_cpu).numpy(), rtol=1e-5, atol=1e-6)
        assert compare_baselines("CartPole-v1", model=on_gpu, n_episodes=4).rows


def test_saved_and_resumed(gpu, tmp_path, monkeypatch):
    """To the bit; a checkpoint of a GPU is read to the CPU first, so that it also resumes on a machine without one."""
    arguments = dict(chunk_size=8)
    straight = image_model(**arguments).learn(100)
    with gpu():
        monkeypatch.setattr(checkpoint_schema, "MANIFEST", lambda value, where: None)  # which refuses this device
        load = th.load  # torch makes tensors without numbers of what is read to this device
        monkeypatch.setattr(th, "load", lambda file, map_location, **kwargs: load(file, map_location="cpu", **kwargs))
        model = image_model(device="auto", **arguments)
        model.learn(50, TrainingCheckpoint(tmp_path))
        file = io.BytesIO()
        model.save(file)
        loaded = REINFORCE.load(file)
        assert loaded.device == GPU
        assert th.equal(parameters(loaded).cpu(), parameters(model).cpu())
        resumed = REINFORCE.resume(tmp_path, model.env)
        assert resumed.device == GPU
        resumed.learn(100 - resumed.num_timesteps, reset_num_timesteps=False)
        assert th.equal(parameters(resumed).cpu(), parameters(straight))
        assert REINFORCE.resume(tmp_path, model.env, device="cpu").device.type == "cpu"
