"""
REINFORCE on the tasks that RL Zoo publishes results for, at no more steps than its A2C took.

    python benchmarks/classic.py --seeds 5 --jobs 2
    python benchmarks/classic.py --collect

Runs that are there are not run again. The published results are RL Zoo's, one run each, the LunarLander ones on v2.
"""

import suite

STEPS = {
    "CartPole-v1": 500_000, "Acrobot-v1": 500_000, "MountainCar-v0": 1_000_000, "MountainCarContinuous-v0": 100_000,
    "Pendulum-v1": 1_000_000, "LunarLander-v3": 200_000, "LunarLanderContinuous-v3": 5_000_000, "BipedalWalker-v3": 5_000_000,
}  # fmt: skip
PUBLISHED = {
    "RL Zoo A2C": (500, -83.4, -111.3, 91.2, -163.0, 155.8, 84.2, 299.8),
    "RL Zoo PPO": (500, -73.5, -110.4, 88.3, -172.2, 242.1, 270.9, 287.9),
}
BOUNDS: dict[str, tuple[float, float]] = {
    "CartPole-v1": (0, 500), "Acrobot-v1": (-500, 0), "MountainCar-v0": (-200, 0), "MountainCarContinuous-v0": (-100, 100),
}  # fmt: skip
CLASSIC = suite.Suite(
    name="classic",
    steps=STEPS,
    n_eval_episodes=10,
    n_final_episodes=100,
    published={name: dict(zip(STEPS, scores, strict=True)) for name, scores in PUBLISHED.items()},
    compares="final",
    bounds=BOUNDS,
)

if __name__ == "__main__":
    suite.main(CLASSIC, __doc__)
