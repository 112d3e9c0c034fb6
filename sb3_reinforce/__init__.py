"""REINFORCE for Stable-Baselines3: the Monte-Carlo policy gradient, right, measured and fast."""

from sb3_reinforce.baselines import Baseline
from sb3_reinforce.bias import check_unbiased
from sb3_reinforce.compare import compare_baselines
from sb3_reinforce.diagnostics import GradientDiagnostics
from sb3_reinforce.episodes import Episodes
from sb3_reinforce.episodic import EpisodicAlgorithm
from sb3_reinforce.estimators.comparison import compare_estimators
from sb3_reinforce.parallel import ParallelCost
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.rollout.graphs import use_cuda_graph
from sb3_reinforce.running.checkpoint import TrainingCheckpoint
from sb3_reinforce.score_function import GradientEstimate, ScoreFunctionEstimator, score_function_loss
from sb3_reinforce.vec_env import VectorEnvAdapter
from sb3_reinforce.version import __version__

__all__ = [
    "REINFORCE",
    "Baseline",
    "Episodes",
    "EpisodicAlgorithm",
    "GradientDiagnostics",
    "GradientEstimate",
    "ParallelCost",
    "ScoreFunctionEstimator",
    "TrainingCheckpoint",
    "VectorEnvAdapter",
    "__version__",
    "check_unbiased",
    "compare_baselines",
    "compare_estimators",
    "score_function_loss",
    "use_cuda_graph",
]  # fmt: skip
