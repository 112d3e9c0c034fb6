"""
Memory of one update of CnnPolicy on 84x84x4 images: by ``chunk_size``, and with stacked frames stored once.

    python benchmarks/chunk_memory.py            # by chunk_size, each image new
    python benchmarks/chunk_memory.py --stacked  # four stacked frames: stored once, and as any images are

Each line is a process of its own, which prints what one rollout and its update add to the peak resident memory, and a
fingerprint of the parameters after a step of SGD. Whatever the chunks, they agree to rounding; however frames are stored, to
the bit.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import time

import numpy as np
import torch as th
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout import recording

SIZES = [1_000_000, 512, 128, 32]
STACKED = {"stored once": ["--stacked"], "as any images": ["--stacked", "--whole"]}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_env(stacked: bool) -> VecEnv:
    """The same images in every process."""
    images = FakeImageEnv(screen_height=84, screen_width=84, n_channels=1 if stacked else 4, discrete=True)
    images.observation_space.seed(0)
    if stacked:
        images.ep_length = 1000  # about as long as a game of Pong
    env = DummyVecEnv([lambda: images])
    return VecFrameStack(env, 4) if stacked else env


def measure(chunk_size: int | None, n_steps: int, stacked: bool, whole: bool) -> None:
    """Print what one rollout and its update add to the peak memory."""
    th.set_num_threads(1)
    if whole:
        recording.frame_channels = lambda played: None  # type: ignore[attr-defined]
    model = REINFORCE(
        "CnnPolicy", make_env(stacked), n_steps=n_steps, chunk_size=chunk_size, seed=0, device="cpu", n_value_epochs=1,
        learning_rate=1e-3, policy_kwargs=dict(optimizer_class=th.optim.SGD),
    )  # fmt: skip
    before, start = peak_mb(), time.perf_counter()
    model.learn(1)
    seconds, steps, added = time.perf_counter() - start, model.num_timesteps, peak_mb() - before
    parameters = [parameter.detach().numpy() for parameter in model.policy.parameters()]
    fingerprint = f"{np.mean([np.abs(parameter).mean() for parameter in parameters]):.9f}"
    if stacked:
        fingerprint = hashlib.sha256(b"".join(parameter.tobytes() for parameter in parameters)).hexdigest()[:16]
    stored = getattr(model.rollout_buffer, "frames", None)
    stored = model.rollout_buffer.observations if stored is None else stored
    print(
        f"{chunk_size},{steps},{stored.nbytes / 2**20:.0f},{stored.nbytes / steps:.0f},{added:.0f},{seconds:.1f},{fingerprint}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-steps", type=int, default=2048)
    parser.add_argument("--stacked", action="store_true", help="stacked frames, stored in both ways")
    parser.add_argument("--chunk-size", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.chunk_size:
        measure(None if args.chunk_size == "None" else int(args.chunk_size), args.n_steps, args.stacked, args.whole)
        return
    lines = STACKED if args.stacked else {"": []}
    print("| | chunk_size | steps | MiB in the rollout buffer | bytes per step | MiB that learn adds | seconds | parameters |")
    print("| --- " * 8 + "|")
    for name, options in lines.items():
        for size in ["None"] if args.stacked else SIZES:
            command = [sys.executable, __file__, "--chunk-size", str(size), "--n-steps", str(args.n_steps), *options]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
            print(f"| {name} | " + " | ".join(output.split(",")) + " |", flush=True)


if __name__ == "__main__":
    main()
