"""
Try settings: each is trained on a few seeds and evaluated, one line per setting, as in the tables of docs/tried.md.

    python benchmarks/explore.py CartPole-v1 --steps 98900 --seeds 10 "value_learning_rate=1e-3" "learning_rate=3e-3"
    python benchmarks/explore.py HalfCheetah-v5 --steps 1e6 --first-seed 101 --curve "n_envs=2, normalize={}, n_steps=1000"

A setting is what would stand between the brackets of ``REINFORCE(...)``, and ``n_envs`` and ``normalize`` (the arguments of
VecNormalize). Seeds begin at 100; reported results are of those below.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from learning import train_and_evaluate
from suite import train

from sb3_reinforce import REINFORCE

N_CURVE = 10  # evaluations, each of so many episodes


def final_score(env_id: str, settings: dict[str, Any], n_episodes: int, seed: int) -> list[float]:
    """:return: the mean return after training"""
    return [float(np.mean(train_and_evaluate(env_id, settings, seed, n_episodes)[0]))]


def curve(env_id: str, settings: dict[str, Any], seed: int) -> list[float]:
    """:return: the mean return of each evaluation during training"""
    return [score for _, score in train(REINFORCE, env_id, settings, seed, settings["n_timesteps"] // N_CURVE, N_CURVE)[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("settings", nargs="+", help="Python keyword arguments; an empty string for the defaults")
    parser.add_argument("--steps", type=float, required=True)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--episodes", type=int, default=100, help="of the evaluation after training")
    parser.add_argument("--curve", action="store_true", help=f"instead {N_CURVE} during training, {N_CURVE} episodes each")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    for text in args.settings:
        settings: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": int(args.steps), **eval(f"dict({text})")}
        run = partial(curve, args.env, settings) if args.curve else partial(final_score, args.env, settings, args.episodes)
        with ProcessPoolExecutor(args.jobs) as pool:
            curves = list(pool.map(run, range(args.first_seed, args.first_seed + args.seeds)))
        scores = [points[-1] for points in curves]
        print(
            f"{args.env}, {text or 'defaults'}: mean {np.mean(scores):.1f}, lowest {min(scores):.1f}, {np.round(scores)}",
            *(f"    {np.round(points)}, best {max(points):.1f}" for points in curves if args.curve),
            sep="\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
