"""
What happens when things go wrong? Every fault is tried in a process of its own, with a time limit.

    python benchmarks/faults.py            # some minutes; --only KIND for one kind, --seed N for other random moments

prints one row per kind of fault: how often it was tried, and how it ended. It fails if anything hangs, is lost, ends in an
unclear error, or trains silently on what is wrong; each such case is printed with its arguments.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th
from bad_inputs import bad_inputs
from fault_trials import CLEAR, GOOD, OLDER, SAME, SECONDS, Case, Raised, bits, command, in_child, outcome_of
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_reinforce
from sb3_reinforce import REINFORCE, TrainingCheckpoint

# name -> arguments, environment, number of environments, in VecNormalize
SETTINGS: dict[str, tuple[dict[str, Any], str, int, bool]] = {
    "default": ({}, "CartPole-v1", 1, False),
    "8 environments": ({}, "CartPole-v1", 8, False),
    "n_episodes": ({"n_episodes": 4}, "CartPole-v1", 2, False),
    "none": ({"baseline": "none"}, "CartPole-v1", 1, False),
    "mean": ({"baseline": "mean"}, "CartPole-v1", 4, False),
    "leave_one_out": ({"baseline": "leave_one_out", "n_episodes": 4}, "CartPole-v1", 2, False),
    "per_step": ({"baseline": "per_step"}, "CartPole-v1", 4, False),
    "moving_average": ({"baseline": "moving_average"}, "CartPole-v1", 1, False),
    "optimal": ({"baseline": "optimal", "n_episodes": 4}, "CartPole-v1", 2, False),
    "greedy": ({"baseline": "greedy", "n_episodes": 2}, "CartPole-v1", 2, False),
    "whole-episode returns": ({"returns": "episode", "baseline": "none"}, "CartPole-v1", 4, False),
    "reuse": ({"n_epochs": 3, "batch_size": 32, "clip_range": 0.2}, "CartPole-v1", 2, False),
    "schedules": ({"learning_rate": "lin_3e-3", "ent_coef": "lin_0.01"}, "CartPole-v1", 2, False),
    "chunks": ({"chunk_size": 16}, "CartPole-v1", 2, False),
    "discounted states": ({"discount_state": True, "gamma": 0.9}, "CartPole-v1", 1, False),
    "natural gradient": ({"natural_gradient": True, "n_steps": 200}, "Pendulum-v1", 2, False),
    "VecNormalize": ({"n_steps": 200}, "Pendulum-v1", 2, True),
    "frozen VecNormalize": ({"freeze_normalization_after": 800, "n_steps": 200}, "Pendulum-v1", 2, True),
    "gSDE": ({"use_sde": True, "n_steps": 200}, "Pendulum-v1", 2, False),
    "RMSprop": ({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, "CartPole-v1", 2, False),
}


def make_env(name: str) -> Any:
    """:return: the environments of a setting"""
    _, env_id, n_envs, normalized = SETTINGS[name]
    env = make_vec_env(env_id, n_envs, seed=0)
    return VecNormalize(env) if normalized else env


def make_model(name: str, **more: Any) -> REINFORCE:
    """:return: the model of a setting"""
    return REINFORCE("MlpPolicy", make_env(name), **{"n_steps": 64, "seed": 0, "device": "cpu"} | SETTINGS[name][0] | more)


def kills(rng: random.Random) -> Iterator[Case]:
    """``kill -9`` at random moments; the resumed run must end at the bits of one that was never stopped."""
    for name in SETTINGS:
        delays = [rng.uniform(0.05, 0.8) for _ in range(4)]
        yield Case("kill -9 and resume", name, lambda name=name, delays=delays: killed_and_resumed(name, delays))


def killed_and_resumed(name: str, delays: list[float]) -> str:
    total = 6_000 if SETTINGS[name][1] == "CartPole-v1" else 4_000
    straight = in_child(lambda: bits(make_model(name).learn(total)))()
    with tempfile.TemporaryDirectory() as folder:

        def life(delay: float | None) -> str:
            saved = list(Path(folder).glob("checkpoint_*.zip"))
            model = REINFORCE.resume(folder, make_env(name)) if saved else make_model(name)
            if delay is not None:
                timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()
            done = model.num_timesteps
            if done < total:
                saves = TrainingCheckpoint(folder, every_n_updates=1)
                model.learn(total - done, callback=saves, reset_num_timesteps=done == 0)
            return bits(model)

        for delay in delays:
            ended = in_child(lambda delay=delay: life(delay))()
            if not str(ended).startswith("died: -9") and ended != straight:
                return f"a life ended with {ended}"
        resumed = in_child(lambda: life(None))()
    return SAME if resumed == straight else f"{outcome_of(resumed)} instead of {outcome_of(straight)}"


PORTS = itertools.count(20_000 + os.getpid() % 20_000)


def free_port() -> int:
    """:return: one that no other case gets: the other rank may wait at it for one that never comes"""
    for port in PORTS:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("PORTS never ends")


def on_two_ranks(functions: list[Callable[[], Any]], seconds: float = SECONDS) -> list[Any]:
    """:return: what two processes found that train together, started as a cluster's scheduler starts them"""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    waiting = [
        in_child(function, seconds, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank, function in enumerate(functions)
    ]
    return [wait() for wait in waiting]


# What rank 1 has otherwise than rank 0. Each rank may have its own n_steps, number of environments and batch sizes.
UNEQUAL: dict[str, dict[str, Any]] = {
    "gamma": {"gamma": 0.9},
    "learning_rate": {"learning_rate": 1e-4},
    "baseline": {"baseline": "mean"},
    "n_epochs": {"n_epochs": 2},
    "n_value_epochs": {"n_value_epochs": 1},
    "clip_range": {"clip_range": 0.2},
    "ent_coef": {"ent_coef": 0.01},
    "max_grad_norm": {"max_grad_norm": 1.0},
    "discount_state": {"discount_state": True},
    "loss_reduction": {"loss_reduction": "step"},
    "normalize_advantage": {"normalize_advantage": True},
    "natural_gradient": {"natural_gradient": True},
    "unfinished": {"unfinished": "bootstrap"},
    "value_learning_rate": {"value_learning_rate": 1e-4},
    "activation": {"policy_kwargs": {"activation_fn": th.nn.ReLU}},
    "net_arch": {"policy_kwargs": {"net_arch": [8]}},
    "optimizer_class": {"policy_kwargs": {"optimizer_class": th.optim.SGD}},
    "optimizer_kwargs": {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.5, 0.9)}}},
    "n_steps": {"n_steps": 96},
    "batch_size": {"batch_size": 16},
    "value_batch_size": {"value_batch_size": 16},
    "chunk_size": {"chunk_size": 16},
    "seed": {"seed": 1},
}
UNEQUAL_NORMALIZE: dict[str, dict[str, Any]] = {
    "norm_reward": {"norm_reward": False},
    "norm_obs": {"norm_obs": False},
    "clip_obs": {"clip_obs": 1.0},
    "clip_reward": {"clip_reward": 1.0},
    "gamma of VecNormalize": {"gamma": 0.5},
    "epsilon": {"epsilon": 1e-2},
}


def ranks_cases(rng: random.Random) -> Iterator[Case]:
    """Ranks that differ, die, or never come: an error on both, or equal bits on both."""

    def train(
        normalize: dict[str, Any] | None = None, before: Callable[[], Any] = lambda: None, steps: int = 1_000, **arguments: Any
    ) -> str:
        env = make_vec_env("CartPole-v1", 1)
        model = REINFORCE(
            "MlpPolicy", env if normalize is None else VecNormalize(env, **normalize),
            **{"n_steps": 64, "seed": 0, "device": "cpu", "batch_size": 32, "value_batch_size": 64} | arguments,
        )  # fmt: skip
        before()
        model.learn(steps)
        return hashlib.sha256(th.cat([p.detach().flatten() for p in model.policy.parameters()]).numpy().tobytes()).hexdigest()

    def together(*functions: Callable[[], Any]) -> str:
        found = on_two_ranks(list(functions))
        outcomes = [outcome_of(each) for each in found]
        if outcomes[0] == outcomes[1] and len(outcomes[0]) == 64:
            return "same bits"
        # the rank that is fine ends with an error of its own, which names the other
        errors = [isinstance(each, Raised) or str(each).startswith("died") for each in found]
        return CLEAR if all(errors) else " and ".join(outcomes)

    for name, arguments in UNEQUAL.items():
        yield Case("ranks unequal", name, lambda a=arguments: together(train, lambda: train(**a)))
    for name, arguments in UNEQUAL_NORMALIZE.items():
        yield Case("ranks unequal", name, lambda a=arguments: together(lambda: train({}), lambda: train(a)))

    def fail() -> None:
        raise KeyError("a rank's own fault")

    def kill() -> None:
        threading.Timer(rng.uniform(0.05, 0.5), os.kill, (os.getpid(), signal.SIGKILL)).start()

    moments = {
        "fails in its constructor": lambda: train(gamma=7),
        "fails before learn": lambda: train(before=fail),
        "never makes a model": fail,
        "is killed while training": lambda: train(before=kill, steps=10**6),
    }
    for name, function in moments.items():
        for rank in (0, 1):
            other = partial(train, steps=10**6)  # still at it when the one fails
            pair = [function, other] if rank == 0 else [other, function]
            yield Case("a rank fails", f"rank {rank} {name}", lambda pair=pair: together(*pair))


def files(rng: random.Random) -> Iterator[Case]:
    """Checkpoints and models cut or with a flipped bit: the same content, the older checkpoint, or an error."""
    folder = Path(tempfile.mkdtemp())
    model = make_model("default").learn(500, callback=TrainingCheckpoint(folder / "checkpoints", every_n_updates=1, keep=2))
    model.save(folder / "model")
    newest, right = model.newest_checkpoint, bits(model)
    for kind, path in (("checkpoint damaged", newest), ("model file damaged", folder / "model.zip")):
        content = path.read_bytes()
        for i in range(40):
            place = rng.randrange(len(content))
            cut = i % 2 == 0
            damaged = (
                content[:place]
                if cut
                else content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
            )
            what = f"{'cut' if cut else 'bit flipped'} at byte {place} of {len(content)}"
            yield Case(kind, what, lambda d=damaged, p=path: loads(folder, p, d, right))


def loads(folder: Path, path: Path, content: bytes, right: str) -> str:
    def load() -> str:
        with tempfile.TemporaryDirectory() as copy, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            (Path(copy) / path.relative_to(folder)).write_bytes(content)
            if path.suffix == ".zip" and path.name == "model.zip":
                return SAME if bits(REINFORCE.load(Path(copy) / "model")) == right else "other parameters, silently"
            model = REINFORCE.resume(Path(copy) / "checkpoints", make_env("default"))
            model.learn(1, reset_num_timesteps=False)  # restores the rest
            older = any("which is older" in str(warning.message) for warning in caught)
            return OLDER if older else SAME if model.newest_checkpoint.name == path.name else "another, silently"

    return outcome_of(in_child(load)())


def disk_full(rng: random.Random) -> Iterator[Case]:
    """Files that cannot grow beyond some size, and a folder that is deleted, under ``sb3-reinforce train``."""
    for _ in range(12):
        limit = int(2 ** rng.uniform(8, 20))
        yield Case(
            "disk full", f"files of at most {limit} bytes", lambda limit=limit: outcome_of(in_child(lambda: writes(limit))())
        )
    yield Case("folder deleted", "during training", lambda: outcome_of(in_child(lambda: writes(None))()))


def writes(limit: int | None) -> str:
    """:return: the outcome of a training run that evaluates, saves the best model, checkpoints and the last model"""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    else:
        threading.Thread(target=delete_when_there_is_an_evaluation, daemon=True).start()
    return command(
        "train --env CartPole-v1 -n 10000 --eval-freq 1000 --eval-episodes 2 --save-freq 2000 --checkpoint-every 2 -f logs",
        (0, 1),
    )


def delete_when_there_is_an_evaluation() -> None:
    while not list(Path().rglob("evaluations.npz")):
        time.sleep(0.01)
    shutil.rmtree("logs", ignore_errors=True)


KINDS = {"inputs": bad_inputs, "files": files, "disk": disk_full, "ranks": ranks_cases, "kills": kills}


def run(case: Case) -> str:
    """:return: the outcome; an error of the case itself is one, too"""
    try:
        return case.run()
    except Exception:
        return traceback.format_exc(limit=-2)


def main() -> int:
    """:return: 0 if nothing is a fault"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments, places and sizes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    options = parser.parse_args()
    th.set_num_threads(1)
    packages = ", ".join(f"{name} {version(name)}" for name in ("stable-baselines3", "torch", "gymnasium", "numpy"))
    print(f"sb3-reinforce {sb3_reinforce.__version__}, {packages}; Python {sys.version.split()[0]}; {vars(options)}\n")
    started = time.perf_counter()
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    faults = []
    with ThreadPoolExecutor(options.jobs) as pool:
        cases = [case for name in options.only for case in KINDS[name](random.Random(options.seed))]
        for case, outcome in zip(cases, pool.map(run, cases), strict=True):
            outcomes[case.kind][outcome if outcome in GOOD else "FAULT"] += 1
            if outcome not in GOOD:
                faults.append(f"{case.kind}: {case.what}: {outcome}")
                print("FAULT", faults[-1][:500], flush=True)
    print("| what was tried | how often | what happened |\n| --- | --- | --- |")
    for kind, counts in outcomes.items():
        print(f"| {kind} | {sum(counts.values())} | {', '.join(f'{n} {what}' for what, n in counts.most_common())} |")
    print(f"\n{len(cases)} cases in {time.perf_counter() - started:.0f} s, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
