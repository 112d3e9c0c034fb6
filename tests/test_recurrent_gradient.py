"""
With memory, too, the expected update is the exact gradient: a POMDP whose batches are enumerated, in float64.

Variants that are known to be wrong are tested as well: each must be detected.
"""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_reinforce.reinforce
import sb3_reinforce.update.likelihood as likelihood
from sb3_reinforce import REINFORCE
from sb3_reinforce.bias import MDP, Trajectory
from sb3_reinforce.natural_gradient import flatten
from sb3_reinforce.scores import Scores
from sb3_reinforce.update.sequences import outputs_of
from sb3_reinforce.update.steps import Sequences, sequences_of, steps_of
from tests.envs import ScriptedEnv, collect, scripted_sampler

pytest.importorskip("sb3_contrib")

# An episode starts in state 0 or 1, which look different, and may go on to 2 or 3, which look alike: which action pays there
# depends on how the episode started. It has one or two steps.
ALIASED = MDP(
    transitions=[[[0, 0, 0.6, 0], [0, 0, 0.3, 0]], [[0, 0, 0, 0.5], [0, 0, 0, 0.8]], [[0.0] * 4] * 2, [[0.0] * 4] * 2],
    rewards=[[0.5, 0.0], [0.0, 0.3], [2.0, -1.0], [-1.0, 2.0]],
    start=[0.4, 0.6, 0.0, 0.0],
    horizon=2,
)
OBSERVATION = [0, 1, 2, 2]  # of each state
GAMMA = 0.8


class AliasedEnv(ScriptedEnv):
    def __init__(self):
        super().__init__(ALIASED)
        self.observation_space = spaces.Box(0, 1, (3,), np.float32)

    def _observation(self, t: int) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[OBSERVATION[self.trajectory.states[t]]]


class Convertible(FlattenExtractor):
    """In the type of the policy: SB3 makes float32 of all observations."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("like", th.zeros(()))

    def forward(self, observations):
        return super().forward(observations).to(self.like)


def model_of(env: DummyVecEnv, policy: str = "MlpLstmPolicy", **kwargs: Any) -> REINFORCE:
    """A small LSTM in float64, plain gradient ascent with step size 1, no clipping."""
    policy_kwargs = dict(
        lstm_hidden_size=3, net_arch=[], optimizer_class=th.optim.SGD, features_extractor_class=Convertible,
        **kwargs.pop("policy_kwargs", {}),
    )  # fmt: skip
    defaults: dict[str, Any] = dict(learning_rate=1.0, max_grad_norm=None, baseline="none", gamma=GAMMA, discount_state=True)
    defaults.update(kwargs)
    model = REINFORCE(policy, env, policy_kwargs=policy_kwargs, n_value_epochs=1, seed=0, device="cpu", **defaults)
    model.policy.double()
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(th.randn(parameter.shape, generator=generator, dtype=th.float64))
    model._setup_learn(10**9)
    return model


def parameters_of(model: REINFORCE) -> list[th.nn.Parameter]:
    return [*model.policy.lstm_actor.parameters(), *model.policy.action_net.parameters()]


def log_probability(model: REINFORCE, trajectory: Trajectory) -> th.Tensor:
    """log of the probability of the actions, step by step through sb3-contrib's own method, with its state carried along."""
    layers, _, size = model.policy.lstm_hidden_state_shape
    states = (th.zeros(layers, 1, size, dtype=th.float64),) * 2
    total = th.zeros((), dtype=th.float64)
    for state, action in zip(trajectory.states, trajectory.actions, strict=True):
        observation = th.eye(3)[OBSERVATION[state]][None]
        distribution, states = model.policy.get_distribution(observation, states, th.zeros(1))
        total = total + distribution.log_prob(th.tensor([action]))[0]
    return total


def exact_gradient(model: REINFORCE) -> th.Tensor:
    """Of the expected discounted return, by autograd through the probability of every possible episode."""
    expected_return = sum(
        episode.env_probability
        * th.exp(log_probability(model, episode))
        * sum(GAMMA**t * reward for t, reward in enumerate(episode.rewards))
        for episode in ALIASED.trajectories()
    )
    return flatten(th.autograd.grad(expected_return, parameters_of(model)))


def expected_update(monkeypatch: Any, n_envs: int = 1, **kwargs: Any) -> tuple[th.Tensor, REINFORCE]:
    """The exact expectation of the update over all batches of two episodes, and the model."""
    env = DummyVecEnv([AliasedEnv] * n_envs)
    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", scripted_sampler(env))
    model = model_of(env, n_episodes=2, **kwargs)
    trajectories = ALIASED.trajectories()
    weight_of = [t.env_probability * log_probability(model, t).exp().item() for t in trajectories]
    assert sum(weight_of) == pytest.approx(1.0, abs=1e-12)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    start, expected = flatten(parameters_of(model)).detach().clone(), th.zeros(())
    # The order of two episodes does not matter
    for indices in itertools.combinations_with_replacement(range(len(trajectories)), 2):
        scripts = [[trajectories[i] for i in indices]] if n_envs == 1 else [[trajectories[i]] for i in indices]
        for scripted, script in zip(env.envs, scripts, strict=True):
            scripted.unwrapped.script = script
        collect(model).train()
        probability = weight_of[indices[0]] * weight_of[indices[1]] * (1 if indices[0] == indices[1] else 2)
        expected = expected + probability * (flatten(parameters_of(model)).detach() - start)
        model.policy.load_state_dict(before)
    return expected, model


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(n_envs=2, baseline="leave_one_out"),
        dict(returns="episode", discount_state=False, baseline="optimal"),
        dict(baseline="value"),
        dict(baseline="value", policy_kwargs=dict(shared_lstm=True, enable_critic_lstm=False)),
        dict(n_envs=2, baseline="per_step", chunk_size=1, policy_kwargs=dict(enable_critic_lstm=False, n_lstm_layers=2)),
    ],
    ids=lambda kwargs: "-".join(map(str, kwargs.values())),
)
def test_the_expected_update_is_exact(monkeypatch, kwargs):
    expected, model = expected_update(monkeypatch, **kwargs)
    th.testing.assert_close(expected, exact_gradient(model), atol=1e-6, rtol=0)


def not_reset(lstm: th.nn.LSTM, inputs: th.Tensor, sequences: Sequences) -> th.Tensor:
    """The state of one episode begins the next."""
    return outputs_of(lstm, inputs, replace(sequences, lengths=np.array([len(inputs)])))


def cut(lstm: th.nn.LSTM, inputs: th.Tensor, sequences: Sequences) -> th.Tensor:
    """Sequences of one step, each from a state of zero."""
    return outputs_of(lstm, inputs, replace(sequences, lengths=np.ones(len(inputs), dtype=int)))


def gradient_cut(lstm: th.nn.LSTM, inputs: th.Tensor, sequences: Sequences) -> th.Tensor:
    """``bptt_steps=1``, whose bias is documented."""
    return outputs_of(lstm, inputs, replace(sequences, bptt_steps=1))


@pytest.mark.parametrize("wrong", [not_reset, cut, gradient_cut])
def test_wrong_sequences_are_caught(monkeypatch, wrong):
    monkeypatch.setattr("sb3_reinforce.update.sequences.outputs_of", wrong)
    expected, model = expected_update(monkeypatch)
    assert (expected - exact_gradient(model)).abs().max() > 1e-3


def test_padding_in_the_sum_is_caught(monkeypatch):
    """Shorter episodes padded by their last step, whose log-probability then counts once more."""

    def padded(policy: Any, steps: Any) -> Any:
        log_prob, entropy = likelihood.log_prob_and_entropy(policy, steps)
        lengths = th.as_tensor(steps.sequences.lengths)
        times = th.ones(len(log_prob), dtype=th.float64)
        times[lengths.cumsum(0) - 1] += lengths.max() - lengths
        return times * log_prob, entropy

    monkeypatch.setattr(sb3_reinforce.reinforce, "log_prob_and_entropy", padded)
    expected, model = expected_update(monkeypatch)
    assert (expected - exact_gradient(model)).abs().max() > 1e-3


def second_epoch(model: REINFORCE) -> th.Tensor:
    """Gradient of the loss of an epoch, sum (R - b) pi / pi_old, with the present parameters from a state of zero."""
    loss = th.zeros((), dtype=th.float64)
    env = model.env.envs[0].unwrapped
    row = 0
    for episode in env.script:
        layers, _, size = model.policy.lstm_hidden_state_shape
        states = (th.zeros(layers, 1, size, dtype=th.float64),) * 2
        for state, action in zip(episode.states, episode.actions, strict=True):
            distribution, states = model.policy.get_distribution(th.eye(3)[OBSERVATION[state]][None], states, th.zeros(1))
            ratio = th.exp(distribution.log_prob(th.tensor([action]))[0] - float(model.rollout_buffer.log_probs[row, 0]))
            loss = loss - ratio * float(model.rollout_buffer.advantages[row, 0]) / 2
            row += 1
    return flatten(th.autograd.grad(loss, parameters_of(model)))


@pytest.mark.parametrize("keeps", [False, True], ids=["recomputed", "states of the sampling policy kept"])
def test_the_second_epoch_recomputes_the_states(monkeypatch, keeps):
    """A variant that keeps what the LSTM remembered when the batch was sampled is caught."""
    env = DummyVecEnv([AliasedEnv])
    monkeypatch.setattr(sb3_reinforce.episodic, "make_sampler", scripted_sampler(env))
    model = model_of(env, n_episodes=2, n_epochs=2, learning_rate=0.05, clip_range=0.99)
    trajectories = ALIASED.trajectories()
    env.envs[0].unwrapped.script = [next(t for t in trajectories if len(t.actions) == 2), trajectories[0]]
    sampling = [parameter.detach().clone() for parameter in model.policy.lstm_actor.parameters()]
    if keeps:

        def stale(lstm: th.nn.LSTM, inputs: th.Tensor, sequences: Sequences) -> th.Tensor:
            """The first step's state by the parameters that sampled, the steps behind it from there."""
            old = th.nn.LSTM(3, 3).double()
            with th.no_grad():
                for parameter, then in zip(old.parameters(), sampling, strict=True):
                    parameter.copy_(then)
            starts = np.cumsum(sequences.lengths) - sequences.lengths
            outputs = []
            for row in range(len(inputs)):
                state = None
                if row not in starts:
                    with th.no_grad():
                        _, state = old(inputs[row - 1][None, None])
                outputs.append(lstm(inputs[row][None, None], state)[0][0, 0])
            return th.stack(outputs)

        monkeypatch.setattr("sb3_reinforce.update.sequences.outputs_of", stale)
    seen: list[th.Tensor] = []
    step = model.policy.optimizer.step

    def compare(*args: Any) -> None:
        own = flatten([parameter.grad for parameter in parameters_of(model)])
        seen.append((own - second_epoch(model)).abs().max())
        step(*args)

    monkeypatch.setattr(model.policy.optimizer, "step", compare)
    collect(model).train()
    assert len(seen) == 2
    assert (seen[1] > 1e-3) if keeps else (max(seen) < 1e-6)


def test_scores_of_sequences():
    """Sums of scores per episode and single scores, against autograd through sb3-contrib's own step."""
    env = DummyVecEnv([AliasedEnv])
    model = model_of(env, n_episodes=2)
    long = [t for t in ALIASED.trajectories() if len(t.actions) == 2]
    episodes = [long[0], long[3]]
    env.envs[0].unwrapped.script = episodes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sb3_reinforce.episodic, "make_sampler", scripted_sampler(env))
        collect(model)
    sequences = sequences_of(model.policy, model.batch.episodes.lengths)
    scores = Scores(model.policy, steps_of(model.rollout_buffer, model.batch.episodes, sequences))
    parts = list(scores.of_episodes(model.batch.episodes.lengths, th.ones(1, 4)))
    order = [f"policy.{name}" for name, p in model.policy.named_parameters() if any(p is q for q in parameters_of(model))]
    assert list(scores._parameters) == order
    for episode, part in zip(episodes, parts, strict=True):
        expected = th.autograd.grad(log_probability(model, episode), list(scores._parameters.values()))
        th.testing.assert_close(part[0, 0], flatten(expected), atol=1e-6, rtol=1e-5, check_dtype=False)
    single = scores.of_steps(slice(0, 2))
    th.testing.assert_close(single.sum(0), parts[0][0, 0], atol=1e-6, rtol=1e-5)
    norms = scores.of_steps(slice(0, 4)).square().sum(1).mean()
    assert scores.mean_square_norm() == pytest.approx(float(norms), rel=1e-6)
