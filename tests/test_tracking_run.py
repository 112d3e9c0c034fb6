"""A W&B run around ``learn``: how it starts, in which mode, and how it ends."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

wandb = pytest.importorskip("wandb")

from wandb.proto import wandb_internal_pb2  # noqa: E402
from wandb.sdk.lib.service.service_connection import ServiceConnection  # noqa: E402

from sb3_reinforce.tracking import WandbCallback, trial_callback  # noqa: E402
from sb3_reinforce.tracking.run import Warner, resolve_mode  # noqa: E402
from sb3_reinforce.tracking.runs import find_runs, has_exit_record  # noqa: E402
from tests.wandb_file import (  # noqa: E402
    artifacts,
    config,
    exit_codes,
    history,
    no_account,  # noqa: F401
    records,
    run_dirs,
    small_model,
    summary,
    updates,
)


class Interrupt(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 200:
            raise KeyboardInterrupt
        return True


def test_learn_again_from_zero_is_a_run_of_its_own():
    tracker, model = WandbCallback(mode="offline", verbose=0), small_model()
    model.set_logger(Logger(None, []))  # a logger of the user's stays across learn(): no row may be written twice
    first = updates(tracker.run_dir) if model.learn(100, callback=tracker) and tracker.run_dir else []
    second = updates(tracker.run_dir) if model.learn(100, callback=tracker) and tracker.run_dir else []
    assert len(run_dirs()) == 2
    for rows in (first, second):
        steps = [row["global_step"] for row in rows]
        assert steps
        assert len(set(steps)) == len(steps)
    assert model.logger.output_formats == []


def test_a_run_of_the_users_is_used_and_left_open():
    run = wandb.init(mode="offline", project="mine", config={"gamma": "kept"}, settings=wandb.Settings(silent=True))
    tracker = WandbCallback(mode="disabled", verbose=0)
    model = small_model(gamma=0.9)
    model.learn(100, callback=tracker)
    model.learn(100, callback=tracker, reset_num_timesteps=False)
    tracker.finish(exit_code=3)
    assert wandb.run is run
    directory = Path(run.dir).parent
    run.finish()
    assert exit_codes(directory) == [0]
    steps = [row["global_step"] for row in updates(directory)]
    assert steps == sorted(set(steps))
    assert config(directory)["gamma"] == "kept"


def test_finish_keeps_the_exit_code_and_happens_once():
    tracker = WandbCallback(mode="offline", finish_at_end=False, verbose=0)
    small_model().learn(50, callback=tracker)
    assert wandb.run is not None
    tracker.log_summary({"eval/final_mean_reward": 7.5})
    tracker.finish(exit_code=4)
    tracker.finish(exit_code=0)
    tracker.on_training_end()  # RL Zoo calls this twice
    assert exit_codes(tracker.run_dir) == [4]
    assert summary(tracker.run_dir)["eval/final_mean_reward"] == 7.5


def test_a_learn_that_raised_leaves_a_failed_run_and_not_a_mixed_one():
    class Stumble(BaseCallback):
        def _on_step(self) -> bool:
            raise RuntimeError("stumbled")

    tracker, model = WandbCallback(mode="offline", verbose=0), small_model()
    with pytest.raises(RuntimeError, match="stumbled"):
        model.learn(50, callback=[tracker, Stumble()])
    failed = tracker.run_dir
    model.learn(50, callback=tracker)
    assert exit_codes(failed) == [1]
    assert history(failed) == []
    assert tracker.run_dir != failed
    assert exit_codes(tracker.run_dir) == [0]


@pytest.mark.parametrize("same_callback", [True, False])
def test_what_comes_after_an_interrupted_learn_is_a_run_of_its_own(same_callback: bool):
    """A notebook's cell, stopped by Ctrl-C and run again: each model in the artifacts of its own run, rows written once."""
    logger = Logger(None, [])
    first, second = small_model(), small_model(learning_rate=0.25)
    for model in (first, second):
        model.set_logger(logger)
    callback = WandbCallback(mode="offline", verbose=0)
    with pytest.raises(KeyboardInterrupt):
        first.learn(1000, [callback, Interrupt()])
    if not same_callback:
        callback = WandbCallback(mode="offline", verbose=0)
    second.learn(100, callback)
    assert wandb.run is None
    assert logger.output_formats == []
    failed, finished = find_runs([Path("wandb")])
    if failed.state == "finished":  # of runs started within a second
        failed, finished = finished, failed
    assert (failed.state, finished.state) == ("failed", "finished")
    assert (failed.config["learning_rate"], finished.config["learning_rate"]) == (first.learning_rate, 0.25)
    assert failed.summary["global_step"] < 1000


def test_a_finished_run_reads_as_finished_at_once(monkeypatch: pytest.MonkeyPatch):
    """W&B's ``finish`` returns while its process still has the last record to write; here that takes half a second."""
    inform = ServiceConnection.inform_finish

    def late(*args: Any, **kwargs: Any) -> None:
        threading.Timer(0.5, inform, args, kwargs).start()

    monkeypatch.setattr(ServiceConnection, "inform_finish", late)
    small_model().learn(50, WandbCallback(mode="offline", verbose=0))
    (run,) = find_runs([Path("wandb")])
    assert run.state == "finished"


def test_the_exit_record_is_found_in_the_last_blocks(tmp_path: Path):
    """A file of three blocks of 32 KiB: the head of 7 bytes, two rows that fill the first two blocks, the end of the run."""
    exit_record = wandb_internal_pb2.Record(exit=wandb_internal_pb2.RunExitRecord(exit_code=0)).SerializeToString()

    def chunk(data: bytes) -> bytes:  # checksum, which nobody reads, length and the type of a whole record
        return struct.pack("<IHB", 0, len(data), 1) + data

    file = tmp_path / "run-x.wandb"
    rows = b":W&B\0\0\0" + chunk(bytes(32768 - 14)) + chunk(bytes(32768 - 7))
    file.write_bytes(rows)
    assert not has_exit_record(tmp_path)
    file.write_bytes(rows + chunk(exit_record))
    assert has_exit_record(tmp_path)


def test_training_goes_on_where_no_run_can_be_started(monkeypatch: pytest.MonkeyPatch):
    def refuse(**kwargs: Any) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(wandb, "init", refuse)
    model = small_model()
    with pytest.warns(UserWarning, match="could not start offline, this training is not tracked"):
        model.learn(50, callback=WandbCallback(mode="offline", verbose=0))
    assert model.num_timesteps >= 50


def test_a_server_that_refuses_leaves_an_offline_run(monkeypatch: pytest.MonkeyPatch):
    start = wandb.init
    asked: list[tuple[str, float, int]] = []

    def init(**kwargs: Any) -> Any:
        asked.append((kwargs["mode"], kwargs["settings"].init_timeout, id(kwargs["settings"])))
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("no answer")
        return start(**kwargs)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    tracker = WandbCallback(mode="auto", verbose=0)
    with pytest.warns(UserWarning, match="could not start online, the run is kept offline"):
        small_model().learn(50, callback=tracker)
    assert [mode for mode, _, _ in asked] == ["online", "offline"]
    assert all(timeout <= 20 for _, timeout, _ in asked)
    assert history(tracker.run_dir)


@pytest.mark.parametrize(
    "mode, variable, has_key, expected",
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "disabled", True, "disabled"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "online", True, "online"),
        ("auto", "online", False, "offline"),
        ("offline", "online", True, "offline"),
        ("disabled", None, True, "disabled"),
        ("online", None, True, "online"),
    ],
)
def test_mode(mode: str, variable: str | None, has_key: bool, expected: str, monkeypatch: pytest.MonkeyPatch):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    if has_key:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode(mode, Warner()) == expected


def test_key_in_netrc(tmp_path: Path):
    Path(os.environ["NETRC"]).write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert resolve_mode("auto", Warner()) == "online"


def test_online_without_a_key_is_kept_offline():
    with pytest.warns(UserWarning, match="no API key is configured"):
        assert resolve_mode("online", Warner()) == "offline"


def test_an_unreadable_key_is_kept_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with pytest.warns(UserWarning, match="the API key cannot be read, the run is kept offline, training goes on"):
        assert resolve_mode("auto", Warner()) == "offline"


def test_disabled_writes_nothing():
    tracker = WandbCallback(mode="disabled", verbose=0)
    small_model().learn(50, callback=tracker)
    assert tracker.run_dir is None
    assert not Path("wandb").exists()


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode must be one of auto, online, offline, disabled, got 'of'"):
        WandbCallback(mode="of")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"episode_rate": 11}, "episode_rate must be between 0 and 10 rows a second, got 11"),
        ({"histogram_freq": -1}, "histogram_freq must be a whole number >= 0, got -1"),
        ({"video_freq": 0}, "video_freq must be a whole number >= 1, got 0"),
        ({"finish_timeout": 0}, "finish_timeout must be a number of seconds above 0, got 0"),
        ({"init_timeout": float("nan")}, "init_timeout must be a number of seconds above 0, got nan"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        WandbCallback(**arguments)


def test_wandb_is_imported_when_constructed():
    code = (
        "import sys, sb3_reinforce.tracking as t\n"
        "assert 'wandb' not in sys.modules\n"
        "sys.modules['wandb'] = None\n"
        "try:\n    t.WandbCallback()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "sb3-reinforce[wandb]"' in done.stdout


def test_as_a_context_manager_the_state_is_known():
    for error, code in ((RuntimeError, 1), (KeyboardInterrupt, 255), (SystemExit(143), 143), (None, 0)):

        class Stumble(BaseCallback):
            def _on_step(self, error: Any = error) -> bool:
                if error is not None and self.n_calls == 100:
                    raise error
                return True

        with suppress(BaseException), WandbCallback(mode="offline", verbose=0) as tracker:
            small_model().learn(200, callback=[tracker, Stumble()])
        assert exit_codes(tracker.run_dir) == [code]
        assert wandb.run is None
        assert [set(artifact.aliases) for artifact in artifacts(tracker.run_dir)] == [{"latest", "last"}]


@pytest.mark.slow
@pytest.mark.parametrize("end, code", [("raise RuntimeError('stumbled')", 1), ("os.kill(os.getpid(), signal.SIGTERM)", 143)])
def test_the_end_of_the_process_is_the_end_of_the_run(end: str, code: int, tmp_path: Path):
    program = f"""
import os, signal
from stable_baselines3.common.callbacks import BaseCallback
from sb3_reinforce import REINFORCE
from sb3_reinforce.tracking import WandbCallback
class End(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 300:
            {end}
        return True
REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=2, device="cpu").learn(
    10_000, callback=[WandbCallback(mode="offline", verbose=0), End()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    (directory,) = run_dirs()
    assert exit_codes(directory) == [code]
    assert updates(directory)


def test_sigterm_is_left_to_who_listens():
    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, handler)
            with WandbCallback(mode="offline", verbose=0, finish_at_end=False) as tracker:
                small_model().learn(50, callback=tracker)
                assert (signal.getsignal(signal.SIGTERM) is handler) == (handler is signal.SIG_IGN)
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_checkpoint_goes_on_in_the_same_run():
    """As sb3_reinforce's checkpoints do it: the state is put back between the start of training and the first rollout."""

    class PutBack(BaseCallback):
        def _on_training_start(self) -> None:
            second.load_state_dict(state)

        def _on_step(self) -> bool:
            return True

    first = WandbCallback(mode="offline", verbose=0)
    model = small_model(seed=0)
    evaluation = EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=100, verbose=0, warn=False)
    model.learn(200, callback=[first, evaluation])
    state = json.loads(json.dumps(first.state_dict()))  # plain values only
    assert state == {"run_id": first.run_id, "n_rows": state["n_rows"], "best_mean_reward": evaluation.best_mean_reward}

    second = WandbCallback(mode="offline", verbose=0)
    model.learn(200, callback=[second, PutBack()], reset_num_timesteps=False)
    assert second.run_id == first.run_id
    assert second.best_mean_reward == evaluation.best_mean_reward
    assert second.run_dir != first.run_dir
    rows, later = history(first.run_dir), history(second.run_dir)
    # W&B's own row number continues: `wandb sync` makes one run of both folders
    assert [row["_step"] for row in rows + later] == list(range(len(rows) + len(later)))
    steps = [row["global_step"] for row in updates(first.run_dir) + updates(second.run_dir)]
    assert steps == sorted(set(steps))
    (run,) = find_runs([Path("wandb")])
    assert run.metrics["train/grad_norm"][0].tolist() == steps
    assert run.state == "finished"

    third = WandbCallback(mode="offline", verbose=0)
    small_model().learn(50, callback=third)
    assert third.run_id != first.run_id


def test_trials_are_runs_of_one_group():
    optuna = pytest.importorskip("optuna")
    outer = wandb.init(mode="offline", settings=wandb.Settings(silent=True))
    for number in range(2):
        trial = optuna.trial.FixedTrial({"gamma": 0.9 + number / 100}, number=number)
        gamma = trial.suggest_float("gamma", 0, 1)
        tracker = trial_callback(trial, "study", mode="offline", verbose=0)
        small_model(gamma=gamma).learn(50, callback=tracker)
        started = next(record.run for record in records(tracker.run_dir) if record.WhichOneof("record_type") == "run")
        assert (started.run_group, started.display_name) == ("study", f"trial-{number}")
        assert config(tracker.run_dir)["trial_params"] == {"gamma": 0.9 + number / 100}
        assert exit_codes(tracker.run_dir) == [0]
    assert wandb.run is outer
    outer.finish()
