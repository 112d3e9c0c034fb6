"""
How fast REINFORCE trains: environment steps per second, as ratios measured in one run.

    python benchmarks/throughput.py                  # CartPole-v1 and HalfCheetah-v5, then the vector environments
    python benchmarks/throughput.py --breakdown      # where REINFORCE's time goes
    python benchmarks/throughput.py --solve          # seconds until CartPole-v1 evaluates at 475, against A2C and PPO
    python benchmarks/throughput.py --memory         # peak memory of 100,000 and of 10,000,000 steps

The contestants take turns, round by round, because machines are shared and drift: a ratio is one of the same round, and
what is printed is the median of the rounds with the lowest and the highest. Torch runs on one thread, networks are
64x64. "Alone" is the same VecEnv stepped with ready-made actions. Tianshou's Reinforce and EnvPool take part where they are
installed (`pip install tianshou envpool`).
"""

import argparse
import os
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

import sb3_reinforce.estimate
import sb3_reinforce.reinforce
from sb3_reinforce import REINFORCE, VectorEnvAdapter
from sb3_reinforce.rollout.recording import Recording
from sb3_reinforce.rollout.sampling import NumpySampler
from sb3_reinforce.update.value_fit import ValueFit

th.set_num_threads(1)
warnings.simplefilter("ignore")


class Speed(NamedTuple):
    """Environment steps per second, and the share of them that an update used: of whole episodes, not of waiting for them."""

    steps: float
    used: float = 1.0


class Used(BaseCallback):
    """Counts the steps that updates of REINFORCE use."""

    needs_steps = False
    n_steps = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.n_steps += self.model.rollout_buffer.pos


def alone(env: VecEnv, seconds: float) -> Speed:
    """Of the environment with ready-made actions."""
    env.reset()
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(32)]
    n_steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for action in actions:
            env.step(action)
        n_steps += len(actions) * env.num_envs
    return Speed(n_steps / (time.perf_counter() - start))


def training(model: Any, seconds: float) -> Speed:
    """Of ``learn``, updates included; how many steps fill the time is tried out first."""
    n_steps = max(1000, model.n_envs * 100)
    model.learn(n_steps)
    start = time.perf_counter()
    model.learn(n_steps)
    n_steps = int(model.num_timesteps * seconds / (time.perf_counter() - start))
    used = Used() if isinstance(model, REINFORCE) else None
    start = time.perf_counter()
    model.learn(n_steps, used)
    speed = model.num_timesteps / (time.perf_counter() - start)
    return Speed(speed, 1.0 if used is None else used.n_steps / model.num_timesteps)


def contestants(env_id: str, n_envs: int) -> dict[str, Callable[[float], Speed]]:
    def make_env() -> VecEnv:
        return make_vec_env(env_id, n_envs, seed=0)

    def trainer(algorithm: Any, **kwargs: Any) -> Callable[[float], Speed]:
        return lambda seconds: training(algorithm("MlpPolicy", make_env(), seed=0, device="cpu", **kwargs), seconds)

    found = {
        "alone": lambda seconds: alone(make_env(), seconds),
        'REINFORCE, baseline="none"': trainer(REINFORCE, baseline="none"),
        "REINFORCE, default arguments": trainer(REINFORCE),
        "A2C": trainer(A2C),
        "PPO": trainer(PPO),
        "PPO, 1 epoch": trainer(PPO, n_epochs=1),
    }
    if find_spec("tianshou") is not None:
        from tianshou_reinforce import speed

        found["Tianshou's Reinforce"] = lambda seconds: Speed(speed(env_id, n_envs, seconds))
    return found


def vector_env(n_envs: int) -> VecEnv:
    return VectorEnvAdapter(gym.make_vec("CartPole-v1", num_envs=n_envs, vectorization_mode="vector_entry_point"))


def vector_contestants(n_envs: int) -> dict[str, Callable[[float], Speed]]:
    """CartPole-v1 through VectorEnvAdapter, against A2C on eight environments in a DummyVecEnv."""

    def reinforce(env: VecEnv, seconds: float) -> Speed:
        model = REINFORCE("MlpPolicy", env, n_steps=128, seed=0, device="cpu", baseline="mean", chunk_size=16_384)
        return training(model, seconds)

    found = {
        "alone": lambda seconds: alone(vector_env(n_envs), seconds),
        'REINFORCE, baseline="mean"': lambda seconds: reinforce(vector_env(n_envs), seconds),
        "A2C": lambda seconds: training(A2C("MlpPolicy", make_vec_env("CartPole-v1", 8), seed=0, device="cpu"), seconds),
    }
    try:
        import envpool
    except ImportError:
        return found

    def pool() -> VecEnv:
        return VectorEnvAdapter(envpool.make("CartPole-v1", env_type="gymnasium", num_envs=n_envs, num_threads=1))

    found["EnvPool alone"] = lambda seconds: alone(pool(), seconds)
    found['EnvPool, REINFORCE, baseline="mean"'] = lambda seconds: reinforce(pool(), seconds)
    return found


def spread(values: list[float], digits: str = ".2f") -> str:
    return f"{np.median(values):{digits}} ({min(values):{digits}}-{max(values):{digits}})"


def compare(title: str, found: dict[str, Callable[[float], Speed]], rounds: int, seconds: float) -> None:
    """Let all take turns, and print a line of Markdown for each."""
    speeds: dict[str, list[Speed]] = defaultdict(list)
    for _ in range(rounds):
        for name, measure in found.items():
            speeds[name].append(measure(seconds))
    print(f"\n{title}\n\n| | steps per second | of the environment alone | times A2C | steps used | used steps, times A2C |")
    print("| --- " * 6 + "|")
    for name, values in speeds.items():
        of_alone = [value.steps / base.steps for value, base in zip(values, speeds["alone"], strict=True)]
        of_a2c = [value.steps / base.steps for value, base in zip(values, speeds["A2C"], strict=True)]
        used = [value.used for value in values]
        used_of_a2c = [ratio * share for ratio, share in zip(of_a2c, used, strict=True)]
        print(
            f"| {name} | {np.median([value.steps for value in values]):,.0f} | {spread(of_alone)} | {spread(of_a2c, '.1f')} | "
            f"{np.median(used):.2f} | {np.median(used_of_a2c):.1f} |",
            flush=True,
        )


def breakdown(env_id: str, n_envs: int, seconds: float, **kwargs: Any) -> None:
    """Share of each part of REINFORCE in the time of ``learn``, read off timers around them."""
    spent: dict[str, float] = defaultdict(float)

    def timed(function: Callable, name: str) -> Callable:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return wrapper

    parts = [
        (NumpySampler, "__call__", "actions"),
        (Recording, "add", "storing the step"),
        (Recording, "pack", "rollout buffer"),
        (sb3_reinforce.estimate, "make_episodes", "returns, values"),
        (REINFORCE, "_finish_rollout", "baseline, advantages"),
        (REINFORCE, "_policy_step", "policy step"),
        (sb3_reinforce.reinforce, "log_probs_of", "approx_kl"),
        (ValueFit, "fit", "fit of the value network"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in parts]
    for (owner, name, title), original in zip(parts, originals, strict=True):
        setattr(owner, name, timed(original, title))
    env = make_vec_env(env_id, n_envs)
    env.step = timed(env.step, "environment")  # type: ignore[method-assign]
    model = REINFORCE("MlpPolicy", env, seed=0, device="cpu", **kwargs)
    training(model, 0.2)
    spent.clear()
    start = time.perf_counter()
    model.learn(int(seconds * 20_000))
    total = time.perf_counter() - start
    for (owner, name, _), original in zip(parts, originals, strict=True):
        setattr(owner, name, original)
    spent["the rest: loop, resets, logs"] = total - sum(spent.values())
    described = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "default arguments"
    print(f"\n{env_id}, {n_envs} environments, {described}: {1e6 * total / model.num_timesteps:.1f} us per step")
    for name, value in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {100 * value / total:5.1f} %  {1e6 * value / model.num_timesteps:6.2f} us  {name}")


class UntilSolved(BaseCallback):
    """Stops at the first evaluation of 475 or more; its own time does not count."""

    def __init__(self, every: int, start: float):
        super().__init__()
        self.every, self.next, self.start, self.paused, self.solved_after = every, every, start, 0.0, None
        self.eval_env = make_vec_env("CartPole-v1", 10, seed=123)

    def _on_step(self) -> bool:
        if self.num_timesteps < self.next:
            return True
        begin = time.perf_counter()
        self.next = self.num_timesteps + self.every
        score, _ = evaluate_policy(self.model, self.eval_env, 20, warn=False)
        self.paused += time.perf_counter() - begin
        if score >= 475:
            self.solved_after = begin - self.start - self.paused + (time.perf_counter() - begin)
        return score < 475


def solve(n_seeds: int) -> None:
    """Wall-clock seconds of training until the first evaluation of 475 or more, evaluated every 2,000 steps."""
    zoo: dict[str, Any] = {
        "REINFORCE, default arguments, 1 environment": (REINFORCE, 1, {}),
        "REINFORCE, n_steps=64, 8 environments": (REINFORCE, 8, dict(n_steps=64)),
        'REINFORCE, baseline="per_step", n_steps=32, learning_rate=2e-2, 32 environments of a VectorEnvAdapter': (
            REINFORCE, 32, dict(n_steps=32, learning_rate=2e-2, baseline="per_step")
        ),
        "A2C, RL Zoo's settings": (A2C, 8, dict(ent_coef=0.0)),
        "PPO, RL Zoo's settings": (
            PPO, 8,
            dict(n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0,
                 learning_rate=LinearSchedule(0.001, 0.0, 1.0), clip_range=LinearSchedule(0.2, 0.0, 1.0)),
        ),
    }  # fmt: skip
    seconds: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[int]] = defaultdict(list)
    for seed in range(10, 10 + n_seeds):
        for name, (algorithm, n_envs, kwargs) in zoo.items():
            env = vector_env(n_envs) if "VectorEnvAdapter" in name else make_vec_env("CartPole-v1", n_envs)
            model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
            callback = UntilSolved(2000, time.perf_counter())
            model.learn(500_000 if algorithm is A2C else 100_000, callback=callback)
            seconds[name].append(np.inf if callback.solved_after is None else callback.solved_after)
            steps[name].append(model.num_timesteps)
    print("\n| | seconds until 475, median (lowest-highest) | steps |\n| --- | --- | --- |")
    for name in zoo:
        print(f"| {name} | {spread(seconds[name], '.1f')} | {np.median(steps[name]):,.0f} |")


def memory() -> None:
    """Peak resident memory, each run in a process of its own."""
    print("\n| steps of CartPole-v1, 8 environments | peak memory, MiB |\n| --- | --- |")
    for n_steps in (100_000, 10_000_000):
        command = [sys.executable, __file__, "--memory-of", str(n_steps)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(f"| {n_steps:,} | {output} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--env", nargs="+", default=["CartPole-v1", "HalfCheetah-v5"])
    parser.add_argument("--n-envs", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--vector-envs", nargs="*", type=int, default=[64, 512, 4096])
    parser.add_argument("--breakdown", action="store_true")
    parser.add_argument("--solve", type=int, nargs="?", const=5, metavar="SEEDS")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        env = make_vec_env("CartPole-v1", 8)
        REINFORCE("MlpPolicy", env, n_steps=64, seed=0, device="cpu").learn(args.memory_of)
        print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    elif args.memory:
        memory()
    elif args.solve:
        solve(args.solve)
    elif args.breakdown:
        for env_id in args.env:
            for n_envs in args.n_envs:
                breakdown(env_id, n_envs, args.seconds, baseline="none")
                breakdown(env_id, n_envs, args.seconds)
    else:
        for env_id in args.env:
            for n_envs in args.n_envs:
                plural = "environment" if n_envs == 1 else "environments"
                compare(f"{env_id}, {n_envs} {plural}", contestants(env_id, n_envs), args.rounds, args.seconds)
        for n_envs in args.vector_envs:
            title = f"CartPole-v1 through VectorEnvAdapter, {n_envs} environments (A2C: 8 in a DummyVecEnv)"
            compare(title, vector_contestants(n_envs), args.rounds, args.seconds)


if __name__ == "__main__":
    main()
