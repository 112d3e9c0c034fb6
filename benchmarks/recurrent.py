"""
Recurrent policies on RL Zoo's tasks without velocities, beside an MLP that cannot remember, and RecurrentPPO.

    python benchmarks/recurrent.py --seeds 10 --jobs 2 --agents REINFORCE "REINFORCE, MLP"
    python benchmarks/recurrent.py --collect
    python benchmarks/recurrent.py --speed

Runs that are there are not run again. The published results are RL Zoo's, one run each. --speed: steps per second of learning
beside RecurrentPPO with the same network, in turns, by CPU time.
"""

import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import rl_zoo3.import_envs  # noqa: F401  registers the tasks
import suite
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE

LSTM = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")


@dataclass(frozen=True)
class WithoutMemory(suite.Agent):
    """The same settings with an MLP in place of the LSTM."""

    def settings(self, suite_: suite.Suite, env_id: str) -> dict[str, Any]:
        settings = super().settings(suite_, env_id)
        kwargs = {key: value for key, value in settings.get("policy_kwargs", {}).items() if key not in LSTM}
        return settings | dict(policy="MlpPolicy", policy_kwargs=kwargs)


suite.AGENTS = {
    suite.OURS: suite.AGENTS[suite.OURS],
    "REINFORCE, MLP": WithoutMemory(REINFORCE, suite.CONFIG),
    "RecurrentPPO": suite.Agent(RecurrentPPO, suite.OF_ZOO / "ppo_lstm.yml"),
}
STEPS = {"CartPoleNoVel-v1": 100_000, "PendulumNoVel-v1": 300_000, "MountainCarContinuousNoVel-v0": 300_000}
RECURRENT = suite.Suite(
    name="recurrent",
    steps=STEPS,
    n_eval_episodes=10,
    n_final_episodes=100,
    published={"RL Zoo RecurrentPPO": dict(zip(STEPS, (500, -217.9, 91.5), strict=True))},
    compares="final",
    bounds={"CartPoleNoVel-v1": (0, 500)},
)


CONTESTANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "REINFORCE": (REINFORCE, {}),
    "REINFORCE, 10 epochs": (REINFORCE, dict(n_epochs=10, batch_size=128)),
    "RecurrentPPO": (RecurrentPPO, {}),  # whose default is ten epochs
}


def speed(n_rounds: int = 3, n_steps: int = 1024) -> None:
    """Steps per second of CPU time while learning, in turns: median, range, and the multiple of RecurrentPPO's median."""
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    for n_envs in (1, 8):
        for size in (64, 256):
            models = {}
            for name, (algorithm, kwargs) in CONTESTANTS.items():
                env = make_vec_env("CartPoleNoVel-v1", n_envs, seed=0)
                policy_kwargs = dict(lstm_hidden_size=size)
                models[name] = algorithm("MlpLstmPolicy", env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **kwargs)
                models[name].learn(1)  # what is made once is made
            found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
            for _ in range(n_rounds):
                for name, model in models.items():
                    before, start = model.num_timesteps, time.process_time()
                    model.learn(n_steps, reset_num_timesteps=False)
                    found[name].append((model.num_timesteps - before) / (time.process_time() - start))
            slowest = statistics.median(found["RecurrentPPO"])
            for name, speeds in found.items():
                median = statistics.median(speeds)
                spread = f"{median:,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})"
                title = f"{n_envs} environments, LSTM of {size}: {name}"
                print(f"{title:<54} {spread:>24} {median / slowest:>6.1f} times", flush=True)


if __name__ == "__main__":
    if "--speed" in sys.argv:
        speed()
    else:
        suite.main(RECURRENT, __doc__)
