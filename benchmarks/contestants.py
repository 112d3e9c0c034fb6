"""
The contestants of throughput.py, in a process of their own: asked by lines of JSON, it answers with steps per second.

It runs in our virtual environment and in the peers' (SBX and rejax bring JAX), so each contestant imports its own library.
Networks are 64x64 for all, and all train on the CPU.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

Speed = tuple[float, float]
"""Environment steps per second, and the share of them that an update used: of whole episodes, not of waiting for them."""

now = time.perf_counter


def alone(env_id: str, n_envs: int, vector: bool = False) -> Callable[[float], Speed]:
    """Of the environment with ready-made actions."""
    import numpy as np

    env = make_env(env_id, n_envs, vector)
    env.reset()
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(32)]

    def speed(seconds: float) -> Speed:
        n_steps, start = 0, now()
        while now() - start < seconds:
            for action in actions:
                env.step(action)
            n_steps += len(actions) * env.num_envs
        return n_steps / (now() - start), 1.0

    return speed


def make_env(env_id: str, n_envs: int, vector: bool) -> "VecEnv":
    from stable_baselines3.common.env_util import make_vec_env

    if not vector:
        return make_vec_env(env_id, n_envs, seed=0)
    import gymnasium as gym

    from sb3_reinforce import VectorEnvAdapter

    return VectorEnvAdapter(gym.make_vec(env_id, num_envs=n_envs, vectorization_mode="vector_entry_point"))


def trained(algorithm: str, env_id: str, n_envs: int, vector: bool = False, **kwargs: Any) -> Callable[[float], Speed]:
    """Of ``learn``, updates included, of a new model each time; how many steps fill the time is known from the time before."""
    from stable_baselines3.common.callbacks import BaseCallback

    if algorithm == "SBX":
        from sbx import PPO as make
    elif algorithm == "REINFORCE":
        from sb3_reinforce import REINFORCE as make
    else:
        import stable_baselines3

        make = getattr(stable_baselines3, algorithm)

    class Used(BaseCallback):
        """Counts the steps that updates of REINFORCE use."""

        needs_steps = False
        n_steps = 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.n_steps += self.model.rollout_buffer.pos

    rate = 0.0

    def speed(seconds: float) -> Speed:
        nonlocal rate
        model = make("MlpPolicy", make_env(env_id, n_envs, vector), seed=0, device="cpu", **kwargs)
        n_steps = max(1000, n_envs * 100)
        model.learn(n_steps)  # start-up; SBX compiles
        if not rate:
            start = now()
            model.learn(n_steps)
            rate = model.num_timesteps / (now() - start)
        used = Used() if algorithm == "REINFORCE" else None
        start = now()
        model.learn(max(1, int(rate * seconds)), used)
        steps = model.num_timesteps
        rate = steps / (now() - start)
        return rate, 1.0 if used is None else used.n_steps / steps

    return speed


def rejax_ppo(env_id: str, n_envs: int, **kwargs: Any) -> Callable[[float], Speed]:
    """Of rejax's PPO in its own environment, compiled as a whole and without its evaluations."""
    import jax
    from rejax import PPO

    agent = {"hidden_layer_sizes": (64, 64), "activation": "tanh"}
    algorithm = PPO.create(env=env_id, num_envs=n_envs, agent_kwargs=agent, max_grad_norm=0.5, **kwargs)
    updates = jax.jit(lambda state, n: jax.lax.fori_loop(0, n, lambda _, state: algorithm.train_iteration(state), state))
    state = jax.block_until_ready(updates(algorithm.init_state(jax.random.PRNGKey(0)), 1))  # compiles

    def speed(seconds: float) -> Speed:
        start = now()
        jax.block_until_ready(updates(state, 2))
        n_updates = max(1, round(2 * seconds / (now() - start)))
        start = now()
        jax.block_until_ready(updates(state, n_updates))
        return n_updates * algorithm.iteration_size / (now() - start), 1.0

    return speed


def tianshou(env_id: str, n_envs: int) -> Callable[[float], Speed]:
    from tianshou_reinforce import speed

    return lambda seconds: (speed(env_id, n_envs, seconds), 1.0)


def make(contestant: str, **kwargs: Any) -> Callable[[float], Speed]:
    """:return: what measures it for some seconds"""
    makers = {"alone": alone, "rejax": rejax_ppo, "Tianshou": tianshou}
    return makers[contestant](**kwargs) if contestant in makers else trained(contestant, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", help="as JSON: the arguments of make()")
    parser.add_argument("--core", type=int, help="the only processor to run on")
    parser.add_argument("--cpu-time", action="store_true", help="measure in seconds of the processor, of all threads")
    args = parser.parse_args()
    if args.cpu_time:
        global now
        now = time.process_time
    if args.core is not None and hasattr(os, "sched_setaffinity"):  # on Linux; before libraries count the processors
        os.sched_setaffinity(0, {args.core})
    warnings.simplefilter("ignore")
    # What libraries print is not the answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    measure = make(**json.loads(args.contestant))
    for line in sys.stdin:
        print(json.dumps(measure(float(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
