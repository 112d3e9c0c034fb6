"""W&B runs are written offline and read back from their files: the step axis, the metrics, the settings."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Figure, HParam, Image, Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

wandb = pytest.importorskip("wandb")

from wandb.sdk import wandb_setup  # noqa: E402

from sb3_reinforce import REINFORCE  # noqa: E402
from sb3_reinforce.tracking import WandbCallback, WandbOutputFormat, background, trial_callback  # noqa: E402
from sb3_reinforce.tracking.media import histogram, make_video_env  # noqa: E402
from sb3_reinforce.tracking.run import Warner, resolve_mode  # noqa: E402
from sb3_reinforce.tracking.runs import find_runs  # noqa: E402
from sb3_reinforce.tracking.settings import masked_command  # noqa: E402
from sb3_reinforce.tracking.wandb_internals import end_service  # noqa: E402
from tests.envs import RewardListEnv  # noqa: E402
from tests.wandb_file import artifacts, config, exit_codes, history, no_account, records, summary, updates  # noqa: E402, F401


class Interrupt(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 200:
            raise KeyboardInterrupt
        return True


def run_dirs() -> list[Path]:
    return sorted(Path("wandb").glob("offline-run-*"))


def small_model(**kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=4, device="cpu", **kwargs)


class StepsAtDump(BaseCallback):
    """What the rows' steps must be: num_timesteps at the end of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def _on_rollout_end(self) -> None:
        self.steps.append(self.num_timesteps)

    def _on_step(self) -> bool:
        return True


def test_rows_carry_the_time_step_and_sb3s_names():
    tracker, expected = WandbCallback(mode="offline", verbose=0), StepsAtDump()
    small_model(seed=0).learn(600, callback=[expected, tracker])
    rows = updates(tracker.run_dir)
    assert [row["global_step"] for row in rows] == expected.steps
    assert len(rows) >= 3
    for row in rows:
        assert {"rollout/ep_rew_mean", "train/policy_gradient_loss", "train/grad_norm", "time/fps"} <= set(row)
        # W&B's own row counter must not be what the plots are drawn over
        assert row["global_step"] == row["time/total_timesteps"]
    metrics = [record.metric for record in records(tracker.run_dir) if record.WhichOneof("record_type") == "metric"]
    assert any(metric.glob_name == "*" and metric.step_metric == "global_step" for metric in metrics)
    assert exit_codes(tracker.run_dir) == [0]
    assert wandb.run is None


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


def test_config_is_what_decides_the_result():
    tracker = WandbCallback(mode="offline", verbose=0, tags=["a"], group="g", config={"note": "mine"})
    small_model(gamma=0.97, baseline="leave_one_out", policy_kwargs={"net_arch": [8]}, seed=3).learn(50, callback=tracker)
    settings = {key: value for key, value in config(tracker.run_dir).items() if key != "_wandb"}
    expected = {
        "algo": "REINFORCE",
        "policy": "ActorCriticPolicy",
        "gamma": 0.97,
        "baseline": "leave_one_out",
        "n_episodes": 4,
        "seed": 3,
        "policy_kwargs": {"net_arch": [8]},
        "env_id": "CartPole-v1",
        "n_envs": 1,
        "total_timesteps": 50,
        "note": "mine",
    }
    assert {key: settings.get(key) for key in expected} == expected
    assert {"python", "stable-baselines3", "torch", "gymnasium"} <= set(settings["versions"])
    # junk that W&B's own callback records: buffers, environments, loggers, private counters
    assert not any(key.startswith("_") for key in settings)
    assert not any("object at 0x" in json.dumps(value) for value in settings.values())


def test_works_with_other_algorithms():
    tracker = WandbCallback(mode="offline", verbose=0)
    A2C("MlpPolicy", "CartPole-v1", device="cpu").learn(20, callback=tracker, log_interval=1)
    assert [row["global_step"] for row in updates(tracker.run_dir)] == [5, 10, 15, 20]
    assert config(tracker.run_dir)["gae_lambda"] == 1.0


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


class BrokenRun:
    """A run whose every call fails."""

    def __init__(self) -> None:
        self.calls = 0

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        self.calls += 1
        raise OSError("disk full")


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


def test_a_failing_log_warns_once_and_goes_quiet():
    run = BrokenRun()
    writer = WandbOutputFormat(run)
    with pytest.warns(UserWarning, match=r"training goes on \(OSError: disk full\)"):
        writer.write({"a": 1.0}, {"a": ()}, step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.write({"a": 2.0}, {"a": ()}, step=2)
    assert run.calls == 1


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


def test_values_become_wandbs_types(tmp_path: Path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure()
    figure.add_subplot().plot([0, 1])
    run = wandb.init(mode="offline", settings=wandb.Settings(silent=True))
    directory = Path(run.dir).parent
    logger = configure(None, [])
    logger.output_formats.append(WandbOutputFormat(run))
    logger.record("float32", np.float32(0.5))
    logger.record("tensor", th.tensor(2.0))
    logger.record("single", np.array([3]))
    logger.record("flag", True)
    logger.record("none", None)
    logger.record("text", "words")
    logger.record("hparam", HParam({"lr": 0.1}, {"loss": 1.0}))
    logger.record("array", np.array([1.0, 2.0, np.nan]))
    logger.record("empty", np.array([]))
    logger.record("figure", Figure(figure, close=False))
    logger.record("image", Image(th.zeros(3, 4, 5), "CHW"))
    logger.record("not_for_wandb", 1.0, exclude="wandb")
    logger.record("not_for_stdout", 1.0, exclude=("stdout", "log"))
    logger.record("bad_image", Image(np.zeros((2, 2)), "CHW"))
    with pytest.warns(UserWarning, match="bad_image cannot be logged .*dataformats must name each axis"):
        logger.dump(step=7)
    logger.record("text", "only")
    logger.dump(step=8)  # nothing for W&B: no row
    run.finish()
    (row,) = history(directory)
    plain = {key: row[key] for key in ("global_step", "float32", "tensor", "single", "flag", "not_for_stdout")}
    assert plain == {"global_step": 7, "float32": 0.5, "tensor": 2.0, "single": 3, "flag": True, "not_for_stdout": 1.0}
    assert row["array._type"] == "histogram"
    assert sum(row["array.values"]) == 2  # NaN is left out
    assert row["figure._type"] == "image-file"
    assert (row["image.height"], row["image.width"]) == (4, 5)
    assert not {"none", "text", "hparam", "empty", "not_for_wandb", "bad_image"} & set(row)


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode must be one of auto, online, offline, disabled, got 'of'"):
        WandbCallback(mode="of")


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


# --- what is logged ---


def test_raw_episodes_of_each_update():
    """Mean, std, min, max and histogram of the returns and lengths of the very episodes that the update used."""

    class Used(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.lengths: list[list[int]] = []

        def _on_rollout_end(self) -> None:
            self.lengths.append([episode.length for episode in self.locals["tracker"].episodes])

        def _on_step(self) -> bool:
            return True

    tracker, used = WandbCallback(mode="offline", verbose=0), Used()
    REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 3), n_steps=32, seed=0, device="cpu").learn(
        600, callback=[used, tracker]
    )
    rows = updates(tracker.run_dir)
    assert len(rows) == len(used.lengths) >= 3
    for row, lengths in zip(rows, used.lengths, strict=True):
        for name in ("return", "length"):  # CartPole pays 1 per step
            assert row[f"rollout/ep_{name}_mean"] == pytest.approx(np.mean(lengths))
            assert row[f"rollout/ep_{name}_std"] == pytest.approx(np.std(lengths))
            assert row[f"rollout/ep_{name}_min"] == min(lengths)
            assert row[f"rollout/ep_{name}_max"] == max(lengths)
            assert sum(row[f"rollout/ep_{name}_hist.values"]) == len(lengths)


def test_single_episodes_are_no_more_than_asked_for():
    """1000 episodes of one step each take well below a second, in which ten rows may be written."""
    tracker = WandbCallback(mode="offline", verbose=0)
    env = DummyVecEnv([lambda: Monitor(RewardListEnv([2.0]))])
    started = time.monotonic()
    REINFORCE("MlpPolicy", env, n_episodes=100, seed=0, device="cpu").learn(1000, callback=tracker)
    seconds = time.monotonic() - started
    rows = [row for row in history(tracker.run_dir) if "episode/return" in row]
    assert 1 <= len(rows) <= 10 * seconds + 1
    assert {(row["episode/return"], row["episode/length"]) for row in rows} == {(2.0, 1.0)}
    assert all("time/fps" not in row for row in rows)
    assert len(updates(tracker.run_dir)) == 10

    tracker = WandbCallback(mode="offline", verbose=0, episode_rate=0)
    small_model().learn(50, callback=tracker)
    assert not [row for row in history(tracker.run_dir) if "episode/return" in row]


def test_histograms_at_the_chosen_rate():
    tracker = WandbCallback(mode="offline", verbose=0, histogram_freq=2)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(400, callback=tracker)
    rows = updates(tracker.run_dir)
    assert len(rows) >= 4
    for number, row in enumerate(rows):
        names = {key.split(".")[0] for key in row if key.startswith("histogram/")}
        assert names == ({"histogram/returns", "histogram/advantages", "histogram/actions"} if number % 2 == 0 else set())
    if len(rows) % 2:  # the last row's is that of the buffer as it is now
        actions = model.rollout_buffer.actions.ravel()
        assert rows[-1]["histogram/actions.values"] == [int((actions == 0).sum()), int((actions == 1).sum())]


def test_off_policy_algorithms():
    tracker = WandbCallback(mode="offline", verbose=0, histogram_freq=1)
    DQN("MlpPolicy", "CartPole-v1", device="cpu", learning_starts=10, buffer_size=500).learn(300, callback=tracker)
    rows = updates(tracker.run_dir)
    assert rows
    for row in rows:  # SB3 writes a row after every fourth episode
        assert sum(row["rollout/ep_return_hist.values"]) == 4
        assert {"rollout/ep_length_max", "histogram/actions.values"} <= set(row)


def test_evaluations_best_and_last_model(tmp_path: Path):
    """The artifacts hold models that can be loaded, with their VecNormalize, and the summary the best evaluation."""
    tracker = WandbCallback(mode="offline", verbose=0)
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    evaluation = EvalCallback(
        VecNormalize(make_vec_env("CartPole-v1", 1), training=False, norm_reward=False), eval_freq=250, verbose=0, warn=False
    )
    model = REINFORCE("MlpPolicy", env, n_steps=128, seed=0, device="cpu").learn(1200, callback=[evaluation, tracker])
    rows = [row for row in history(tracker.run_dir) if "eval/mean_reward" in row]
    assert len(rows) >= 2
    best = max(rows, key=lambda row: row["eval/mean_reward"])
    found = summary(tracker.run_dir)
    assert found["best/eval_mean_reward"] == best["eval/mean_reward"] == evaluation.best_mean_reward
    assert found["best/global_step"] == best["global_step"]

    logged = artifacts(tracker.run_dir)
    assert [set(artifact.aliases) for artifact in logged][-2:] == [{"latest", "best"}, {"latest", "last"}]
    assert {artifact.type for artifact in logged} == {"model"}
    for artifact in logged[-2:]:
        files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        assert set(files) == {"model.zip", "vecnormalize.pkl"}
        loaded = REINFORCE.load(files["model.zip"])
        step = json.loads(artifact.metadata)["global_step"]
        assert loaded.num_timesteps == step == (best["global_step"] if "best" in artifact.aliases else model.num_timesteps)
        statistics = VecNormalize.load(str(files["vecnormalize.pkl"]), make_vec_env("CartPole-v1", 1))
        assert statistics.obs_rms.count > 1
    th.testing.assert_close(loaded.policy.state_dict(), model.policy.state_dict())
    assert statistics.obs_rms.count == env.obs_rms.count


def test_videos_of_episodes():
    tracker = WandbCallback(mode="offline", verbose=0, video_env="CartPole-v1", video_freq=200)
    model = REINFORCE("MlpPolicy", VecNormalize(make_vec_env("CartPole-v1", 1)), n_steps=100, seed=0, device="cpu")
    model.learn(300, callback=tracker)
    rows = [row for row in history(tracker.run_dir) if "eval/video.path" in row]
    assert len(rows) >= 3  # at the start, behind step 200, at the end
    assert [rows[0]["global_step"], rows[-1]["global_step"]] == [0, model.num_timesteps]
    for row in rows:
        film = (tracker.run_dir / "files" / row["eval/video.path"]).read_bytes()
        assert film[4:8] == b"ftyp"  # an mp4
        assert re.fullmatch(r"step \d+, return \d+", row["eval/video.caption"])


def test_videos_are_of_what_the_model_sees():
    """VecNormalize's settings, not its defaults."""
    env = VecNormalize(make_vec_env("CartPole-v1"), norm_obs=False, clip_obs=3.0)
    video_env = make_video_env("CartPole-v1", REINFORCE("MlpPolicy", env))
    assert (video_env.norm_obs, video_env.clip_obs, video_env.training) == (False, 3.0, False)


def test_a_video_that_cannot_be_made_costs_a_warning():
    tracker = WandbCallback(
        mode="offline", verbose=0, video_env=make_vec_env("CartPole-v1", 1, env_kwargs={"render_mode": None})
    )
    with pytest.warns(UserWarning, match="no videos are recorded, training goes on .*render_mode='rgb_array', got None"):
        small_model().learn(100, callback=tracker)
    assert exit_codes(tracker.run_dir) == [0]
    assert updates(tracker.run_dir)


def test_tracking_changes_no_number():
    """Same seed, with and without a tracker that films and saves: the same parameters to the last bit."""
    parameters = []
    for callback in (
        None,
        WandbCallback(mode="offline", verbose=0, video_env="CartPole-v1", video_freq=100, histogram_freq=1),
    ):
        model = small_model(seed=0).learn(400, callback=callback)
        parameters.append(model.policy.state_dict())
    for name, value in parameters[0].items():
        assert th.equal(value, parameters[1][name]), name


# --- state, stop and go on ---


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
    # W&B's own row number goes on as well: `wandb sync` of both folders adds up to one run
    assert [row["_step"] for row in rows + later] == list(range(len(rows) + len(later)))
    steps = [row["global_step"] for row in updates(first.run_dir) + updates(second.run_dir)]
    assert steps == sorted(set(steps))
    (run,) = find_runs([Path("wandb")])
    assert run.metrics["train/grad_norm"][0].tolist() == steps
    assert run.state == "finished"

    third = WandbCallback(mode="offline", verbose=0)
    small_model().learn(50, callback=third)
    assert third.run_id != first.run_id


def test_calls_are_made_in_bursts_and_at_once_when_the_run_ends(monkeypatch: pytest.MonkeyPatch):
    class KeepsRows:
        def log(self, row: dict[str, Any], step: int | None) -> None:
            rows.append(row)

    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(background, "PAUSE", 3600.0)
    run = background.BackgroundRun(KeepsRows())  # type: ignore[arg-type]
    pausing, closing = threading.Event(), run._rows._closing
    monkeypatch.setattr(closing, "wait", lambda seconds: pausing.set() or threading.Event.wait(closing, seconds))
    run.log({"made": lambda: 1, "impossible": lambda: None, "plain": 2})
    assert pausing.wait(20)
    run.log({"plain": 3})
    run.log({"plain": 4})
    assert rows == [{"made": 1, "plain": 2}]
    assert run.close(None, timeout=20)
    assert rows == [{"made": 1, "plain": 2}, {"plain": 3}, {"plain": 4}]


@pytest.mark.parametrize("values", [[1.0, 2.0, 2.5, 9.0], [3.0, 3.0], [-1e9, 0.1], [0.0, 1.0, 1.0, 3.0]])
@pytest.mark.parametrize("discrete", [False, True])
def test_histograms_are_numpys(values: list[float], discrete: bool):
    edges = np.arange(min(values) - 0.5, max(values) + 1) if discrete and max(values) - min(values) < 511 else 20
    counts, edges = np.histogram(values, edges)
    found = histogram(np.array([*values, np.nan, np.inf]), discrete)
    assert found.histogram == counts.tolist()
    assert found.bins == pytest.approx(edges.tolist())


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


# --- W&B in trouble ---


@pytest.mark.slow
def test_a_stopped_process_of_wandbs_stops_nobody():
    """As with a hung disk: W&B's own calls would wait for ever."""
    tracker = WandbCallback(mode="offline", verbose=0, finish_timeout=2)

    class StopService(BaseCallback):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps < 200:
                os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGSTOP)

        def _on_step(self) -> bool:
            return True

    model = small_model()
    started = time.monotonic()
    with pytest.warns(UserWarning, match="W&B: did not end within 2 s, what was logged is in .*, training goes on"):
        model.learn(1000, callback=[tracker, StopService()])
    assert time.monotonic() - started < 40
    assert model.num_timesteps >= 1000
    # and the next one is tracked again
    tracker = WandbCallback(mode="offline", verbose=0)
    small_model().learn(50, callback=tracker)
    assert exit_codes(tracker.run_dir) == [0]


def test_a_process_of_wandbs_that_does_not_end_is_ended():
    wandb.setup().ensure_service()
    process = wandb_setup.singleton()._connection._proc._process
    process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    end_service(patience=1)
    assert 1 <= time.monotonic() - started < 20
    assert process.wait(20) == -signal.SIGKILL
    # and one that does is not killed
    wandb.setup().ensure_service()
    process = wandb_setup.singleton()._connection._proc._process
    end_service(patience=60)
    assert process.wait(20) == 0


def test_a_process_of_wandbs_that_dies_costs_a_warning():
    tracker = WandbCallback(mode="offline", verbose=0, finish_timeout=2)

    class KillService(BaseCallback):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps < 200:
                os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGKILL)

        def _on_step(self) -> bool:
            return True

    model = small_model()
    started = time.monotonic()
    with pytest.warns(UserWarning, match="W&B: ") as warned:
        model.learn(1000, callback=[tracker, KillService()])
    assert time.monotonic() - started < 40
    assert model.num_timesteps >= 1000
    assert len([warning for warning in warned if "W&B" in str(warning.message)]) == 1


@pytest.mark.slow
def test_a_full_disk_costs_a_warning(tmp_path: Path):
    """A limit on the size of files stands in for the disk: W&B's process cannot write more than 100 kB into its run's file."""
    program = """
import resource, time, sys
from sb3_reinforce import REINFORCE
from sb3_reinforce.tracking import WandbCallback
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = REINFORCE("MlpPolicy", "CartPole-v1", n_episodes=1, n_value_epochs=1, device="cpu")
started = time.monotonic()
model.learn(8000, callback=WandbCallback(mode="offline", verbose=0, finish_timeout=4))
print("trained", model.num_timesteps >= 8000, time.monotonic() - started < 60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("trained True True"), done.stdout
    (directory,) = run_dirs()
    (run,) = find_runs([directory])
    assert run.metrics  # what fitted on the disk is kept
    assert run.state == "killed or running"


# --- no secret ---


@pytest.mark.parametrize(
    "given, shown",
    [
        (["--api-key", "abc"], ["--api-key", "***"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["--wandb-token", "abc", "--seed", "1"], ["--wandb-token", "***", "--seed", "1"]),
        (["-params", "password:x", "gamma:0.9"], ["-params", "password:***", "gamma:0.9"]),
        (["SECRET=x"], ["SECRET=***"]),
        (["0123456789abcdef" * 3], ["***"]),
        (["hf_" + "aB3" * 10], ["***"]),
        (["https://me:pass@host/x"], ["https://***@host/x"]),
        (["x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"], ["x", "***"]),
        # what is none
        (["--env", "CartPole-v1", "-n", "-5", "--tb", "lin_3e-4"], ["--env", "CartPole-v1", "-n", "-5", "--tb", "lin_3e-4"]),
        (["--keyboard", "us", "logs/reinforce/CartPole-v1_1/best_model.zip"],
         ["--keyboard", "us", "logs/reinforce/CartPole-v1_1/best_model.zip"]),
        (["--env-kwargs", "render_mode:'rgb_array'"], ["--env-kwargs", "render_mode:'rgb_array'"]),
        *([[env_id], [env_id]] for env_id in (
            "MiniGrid-Dynamic-Obstacles-5x5-v0", "HandManipulateEggRotate_ContinuousTouchSensors-v1", "TaskCartPoleSwingup-v0",
        )),
        (["benchmark_learning_results"], ["benchmark_learning_results"]),
    ],
)  # fmt: skip
def test_masked_command(given: list[str], shown: list[str]):
    assert masked_command(given) == shown


def test_no_secret_reaches_the_files(monkeypatch: pytest.MonkeyPatch):
    """Not the environment's, not the command's, not the config's; neither the program's output nor uncommitted changes."""
    secrets = [
        "swordfish-environment",
        "swordfish-command",
        "swordfish-config",
        "swordfish-output",
        "swordfish-diff",
        "f00d" * 10,
    ]
    monkeypatch.setenv("MY_TOKEN", secrets[0])
    monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", secrets[1], secrets[5]])
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    Path("code.py").write_text("old\n")
    subprocess.run([*git, "add", "code.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    Path("code.py").write_text(secrets[4])
    tracker = WandbCallback(mode="offline", config={"api_key": secrets[2], "note": secrets[5], "url": "http://u:p4ss@h"})
    print(secrets[3])
    small_model().learn(100, callback=tracker)
    found = config(tracker.run_dir)
    assert found["api_key"] == found["note"] == "***"
    assert found["url"] == "http://***@h"
    assert found["command"] == "train.py --api-key *** ***"
    assert found["git_commit"] == commit
    for path in Path("wandb").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [secret for secret in [*secrets, "p4ss"] if secret.encode() in data], path


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
