"""
REINFORCE for Stable-Baselines3: the Monte-Carlo policy gradient, right, measured and fast.

The names below are imported when they are first used: `sb3-reinforce --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_reinforce.version import __version__

if TYPE_CHECKING:
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
else:
    _MODULES = {
        "Baseline": "baselines",
        "check_unbiased": "bias",
        "compare_baselines": "compare",
        "GradientDiagnostics": "diagnostics",
        "Episodes": "episodes",
        "EpisodicAlgorithm": "episodic",
        "compare_estimators": "estimators.comparison",
        "ParallelCost": "parallel",
        "REINFORCE": "reinforce",
        "use_cuda_graph": "rollout.graphs",
        "TrainingCheckpoint": "running.checkpoint",
        "GradientEstimate": "score_function",
        "ScoreFunctionEstimator": "score_function",
        "score_function_loss": "score_function",
        "VectorEnvAdapter": "vec_env",
    }

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        path = f"{__name__}.{name}"
        try:  # a module of the package
            return import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:  # what it imports is not installed
                raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})


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
