"""The best and the last model of a run, as W&B artifacts."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_reinforce.tracking.run import OpenRun

# Early training finds a better model at almost every evaluation: at most one upload a minute
_SECONDS_BETWEEN_BESTS = 60.0


class ModelArtifacts:
    """Saves models with the statistics of their VecNormalize, and logs them as artifacts of type ``model``."""

    def __init__(self, model: BaseAlgorithm, run: OpenRun) -> None:
        self._model, self._run = model, run
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

    def log_last(self, metadata: dict[str, Any]) -> None:
        """Log a best model that waits, and the model as it is at the end."""
        self.log_best(at_once=True)
        saved = self._save("last")
        if saved is not None:
            self._log(saved, metadata, alias="last")

    def close(self) -> None:
        """Remove what is still on disk."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, alias: str) -> Path | None:
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sb3-reinforce-"))
            folder = Path(tempfile.mkdtemp(prefix=f"{alias}-", dir=self._folder))
            self._model.save(folder / "model.zip")
            normalize = self._model.get_vec_normalize_env()
            if normalize is not None:
                normalize.save(str(folder / "vecnormalize.pkl"))
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
