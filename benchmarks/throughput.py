"""
Speed of training, as ratios measured in one run.

    python benchmarks/throughput.py                  # single environments, a vector environment, variables and neighbours
    python benchmarks/throughput.py --only vector    # one of these: single, vector, threads
    python benchmarks/throughput.py --before FOLDER  # also with the package of another checkout, in the same turns
    python benchmarks/throughput.py --breakdown      # where REINFORCE's time goes
    python benchmarks/throughput.py --solve          # seconds until CartPole-v1 evaluates at 475, against A2C and PPO
    python benchmarks/throughput.py --memory         # peak memory of 100,000 and of 10,000,000 steps

The contestants take turns, round by round, because machines are shared and drift: a ratio is one of the same round, and
what is printed is the median of the rounds with the lowest and the highest. Each contestant is a process of its own, on one
core, the same for all, and with one thread; networks are 64x64. The last tables leave them all cores and compare one thread
set by hand with no variable set, on an otherwise idle machine and beside busy processes, which are started and ended here.

Where other work runs on the machine, ``--cpu-time`` measures the tables of one core in seconds of the processor.

"Alone" is the VecEnv stepped with ready-made actions: SB3's DummyVecEnv as it is, or the VectorEnvAdapter. Training itself
steps a DummyVecEnv of plain environments in a quicker way (``sb3_reinforce/vec_env/dummy.py``). SBX and rejax take part with
``--peers PYTHON``, the Python of a virtual environment of their own, made with the extra ``peers``: rejax needs an old gymnax.
Tianshou's Reinforce takes part where it is installed (`pip install tianshou`).
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from contestants import make_env
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

import sb3_reinforce.estimate
import sb3_reinforce.reinforce
from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.recording import Recording
from sb3_reinforce.rollout.sampling import NumpySampler
from sb3_reinforce.update.value_fit import ValueFit

th.set_num_threads(1)
warnings.simplefilter("ignore")

ONE_THREAD = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
# Ends with the process that has started it, however that ends.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


class Runner:
    """
    Starts contestants in processes of their own.

    :param peers: Python with SBX and rejax; None: they do not take part
    :param before: a checkout whose package takes part beside this one's; None: it does not
    :param cpu_time: whether contestants on one core are measured in seconds of the processor
    """

    def __init__(self, peers: str | None, before: str | None, cpu_time: bool):
        self.peers, self.before, self.cpu_time = peers, before, cpu_time

    def with_others(self, contestants: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """:return: the contestants that can take part, each of ours followed by itself before"""
        found = {}
        for name, contestant in contestants.items():
            kind = contestant["contestant"]
            missing = {"Tianshou": find_spec("tianshou") is None, "SBX": self.peers is None, "rejax": self.peers is None}
            if missing.get(kind):
                continue
            found[name] = contestant
            if kind == "REINFORCE" and self.before is not None:
                found[f"{name}, before"] = {**contestant, "package": self.before}
        return found

    @contextmanager
    def process(self, contestant: Mapping[str, Any], one_thread: bool, core: int | None) -> Iterator[Callable[[float], Any]]:
        """:return: inside, what measures the contestant for some seconds"""
        kwargs = dict(contestant)
        package = kwargs.pop("package", str(Path(__file__).resolve().parents[1]))
        python = self.peers if kwargs["contestant"] in ("SBX", "rejax") else sys.executable
        variables = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        variables |= {"PYTHONPATH": package, "JAX_PLATFORMS": "cpu", **(ONE_THREAD if one_thread else {})}
        command = [str(python), str(Path(__file__).with_name("contestants.py")), json.dumps(kwargs)]
        if core is not None:
            command += ["--core", str(core), *(["--cpu-time"] if self.cpu_time else [])]
        pipe = subprocess.PIPE
        with (
            TemporaryFile("w+") as errors,
            # its end closes stdin, which ends the process
            subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            asked, answers = process.stdin, process.stdout

            def measure(seconds: float) -> Any:
                print(seconds, file=asked, flush=True)
                answer = answers.readline()
                if not answer:
                    errors.seek(0)
                    raise RuntimeError(f"{kwargs} has ended:\n{errors.read()[-2000:]}")
                return json.loads(answer)

            yield measure


@contextmanager
def neighbours(n_processes: int) -> Iterator[None]:
    """Inside, so many busy processes run beside this one."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def single(env_id: str, n_envs: int) -> dict[str, dict[str, Any]]:
    env = {"env_id": env_id, "n_envs": n_envs}
    return {
        "alone": {"contestant": "alone", **env},
        'REINFORCE, baseline="none"': {"contestant": "REINFORCE", "baseline": "none", **env},
        "REINFORCE, default arguments": {"contestant": "REINFORCE", **env},
        "A2C": {"contestant": "A2C", **env},
        "PPO": {"contestant": "PPO", **env},
        "PPO, 1 epoch": {"contestant": "PPO", "n_epochs": 1, **env},
        "SBX's PPO, 1 epoch": {"contestant": "SBX", "n_epochs": 1, **env},
        "Tianshou's Reinforce": {"contestant": "Tianshou", **env},
    }


def vector(n_envs: int, n_steps: int) -> dict[str, dict[str, Any]]:
    """CartPole-v1, against A2C on eight environments in a DummyVecEnv, and rejax's PPO in its own CartPole."""
    env = {"env_id": "CartPole-v1", "n_envs": n_envs, "vector": True}
    ours = {"contestant": "REINFORCE", "n_steps": n_steps, **env}
    mean, value = {**ours, "baseline": "mean"}, {**ours, "baseline": "value", "n_value_epochs": 1}
    found = {"alone": {"contestant": "alone", **env}}
    for size in (None, 2048, 65_536):
        found[f'REINFORCE, baseline="mean", chunk_size={size}'] = {**mean, "chunk_size": size}
    for size in (None, 2048, 65_536):
        found[f'REINFORCE, baseline="value", n_value_epochs=1, chunk_size={size}'] = {**value, "chunk_size": size}
    found["REINFORCE, default arguments"] = ours
    found["rejax's PPO, 1 epoch, 1 minibatch"] = {
        "contestant": "rejax", "env_id": "CartPole-v1", "n_envs": n_envs, "num_steps": n_steps, "num_epochs": 1,
        "num_minibatches": 1,
    }  # fmt: skip
    found["A2C"] = {"contestant": "A2C", "env_id": "CartPole-v1", "n_envs": 8}
    return found


def spread(values: list[float], digits: str = ".2f") -> str:
    return f"{np.median(values):{digits}} ({min(values):{digits}}-{max(values):{digits}})"


def compare(title: str, contestants: dict[str, dict[str, Any]], runner: Runner, rounds: int, seconds: float) -> None:
    """Let all take turns on one core, and print a line of Markdown for each."""
    speeds: dict[str, list[list[float]]] = defaultdict(list)
    with ExitStack() as stack:
        found = runner.with_others(contestants)
        measures = {name: stack.enter_context(runner.process(each, True, CORES[-1])) for name, each in found.items()}
        for _ in range(rounds):
            for name, measure in measures.items():
                speeds[name].append(measure(seconds))
    bases = {"of the environment alone": "alone", "times A2C": "A2C", "times rejax's PPO": "rejax's PPO, 1 epoch, 1 minibatch"}
    bases = {column: name for column, name in bases.items() if name in speeds}
    print(f"\n{title}\n\n| | steps per second | {' | '.join(bases)} | steps used |")
    print("| --- " * (3 + len(bases)) + "|")
    for name, values in speeds.items():
        cells = [f"{np.median([steps for steps, _ in values]):,.0f}"]
        for base in bases.values():
            cells.append(spread([steps / other for (steps, _), (other, _) in zip(values, speeds[base], strict=True)]))
        print(f"| {name} | {' | '.join(cells)} | {np.median([used for _, used in values]):.2f} |", flush=True)


def compare_threads(
    n_envs: list[int], n_vector_envs: list[int], n_steps: int, runner: Runner, rounds: int, seconds: float
) -> None:
    """The speed of a user who sets no variable, against one thread set by hand, beside so many busy processes."""
    contestants = {}
    for n in n_envs:
        plural = "environment" if n == 1 else "environments"
        contestants[f"REINFORCE, {n} {plural}"] = single("CartPole-v1", n)["REINFORCE, default arguments"]
    for n in n_vector_envs:
        mean = {**vector(n, n_steps)["REINFORCE, default arguments"], "baseline": "mean"}
        contestants[f'REINFORCE, baseline="mean", {n} in a vector environment'] = mean
    contestants |= {f"{name}, 1 environment": single("CartPole-v1", 1)[name] for name in ("A2C", "PPO")}
    found = runner.with_others(contestants)
    print(f"\nCartPole-v1, all {len(CORES)} cores\n")
    print("| | busy processes beside it | one thread set, steps per second | no variable set | ratio |")
    print("| --- " * 5 + "|")
    for name, contestant in found.items():
        for n_busy in dict.fromkeys((0, 1, len(CORES))):
            speeds: list[tuple[float, float]] = []
            with runner.process(contestant, True, None) as one, runner.process(contestant, False, None) as free:
                one(0.1), free(0.1)  # start-up
                with neighbours(n_busy):
                    for _ in range(rounds):
                        speeds.append((one(seconds)[0], free(seconds)[0]))
            medians = " | ".join(f"{value:,.0f}" for value in np.median(speeds, axis=0))
            print(f"| {name} | {n_busy} | {medians} | {spread([b / a for a, b in speeds])} |", flush=True)


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
        (Recording, "begin_step", "storing the step"),
        (Recording, "pack", "rollout buffer"),
        (sb3_reinforce.estimate, "make_episodes", "returns, values"),
        (REINFORCE, "_finish_rollout", "baseline, advantages"),
        (REINFORCE, "_policy_step", "policy step"),
        (sb3_reinforce.reinforce, "kl_terms", "approx_kl"),
        (ValueFit, "fit", "fit of the value network"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in parts]
    for (owner, name, title), original in zip(parts, originals, strict=True):
        setattr(owner, name, timed(original, title))
    env = make_vec_env(env_id, n_envs)
    env.step = timed(env.step, "environment")  # type: ignore[method-assign]
    model = REINFORCE("MlpPolicy", env, seed=0, device="cpu", **kwargs)
    model.learn(5 * model.n_steps * n_envs)  # start-up
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
            env = make_env("CartPole-v1", n_envs, vector="VectorEnvAdapter" in name)
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--only", nargs="+", default=["single", "vector", "threads"], choices=["single", "vector", "threads"])
    parser.add_argument("--env", nargs="+", default=["CartPole-v1", "HalfCheetah-v5"])
    parser.add_argument("--n-envs", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--vector-envs", nargs="*", type=int, default=[512])
    parser.add_argument("--vector-steps", type=int, default=128, help="n_steps in the vector environment")
    parser.add_argument("--peers", metavar="PYTHON", help="of a virtual environment with the extra peers")
    parser.add_argument("--before", metavar="FOLDER", help="another checkout, whose package takes part")
    parser.add_argument("--cpu-time", action="store_true", help="one core: in seconds of the processor, as others work on it")
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
        runner = Runner(args.peers, args.before, args.cpu_time)
        if "single" in args.only:
            for env_id in args.env:
                for n_envs in args.n_envs:
                    plural = "environment" if n_envs == 1 else "environments"
                    title = f"{env_id}, {n_envs} {plural}"
                    compare(title, single(env_id, n_envs), runner, args.rounds, args.seconds)
        if "vector" in args.only:
            for n_envs in args.vector_envs:
                title = f"CartPole-v1, {n_envs} in a vector environment, n_steps={args.vector_steps} (A2C: 8 in a DummyVecEnv)"
                compare(title, vector(n_envs, args.vector_steps), runner, args.rounds, args.seconds)
        if "threads" in args.only:
            compare_threads(args.n_envs, args.vector_envs, args.vector_steps, runner, args.rounds, args.seconds)


if __name__ == "__main__":
    main()
