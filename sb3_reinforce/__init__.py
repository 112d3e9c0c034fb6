"""REINFORCE for Stable-Baselines3: the Monte-Carlo policy gradient, right, measured and fast."""

from sb3_reinforce.baselines import Baseline, Episodes
from sb3_reinforce.bias import check_unbiased
from sb3_reinforce.checkpoint import TrainingCheckpoint
from sb3_reinforce.diagnostics import GradientDiagnostics, compare_baselines
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.score_function import GradientEstimate, ScoreFunctionEstimator, score_function_loss
from sb3_reinforce.vec_env import VectorEnvAdapter

__version__ = "0.1.0"

__all__ = [
    "REINFORCE", "Baseline", "Episodes", "GradientDiagnostics", "GradientEstimate", "ScoreFunctionEstimator",
    "TrainingCheckpoint", "VectorEnvAdapter", "__version__", "check_unbiased", "compare_baselines", "score_function_loss",
]  # fmt: skip
