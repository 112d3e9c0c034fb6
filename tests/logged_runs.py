"""Runs as the report reads them, made by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from sb3_reinforce.tracking.runs import LoggedRun

RETURN = "rollout/ep_return_mean"


def series(*pairs: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([x for x, _ in pairs], dtype=float), np.array([y for _, y in pairs], dtype=float)


def run_of(seed: int, metrics: dict[str, Any], **config: Any) -> LoggedRun:
    settings = {"algo": "REINFORCE", "env_id": "CartPole-v1", "seed": seed, **config}
    return LoggedRun(f"run{seed}", Path("x"), "wandb", config=settings, metrics=metrics, state="finished")
