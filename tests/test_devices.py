"""Which device ``device="auto"`` is. torch's ``meta`` device, which computes no numbers, stands for a GPU here."""

import io

import pytest
import torch as th
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.sampling import needs_torch
from sb3_reinforce.running import ranks
from tests.envs import RewardListEnv


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ranks, "own_gpu", lambda: "meta")


def image_env() -> DummyVecEnv:
    return DummyVecEnv([lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)])


def devices(model: REINFORCE) -> set[str]:
    """Of all that has one."""
    return {str(model.device), str(model.rollout_buffer.device), *(str(p.device) for p in model.policy.parameters())}


CASES = {
    "an MLP": ("MlpPolicy", lambda: RewardListEnv([1.0]), {}, "cpu"),
    "a CNN": ("CnnPolicy", image_env, {}, "meta"),
    "images among other observations": ("MultiInputPolicy", SimpleMultiObsEnv, {}, "meta"),
    "the CPU asked for": ("CnnPolicy", image_env, {"device": "cpu"}, "cpu"),
}


@pytest.mark.parametrize("policy, env, kwargs, expected", CASES.values(), ids=CASES)
def test_auto_is_a_gpu_for_convolutions(policy, env, kwargs, expected, gpu, capsys):
    model = REINFORCE(policy, env(), n_steps=4, seed=0, verbose=1, **kwargs)
    assert devices(model) == {expected}
    assert ("Using meta device for the policy's convolutions" in capsys.readouterr().out) == (expected == "meta")


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_load_chooses_anew(gpu, monkeypatch):
    file = io.BytesIO()
    with monkeypatch.context() as without_gpu:
        without_gpu.setattr(th.cuda, "is_available", lambda: False)
        model = REINFORCE("CnnPolicy", image_env(), n_steps=4, baseline="none")
        assert devices(model) == {"cpu"}
        model.save(file)
    assert devices(REINFORCE.load(file)) == {"meta"}
    assert devices(REINFORCE.load(file, device="cpu")) == {"cpu"}


def test_the_device_is_no_reason_to_sample_by_torch():
    """NumPy samples by a copy of the parameters, made for each rollout."""
    policy = REINFORCE("MlpPolicy", RewardListEnv([1.0]), device="cpu").policy
    assert needs_torch(policy.to("meta")) is None
    assert needs_torch(nn.Linear(1, 1)) == "policy class Linear"
