"""Minibatches and chunks of the rollout buffer's rows."""

from types import SimpleNamespace

import numpy as np
import pytest
from stable_baselines3.common.envs import FakeImageEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.update import chunk_size, rows
from tests.envs import BatchNormDropout


def buffer(size: int) -> SimpleNamespace:
    """Rows asks for the number of rows, and makes the buffer flatten its arrays by a first get()."""
    return SimpleNamespace(buffer_size=size, get=lambda batch_size: iter([None]))


def test_minibatches():
    """Without a size all rows at once and in order; else each row once, shuffled, and the last minibatch has the rest."""
    all_rows = rows.Rows(buffer(7), [7], None)
    assert list(all_rows.minibatches(None, np.random.default_rng(0))) == [(slice(0, 7), 7)]
    assert list(all_rows.minibatches(7, np.random.default_rng(0))) == [(slice(0, 7), 7)]
    minibatches = list(all_rows.minibatches(3, np.random.default_rng(0)))
    assert [n_rows for _, n_rows in minibatches] == [len(part) for part, _ in minibatches] == [3, 3, 1]
    order = np.concatenate([part for part, _ in minibatches]).tolist()
    assert sorted(order) == list(range(7)) != order


def test_chunks():
    assert list(rows.chunks(slice(2, 7), 2)) == [slice(2, 4), slice(4, 6), slice(6, 7)]
    assert [chunk.tolist() for chunk in rows.chunks(np.array([5, 1, 3]), 2)] == [[5, 1], [3]]
    assert list(rows.chunks(slice(2, 7), None)) == [slice(2, 7)]
    # two chunks of three, not one of four and one of two: threads then take equally long
    assert list(rows.chunks(slice(0, 6), 4)) == [slice(0, 3), slice(3, 6)]
    assert list(rows.chunks(slice(3, 3), 4)) == []
    assert list(rows.chunks(slice(3, 3), None)) == []


@pytest.mark.parametrize(
    "sizes, batch_size, n_minibatches",
    [
        ([10, 3, 1], 4, 3),
        ([8, 8], 4, 2),
        ([1, 9], 4, 3),
        ([10, 9, 5], [4, 2, None], 5),  # each rank its own: 3, 5 and 1 are needed
        ([5, 7], [None, 7], 1),
    ],
)
def test_minibatches_of_ranks(sizes, batch_size, n_minibatches):
    """All ranks make as many as the one that needs most, none above its size, each row once; all ranks know the sum."""
    of_ranks = []
    own_sizes = batch_size if isinstance(batch_size, list) else [batch_size] * len(sizes)
    for size, largest in zip(sizes, own_sizes, strict=True):
        all_rows = rows.Rows(buffer(size), sizes, None)
        minibatches = [
            (np.arange(size)[part], total) for part, total in all_rows.minibatches(batch_size, np.random.default_rng(0))
        ]
        assert sorted(np.concatenate([part for part, _ in minibatches])) == list(range(size))
        assert max(len(part) for part, _ in minibatches) <= (largest or size)
        assert len(minibatches) == all_rows.count_minibatches(batch_size) == n_minibatches
        of_ranks.append(minibatches)
    for minibatch in zip(*of_ranks, strict=True):
        assert {total for _, total in minibatch} == {sum(len(part) for part, _ in minibatch)}


@pytest.mark.parametrize(
    ("policy", "env", "kwargs", "expected"),
    [
        # Kept of each row: 4 numbers of the observation, 2 x 64 hidden ones, some of the logits; 2 MiB are some 3,750 rows
        ("MlpPolicy", "CartPole-v1", {}, 4096),
        # 4 + 4 x 256: 510 rows
        ("MlpPolicy", "CartPole-v1", dict(net_arch=dict(pi=[8], vf=[256] * 4)), 512),
        ("CnnPolicy", FakeImageEnv, {}, 128),  # each image alone has 5,184 numbers: the lower limit
        ("MlpPolicy", "CartPole-v1", dict(features_extractor_class=BatchNormDropout), None),
    ],
)
def test_default_chunk_size(policy, env, kwargs, expected):
    model = REINFORCE(policy, env if isinstance(env, str) else env(), policy_kwargs=kwargs, device="cpu")
    assert chunk_size.default_chunk_size(model.policy) == expected


def test_default_chunk_size_of_an_odd_policy(monkeypatch):
    """All rows at once where the rule fails."""
    policy = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu").policy
    monkeypatch.setattr(policy, "get_distribution", lambda observations: None)
    assert chunk_size.default_chunk_size(policy) is None


@pytest.mark.parametrize("kwargs", [{}, dict(natural_gradient=True)])
def test_default_chunk_size_is_used(monkeypatch, kwargs):
    """Wherever a batch is processed: V, the policy step, the KL divergence and the fit of V."""
    monkeypatch.setattr(chunk_size, "CPU_BYTES", 1)
    monkeypatch.setattr(chunk_size, "SMALLEST", 16)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32, seed=0, device="cpu", **kwargs)
    n_rows: list[int] = []
    for layer in (model.policy.action_net, model.policy.value_net):  # a hook: sampling is by torch, too, of 1 row
        layer.register_forward_hook(lambda module, inputs, output: n_rows.append(len(output)))
    model.learn(1)
    assert max(n_rows) == 16 < model.rollout.n_steps
