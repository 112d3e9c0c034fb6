"""While ``learn`` plays and updates, it chooses the number of threads; behind it the numbers are the user's."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import FakeImageEnv
from threadpoolctl import threadpool_limits

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running.threads import blas, limited_threads
from tests.envs import RewardListEnv, parameters


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
    with limited_threads():
        assert numbers() == (1, {1})
    with limited_threads(2):
        assert numbers() == (2, {1})
    assert numbers() == users_numbers
    with pytest.raises(KeyboardInterrupt), limited_threads():
        raise KeyboardInterrupt
    assert numbers() == users_numbers


def test_a_number_set_inside_is_kept():
    with limited_threads():
        th.set_num_threads(4)
    assert numbers() == (4, {2})


def test_runs_side_by_side(users_numbers):
    """As with Optuna's ``n_jobs``: the first run ends while the second one is in progress."""
    first_has_ended, second_is_in = Event(), Event()

    def second() -> int:
        with limited_threads():
            second_is_in.set()
            assert first_has_ended.wait(10)
            return th.get_num_threads()

    with ThreadPoolExecutor() as pool:
        with limited_threads():
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
        return self.num_timesteps < 20

    def _on_training_end(self) -> None:
        self.seen["training_end"] = numbers()


@pytest.fixture
def in_updates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[int]]]:
    """Collects the numbers in each update."""
    train, seen = REINFORCE.train, []
    monkeypatch.setattr(REINFORCE, "train", lambda self: (seen.append(numbers()), train(self)))
    return seen


def test_learn(users_numbers, in_updates):
    model, callback = REINFORCE("MlpPolicy", RewardListEnv([1.0] * 3), n_steps=4, baseline="none", device="cpu"), Listening()
    model.learn(8, callback)
    assert in_updates[0] == callback.seen["step"] == (1, {1})
    assert callback.seen["training_start"] == callback.seen["training_end"] == numbers() == users_numbers
    model.learn(40, callback)  # which the callback stops
    assert numbers() == users_numbers
    assert model.env is not None
    model.env.close()
    model.env.step = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError, match="not callable"):
        model.learn(8)
    assert numbers() == users_numbers


def test_updates_with_convolutions(users_numbers, in_updates, tmp_path):
    """They use the user's threads; a resumed run uses those of the first run, for the same bits on another machine."""

    def env() -> FakeImageEnv:
        return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)

    model, listening = REINFORCE("CnnPolicy", env(), n_steps=4, baseline="none", device="cpu"), Listening()
    model.learn(4, [listening, TrainingCheckpoint(tmp_path)])
    th.set_num_threads(2)
    REINFORCE.resume(tmp_path, env()).learn(model.num_timesteps, reset_num_timesteps=False)
    model.learn(4)
    assert listening.seen["step"] == (1, {1})
    assert in_updates == [(3, {1}), (3, {1}), (2, {1})]
    assert numbers() == (2, {2})


def test_a_seed_gives_the_same_networks_on_any_number_of_threads():
    """Orthogonal matrices come from a decomposition whose last digits depend on it."""
    made = []
    for n_threads in (1, 2):
        th.set_num_threads(n_threads)
        made.append(parameters(REINFORCE("MlpPolicy", RewardListEnv([1.0]), seed=0, device="cpu")))
    assert th.equal(*made)
