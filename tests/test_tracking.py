"""W&B runs are written offline and read back from their files: the step axis, the metrics, the settings."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam, Image, Logger, configure

wandb = pytest.importorskip("wandb")

from wandb.sdk.lib import wbauth  # noqa: E402

from sb3_reinforce import REINFORCE  # noqa: E402
from sb3_reinforce.tracking import WandbCallback, WandbOutputFormat  # noqa: E402
from tests.wandb_file import artifacts, config, exit_codes, history, records, summary, updates  # noqa: E402


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory of its own, nobody logged in; W&B remembers both for the life of the process if not torn down."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()
    wbauth.unauthenticate_session(update_settings=False)


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
    assert WandbCallback(mode=mode)._resolved_mode() == expected


def test_key_in_netrc(tmp_path: Path):
    Path(os.environ["NETRC"]).write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert WandbCallback()._resolved_mode() == "online"


def test_online_without_a_key_is_kept_offline():
    with pytest.warns(UserWarning, match="no API key is configured"):
        assert WandbCallback(mode="online")._resolved_mode() == "offline"


def test_an_unreadable_key_is_kept_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with pytest.warns(UserWarning, match="the API key cannot be read, the run is kept offline, training goes on"):
        assert WandbCallback()._resolved_mode() == "offline"


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
