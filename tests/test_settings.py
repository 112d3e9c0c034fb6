"""What ranks compare before they train: everything that shapes an update, and nothing that is each rank's own."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.baselines import Baseline, MovingAverageBaseline
from sb3_reinforce.running import exchange
from sb3_reinforce.running.settings import described
from tests.envs import RewardListEnv


class Scaled(nn.Flatten):
    """A features extractor's part with a setting that no ``repr`` shows."""

    scale: float


def make_model(norm: dict[str, Any] | None = None, **arguments: Any) -> REINFORCE:
    env = VecNormalize(DummyVecEnv([lambda: RewardListEnv([1.0, 2.0])]), **(norm or {}))
    defaults: dict[str, Any] = dict(n_steps=8, device="cpu", policy_kwargs=dict(net_arch=[4]))
    return REINFORCE("MlpPolicy", env, **{**defaults, **arguments})


def differences(one: REINFORCE, other: REINFORCE) -> dict[str, tuple[str | None, str | None]]:
    a, b = one._shared_settings(), other._shared_settings()
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


class OwnBaseline(Baseline):
    """With an argument, state, and an object inside."""

    def __init__(self, power: float = 1.0):
        self.power, self.memory, self.seen = power, {"decay": np.float64(0.5)}, 0.0

    def predict(self, episodes):
        return th.full_like(episodes.returns, self.power)

    def state_dict(self):
        return {"seen": self.seen}


@pytest.mark.parametrize(
    "arguments, name, values",
    [
        (dict(gamma=0.5), "gamma", ("0.99", "0.5")),
        (dict(max_grad_norm=None), "max_grad_norm", ("0.5", "None")),
        (dict(sde_sample_freq=4), "sde_sample_freq", ("-1", "4")),
        (dict(n_episodes=2), "n_steps or n_episodes", ("n_steps", "n_episodes")),
        # equal at the start and at the end, 2 p^2 - 2 p + 1 = 1/2 in the middle
        (dict(learning_rate=lambda p: 3e-3 * (2 * p * p - 2 * p + 1)), "learning_rate", None),
        (dict(baseline="mean"), "baseline", None),
        (dict(baseline=MovingAverageBaseline(0.8)), "baseline", None),
        (dict(policy_kwargs=dict(net_arch=[4], activation_fn=nn.ReLU)), "policy_kwargs", None),
        (dict(policy_kwargs=dict(net_arch=[5])), "policy_kwargs", ("{'net_arch': [4]}", "{'net_arch': [5]}")),
        (dict(norm=dict(norm_reward=False)), "VecNormalize.norm_reward", ("True", "False")),
        (dict(norm=dict(clip_obs=3.0)), "VecNormalize.clip_obs", ("10.0", "3.0")),
        (dict(norm=dict(gamma=0.9)), "VecNormalize.gamma", ("0.99", "0.9")),
        (dict(norm=dict(epsilon=1e-3)), "VecNormalize.epsilon", ("1e-08", "0.001")),
        (dict(norm=dict(training=False)), "VecNormalize.training", ("True", "False")),
    ],
)
def test_arguments(arguments, name, values):
    found = differences(make_model(), make_model(**arguments))
    assert next(iter(found)) == name  # the first is what an error names
    assert values in (None, found[name])


CHANGES: dict[str, tuple[Callable[[REINFORCE], Any], str]] = {
    "frozen": (lambda m: m.policy.action_net.bias.requires_grad_(False), "policy.action_net.bias.requires_grad"),
    "module": (lambda m: m.policy.mlp_extractor.policy_net.insert(1, nn.LeakyReLU(0.3)), "policy.mlp_extractor.policy_net.1"),
    "attribute": (lambda m: setattr(m.policy.features_extractor, "scale", 2.0), "policy.features_extractor.scale"),
    "class": (lambda m: setattr(m.policy.features_extractor, "flatten", Scaled()), "policy.features_extractor.flatten"),
    "gradient into the std": (lambda m: setattr(m.policy.action_dist, "learn_features", True), "policy.action_dist"),
    "optimiser": (lambda m: setattr(m, "value_optimizer", th.optim.SGD(m.policy.parameters(), 0.1)), "value_optimizer"),
    "its option": (lambda m: m.policy.optimizer.param_groups[0].update(eps=0.1), "policy.optimizer.param_groups[0]['eps']"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_later(change):
    model = make_model()
    function, name = CHANGES[change]
    function(model)
    assert any(found.startswith(name) for found in differences(make_model(), model))


def test_the_arguments_of_a_baseline_and_not_its_state():
    one, other = make_model(baseline=MovingAverageBaseline(0.9)), make_model(baseline=MovingAverageBaseline(0.8))
    assert differences(one, other) == {"baseline.decay": ("0.9", "0.8")}
    one, other = make_model(baseline=OwnBaseline()), make_model(baseline=OwnBaseline(2.0))
    one.baseline.seen = 5.0
    assert differences(one, other) == {"baseline.power": ("1.0", "2.0")}
    one.baseline.power, one.baseline.memory = 2.0, {"decay": np.float64(0.6)}
    assert differences(one, other) == {"baseline.memory": ("{'decay': 0.6}", "{'decay': 0.5}")}


def test_what_is_each_ranks_own():
    """Also after training, and of a loaded model: nothing that training changes counts."""
    own = dict(n_steps=12, max_episode_steps=50, batch_size=4, value_batch_size=3, chunk_size=2, seed=3, verbose=1)
    model = make_model(**own, baseline=OwnBaseline(), learning_rate=lambda p: 1e-3 * p)
    assert differences(make_model(baseline=OwnBaseline(), learning_rate=lambda p: 1e-3 * p), model) == {}
    trained = make_model(baseline=OwnBaseline()).learn(30)
    file = io.BytesIO()
    trained.save(file)
    file.seek(0)
    assert differences(make_model(baseline=OwnBaseline()), trained) == {}
    assert differences(REINFORCE.load(file, env=make_model().env, device="cpu", trust=True), trained) == {}


def test_the_error_names_setting_ranks_and_values(monkeypatch):
    of_ranks = [{"gamma": "0.9", "a": "1"}, {"gamma": "0.9", "a": "2"}, {"gamma": "0.9", "a": "1"}, {"gamma": "0.9"}]
    monkeypatch.setattr(exchange, "gather", lambda settings: of_ranks)
    message = "a must be the same on all ranks, got 1 on rank 0 and 2, 2 on rank 1, nothing on rank 3"
    with pytest.raises(ValueError, match=message):
        exchange.check_equal(of_ranks[0])


def test_described():
    """The same in all processes: no addresses, no order of sets; and an array's numbers count."""
    assert described({"f": make_model, "s": {2, 1}, "n": np.int64(3)}) == (
        f"{{'f': {__name__}.make_model, 's': {{1, 2}}, 'n': 3}}"
    )
    assert described(OwnBaseline()) == f"{__name__}.OwnBaseline({{'power': 1.0, 'memory': {{'decay': 0.5}}, 'seen': 0.0}})"
    assert " at 0x" not in described([lambda: 1, iter([]), object(), th.Generator()])
    assert described(np.zeros(3)) != described(np.array([0.0, 0.0, 1.0]))
    space = SimpleMultiObsEnv().observation_space
    assert described(space) == described(SimpleMultiObsEnv().observation_space)
