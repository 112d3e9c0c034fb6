"""
All that docs/gpu.md leaves open, on a machine with a GPU, within ten minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --small   # that it runs; its numbers mean little

Printed are, one after the other, so that what was measured is kept when time runs out:

1. an action for all environments by the policy itself and by its CUDA graph, whose results must be equal to the bit;
2. copying observations to the GPU: from ordinary memory, pinned on the way, and from memory that was pinned before;
3. the update: frames copied once or by chunk, channels_last, TF32, and bf16 autocast of a forward and backward pass;
4. training of Pong beside the environment alone, PPO and A2C (pong.py);
5. the fast tests.
"""

import argparse
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from pong import make_env

from sb3_reinforce import REINFORCE, use_cuda_graph
from sb3_reinforce.rollout import frames
from sb3_reinforce.rollout.sampling import TorchSampler

HERE = Path(__file__).resolve().parent


def milliseconds(function: Callable[[], Any], device: th.device, repeats: int) -> float:
    """:return: of one call, the median, until the GPU has finished"""
    times = []
    for _ in range(3 + repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[3:]))


def synchronize(device: th.device) -> None:
    if device.type == "cuda":
        th.cuda.synchronize(device)


@contextmanager
def section(title: str) -> Iterator[None]:
    """A heading, and an error in place of the numbers: the sections behind it are still measured."""
    print(f"\n## {title}\n", flush=True)
    try:
        yield
    except Exception as error:
        print(f"FAILED: {type(error).__name__}: {error}", flush=True)


def actions(device: th.device, n_envs: int, repeats: int) -> None:
    env = make_env(n_envs)
    model = REINFORCE("CnnPolicy", env, seed=0, device=device)
    observations = env.reset()
    results = {}
    for graph in (False, True):
        if graph:
            use_cuda_graph(model)
        sampler = TorchSampler(model.policy, np.random.default_rng(0), n_envs, with_values=True)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            took = milliseconds(lambda sampler=sampler: sampler(observations), device, repeats)
        results[graph] = sampler.distribution_parameters(observations)
        recorded = "" if sampler._outputs._graph is None else ", recorded"
        notes = "".join(f", {warning.message}" for warning in said)
        print(f"- {n_envs} environments, {'CUDA graph' if graph else 'policy'}: {took:.3f} ms{recorded}{notes}", flush=True)
    print(f"- equal to the bit: {np.array_equal(results[False], results[True])}", flush=True)
    env.close()


def copies(device: th.device, n: int, repeats: int) -> None:
    images = th.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 4, 84, 84), dtype=np.uint8))
    print(f"- {n} observations, from ordinary memory: {milliseconds(lambda: images.to(device), device, repeats):.3f} ms")
    if device.type != "cuda":
        return
    pinned, target = images.pin_memory(), images.to(device)

    def through_pinned_memory() -> None:
        pinned.copy_(images)
        target.copy_(pinned, non_blocking=True)

    on_the_way = milliseconds(lambda: images.pin_memory().to(device, non_blocking=True), device, repeats)
    kept = milliseconds(through_pinned_memory, device, repeats)
    print(
        f"- {n} observations, pinned on the way: {on_the_way:.3f} ms; through memory pinned before: {kept:.3f} ms", flush=True
    )


def updates(device: th.device, n_envs: int, n_steps: int, repeats: int) -> None:
    env = make_env(n_envs)
    arguments = dict(n_steps=n_steps, unfinished="bootstrap", n_epochs=4, batch_size=256, seed=0, device=device)
    for name in ("float32", "float32, frames copied by chunk", "channels_last", "TF32"):
        frames.GPU_BYTES = 0 if "chunk" in name else 2**31
        th.backends.cuda.matmul.allow_tf32 = th.backends.cudnn.allow_tf32 = name == "TF32"
        model = REINFORCE("CnnPolicy", env, **arguments).learn(1)
        if name == "channels_last":
            model.policy.to(memory_format=th.channels_last)
        took = milliseconds(model.train, device, repeats)
        print(f"- update of {n_envs * n_steps} steps, 4 epochs of minibatches of 256, {name}: {took:,.0f} ms", flush=True)
    images = th.from_numpy(env.reset()[:1]).to(device).expand(256, -1, -1, -1).contiguous()
    drawn = th.zeros(256, device=device)
    for name in ("float32", "bf16 autocast"):  # forward and backward alone: an update reads numbers that NumPy has no type for

        def pass_images(name: str = name) -> None:
            with th.autocast(device.type, th.bfloat16) if "bf16" in name else nullcontext():
                loss = model.policy.evaluate_actions(images, drawn)[1].sum()
            loss.backward()

        print(f"- forward and backward of 256 images, {name}: {milliseconds(pass_images, device, repeats):.1f} ms", flush=True)
    env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a minute of a quiet CPU")
    args = parser.parse_args()
    device, small, start = th.device(args.device), args.small, time.monotonic()
    name = th.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"{time.strftime('%Y-%m-%d')}, {name}, torch {th.__version__}, Python {platform.python_version()}", flush=True)
    repeats = 5 if small else 200
    for n_envs in (2,) if small else (16, 64):
        with section(f"An action of {n_envs} environments"):
            actions(device, n_envs, repeats)
    with section("Copies"):
        for n in (2,) if small else (16, 1024):
            copies(device, n, repeats)
    with section("Updates"):
        updates(device, *((2, 70, 1) if small else (16, 512, 3)))
    command = [sys.executable, str(HERE / "pong.py"), "--device", args.device, "--rounds", "1"]
    runs = [["--n-envs", "2", "--steps", "1", "--only", "none", "A2C"]]
    if not small:
        runs = [["--n-envs", "16", "--steps", "16000"], ["--n-envs", "64", "--steps", "64000", "--only", "alone", "none"]]
    for run in runs:
        with section("Training"):
            subprocess.run([*command, *run], check=True)
    with section("Tests"):
        chosen = ["tests/test_graphs.py"] if small else ["-n", "8", "--dist", "loadfile"]
        tests = [sys.executable, "-m", "pytest", "-q", *chosen]
        subprocess.run(tests, check=True, cwd=HERE.parent, timeout=max(60, 600 - (time.monotonic() - start)))


if __name__ == "__main__":
    main()
