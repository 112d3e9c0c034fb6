"""Gradients of chunks side by side in threads: the same numbers, to the bit, and only where nothing is shared."""

import threading

import pytest
import torch as th
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.update import chunks
from sb3_reinforce.update.chunks import add_gradients
from tests.envs import parameters


@pytest.fixture
def users_threads(monkeypatch):
    def set_number(n_threads: int) -> None:
        monkeypatch.setattr(chunks, "threads_of_user", lambda: n_threads)

    return set_number


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"n_epochs": 2, "batch_size": 100, "ent_coef": 0.01}),
        ("Pendulum-v1", {"policy_kwargs": {"net_arch": [8]}}),
    ],
)
def test_training_is_the_same_on_any_number_of_threads(users_threads, env_id, kwargs):
    def trained(n_threads: int) -> th.Tensor:
        users_threads(n_threads)
        model = REINFORCE("MlpPolicy", env_id, n_steps=150, chunk_size=16, seed=0, device="cpu", **kwargs)
        return parameters(model.learn(400))

    one = trained(1)
    for n_threads in (2, 3):
        assert th.equal(trained(n_threads), one)


def used_threads(model: REINFORCE, rows: int = 8) -> set[str]:
    """Names of the threads that compute the loss sum_i x_i w of rows 0..rows-1, one row to a chunk."""
    parameter = model.policy.action_net.bias
    names, both_are_in = set(), threading.Barrier(2)

    def loss_of(policy, chunk):
        names.add(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread() and chunk.start < 2:
            both_are_in.wait(10)  # chunk 0 and chunk 1 are under way at the same time
            assert policy.action_dist is not model.policy.action_dist
        return chunk.start * parameter.sum(), (1.0, chunk.start)

    parameter.grad = None
    sums = add_gradients(model.policy, [slice(i, i + 1) for i in range(rows)], loss_of, 2, [parameter])
    total = rows * (rows - 1) / 2  # 0 + 1 + ... + (rows - 1)
    assert sums == [rows, total]
    assert parameter.grad.tolist() == [total] * len(parameter)
    return names


def test_a_plain_mlp_uses_the_users_number_of_threads(users_threads):
    model = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu")
    users_threads(2)
    assert {name.split("_")[0] for name in used_threads(model)} == {"chunks"}
    assert used_threads(model, rows=3) == {"MainThread"}  # fewer chunks than pay
    users_threads(1)
    assert used_threads(model) == {"MainThread"}


class OwnTanh(nn.Tanh):
    """A module of the user's own, which might count its calls."""


def test_modules_that_are_not_known_to_be_free_of_state_are_used_by_one_thread(users_threads):
    users_threads(2)
    for activation in (OwnTanh, nn.Dropout):
        model = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"activation_fn": activation})
        assert used_threads(model) == {"MainThread"}


def test_an_error_in_a_thread_is_raised(users_threads):
    users_threads(2)
    model = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu")

    def loss_of(policy, chunk):
        if chunk.start == 1:
            raise ValueError("of the second chunk")
        return policy.action_net.bias.sum(), (1.0,)

    with pytest.raises(ValueError, match="of the second chunk"):
        add_gradients(model.policy, [slice(i, i + 1) for i in range(4)], loss_of, 1)
