"""
Try settings: each is trained on a few seeds and evaluated, one line per setting. The tuning tables of docs/tried.md.

    python benchmarks/explore.py CartPole-v1 --steps 98900 --seeds 10 "value_learning_rate=1e-3" "learning_rate=3e-3"
    python benchmarks/explore.py LunarLander-v3 --steps 400000 "n_envs=4, normalize={}, n_steps=512"

A setting is what would stand between the brackets of ``REINFORCE(...)``, and ``n_envs`` and ``normalize`` (the arguments of
VecNormalize). Seeds begin at 100; those of benchmarks/learning.py are below.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from learning import train_and_evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="+", help="Python keyword arguments; an empty string for the defaults")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100, help="of the evaluation")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    for text in args.settings:
        settings: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": args.steps, **eval(f"dict({text})")}
        run = partial(train_and_evaluate, args.env, settings, n_eval_episodes=args.episodes)
        with ProcessPoolExecutor(args.jobs) as pool:
            scores = [float(np.mean(result[0])) for result in pool.map(run, range(100, 100 + args.seeds))]
        print(
            f"{args.env}, {text or 'defaults'}: mean {np.mean(scores):.1f}, lowest {min(scores):.1f}, {np.round(scores)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
