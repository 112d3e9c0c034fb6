"""
Speed and memory of training on Pong from pixels, on ale-py's own vector environment: REINFORCE beside PPO and A2C.

    python benchmarks/pong.py                          # 8 environments
    python benchmarks/pong.py --n-envs 16 --rounds 3
    python benchmarks/pong.py --before FOLDER          # also with the package of another checkout, in the same turns
    python benchmarks/pong.py --device cuda

Contestants take turns, round by round, each time as a process of its own that trains for some steps with ``CnnPolicy``: the
time of the first update counts, that of imports and of making environment and network does not. "Alone" steps the environment
with random actions; "CUDA graph" is for a GPU (docs/gpu.md). Printed are medians over the rounds with the lowest and the
highest: steps per second of wall clock, the same per second of processor time, and what ``learn`` adds to the peak of the
resident memory, per step that is kept for an update. PPO and A2C have RL Zoo's settings for Atari; REINFORCE plays whole
games, at least 128 steps per environment.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import ale_py  # registers the games
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3 import A2C, PPO

from sb3_reinforce import REINFORCE, VectorEnvAdapter

warnings.simplefilter("ignore")
GAME = "ALE/Pong-v5"
CONTESTANTS = {
    "alone": dict(algorithm="alone"),
    'REINFORCE, baseline="none"': dict(algorithm="REINFORCE", n_steps=128, baseline="none"),
    'REINFORCE, baseline="none", CUDA graph': dict(algorithm="REINFORCE", n_steps=128, baseline="none", graph=True),
    "REINFORCE": dict(algorithm="REINFORCE", n_steps=128),
    "REINFORCE, CUDA graph": dict(algorithm="REINFORCE", n_steps=128, graph=True),
    "PPO, 1 epoch": dict(algorithm="PPO", n_steps=128, batch_size=256, n_epochs=1),
    "PPO, 4 epochs": dict(algorithm="PPO", n_steps=128, batch_size=256, n_epochs=4),
    "A2C": dict(algorithm="A2C", n_steps=5),
}


def make_env(n_envs: int) -> VectorEnvAdapter:
    assert ale_py
    kind = dict(vectorization_mode="vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP)
    return VectorEnvAdapter(gym.make_vec(GAME, num_envs=n_envs, **kind))


def measure(
    algorithm: str, n_envs: int, n_steps_in_all: int, device: str, graph: bool = False, **arguments
) -> dict[str, float]:
    """:return: steps, seconds of wall clock and of the processor, and MiB that training adds to the peak"""
    env = make_env(n_envs)
    if algorithm == "alone":
        rng = np.random.default_rng(0)
        actions = rng.integers(0, env.action_space.n, (1000, n_envs))
        env.seed(0)
        env.reset()
    else:
        kinds = {"REINFORCE": REINFORCE, "PPO": PPO, "A2C": A2C}
        model = kinds[algorithm]("CnnPolicy", env, seed=0, device=device, **arguments)
        if graph:
            from sb3_reinforce import use_cuda_graph  # which the package of --before may not have

            use_cuda_graph(model)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    if algorithm == "alone":
        steps = n_steps_in_all
        for step in range(n_steps_in_all // n_envs):
            env.step(actions[step % len(actions)])
    else:
        model.learn(n_steps_in_all)
        steps = model.num_timesteps
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    kept = n_envs * arguments.get("n_steps", 0) if algorithm != "REINFORCE" else model.rollout.n_steps
    return {"steps": steps, "seconds": seconds, "cpu_seconds": cpu_seconds, "added": added, "kept": kept}


def spread(values: list[float]) -> str:
    return f"{np.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--before", help="a checkout whose package takes part beside this one's")
    parser.add_argument("--only", nargs="+", help="names of contestants that contain one of these")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return
    here = str(Path(__file__).resolve().parents[1])
    on_cpu = args.device == "cpu"
    contestants = {name: (here, kind) for name, kind in CONTESTANTS.items() if not (on_cpu and "graph" in kind)}
    for name, kind in CONTESTANTS.items():
        if args.before and kind["algorithm"] == "REINFORCE" and "graph" not in kind:
            contestants[f"{name}, before"] = (args.before, kind)
    if args.only:
        contestants = {name: kind for name, kind in contestants.items() if any(part in name for part in args.only)}
    found = defaultdict(list)
    for _ in range(args.rounds):
        for name, (package, kind) in contestants.items():
            given = json.dumps({**kind, "n_envs": args.n_envs, "n_steps_in_all": args.steps, "device": args.device})
            command = [sys.executable, __file__, "--measure", given]
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": package}
            )
            found[name].append(json.loads(output.stdout.splitlines()[-1]))
    print(f"\n{GAME}, {args.n_envs} environments, {args.steps:,} steps or more, device={args.device}\n")
    print("| | steps per second | steps per second of the processor | steps of a batch | MiB that learn adds | KiB per step |")
    print("| --- " * 6 + "|")
    for name, runs in found.items():
        speed = spread([run["steps"] / run["seconds"] for run in runs])
        cpu_speed = spread([run["steps"] / run["cpu_seconds"] for run in runs])
        kept, added = (np.median([run[key] for run in runs]) for key in ("kept", "added"))
        per_step = f"{1024 * added / kept:,.0f}" if kept else ""
        print(f"| {name} | {speed} | {cpu_speed} | {kept:,.0f} | {added:,.0f} | {per_step} |", flush=True)


if __name__ == "__main__":
    main()
