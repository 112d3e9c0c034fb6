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
from dataclasses import dataclass
from typing import Any

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
)


def speed(n_rounds: int = 5, n_steps: int = 2000) -> None:
    """Steps per second of learn(), in turns: the median and the range of the rounds, and the medians' quotient."""
    th.set_num_threads(1)
    print(f"{'environment':<18} {'n_envs':>6} {'LSTM':>5}   {'REINFORCE':>24}   {'RecurrentPPO':>21}   times")
    for env_id in ("CartPoleNoVel-v1", "PendulumNoVel-v1"):
        for n_envs in (1, 8):
            for size in (64, 256):
                found: dict[Any, list[float]] = {REINFORCE: [], RecurrentPPO: []}
                models = {}
                for algorithm in found:
                    policy_kwargs = dict(lstm_hidden_size=size)
                    env = make_vec_env(env_id, n_envs, seed=0)
                    models[algorithm] = algorithm("MlpLstmPolicy", env, seed=0, device="cpu", policy_kwargs=policy_kwargs)
                    models[algorithm].learn(1)  # what is made once is made
                for _ in range(n_rounds):
                    for algorithm, model in models.items():
                        before, start = model.num_timesteps, time.process_time()
                        model.learn(n_steps, reset_num_timesteps=False)
                        found[algorithm].append((model.num_timesteps - before) / (time.process_time() - start))
                ours, others = (f"{statistics.median(x):,.0f} ({min(x):,.0f}-{max(x):,.0f})" for x in found.values())
                times = statistics.median(found[REINFORCE]) / statistics.median(found[RecurrentPPO])
                print(f"{env_id:<18} {n_envs:>6} {size:>5}   {ours:>24}   {others:>21}   {times:.1f}", flush=True)


if __name__ == "__main__":
    if "--speed" in sys.argv:
        speed()
    else:
        suite.main(RECURRENT, __doc__)
