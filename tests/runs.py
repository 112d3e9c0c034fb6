"""A training run in a folder that can be stopped and resumed, and what must be equal in two runs."""

import copy
import csv
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running.checkpoint_file import checkpoints_in
from sb3_reinforce.running.logs import appending_logger
from tests.envs import LARGER, MDPEnv, baseline_of
from tests.masked_envs import MaskedMDPEnv

N_ENVS = 3


class TargetEnv(gym.Env):
    """Box actions: keep a drifting point near 0; ends by chance, after 6 steps on average."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2)
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.state = self.state + 0.5 * np.array([float(action[0]), 0.0]) + 0.1 * self.np_random.normal(size=2)
        return (
            self.state.astype(np.float32),
            -float(np.abs(self.state).sum()),
            bool(self.np_random.random() < 1 / 6),
            False,
            {},
        )


# Children are forked from a process that has already imported all this.
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.runs"])


def make_env(actions: str = "discrete", vec: str = "dummy", normalize: bool = True, seed: int | None = None) -> VecEnv:
    """Three small environments with Monitor, within VecNormalize."""

    def one() -> gym.Env:
        made = {"discrete": MDPEnv, "masked": MaskedMDPEnv}
        return Monitor(made[actions](LARGER) if actions in made else TargetEnv())

    env = DummyVecEnv([one] * N_ENVS) if vec == "dummy" else SubprocVecEnv([one] * N_ENVS)
    env.seed(seed)
    return VecNormalize(env) if normalize else env


class Stopped(Exception):
    pass


def stop() -> None:
    raise Stopped


class StopAt(BaseCallback):
    """Calls ``action`` at its n-th call. It counts its calls, so it has a state that checkpoints save."""

    def __init__(self, n_calls: int, action: Callable[[], Any]):
        super().__init__()
        self.at, self.action = n_calls, action

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            self.action()
        return True


class Draws(BaseCallback):
    """Draws from the generators that no rollout seeds, as a user's environment or callback may."""

    def _on_step(self) -> bool:
        np.random.random()
        random.random()
        self.model.action_space.sample()
        return True


def play(
    folder: Path,
    total: int = 450,
    env: dict[str, Any] | None = None,
    more: list[BaseCallback] | None = None,
    evaluate: bool = True,
    every: int = 2,
    learn: dict[str, Any] | None = None,
    trust: bool = False,
    **arguments: Any,
) -> REINFORCE:
    """Start the run in a folder, or resume it, and train to its end; rows go to progress.csv."""
    made = make_env(**(env or {}))
    resumes = bool(checkpoints_in(folder / "checkpoints"))
    if resumes:
        model = REINFORCE.resume(folder / "checkpoints", made, trust=trust)
    else:
        defaults: dict[str, Any] = dict(n_steps=16, seed=7, device="cpu", policy_kwargs=dict(net_arch=[8]))
        model = REINFORCE(arguments.pop("policy", "MlpPolicy"), made, **{**defaults, **arguments})
    model.set_logger(appending_logger(folder, ["csv"]))
    callbacks: list[BaseCallback] = [TrainingCheckpoint(folder / "checkpoints", every_n_updates=every), *(more or [])]
    if evaluate:
        actions = (env or {}).get("actions", "discrete")
        eval_env = make_env(actions, normalize=isinstance(made, VecNormalize), seed=1)
        callbacks.append(Draws())
        callbacks.append(EvalCallback(eval_env, n_eval_episodes=2, eval_freq=25, verbose=0))
    try:
        model.learn(total - model.num_timesteps, callback=callbacks, reset_num_timesteps=not resumes, **(learn or {}))
    finally:
        made.close()
    return model


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The logged rows by number of steps, without times; where two have equal steps, the last one counts."""
    found = {}
    with (folder / "progress.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["time/total_timesteps"]:
                continue  # recorded when an error came, not after an update
            values = {k: v for k, v in row.items() if k not in ("time/fps", "time/time_elapsed") and v != ""}
            # evaluations have separate rows
            found[row["time/total_timesteps"] + ("e" if "eval/mean_reward" in values else "")] = values
    return found


def results(model: REINFORCE) -> dict[str, Any]:
    """What must be equal, bit for bit."""
    env = model.get_vec_normalize_env()
    found = {
        "parameters": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict()["state"],
        "value_optimizer": model.value_optimizer.state_dict()["state"] if "values" in baseline_of(model).needs else {},
        "baseline": dict(baseline_of(model).state_dict()),
        "statistics": {} if env is None else {k: [v.mean, v.var, v.count] for k, v in vars(env).items() if k.endswith("_rms")},
        "counts": [model.num_timesteps, model._n_updates, model._n_rollouts, model._total_timesteps],
        "rewards": [info["r"] for info in model.ep_info_buffer],
        "action_space": model.action_space.np_random.bit_generator.state["state"]["state"],
        "torch": th.get_rng_state(),
        "numpy": list(np.random.get_state()[1:3]),
        "python": list(random.getstate()[1]),
    }
    return copy.deepcopy(found)


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, bit for bit, inside containers too."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, th.Tensor):
        return th.equal(a, b)
    return bool(np.array_equal(a, b))


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [key for key in a if not same(a[key], b[key])]


def kill_self(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAfter(BaseCallback):
    """SIGKILL some seconds after the n-th call in this process: anywhere in a rollout, an update or an evaluation."""

    def __init__(self, n_calls: int, seconds: float):
        super().__init__()
        self.calls_left, self.timer = [n_calls], threading.Timer(seconds, kill_self)

    def _on_step(self) -> bool:
        self.calls_left[0] -= 1
        if self.calls_left[0] == 0:
            self.timer.start()
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


Kill = tuple[int, float] | tuple[str, int]


def child(folder: Path, result: Path, kill: Kill | None, arguments: dict[str, Any]) -> None:
    """
    ``play`` in a separate process, which may kill itself.

    :param kill: calls and seconds, see ``KillAfter``; or a place in the writing of a checkpoint and the number of the write
        (places: "half": half the file is written, "before" or "after" the renaming); None: never
    """
    th.set_num_threads(1)
    if kill is not None and isinstance(kill[0], str):
        where, number = kill
        count = [0]
        real_fsync, real_replace = os.fsync, os.replace

        def fsync(file: int) -> None:
            count[0] += 1
            if where == "half" and count[0] >= number and os.fstat(file).st_size:
                os.truncate(file, os.fstat(file).st_size // 2)
                kill_self()
            real_fsync(file)

        def replace(source: Any, target: Any) -> None:
            if where == "before" and count[0] >= number and "checkpoint" in str(target):
                kill_self()
            real_replace(source, target)
            if where == "after" and count[0] >= number and "checkpoint" in str(target):
                kill_self()

        os.fsync, os.replace = fsync, replace
    more: list[BaseCallback] = [KillAfter(*kill)] if kill is not None and isinstance(kill[0], int) else []
    model = play(folder, more=more, **arguments)
    th.save(results(model), result)
