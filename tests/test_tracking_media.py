"""Values as W&B's types, histograms, videos, and models as artifacts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Figure, HParam, Image, configure
from stable_baselines3.common.vec_env import VecNormalize

wandb = pytest.importorskip("wandb")

from sb3_reinforce import REINFORCE  # noqa: E402
from sb3_reinforce.tracking import WandbCallback, WandbOutputFormat  # noqa: E402
from sb3_reinforce.tracking.media import histogram, make_video_env  # noqa: E402
from tests.wandb_file import artifacts, exit_codes, history, no_account, small_model, summary, updates  # noqa: E402, F401


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


@pytest.mark.parametrize("values", [[1.0, 2.0, 2.5, 9.0], [3.0, 3.0], [-1e9, 0.1], [0.0, 1.0, 1.0, 3.0]])
@pytest.mark.parametrize("discrete", [False, True])
def test_histograms_are_numpys(values: list[float], discrete: bool):
    edges = np.arange(min(values) - 0.5, max(values) + 1) if discrete and max(values) - min(values) < 511 else 20
    counts, edges = np.histogram(values, edges)
    found = histogram(np.array([*values, np.nan, np.inf]), discrete)
    assert found.histogram == counts.tolist()
    assert found.bins == pytest.approx(edges.tolist())


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
    assert len(rows) >= 3  # at the start, after step 200, at the end
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
