"""A run that was stopped or killed and then resumed equals one that was never stopped, bit for bit."""

import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, Baseline, Episodes, TrainingCheckpoint, VectorEnvAdapter
from sb3_reinforce.baselines import BASELINES
from sb3_reinforce.running.checkpoint_file import checkpoints_in
from tests.runs import N_ENVS, Kill, StopAt, Stopped, child, differences, make_env, play, results, rows, stop


def check_equal_to_a_run_never_stopped(tmp_path: Path, stops: tuple[int, ...] = (45, 100), **arguments: Any) -> None:
    """Stop with an error at the given numbers of calls, resume each time, and compare with a run that never stopped."""
    never_stopped = play(tmp_path / "whole", **arguments)
    for at in stops:
        with pytest.raises(Stopped):
            play(tmp_path / "pieces", more=[StopAt(at, stop)], **arguments)
        assert checkpoints_in(tmp_path / "pieces" / "checkpoints")
    resumed = play(tmp_path / "pieces", **arguments)
    assert differences(results(never_stopped), results(resumed)) == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "pieces")
    assert len(rows(tmp_path / "whole")) > 6


@pytest.mark.parametrize("actions", ["discrete", "box"])
@pytest.mark.parametrize("baseline", list(BASELINES))
def test_every_baseline(tmp_path, baseline, actions):
    # the greedy baseline plays every reset twice, and callbacks see only half of the steps
    episodes = dict(n_episodes=N_ENVS, total=900) if baseline == "greedy" else {}
    check_equal_to_a_run_never_stopped(tmp_path, env=dict(actions=actions), baseline=baseline, **episodes)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(env=dict(vec="subproc"), stops=(60,)), id="SubprocVecEnv"),
        pytest.param(dict(env=dict(normalize=False)), id="without VecNormalize"),
        pytest.param(dict(freeze_normalization_after=70), id="frozen statistics"),
        pytest.param(dict(learning_rate="lin_1e-2", ent_coef="lin_0.1"), id="schedules by name"),
        pytest.param(
            dict(learning_rate=LinearSchedule(1e-2, 1e-4, 0.7), value_learning_rate=lambda p: 0.01 * p * p, trust=True),
            id="schedules",
        ),
        pytest.param(dict(n_epochs=2, batch_size=16, value_batch_size=8, clip_range="lin_0.2"), id="minibatches"),
        pytest.param(dict(n_epochs=np.int64(2)), id="NumPy's whole numbers"),
        pytest.param(dict(n_episodes=2 * N_ENVS, stops=(35, 60), total=300), id="n_episodes"),
        pytest.param(dict(env=dict(actions="box"), use_sde=True, sde_sample_freq=1), id="gSDE"),
        pytest.param(dict(policy_kwargs=dict(net_arch=[8], activation_fn=th.nn.ReLU)), id="policy_kwargs"),
        pytest.param(
            dict(policy="MlpLstmPolicy", policy_kwargs=dict(net_arch=[], lstm_hidden_size=4), n_epochs=2, batch_size=16),
            id="memory",
        ),
        pytest.param(dict(policy="MaskableMlpPolicy", env=dict(actions="masked"), ent_coef=0.01), id="masks"),
        pytest.param(
            dict(policy="MaskableMlpLstmPolicy", policy_kwargs=dict(lstm_hidden_size=4), env=dict(actions="masked")),
            id="memory and masks",
        ),
        pytest.param(dict(learn=dict(log_interval=3)), id="log_interval"),
        pytest.param(dict(every=1, stops=(30, 31, 60, 61, 100)), id="many stops"),
    ],
)
def test_every_setting(tmp_path, arguments):
    check_equal_to_a_run_never_stopped(tmp_path, **arguments)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    before = results(play(tmp_path))
    assert differences(before, results(play(tmp_path))) == []  # resumed, with nothing left to do


def test_frozen_parameters_stay_frozen(tmp_path):
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, seed=0, device="cpu")
    model.policy.mlp_extractor.policy_net.requires_grad_(False)
    model.learn(60, TrainingCheckpoint(tmp_path))
    resumed = REINFORCE.resume(tmp_path, make_env())
    before = resumed.policy.mlp_extractor.policy_net[0].weight.clone()
    resumed.learn(60, TrainingCheckpoint(tmp_path), reset_num_timesteps=False)
    assert th.equal(resumed.policy.mlp_extractor.policy_net[0].weight, before)
    assert not th.equal(resumed.policy.action_net.weight, model.policy.action_net.weight)


class Fading:
    """A schedule that a callback changes."""

    scale = 1e-2

    def __call__(self, progress: float) -> float:
        return self.scale * progress


class Counting(Baseline):
    """b is the number of its predictions, which it does not save."""

    def __init__(self):
        self.n = 0

    def predict(self, episodes: Episodes) -> th.Tensor:
        self.n += 1
        return th.full_like(episodes.returns, self.n)


class Meddling(BaseCallback):
    """Changes the policy and a schedule within rollouts; ends the given rollout with an error."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.stop_at = stop_at

    def _on_rollout_start(self) -> None:
        with th.no_grad():
            self.model.policy.log_std -= 0.05
        self.model.learning_rate.scale *= 0.9

    def _on_rollout_end(self) -> None:
        if self.model._n_rollouts == self.stop_at:
            stop()

    def _on_step(self) -> bool:
        return True


def test_what_changes_within_the_rollout_that_failed(tmp_path):
    """The checkpoint has parameters, schedule and baseline as they were behind the last update."""
    arguments = dict(env=dict(actions="box"), every=3, total=450, trust=True)
    model = play(tmp_path / "whole", more=[Meddling()], learning_rate=Fading(), baseline=Counting(), **arguments)
    assert model.baseline.n == model._n_rollouts > 4
    for at in (2, 3, 5):  # 3: the write was due, and done, before
        with pytest.raises(Stopped):
            play(tmp_path / "pieces", more=[Meddling(at)], learning_rate=Fading(), baseline=Counting(), **arguments)
    resumed = play(tmp_path / "pieces", more=[Meddling()], **arguments)
    assert differences(results(model), results(resumed)) == []
    assert (resumed.baseline.n, resumed.learning_rate.scale) == (model.baseline.n, model.learning_rate.scale)


def vector_env(env_id="CartPole-v1"):
    return VectorEnvAdapter(gym.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point"))


def test_evaluations_in_a_vector_environment_resume(tmp_path):
    """All environments inside share one generator, whose state is restored."""

    def learn(n_steps, model):
        evaluation = EvalCallback(vector_env(), eval_freq=40, n_eval_episodes=2, verbose=0, warn=False)
        callbacks = [TrainingCheckpoint(tmp_path / "run", every_n_updates=1), evaluation]
        model.learn(n_steps, callbacks, reset_num_timesteps=model.newest_checkpoint is None)
        return evaluation.eval_env.get_attr("np_random")[0].bit_generator.state

    state = learn(200, REINFORCE("MlpPolicy", vector_env(), n_steps=16, seed=0, device="cpu"))
    resumed = REINFORCE.resume(tmp_path / "run", vector_env())
    assert learn(0, resumed) == state  # nothing is left to do
    with pytest.raises(ValueError, match="is of another environment: id was CartPole-v1, got CartPole-v0"):
        REINFORCE.resume(tmp_path / "run", vector_env("CartPole-v0"))


def test_settings_of_vec_normalize_are_compared_by_value(tmp_path):
    """A tuple and a NumPy number, of which JSON has neither."""
    make = lambda: VecNormalize(  # noqa: E731
        DummyVecEnv([lambda: SimpleMultiObsEnv(random_start=False)]), norm_obs_keys=("vec",), clip_obs=np.float64(5)
    )
    REINFORCE("MultiInputPolicy", make(), n_steps=16, seed=0, device="cpu").learn(60, TrainingCheckpoint(tmp_path))
    assert REINFORCE.resume(tmp_path, make()).num_timesteps >= 60


class WithState(BaseCallback):
    """Saved by its own ``state_dict``, not by its attributes."""

    def __init__(self):
        super().__init__()
        self.seen = self.given = None

    def _on_step(self) -> bool:
        self.seen = self.model.num_timesteps
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "array": np.arange(3.0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.given = state_dict


def test_callbacks_resume_where_they_were(tmp_path):
    def callbacks() -> list[BaseCallback]:
        patience = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1000)
        evaluation = EvalCallback(
            make_env(seed=1), callback_after_eval=patience, eval_freq=10, log_path=str(tmp_path), verbose=0
        )
        return [CallbackList([evaluation]), WithState(), CheckpointCallback(1000, str(tmp_path))]

    first = callbacks()
    with pytest.raises(Stopped):
        play(tmp_path, every=1, evaluate=False, more=[*first, StopAt(100, stop)])
    evaluation = first[0].callbacks[0]
    second = callbacks()
    second[2].save_freq = 500  # settings come from the user, not from the checkpoint
    play(tmp_path, evaluate=False, more=second, total=0)
    resumed = second[0].callbacks[0]
    n_evaluations = resumed.n_calls // 10
    assert 5 < n_evaluations <= 10
    assert resumed.evaluations_results == evaluation.evaluations_results[:n_evaluations]
    assert resumed.best_mean_reward == max(np.mean(result) for result in resumed.evaluations_results)
    assert resumed.callback.n_calls == n_evaluations
    assert resumed.callback.last_best_mean_reward == resumed.best_mean_reward
    assert second[1].given["seen"] == resumed.num_timesteps
    np.testing.assert_array_equal(second[1].given["array"], [0.0, 1.0, 2.0])
    assert (second[2].save_freq, second[2].n_calls) == (500, resumed.n_calls)


def test_the_state_of_a_missing_callback_gives_a_warning(tmp_path):
    play(tmp_path)
    with pytest.warns(UserWarning, match="has the state of EvalCallback0, which this learn"):
        play(tmp_path, evaluate=False)


def killed_runs(folder: Path, kills: list[Kill], arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """
    Let processes play the run, each killed somewhere (see ``child``); a last one plays it to the end.

    :return: the last process's results, and how many were killed
    """
    context = multiprocessing.get_context("forkserver")
    result, n_killed = folder / "result.pt", 0
    for kill in [*kills, None]:
        process = context.Process(target=child, args=(folder, result, kill, arguments))
        process.start()
        process.join(600)
        assert process.exitcode in (0, -signal.SIGKILL)
        n_killed += process.exitcode != 0
    return th.load(result, weights_only=False), n_killed


def test_killed_while_writing(tmp_path):
    arguments = dict(total=450, every=1)
    expected = results(play(tmp_path / "whole", **arguments))
    kills = [("half", 4), ("before", 3), ("after", 3)]
    result, n_killed = killed_runs(tmp_path / "killed", kills, arguments)
    assert n_killed == 3
    assert differences(expected, result) == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".checkpoint*"))  # half-written files are removed


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(total=8_000, every=1), id="value"),
        pytest.param(dict(total=10_000, every=3, env=dict(actions="box"), baseline="moving_average"), id="box"),
        pytest.param(dict(total=5_000, every=2, env=dict(vec="subproc"), learning_rate="lin_1e-2"), id="subproc"),
    ],
)
def test_killed_at_twenty_random_moments(tmp_path, arguments):
    expected = results(play(tmp_path / "whole", **arguments))
    rng = random.Random(0)
    places = ("half", "before", "after")
    # A fifth of the kills hit the writing of a checkpoint. An update is about 20 calls, so the run outlasts 20 kills.
    kills: list[Kill] = [
        (rng.choice(places), rng.randint(2, 4)) if rng.random() < 0.2 else (rng.randint(1, 120), 0.02 * rng.random())
        for _ in range(20)
    ]
    result, n_killed = killed_runs(tmp_path / "killed", kills, arguments)
    assert n_killed == 20
    assert differences(expected, result) == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
