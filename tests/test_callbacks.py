"""Callbacks: the names under which they are saved, and which of them run on every rank."""

from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.running.callbacks import callbacks_by_name, callbacks_of_other_ranks
from tests.envs import RewardListEnv
from tests.runs import StopAt, make_env, stop


def test_names_of_callbacks():
    first, second, inner = (StopAt(1, stop) for _ in range(3))
    evaluation = EvalCallback(make_env(), callback_after_eval=inner)
    names = list(callbacks_by_name(CallbackList([first, CallbackList([evaluation, second])])))
    assert names == ["StopAt0", "EvalCallback0", "EvalCallback0/StopAt0", "StopAt1"]


class Everywhere(BaseCallback):
    def _on_step(self) -> bool:
        return True


class OnlyRankZero(Everywhere):
    rank_zero_only = True


def test_callbacks_of_other_ranks(tmp_path: Path):
    stopping, everywhere, function = StopTrainingOnMaxEpisodes(3), Everywhere(), lambda locals_, globals_: True
    evaluation = EvalCallback(DummyVecEnv([lambda: RewardListEnv([1.0])]), callback_after_eval=Everywhere())
    saving = EveryNTimesteps(10, CheckpointCallback(1, str(tmp_path / "not_there")))
    nested = CallbackList([CallbackList([OnlyRankZero(), everywhere]), saving])
    assert callbacks_of_other_ranks([stopping, evaluation, nested, function]) == [stopping, nested, function]
    assert nested.callbacks[0].callbacks == [everywhere]
    assert nested.callbacks[1] is saving
    assert saving.callback is None
    for callback in (evaluation, OnlyRankZero(), None):
        assert callbacks_of_other_ranks(callback) is None
    assert not (tmp_path / "not_there").exists()


def test_wandb_is_for_rank_zero():
    pytest.importorskip("wandb")
    from sb3_reinforce.tracking import WandbCallback

    assert callbacks_of_other_ranks(WandbCallback(mode="disabled")) is None


@pytest.mark.parametrize("callback", [None, [Everywhere()], lambda locals_, globals_: True])
def test_the_progress_bar_of_a_notebook_is_text(callback, monkeypatch, capsys):
    """SB3's own, which is rich's, is a warning without a bar where ipywidgets are missing."""
    pytest.importorskip("tqdm")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    model = REINFORCE("MlpPolicy", DummyVecEnv([lambda: RewardListEnv([1.0] * 3)]), n_steps=4, seed=0, device="cpu")
    model.learn(8, callback, progress_bar=True)  # two rollouts of two episodes
    out, err = capsys.readouterr()
    assert "100%" in out.splitlines()[-1]
    assert " 12/12 " in out.splitlines()[-1]
    assert not err
