"""``sb3-reinforce compare-baselines``: which baseline has the least gradient variance on this environment?"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.arguments import with_checked_spaces
from sb3_reinforce.compare import compare_baselines
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.running.trust import load_statistics
from sb3_reinforce.zoo.environments import find_environment
from sb3_reinforce.zoo.usage import refuse


def compare(arguments: Sequence[str]) -> int:
    """:return: the exit code: 0, or 2 for a command line that cannot be run"""
    parser = argparse.ArgumentParser(
        prog="sb3-reinforce compare-baselines",
        description=__doc__,
        epilog="example: sb3-reinforce compare-baselines --env CartPole-v1",
        allow_abbrev=False,
    )
    parser.add_argument("--env", required=True, metavar="ID", help="a registered environment, or PACKAGE:ID")
    parser.add_argument("--gym-packages", metavar="PACKAGE", nargs="+", default=[], help="packages that register environments")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a saved REINFORCE (default: a new policy)")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="episodes to measure (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument(
        "--vecnormalize",
        type=Path,
        metavar="FILE",
        help="statistics from the model's training (default: vecnormalize.pkl beside the model, or in the folder beside it "
        "that is named like the environment, where RL Zoo saves it)",
    )
    parser.add_argument("--trust", action="store_true", help="run code that the files may hold: as you would run a program")
    parser.add_argument("--png", type=Path, metavar="FILE", help="picture to write (default: logs/baselines-ID.png)")
    options = parser.parse_args(arguments)
    try:
        if options.model is not None and not options.model.is_file():
            raise FileNotFoundError(f"--model {options.model}: there is no such file")
        options.env = find_environment(options.env, options.gym_packages)
        env: VecEnv = make_vec_env(options.env, max(1, min(8, options.episodes)), wrapper_class=with_checked_spaces)
        statistics = options.vecnormalize
        if statistics is None and options.model is not None:
            folder = options.model.parent
            beside = [folder / "vecnormalize.pkl", folder / options.env.replace("/", "-") / "vecnormalize.pkl"]
            statistics = next((file for file in beside if file.is_file()), None)
        if statistics is not None:
            env = load_statistics(statistics, env, options.trust)
            print(f"Observations and rewards as in {statistics}")
        model = None if options.model is None else REINFORCE.load(options.model, device="cpu", trust=options.trust)
        comparison = compare_baselines(env, model, n_episodes=options.episodes, seed=options.seed)
        env.close()
    except (ValueError, OSError) as error:
        return refuse(error, "compare-baselines")
    print(comparison)
    path = options.png or Path("logs", f"baselines-{options.env.replace('/', '-')}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        comparison.plot(path)
    except ImportError:
        print('Picture: not drawn, pip install "sb3-reinforce[plots]"')
    except OSError as error:
        return refuse(f"--png {path} cannot be written: {error.strerror}", "compare-baselines")
    else:
        print(f"Picture: {path}")
    return 0
