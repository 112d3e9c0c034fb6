"""
Peak memory of one update of CnnPolicy on 84x84x4 images, by ``chunk_size``.

    python benchmarks/chunk_memory.py

Each size runs in a process of its own, which prints what one rollout and its update add to the peak resident memory, and a
fingerprint of the parameters after a step of SGD: they agree to rounding, whatever the chunks.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch as th
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE

SIZES = [1_000_000, 512, 128, 32]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(chunk_size: int | None, n_steps: int) -> None:
    """Print what one rollout and its update add to the peak memory."""
    th.set_num_threads(1)
    images = FakeImageEnv(screen_height=84, screen_width=84, n_channels=4, discrete=True)
    images.observation_space.seed(0)  # the same images for every size
    env = DummyVecEnv([lambda: images])
    model = REINFORCE(
        "CnnPolicy", env, n_steps=n_steps, chunk_size=chunk_size, seed=0, device="cpu", n_value_epochs=1,
        learning_rate=1e-3, policy_kwargs=dict(optimizer_class=th.optim.SGD),
    )  # fmt: skip
    before, start = peak_mb(), time.perf_counter()
    model.learn(1)
    seconds, size = time.perf_counter() - start, model.rollout_buffer.observations.nbytes / 2**20
    fingerprint = np.mean([parameter.abs().mean().item() for parameter in model.policy.parameters()])
    print(f"{chunk_size},{model.num_timesteps},{size:.0f},{peak_mb() - before:.0f},{seconds:.1f},{fingerprint:.9f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-steps", type=int, default=2048)
    parser.add_argument("--chunk-size", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.chunk_size:
        measure(None if args.chunk_size == "None" else int(args.chunk_size), args.n_steps)
        return
    print("| chunk_size | steps | MiB of images | MiB that learn adds | seconds | mean parameter |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        command = [sys.executable, __file__, "--chunk-size", str(size), "--n-steps", str(args.n_steps)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
        print("| " + " | ".join(output.split(",")) + " |", flush=True)


if __name__ == "__main__":
    main()
