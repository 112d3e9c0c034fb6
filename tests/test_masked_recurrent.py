"""Memory and masks at once: the expected update is the exact gradient, and states are carried wherever the policy acts."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy as masked_evaluate_policy
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_reinforce.episodic
from sb3_reinforce import REINFORCE
from sb3_reinforce.bias import MDP, Trajectory
from sb3_reinforce.rollout.sampling import NumpySampler, TorchSampler, make_sampler
from sb3_reinforce.update.rows import Rows
from tests.envs import ScriptedEnv, collect, scripted_sampler
from tests.masked_envs import ACTION_SPACES, GivenMasks, strict
from tests.test_recurrent_gradient import GAMMA, OBSERVATION, model_of, parameters_of

pytest.importorskip("sb3_contrib")

# As ALIASED of test_recurrent_gradient.py, with a third action; each state forbids one. States 2 and 3 look alike.
ALIASED = MDP(
    transitions=[
        [[0, 0, 0.6, 0], [0, 0, 0.3, 0], [0, 0, 0.9, 0]],
        [[0, 0, 0, 0.7], [0, 0, 0, 0.5], [0, 0, 0, 0.8]],
        [[0.0] * 4] * 3,
        [[0.0] * 4] * 3,
    ],
    rewards=[[0.5, 0.0, 3.0], [3.0, 0.3, 0.0], [2.0, 3.0, -1.0], [-1.0, 3.0, 2.0]],
    start=[0.4, 0.6, 0.0, 0.0],
    horizon=2,
)
MASKS = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 1]], dtype=bool)
ALLOWED = [t for t in ALIASED.trajectories() if MASKS[t.states, t.actions].all()]


class AliasedEnv(ScriptedEnv):
    def __init__(self) -> None:
        super().__init__(ALIASED)
        self.observation_space = spaces.Box(0, 1, (3,), np.float32)

    def _observation(self, t: int) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[OBSERVATION[self.trajectory.states[t]]]

    def action_masks(self) -> np.ndarray:
        return MASKS[self.trajectory.states[self.t]]


def log_probability(model: REINFORCE, trajectory: Trajectory) -> th.Tensor:
    """
    log of the probability of the actions, step by step through the policy's own method with its state carried along, where the
    forbidden logits are left out by hand.
    """
    states = (th.zeros(1, 1, 3, dtype=th.float64),) * 2
    total = th.zeros((), dtype=th.float64)
    for state, action in zip(trajectory.states, trajectory.actions, strict=True):
        observation = th.eye(3)[OBSERVATION[state]][None]
        distribution, states = model.policy.get_distribution(observation, states, th.zeros(1))
        logits = distribution.distribution.logits[0]
        total = total + logits[action] - logits[th.as_tensor(MASKS[state])].logsumexp(0)
    return total


def exact_gradient(model: REINFORCE) -> th.Tensor:
    expected_return = sum(
        episode.env_probability
        * th.exp(log_probability(model, episode))
        * sum(GAMMA**t * reward for t, reward in enumerate(episode.rewards))
        for episode in ALLOWED
    )
    return th.cat([g.flatten() for g in th.autograd.grad(expected_return, parameters_of(model))])


def expected_update(monkeypatch: Any, **kwargs: Any) -> tuple[th.Tensor, REINFORCE]:
    """The exact expectation of the update over all batches of two episodes, and the model."""
    env = DummyVecEnv([AliasedEnv])
    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", scripted_sampler(env))
    model = model_of(env, policy="MaskableMlpLstmPolicy", n_episodes=2, **kwargs)
    weight_of = [t.env_probability * log_probability(model, t).exp().item() for t in ALLOWED]
    assert sum(weight_of) == pytest.approx(1.0, abs=1e-12)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    start = [parameter.detach().clone() for parameter in parameters_of(model)]
    expected: Any = 0.0
    for pair in itertools.product(range(len(ALLOWED)), repeat=2):
        env.envs[0].unwrapped.script = [ALLOWED[i] for i in pair]
        collect(model).train()
        change = th.cat([(p.detach() - q).flatten() for p, q in zip(parameters_of(model), start, strict=True)])
        model.policy.load_state_dict(before)
        expected = expected + weight_of[pair[0]] * weight_of[pair[1]] * change
    return expected, model


@pytest.mark.parametrize("kwargs", [dict(), dict(baseline="optimal", chunk_size=1)], ids=["none", "optimal"])
def test_the_expected_update_is_exact(monkeypatch, kwargs):
    expected, model = expected_update(monkeypatch, **kwargs)
    th.testing.assert_close(expected, exact_gradient(model), atol=1e-6, rtol=0)


def test_a_score_without_the_mask_is_caught(monkeypatch):
    samples = Rows.samples
    monkeypatch.setattr(Rows, "samples", lambda self, rows: replace(samples(self, rows), action_masks=None))
    expected, model = expected_update(monkeypatch)
    assert (expected - exact_gradient(model)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ACTION_SPACES)
@pytest.mark.parametrize("arguments", [dict(), dict(natural_gradient=True), dict(baseline="greedy", n_episodes=2)])
def test_no_forbidden_action_is_played(kind, arguments):
    """The environment raises at one: while training, and in both libraries' evaluations."""
    small = dict(policy_kwargs=dict(net_arch=[4], lstm_hidden_size=4), seed=0, device="cpu")
    model = REINFORCE("MaskableMlpLstmPolicy", strict(n_envs=2, kind=kind), **{"n_steps": 20, **small, **arguments}).learn(60)
    evaluate_policy(model, strict(n_envs=2, kind=kind), n_eval_episodes=4, warn=False)
    masked_evaluate_policy(model, strict(n_envs=2, kind=kind), n_eval_episodes=4, warn=False)


@pytest.mark.parametrize(("policy", "source"), [("MaskableCnnLstmPolicy", "method"), ("MaskableMultiInputLstmPolicy", "key")])
def test_images_and_dicts(policy, source):
    if source == "key":
        env: Any = strict("key")
    else:

        class Image(GivenMasks):
            observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)

            def reset(self, **kwargs):
                return np.zeros((1, 36, 36), np.uint8), super().reset(**kwargs)[1]

            def step(self, action):
                assert action == 2
                return (np.zeros((1, 36, 36), np.uint8), *super().step(action)[1:])

        env = DummyVecEnv([lambda: Image([[0, 0, 1]])])
    model = REINFORCE(policy, env, n_steps=8, policy_kwargs=dict(lstm_hidden_size=4), seed=0, device="cpu").learn(8)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)


def test_numpy_and_torch_draw_the_same():
    model = REINFORCE("MaskableMlpLstmPolicy", strict(n_envs=6), policy_kwargs=dict(lstm_hidden_size=5), seed=0, device="cpu")
    rng = np.random.default_rng(0)
    samplers = [
        make_sampler(model.policy, 6, np.random.default_rng(1)),
        TorchSampler(model.policy, np.random.default_rng(1), 6),
    ]
    assert isinstance(samplers[0], NumpySampler)
    masks = np.tile([True, False, True, True], (6, 1))
    for step in range(8):
        observations = 3 * rng.standard_normal((6, 3)).astype(np.float32)
        first, second = (sampler(observations, masks) for sampler in samplers)
        np.testing.assert_array_equal(first, second)
        for sampler in samplers:
            sampler.start_episodes(np.arange(6) == step)


class Remembers(GivenMasks):
    """The first observation tells which of two actions pays in the last step; a third one is always forbidden."""

    def __init__(self) -> None:
        super().__init__([[1, 1, 0]], length=3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        _, info = super().reset(seed=seed)
        self.cue = int(self.np_random.integers(2))
        return np.full(1, 2.0 * self.cue - 1, np.float32), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert action != 2
        _, _, ended, _, info = super().step(action)
        return np.zeros(1, np.float32), float(ended and action == self.cue), ended, False, info


def test_memory_is_carried_in_evaluations():
    """
    Without memory every policy scores 0.5. sb3-contrib's evaluate_policy does not pass the state on (it takes it by another
    name): it is read there.
    """
    env = DummyVecEnv([Remembers] * 8)
    model = REINFORCE(
        "MaskableMlpLstmPolicy", env, n_episodes=32, learning_rate=0.03, gamma=1.0, seed=0, device="cpu",
        policy_kwargs=dict(lstm_hidden_size=8, net_arch=[]),
    )  # fmt: skip
    callback = MaskableEvalCallback(DummyVecEnv([Remembers]), eval_freq=100, n_eval_episodes=20, verbose=0, warn=False)
    model.learn(6000, callback=callback)
    assert callback.best_mean_reward == 1.0
    assert evaluate_policy(model, DummyVecEnv([Remembers] * 2), n_eval_episodes=20, warn=False)[0] == 1.0
    assert masked_evaluate_policy(model, DummyVecEnv([Remembers] * 2), n_eval_episodes=20, warn=False)[0] == 1.0


def test_saved_models(tmp_path):
    """No trust is needed, and the same actions come out."""
    model = REINFORCE("MaskableMlpLstmPolicy", strict(), n_steps=20, seed=0, device="cpu").learn(20)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", strict())
    observation, state, masks = np.ones((1, 3), np.float32), None, np.array([[1, 0, 1, 1]])
    loaded_state = None
    for _ in range(4):
        action, state = model.predict(observation, state, np.zeros(1), True, action_masks=masks)
        other, loaded_state = loaded.predict(observation, loaded_state, np.zeros(1), True, action_masks=masks)
        assert action == other
        np.testing.assert_array_equal(state, loaded_state)
    loaded.learn(20)
