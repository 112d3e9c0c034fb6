"""While ``learn`` plays and updates, NumPy's BLAS and torch use one thread; behind it the numbers are the user's."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from threadpoolctl import threadpool_limits

from sb3_reinforce import REINFORCE
from sb3_reinforce.running.threads import blas, one_thread
from tests.envs import RewardListEnv


def numbers() -> tuple[int, set[int]]:
    """Threads of torch, and of NumPy's BLAS (none where threadpoolctl does not know it, such as Apple's)."""
    return th.get_num_threads(), {library.num_threads for library in blas().lib_controllers}


@pytest.fixture(autouse=True)
def users_numbers() -> Iterator[tuple[int, set[int]]]:
    """Three threads of torch and two of the BLAS, whatever the machine has."""
    before = th.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        th.set_num_threads(3)
        yield numbers()
    th.set_num_threads(before)


def test_the_users_numbers_are_back(users_numbers):
    assert users_numbers == (3, {2})
    with one_thread():
        assert numbers() == (1, {1})
        with one_thread():
            assert numbers() == (1, {1})
        assert numbers()[1] == {1}
    assert numbers() == users_numbers
    with pytest.raises(KeyboardInterrupt), one_thread():
        raise KeyboardInterrupt
    assert numbers() == users_numbers


def test_a_number_set_inside_is_kept():
    with one_thread():
        th.set_num_threads(4)
    assert numbers() == (4, {2})


def test_runs_side_by_side(users_numbers):
    """As with Optuna's ``n_jobs``: the first run ends while the second one is in progress."""
    first_has_ended, second_is_in = Event(), Event()

    def second() -> int:
        with one_thread():
            second_is_in.set()
            assert first_has_ended.wait(10)
            return th.get_num_threads()

    with ThreadPoolExecutor() as pool:
        with one_thread():
            result = pool.submit(second)
            assert second_is_in.wait(10)
        assert numbers() == users_numbers
        first_has_ended.set()
        assert result.result(10) == 1
        assert pool.submit(numbers).result() == users_numbers
    with ThreadPoolExecutor() as pool:
        assert pool.submit(numbers).result() == users_numbers  # in a new thread


class Listening(BaseCallback):
    """Remembers the numbers of threads that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, tuple[int, set[int]]] = {}

    def _on_training_start(self) -> None:
        self.seen["training_start"] = numbers()

    def _on_step(self) -> bool:
        self.seen["step"] = numbers()
        return self.num_timesteps < 1000

    def _on_training_end(self) -> None:
        self.seen["training_end"] = numbers()


class Learner(REINFORCE):
    def train(self) -> None:
        self.during_train = numbers()
        super().train()


def test_learn(users_numbers):
    model, callback = Learner("MlpPolicy", RewardListEnv([1.0] * 3), n_steps=4, baseline="none", device="cpu"), Listening()
    model.learn(8, callback)
    assert model.during_train == callback.seen["step"] == (1, {1})
    assert callback.seen["training_start"] == callback.seen["training_end"] == numbers() == users_numbers
    model.learn(2000, callback)  # which the callback stops
    assert numbers() == users_numbers
    assert model.env is not None
    model.env.close()
    model.env.step = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError, match="not callable"):
        model.learn(8)
    assert numbers() == users_numbers
