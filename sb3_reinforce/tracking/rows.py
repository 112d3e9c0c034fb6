"""What one ``learn`` logs: SB3's rows with more in them, single episodes, videos, and the best and the last model."""

import shutil
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.tracking.media import encode_video, episode_statistics, record_episode, step_histograms
from sb3_reinforce.tracking.metrics import STEP_KEY
from sb3_reinforce.tracking.run import OpenRun
from sb3_reinforce.tracking.writer import WandbOutputFormat

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# Early training finds a better model at almost every evaluation: at most one upload a minute
_SECONDS_BETWEEN_BESTS = 60.0


@dataclass
class Progress:
    """What a checkpoint needs to resume a run: its id, the number of its rows, the best evaluation so far."""

    run_id: str | None = None
    n_rows: int = 0
    best_mean_reward: float | None = None


class Rows:
    """
    Logs the rows of one ``learn``, from its first rollout on. The last three arguments are those of ``WandbCallback``.

    :param model: the algorithm that trains; its logger gets one more output format
    :param progress: of the run, updated in place
    """

    def __init__(
        self,
        model: "BaseAlgorithm",
        run: OpenRun,
        progress: Progress,
        episode_rate: float,
        histogram_freq: int,
        save_models: bool,
    ) -> None:
        self.run = run
        self._model, self._progress = model, progress
        self._histogram_freq = histogram_freq
        self.models = ModelArtifacts(model, run, save_models)
        self._writer = WandbOutputFormat(run.background, add_to_row=self._add, warn=run.warn)
        model.logger.output_formats.append(self._writer)
        # return and length of the episodes since the last update row, for the statistics of the next one
        self.episodes: deque[tuple[float, float]] = deque(maxlen=100_000)
        self._n_updates = 0
        self._episode_pause = 1 / episode_rate if episode_rate else float("inf")
        self._next_episode = 0.0 if episode_rate else float("inf")

    def log_episode(self, total_reward: float, length: float, step: int) -> None:
        """Log a single episode that ended at a time step, unless one was logged a moment ago."""
        now = time.monotonic()
        if now >= self._next_episode:
            self._next_episode = now + self._episode_pause
            self._writer.log_row({STEP_KEY: step, "episode/return": total_reward, "episode/length": float(length)})

    def log_video(self, env: VecEnv) -> None:
        """Film one episode, see :func:`record_episode`; the background thread encodes it during training."""
        frames, fps, total_reward = record_episode(self._model, env)
        caption = f"step {self._model.num_timesteps}, return {total_reward:g}"
        video = partial(encode_video, frames, fps, caption, self.run.warn)
        self._writer.log_row({STEP_KEY: self._model.num_timesteps, "eval/video": video})

    def end_training(self) -> None:
        """Log the models of a training that has ended or was interrupted."""
        self.run.training_ended = True
        self.models.log_last(self._model.num_timesteps)

    def detach(self) -> None:
        """Leave the model's logger; a logger of the user outlives ``learn``, and would write later rows twice."""
        if self._writer in self._model.logger.output_formats:
            self._model.logger.output_formats.remove(self._writer)

    def _add(self, row: dict[str, Any]) -> None:
        """Add what SB3's logger does not know to a row that is about to be logged."""
        self._progress.n_rows += 1
        if "time/fps" in row:  # only in the row of an update
            if self.episodes:
                row |= {**episode_statistics(self.episodes), **row}
                self.episodes.clear()
            if self._histogram_freq and self._n_updates % self._histogram_freq == 0:
                row |= step_histograms(self._model)
            self._n_updates += 1
        if "eval/mean_reward" in row:
            mean_reward, best = float(row["eval/mean_reward"]), self._progress.best_mean_reward
            if best is None or not mean_reward <= best:  # NaN does not stay the best
                self._progress.best_mean_reward = mean_reward
                self.run.log_summary({"best/eval_mean_reward": mean_reward, "best/global_step": row[STEP_KEY]})
                self.models.save_best({STEP_KEY: row[STEP_KEY], "eval/mean_reward": mean_reward})
        self.models.log_best()


class ModelArtifacts:
    """Saves models with the statistics of their VecNormalize, and logs them as artifacts of type ``model``, if enabled."""

    def __init__(self, model: "BaseAlgorithm", run: OpenRun, enabled: bool) -> None:
        self._model, self._run, self._enabled = model, run, enabled
        self._folder: Path | None = None
        # saved and not logged yet: folder and metadata
        self._best: tuple[Path, dict[str, Any]] | None = None
        self._last_best = float("-inf")

    def save_best(self, metadata: dict[str, Any]) -> None:
        """Save the model as the best one; :meth:`log_best` logs it."""
        saved = self._save("best")
        if saved is not None:
            self._best = saved, metadata

    def log_best(self, at_once: bool = False) -> None:
        """Log a new best model; unless ``at_once``, a minute after the last one at the earliest."""
        if self._best is not None and (at_once or time.monotonic() - self._last_best > _SECONDS_BETWEEN_BESTS):
            self._log(*self._best, alias="best")
            self._best, self._last_best = None, time.monotonic()

    def log_last(self, step: int) -> None:
        """Log a best model that waits, and the model as it is at the end."""
        self.log_best(at_once=True)
        saved = self._save("last")
        if saved is not None:
            self._log(saved, {STEP_KEY: step}, alias="last")

    def close(self) -> None:
        """Remove what is still on disk."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, alias: str) -> Path | None:
        if not self._enabled:
            return None
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sb3-reinforce-"))
            folder = Path(tempfile.mkdtemp(prefix=f"{alias}-", dir=self._folder))
            self._model.save(folder / "model.zip")
            normalize = self._model.get_vec_normalize_env()
            if normalize is not None:
                normalize.save(str(folder / "vecnormalize.pkl"))
            if not (folder / "model.zip").is_file():
                return None  # of a full disk the zoo's training has warned
        except Exception as error:
            self._run.warn("a model was not saved", error)
            return None
        return folder

    def _log(self, folder: Path, metadata: dict[str, Any], alias: str) -> None:
        run = self._run.run

        def log() -> None:
            import wandb

            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
            for file in sorted(folder.iterdir()):
                artifact.add_file(str(file))
            run.log_artifact(artifact, aliases=[alias])
            shutil.rmtree(folder)  # W&B has made a copy

        self._run.submit(log, "a model was not logged", upload=True)
