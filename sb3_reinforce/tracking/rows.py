"""The rows that one ``learn`` logs: SB3's own with more in them, single episodes, videos; and the models."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.tracking.artifacts import ModelArtifacts
from sb3_reinforce.tracking.media import encode_video, episode_statistics, record_episode, step_histograms
from sb3_reinforce.tracking.metrics import STEP_KEY
from sb3_reinforce.tracking.run import OpenRun
from sb3_reinforce.tracking.writer import WandbOutputFormat

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


@dataclass
class Progress:
    """What a checkpoint needs to resume a run: its id, the number of its rows, the best evaluation so far."""

    run_id: str | None = None
    n_rows: int = 0
    best_mean_reward: float | None = None


class Rows:
    """
    Logs the rows of one ``learn``, from its first rollout on.

    :param model: the algorithm that trains; its logger gets one more output format
    :param run: the run to log to
    :param progress: of the run, updated in place
    :param episode_rate: at most so many rows of single episodes per second; 0: none
    :param histogram_freq: number of update rows from one set of histograms of steps to the next; 0: none
    :param save_models: whether to log the best and the last model
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
        self._models = ModelArtifacts(model, run) if save_models else None
        self._writer = WandbOutputFormat(run.background, add_to_row=self._add, warn=run.warn)
        model.logger.output_formats.append(self._writer)
        # return and length of the episodes since the last update row
        self._episodes: deque[tuple[float, float]] = deque(maxlen=100_000)
        self._n_updates = 0
        self._episode_pause = 1 / episode_rate if episode_rate else float("inf")
        self._next_episode = 0.0 if episode_rate else float("inf")

    def add_episodes(self, episodes: Iterable[tuple[float, float]]) -> None:
        """Count episodes, by return and length, in the statistics of the next update row."""
        self._episodes.extend(episodes)

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
        if self._models is not None:
            self._models.log_last({STEP_KEY: self._model.num_timesteps})

    def detach(self) -> None:
        """Leave the model's logger; a logger of the user outlives ``learn``, and would write later rows twice."""
        if self._writer in self._model.logger.output_formats:
            self._model.logger.output_formats.remove(self._writer)

    def close(self) -> None:
        """Remove files, after the run has ended."""
        if self._models is not None:
            self._models.close()

    def _add(self, row: dict[str, Any]) -> None:
        """Add what SB3's logger does not know to a row that is about to be logged."""
        self._progress.n_rows += 1
        if "time/fps" in row:  # only in the row of an update
            if self._episodes:
                row |= {**episode_statistics(self._episodes), **row}
                self._episodes.clear()
            if self._histogram_freq and self._n_updates % self._histogram_freq == 0:
                row |= step_histograms(self._model)
            self._n_updates += 1
        if "eval/mean_reward" in row:
            self._note_evaluation(float(row["eval/mean_reward"]), row[STEP_KEY])
        if self._models is not None:
            self._models.log_best()

    def _note_evaluation(self, mean_reward: float, step: int) -> None:
        best = self._progress.best_mean_reward
        if best is not None and mean_reward <= best:
            return
        self._progress.best_mean_reward = mean_reward
        self.run.log_summary({"best/eval_mean_reward": mean_reward, "best/global_step": step})
        if self._models is not None:
            self._models.save_best({STEP_KEY: step, "eval/mean_reward": mean_reward})
