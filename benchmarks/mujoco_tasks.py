"""
REINFORCE on nine MuJoCo tasks, with the settings of zoo_configs/reinforce.yml.

    python benchmarks/mujoco_tasks.py --seeds 5 --jobs 2
    python benchmarks/mujoco_tasks.py --agents A2C PPO --seeds 5
    python benchmarks/mujoco_tasks.py --collect

(Not mujoco.py: beside a script of that name, `import mujoco` finds the script.)

Runs that are there are not run again. The published results are Tianshou's, for older versions (v2, v3) of the tasks. There
contact forces were zero (a fault of mujoco-py 2.0, says gymnasium's page of Humanoid), so two tasks are here twice: as they
are, and without these forces in the observation. Their cost stays in the reward, as v5 has it.
"""

import profiles
import suite

ENVS = (
    "Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Humanoid-v5", "Reacher-v5",
    "InvertedPendulum-v5", "InvertedDoublePendulum-v5",
)  # fmt: skip
PUBLISHED = {
    "Tianshou REINFORCE, 10M": (1108.1, 1138.8, 416.0, 440.9, 35.6, 464.3, -5.5, 1000, 7726.2),
    "Tianshou A2C, 1M": (3485.4, 1829.9, 1253.2, 1091.6, 36.6, 1726.0, -6.7, 1000, 9257.7),
    "Tianshou PPO, 1M": (3258.4, 5783.9, 2609.3, 3588.5, 66.7, 787.1, -4.1, 1000, 9231.3),
}
VARIANTS = {
    f"{env_id} (no contact forces)": {"include_cfrc_ext_in_observation": False} for env_id in ("Ant-v5", "Humanoid-v5")
}
MUJOCO = suite.Suite(
    name="mujoco",
    steps=dict.fromkeys((*ENVS, *VARIANTS), 1_000_000),
    n_eval_episodes=10,
    n_final_episodes=10,
    published={name: dict(zip(ENVS, scores, strict=True)) for name, scores in PUBLISHED.items()},
    compares="maximum",
    variants=VARIANTS,
    bounds={"InvertedPendulum-v5": (0, 1000)},
)

if __name__ == "__main__":
    measured = suite.main(MUJOCO, __doc__)
    profiles.measure_random(measured)
    print(profiles.table(measured))
    print(profiles.draw(measured))
