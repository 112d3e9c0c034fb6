"""Policies with memory: states while playing, whole episodes in the update, values, and what is refused."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import sb3_reinforce.update.sequences
from sb3_reinforce import REINFORCE, GradientDiagnostics, compare_baselines
from sb3_reinforce.baselines import BASELINES
from sb3_reinforce.estimate import values_of_rollout
from sb3_reinforce.natural_gradient import FisherProduct, flatten
from sb3_reinforce.rollout.sampling import NumpySampler, TorchSampler, make_sampler, needs_torch
from sb3_reinforce.update.likelihood import distribution_of, log_prob_and_entropy, predict_values
from sb3_reinforce.update.rows import Rows, chunks
from sb3_reinforce.update.sequences import outputs_of
from sb3_reinforce.update.steps import Sequences, sequences_of
from tests.envs import BOX, Random, RewardListEnv, collect, played, rows_of

pytest.importorskip("sb3_contrib")
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

TINY = dict(lstm_hidden_size=4, net_arch=[5])
KINDS = {
    "own critic": {},
    "shared": dict(shared_lstm=True, enable_critic_lstm=False),
    "no critic": dict(enable_critic_lstm=False, n_lstm_layers=2),
    "separate features": dict(share_features_extractor=False, lstm_kwargs=dict(bias=False)),
}
ACTIONS = [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]


def model_of(action_space: spaces.Space = ACTIONS[1], n_envs: int = 1, **kwargs: Any) -> REINFORCE:
    env = DummyVecEnv([lambda: Random(BOX, action_space)] * n_envs)
    policy_kwargs = {**TINY, **kwargs.pop("policy_kwargs", {})}
    kwargs.setdefault("n_episodes", 6)
    policy = kwargs.pop("policy", "MlpLstmPolicy")
    model = REINFORCE(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **kwargs)
    model._setup_learn(10**9)
    return model


def by_single_steps(policy: Any, observations: th.Tensor, lengths: list[int], critic: bool = False) -> list[Any]:
    """Of each step what sb3-contrib's own methods give, one step at a time, with a state that starts at zero."""
    layers, _, size = policy.lstm_hidden_state_shape
    found, row = [], 0
    for length in lengths:
        states = (th.zeros(layers, 1, size),) * 2
        for _ in range(length):
            observation, start = observations[row][None], th.zeros(1)
            if critic:
                found.append(policy.predict_values(observation, states, start)[0, 0])
                if policy.lstm_critic is not None:
                    features = policy.extract_features(observation)
                    features = features if policy.share_features_extractor else features[1]
                    _, states = policy._process_sequence(features, states, start, policy.lstm_critic)
                else:
                    _, states = policy.get_distribution(observation, states, start)
            else:
                distribution, states = policy.get_distribution(observation, states, start)
                found.append(copy.copy(distribution))
            row += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_sb3_contribs_steps(kind):
    """Log-probabilities and values of whole episodes, whatever their order and number, and in chunks."""
    model = collect(model_of(policy_kwargs=KINDS[kind]))
    rows, policy = rows_of(model), model.policy
    lengths = model.rollout.lengths.tolist()
    assert len(set(lengths)) > 2
    data = rows.samples(rows.all)
    policy.set_training_mode(False)
    with th.no_grad():
        steps = by_single_steps(policy, data.observations, lengths)
        expected = th.stack([d.log_prob(a.long())[0] for d, a in zip(steps, data.actions, strict=True)])
        log_prob, entropy = log_prob_and_entropy(policy, data)
        th.testing.assert_close(log_prob, expected, atol=1e-6, rtol=1e-5)
        th.testing.assert_close(entropy, th.stack([d.entropy()[0] for d in steps]), atol=1e-6, rtol=1e-5)
        values = th.stack(by_single_steps(policy, data.observations, lengths, critic=True))
        th.testing.assert_close(predict_values(policy, data), values, atol=1e-6, rtol=1e-5)

        shuffled = rows.sequences.rows_of(np.array([4, 0, 5]))
        th.testing.assert_close(
            log_prob_and_entropy(policy, rows.samples(shuffled))[0], expected[shuffled], atol=1e-6, rtol=1e-5
        )
        parts = [log_prob_and_entropy(policy, rows.samples(chunk))[0] for chunk in chunks(rows.all, 3, rows.sequences)]
        th.testing.assert_close(th.cat(parts), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lengths", [[1], [3, 1, 3], [1, 2, 9, 4, 4, 1], [5] * 4])
def test_outputs(lengths):
    lstm, inputs = nn.LSTM(2, 3, num_layers=2), th.randn(sum(lengths), 2)
    expected = th.cat([lstm(part[:, None])[0][:, 0] for part in inputs.split(lengths)])
    for cut in (None, 1, 2, 4):
        th.testing.assert_close(outputs_of(lstm, inputs, Sequences(np.array(lengths), cut)), expected, atol=1e-6, rtol=1e-5)


def test_bptt_steps_cuts_the_gradient():
    """Windows are counted from the episode's start: with two steps, step 3 reaches back to step 2 and no further."""
    lstm, inputs = nn.LSTM(2, 3), th.randn(4, 2, requires_grad=True)
    for cut, reached in ((None, [0, 1, 2, 3]), (2, [2, 3]), (1, [3]), (3, [3])):
        last = outputs_of(lstm, inputs, Sequences(np.array([4]), cut))[-1]
        gradient = th.autograd.grad(last.sum(), inputs)[0].abs().sum(1)
        assert gradient.nonzero().flatten().tolist() == reached


def test_bptt_steps_reach_the_update():
    whole, cut = (collect(model_of(bptt_steps=bptt_steps)) for bptt_steps in (None, 1))
    before = flatten(list(whole.policy.lstm_actor.parameters())).detach().clone()
    for model in (whole, cut):
        model.train()
    first, second = (flatten(list(model.policy.lstm_actor.parameters())) - before for model in (whole, cut))
    assert not th.equal(first, second)
    recurrent = [name for name, _ in whole.policy.lstm_actor.named_parameters() if name.startswith("weight_hh")]
    assert [bool(getattr(cut.policy.lstm_actor, name).grad.any()) for name in recurrent] == [True]


@pytest.mark.parametrize("space", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("kwargs", [{}, dict(n_lstm_layers=2, lstm_kwargs=dict(bias=False))])
def test_samplers(space, kwargs):
    """NumPy and torch carry the same states, which start at zero with each environment's episodes."""
    policy, rng = model_of(space, policy_kwargs=kwargs).policy, np.random.default_rng(0)
    assert needs_torch(policy) is None
    by_numpy, by_torch = (make(policy, np.random.default_rng(1)) for make in (numpy_sampler, torch_sampler))
    history: list[list[np.ndarray]] = [[], [], []]
    for starts in ([0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]):
        for i in np.flatnonzero(starts):
            history[i].clear()
        by_numpy.start_episodes(np.array(starts, dtype=bool))
        by_torch.start_episodes(np.array(starts, dtype=bool))
        observations = rng.normal(size=(3, 3)).astype(np.float32)
        for seen, observation in zip(history, observations, strict=True):
            seen.append(observation)
        alone = [by_single_steps(policy, th.as_tensor(np.stack(seen)), [len(seen)])[-1] for seen in history]
        modes = np.stack([one.mode().detach().numpy().reshape(space.shape) for one in alone])
        np.testing.assert_allclose(by_numpy.greedy(observations), modes, atol=2e-6)
        np.testing.assert_allclose(by_torch.greedy(observations), modes, atol=2e-6)


def numpy_sampler(policy: Any, rng: np.random.Generator) -> NumpySampler:
    return NumpySampler(policy, 3, rng)


def torch_sampler(policy: Any, rng: np.random.Generator) -> TorchSampler:
    return TorchSampler(policy, rng, 3)


def test_samplers_draw_alike():
    policy, observations = model_of(spaces.Discrete(3)).policy, np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    drawn = []
    for make in (numpy_sampler, torch_sampler):
        sampler = make(policy, np.random.default_rng(1))
        drawn.append([sampler(observations).tolist() for _ in range(30)])
    assert drawn[0] == drawn[1]


def test_numpy_is_for_the_plain_lstm_alone():
    class Own(RecurrentActorCriticPolicy):
        pass

    class OwnLstm(nn.LSTM):
        pass

    assert "policy class Own" in (needs_torch(model_of(policy=Own).policy) or "")
    policy = model_of().policy
    policy.lstm_actor.__class__ = OwnLstm
    assert needs_torch(policy) == "memory OwnLstm"
    assert isinstance(make_sampler(model_of().policy, 2, np.random.default_rng(0)), NumpySampler)


def test_memory_starts_with_each_episode_of_a_rollout():
    """The log-probabilities of a whole rollout by the update's sequences are those that were drawn from."""
    model = model_of(n_envs=2, n_episodes=8)
    drawn: list[Any] = []
    sampler: Any = None

    def remember(policy: Any, n_envs: int, rng: Any, with_values: bool) -> Any:
        nonlocal sampler
        sampler = NumpySampler(policy, n_envs, rng)
        parameters = sampler.distribution_parameters
        sampler.distribution_parameters = lambda obs: drawn.append(parameters(obs).copy()) or drawn[-1]
        return sampler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sb3_reinforce.episodic, "make_sampler", remember)
        collect(model)
    rows = rows_of(model)
    with th.no_grad():
        logits = distribution_of(model.policy, rows.samples(rows.all)).distribution.logits.numpy()
    for (env_index, start, end), row in zip(
        model.rollout.episodes[["env_index", "start", "end"]].tolist(), np.cumsum(rows.sequences.lengths), strict=True
    ):
        of_episode = np.stack([step[env_index] for step in drawn[start:end]])
        of_episode -= np.log(np.exp(of_episode).sum(1, keepdims=True))
        np.testing.assert_allclose(logits[row - (end - start) : row], of_episode, atol=2e-6)


def test_values_behind_time_limits():
    """V of the last observation knows the whole episode; an episode that the task has ended has none."""
    env = DummyVecEnv([lambda: RewardListEnv([1.0, 2.0, 3.0], truncated=True), lambda: RewardListEnv([1.0, 2.0])])
    model = REINFORCE("MlpLstmPolicy", env, n_episodes=2, seed=0, device="cpu", gamma=0.5, policy_kwargs=dict(TINY))
    model._setup_learn(10**9)
    collect(model)
    episodes = model.batch.episodes
    with th.no_grad():
        observations = th.tensor([0.0, 1, 2, 3, 0, 1])[:, None].repeat(1, 2)
        values = th.stack(by_single_steps(model.policy, observations, [4, 2], critic=True)).double()
    th.testing.assert_close(episodes.values, values[[0, 1, 2, 4, 5]], atol=1e-6, rtol=0)
    # R_2 = 3 + V/2, R_1 = 2 + R_2/2, R_0 = 1 + R_1/2; of the other 2 and 1 + 2/2
    rest = [2.75 + float(values[3]) / 8, 3.5 + float(values[3]) / 4, 3 + float(values[3]) / 2]
    np.testing.assert_allclose(episodes.returns, [*rest, 2.0, 2.0], atol=1e-6)
    none, last = values_of_rollout(
        replace(model.rollout, last_observations={}), model.policy, episodes.observations, None, False
    )
    assert none is None
    assert not last.any()


def test_the_value_network_is_fitted_by_sequences():
    model = model_of(n_episodes=6, baseline="value", value_learning_rate=0.05, n_value_epochs=1)
    own = {name for name, p in model.policy.named_parameters() if any(p is q for q in model._value_fit.parameters)}
    assert {name.split(".")[0] for name in own} == {"lstm_critic", "mlp_extractor", "value_net"}
    collect(model)
    rows = rows_of(model)

    def error() -> float:
        with th.no_grad():
            data = rows.samples(rows.all)
            return float((predict_values(model.policy, data) - data.returns).square().mean())

    before, actor = error(), flatten(list(model.policy.lstm_actor.parameters())).detach().clone()
    model._value_fit.fit(rows, np.random.default_rng(0), model.value_optimizer, 0.0, 60, 8)
    assert error() < 0.3 * before
    assert th.equal(actor, flatten(list(model.policy.lstm_actor.parameters())))


def test_chunks_never_cut_an_episode():
    episodes = Sequences(np.array([2, 1, 5, 1, 1]))
    assert list(chunks(slice(0, 10), 3, episodes)) == [slice(0, 3), slice(3, 8), slice(8, 10)]
    assert list(chunks(slice(0, 10), 1, episodes)) == [slice(0, 2), slice(2, 3), slice(3, 8), slice(8, 9), slice(9, 10)]
    assert list(chunks(slice(0, 10), None, episodes)) == [slice(0, 10)]
    order = episodes.rows_of(np.array([2, 0]))
    assert order.tolist() == [3, 4, 5, 6, 7, 0, 1]
    assert episodes.at(order).lengths.tolist() == [5, 2]
    assert [part.tolist() for part in chunks(order, 4, episodes.at(order))] == [[3, 4, 5, 6, 7], [0, 1]]


def test_minibatches_are_whole_episodes():
    """Each episode is in one minibatch of a pass, in any with the same probability. The divisor is the same for all."""
    model = collect(model_of(n_episodes=6))
    rows = rows_of(model)
    lengths = rows.sequences.lengths
    size = -(-rows.n_rows // 3)
    counts = np.zeros((3, 6))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        minibatches = list(rows.minibatches(size, rng))
        assert [n for _, n in minibatches] == [rows.n_rows / 3] * 3
        assert sorted(np.concatenate([part for part, _ in minibatches])) == list(range(rows.n_rows))
        for k, (part, _) in enumerate(minibatches):
            episodes = np.unique(np.repeat(np.arange(6), lengths)[part])
            assert len(part) == lengths[episodes].sum()
            counts[k, episodes] += 1
    assert np.abs(counts / 2000 - 1 / 3).max() < 0.05  # 1.1 % is a standard error
    alone = Rows(model.rollout_buffer, [rows.n_rows], None, Sequences(np.array([rows.n_rows])))
    assert sorted(len(part) for part, _ in alone.minibatches(size, rng)) == [0, 0, rows.n_rows]


def test_fisher_products():
    """F v through the LSTM: the mean over the steps of the covariance of the score, over the actions that were possible."""
    model = collect(model_of(baseline="none", policy_kwargs=dict(lstm_hidden_size=2, net_arch=[])))
    model.policy.set_training_mode(False)
    rows = rows_of(model)
    parameters = [*model.policy.lstm_actor.parameters(), *model.policy.action_net.parameters()]
    expected: Any = 0.0
    data = rows.samples(rows.all)
    for action in range(3):
        actions = th.full_like(data.actions, action)
        log_prob = log_prob_and_entropy(model.policy, replace(data, actions=actions))[0]
        for row in range(rows.n_rows):
            score = flatten(th.autograd.grad(log_prob[row], parameters, retain_graph=True)).double()
            expected = expected + log_prob[row].exp().item() * th.outer(score, score) / rows.n_rows
    product = FisherProduct(model.policy, rows, parameters)
    vector = th.randn(len(expected), generator=th.Generator().manual_seed(0))
    th.testing.assert_close(product(vector).double(), expected @ vector.double(), atol=1e-5, rtol=1e-3)
    assert product.kl() == pytest.approx(0.0, abs=1e-6)


def test_natural_gradient_steps_as_far_as_asked():
    model = collect(model_of(natural_gradient=True, target_kl=0.01, cg_max_steps=20, cg_damping=1e-3))
    rows = rows_of(model)
    data = rows.samples(rows.all)
    model.policy.set_training_mode(False)
    before = copy.copy(distribution_of(model.policy, data))
    model.train()
    kl = kl_divergence(before, distribution_of(model.policy, data)).mean().item()
    assert 0.005 < kl < 0.015


@pytest.mark.parametrize("baseline", BASELINES)
def test_all_baselines(baseline):
    model = model_of(n_envs=2, n_episodes=2 if baseline == "greedy" else 4, baseline=baseline)
    model.learn(1, callback=GradientDiagnostics(1))
    assert np.isfinite(model.logger.name_to_value["gradient/variance"])


class Boxed(RewardListEnv):
    action_space = BOX


def test_greedy_episodes_carry_states(monkeypatch):
    """The greedy policy's episode is the one that predict() plays with its state."""
    env = DummyVecEnv([lambda: Boxed([0.0] * 4)])
    model = REINFORCE("MlpLstmPolicy", env, n_episodes=1, seed=0, device="cpu", baseline="greedy", policy_kwargs=dict(TINY))
    greedy, played_greedily = NumpySampler.greedy, []

    def noted(sampler: NumpySampler, observations: Any, masks: Any = None) -> np.ndarray:
        played_greedily.append(greedy(sampler, observations).copy())
        return played_greedily[-1]

    monkeypatch.setattr(NumpySampler, "greedy", noted)
    model._setup_learn(10**9)
    collect(model)
    observations, state = env.reset(), None
    for t, action in enumerate(played_greedily):
        without_memory, _ = model.predict(observations, None, np.ones(1, dtype=bool), deterministic=True)
        expected, state = model.predict(observations, state, np.array([t == 0]), deterministic=True)
        np.testing.assert_allclose(action, expected, atol=1e-6)
        assert (np.abs(action - without_memory).max() > 1e-5) == (t > 0)
        observations, *_ = env.step(action)
    assert len(played_greedily) == 4


def test_compare_baselines(monkeypatch):
    monkeypatch.setattr(sb3_reinforce.compare, "VALUE_FIT_STEPS", 5)
    comparison = compare_baselines("CartPole-v1", model_of_cartpole(), n_episodes=4, n_bootstrap=20)
    assert all(np.isfinite(row.variance) for row in comparison.rows)
    assert {row.name for row in comparison.rows} == set(BASELINES)


def model_of_cartpole() -> REINFORCE:
    return REINFORCE("MlpLstmPolicy", "CartPole-v1", device="cpu", n_episodes=2, policy_kwargs=dict(TINY), bptt_steps=7)


class OwnForward(RecurrentActorCriticPolicy):
    def get_distribution(self, obs, lstm_states, episode_starts):
        return super().get_distribution(-obs, lstm_states, episode_starts)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(policy="MlpPolicy", bptt_steps=4), "bptt_steps is for a recurrent policy, got 4 and MlpPolicy: leave it out"),
        (dict(bptt_steps=0), "bptt_steps must be a whole number >= 1 or None, got 0"),
        (dict(unfinished="bootstrap", n_episodes=None), 'recurrent policy needs unfinished="finish".* got MlpLstmPolicy'),
        (dict(policy_kwargs=dict(lstm_kwargs=dict(bidirectional=True))), "lstm_kwargs must not have 'bidirectional'"),
        (dict(policy_kwargs=dict(lstm_kwargs=dict(proj_size=2))), "lstm_kwargs must not have 'proj_size'"),
        (dict(policy_kwargs=dict(shared_lstm=True)), "MlpLstmPolicy cannot be made with .*shared LSTM"),
        (dict(policy_kwargs=dict(lstm_size=2)), "MlpLstmPolicy has no 'lstm_size'"),
        (dict(policy=OwnForward), r"must leave get_distribution\(\) as it is in RecurrentActorCriticPolicy.* got OwnForward"),
        (dict(policy="CnnLstmPolicy"), "CnnLstmPolicy is for images, got Box"),
    ],
)
def test_refused(kwargs, message):
    kwargs = {"policy": "MlpLstmPolicy", "n_episodes": 2, **kwargs}
    policy_kwargs = kwargs.pop("policy_kwargs", {})
    with pytest.raises(ValueError, match=message):
        REINFORCE(kwargs.pop("policy"), Random(BOX, BOX), policy_kwargs=policy_kwargs, **kwargs)


def test_without_sb3_contrib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sb3_contrib.common.recurrent.policies", None)
    with pytest.raises(
        ValueError, match=r'^policy \'MlpLstmPolicy\' needs sb3-contrib: pip install "sb3-reinforce\[contrib\]"$'
    ):
        REINFORCE("MlpLstmPolicy", Random(BOX, BOX), n_episodes=2)


def test_default_chunk_size_of_memory():
    model = played(BOX, spaces.Discrete(2), policy="MlpLstmPolicy", policy_kwargs=dict(lstm_hidden_size=4))
    assert model._default_chunk_size > 2**14
    assert sequences_of(model.policy, [1, 2]).lengths.tolist() == [1, 2]
    assert sequences_of(played(BOX, spaces.Discrete(2)).policy, [1, 2]) is None
