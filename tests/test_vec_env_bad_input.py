"""What VectorEnvAdapter refuses, and which environment an error names."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorRewardWrapper
from gymnasium.wrappers.vector import (
    DictInfoToList,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TransformObservation,
)

from sb3_reinforce.vec_env import VectorEnvAdapter
from tests.vector_envs import N_ENVS, CountingEnv, FakeEnvPool, OtherVectorEnv, env_fns, reference


def with_mode(mode: Any) -> SyncVectorEnv:
    env = SyncVectorEnv(env_fns())
    env.metadata = {"autoreset_mode": mode} if mode is not None else {}
    return env


def closed() -> SyncVectorEnv:
    env = SyncVectorEnv(env_fns())
    env.close()
    return env


class TextEnv(CountingEnv):
    def __init__(self, index: int = 0, **kwargs: Any) -> None:
        super().__init__(index, **kwargs)
        self.observation_space = spaces.Text(5)


class DictActionEnv(CountingEnv):
    def __init__(self, index: int = 0, **kwargs: Any) -> None:
        super().__init__(index, **kwargs)
        self.action_space = spaces.Dict({"a": spaces.Discrete(2)})


class WideEnv(CountingEnv):
    def __init__(self, index: int = 0, **kwargs: Any) -> None:
        super().__init__(index, **kwargs)
        self.observation_space = spaces.Box(-1.0, 1e6 * (1 + index), (3,), np.float32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "CartPole-v1", r"needs a gymnasium.vector.VectorEnv or an EnvPool, got str \('CartPole-v1'\).*make_vec"),
        (CountingEnv, "needs a gymnasium.vector.VectorEnv or an EnvPool, got CountingEnv.*DummyVecEnv"),
        (reference, "needs a gymnasium.vector.VectorEnv or an EnvPool, got DummyVecEnv"),
        (closed, "which is closed: make a new one"),
        (lambda: with_mode(None), r"metadata\['autoreset_mode'\] of the vector environment must be one of .* got None"),
        (lambda: with_mode("Sometimes"), "must be one of .*NEXT_STEP.* got 'Sometimes'"),
        (
            lambda: SyncVectorEnv([partial(WideEnv, i) for i in range(2)], observation_mode="different"),
            "(?s)must have the same observation_space.*observation_mode='same'",
        ),
        (lambda: SyncVectorEnv([TextEnv]), r"single_observation_space must be a Box.*got Text.*FlattenObservation"),
        (lambda: SyncVectorEnv([DictActionEnv]), r"single_action_space must be a Box.*got Dict"),
        (lambda: OtherVectorEnv(AutoresetMode.NEXT_STEP), "knows no way to reset some.*SAME_STEP.*masked_reset"),
        (
            lambda: RecordEpisodeStatistics(gym.make_vec("CartPole-v1", 2, "vector_entry_point")),
            "RecordEpisodeStatistics does not allow for resets of some environments",
        ),
        (
            lambda: TransformObservation(gym.make_vec("CartPole-v1", 2, "vector_entry_point"), lambda obs: obs),
            "knows no way to reset some.*put wrappers around the adapter",
        ),
        (lambda: NormalizeObservation(SyncVectorEnv(env_fns())), "NormalizeObservation does not.*VecNormalize"),
        (lambda: NormalizeReward(SyncVectorEnv(env_fns())), "NormalizeReward does not.*VecNormalize"),
        (lambda: DictInfoToList(SyncVectorEnv(env_fns())), "DictInfoToList cannot be inside"),
        (lambda: FakeEnvPool([CountingEnv(), CountingEnv()], 0, batch_size=1), "batch_size=1 and num_envs=2: leave"),
        (lambda: FakeEnvPool([CountingEnv()], 0, max_num_players=2), "one player, got max_num_players=2"),
    ],
)
def test_bad_environments(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VectorEnvAdapter(make())


@pytest.mark.parametrize("worker", [False, True])
def test_async_that_resets_twice_is_refused(worker: bool) -> None:
    from gymnasium.vector.async_vector_env import _async_worker

    env = AsyncVectorEnv(env_fns(2), shared_memory=worker, worker=_async_worker if worker else None)
    with pytest.raises(ValueError, match=r"only with shared_memory=True and gymnasium's own worker.*SAME_STEP"):
        VectorEnvAdapter(env)
    env.close()


def test_envpool_of_deepmind_is_refused() -> None:
    pool = FakeEnvPool([CountingEnv()], 0)
    del pool.action_space
    with pytest.raises(ValueError, match=r'with the gymnasium interface.*env_type="gymnasium"'):
        VectorEnvAdapter(pool)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrapped_envpool_is_refused() -> None:
    envpool = pytest.importorskip("envpool")
    pool = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=2)
    with pytest.raises(ValueError, match=r"an EnvPool without wrappers of gymnasium.*got VectorRewardWrapper"):
        VectorEnvAdapter(VectorRewardWrapper(pool))


def test_bad_observations_and_actions() -> None:
    class Wrong(OtherVectorEnv):
        def reset(self, **kwargs: Any) -> Any:
            return np.zeros(N_ENVS), {}

    with pytest.raises(ValueError, match=r"num_envs, \*single_observation_space.shape\) = \(3, 1\), got \(3,\)"):
        VectorEnvAdapter(Wrong(AutoresetMode.DISABLED)).reset()

    class ListInfos(OtherVectorEnv):
        def reset(self, **kwargs: Any) -> Any:
            return self.counts, [{}] * N_ENVS

    with pytest.raises(ValueError, match=r"must return infos as a dict of arrays, got list"):
        VectorEnvAdapter(ListInfos(AutoresetMode.DISABLED)).reset()
    ours = VectorEnvAdapter(SyncVectorEnv(env_fns()))
    ours.reset()
    with pytest.raises(ValueError, match=r"actions must have the shape .* = \(3,\), got \(2,\)"):
        ours.step(np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"actions must be of dtype int64 for Discrete.*got float64"):
        ours.step(np.zeros(3))
    assert ours.step(np.zeros(3, dtype=np.int32))[0].shape == (3, 3)
    assert ours.step([1, 2, 3])[0].shape == (3, 3)
    ours.close()
    with pytest.raises(ValueError, match=r"step\(\) on a closed VectorEnvAdapter"):
        ours.step(np.zeros(3, dtype=int))


class FailingEnv(CountingEnv):
    """Environment 1 fails in its second step, with `where="reset"` in its second reset."""

    def __init__(self, index: int, where: str) -> None:
        super().__init__(index, lengths=(2,))
        self.where = where

    def reset(self, **kwargs: Any) -> Any:
        if self.where == "reset" and self.index == 1 and self.episode == 1:
            raise RuntimeError("motor broken")
        return super().reset(**kwargs)

    def step(self, action: int) -> Any:
        if self.where == "step" and self.index == 1 and self.left == 1:
            raise RuntimeError("motor broken")
        return super().step(action)


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("where", ["step", "reset"])
@pytest.mark.filterwarnings("ignore")
def test_an_error_names_its_environment(kind: Any, where: str) -> None:
    ours = VectorEnvAdapter(kind([partial(FailingEnv, i, where) for i in range(3)]))
    ours.reset()
    ours.step(np.zeros(3, dtype=int))
    with pytest.raises(RuntimeError, match="motor broken") as caught:
        ours.step(np.zeros(3, dtype=int))
    assert caught.value.__notes__ == [f"Raised by environment 1 of 3 in {ours.env!r}"]
    ours.close()


def test_an_error_after_the_environments_blames_none() -> None:
    class WrongShape(CountingEnv):
        def step(self, action: int) -> Any:
            return (np.zeros(7, dtype=np.float32), *super().step(action)[1:])

    ours = VectorEnvAdapter(SyncVectorEnv([WrongShape, WrongShape]))
    ours.reset()
    with pytest.raises(ValueError, match="shape") as caught:
        ours.step(np.zeros(2, dtype=int))
    assert not hasattr(caught.value, "__notes__")
