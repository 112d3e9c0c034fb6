"""Weights & Biases for any SB3 algorithm. The package wandb is imported when a callback is constructed, not before."""

from sb3_reinforce.tracking.callback import WandbCallback, trial_callback
from sb3_reinforce.tracking.writer import WandbOutputFormat

__all__ = ["WandbCallback", "WandbOutputFormat", "trial_callback"]
