"""Arguments, environments and command lines that cannot be right, for faults.py."""

import inspect
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from fault_trials import Case, command, in_child, outcome_of, trains
from gymnasium import spaces
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_reinforce import REINFORCE

ODD_VALUES: list[Any] = [-1, 0, 0.5, math.nan, math.inf, "x", "lin_x", None, [], {}, (1, 2), True, 1e30, object(), print, b"x"]


class Odd(gym.Env):
    """Five steps per episode; one thing in it is odd."""

    def __init__(
        self, observation: Any = None, reward: Any = 1.0, info: Any = None, space: Any = None, action_space: Any = None
    ):
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32) if space is None else space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.odd, self.reward, self.info = observation, reward, info or {}

    def _observe(self) -> Any:
        return self.odd if self.odd is not None and self.t == 2 else self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self.t += 1
        return self._observe(), self.reward if self.t == 3 else 1.0, self.t == 5, False, dict(self.info) if self.t == 5 else {}


BOX64 = spaces.Box(-np.inf, np.inf, (2,), np.float64)
# what is odd -> arguments of Odd, words of which one is in the error
ODD_ENVIRONMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "reward NaN": ({"reward": math.nan}, "reward"),
    "reward 1e300": ({"reward": 1e300}, "reward"),
    "reward of shape (1,)": ({"reward": np.array([1.0])}, "reward"),
    "reward of shape (2,)": ({"reward": np.array([1.0, 2.0])}, "reward"),
    "reward text": ({"reward": "x"}, "reward"),
    "reward None": ({"reward": None}, "reward"),
    "reward of 400 digits": ({"reward": 10**400}, "reward"),
    "episode without r": ({"info": {"episode": {"l": 3}}}, "episode"),
    "episode a number": ({"info": {"episode": 3}}, "episode"),
    "is_success text": ({"info": {"is_success": "yes"}}, "is_success"),
    "observation NaN": ({"observation": np.full(2, np.nan, np.float32)}, "observation"),
    "observation 1e300": ({"space": BOX64, "observation": np.array([1e300, 0])}, "observation"),
    "observation of shape (0,)": ({"space": spaces.Box(-1, 1, (0,))}, "observation_space"),
    "observation 2-D MultiDiscrete": ({"space": spaces.MultiDiscrete([[2, 3], [3, 4]])}, "observation_space"),
    "observation empty Dict": ({"space": spaces.Dict()}, "observation_space"),
    "observation nested Dict": ({"space": spaces.Dict(a=spaces.Dict(b=BOX64))}, "observation_space"),
    "observation Text": ({"space": spaces.Text(5)}, "observation_space"),
    "observation Tuple": ({"space": spaces.Tuple([BOX64])}, "observation_space"),
    "observation Sequence": ({"space": spaces.Sequence(BOX64)}, "observation_space"),
    "observation Discrete(3) = 7": ({"space": spaces.Discrete(3), "observation": 7}, "observation"),
    "observation Discrete(3) = -1": ({"space": spaces.Discrete(3), "observation": -1}, "observation"),
    "observation MultiDiscrete([2, 3]) = [1, 3]": (
        {"space": spaces.MultiDiscrete([2, 3]), "observation": np.array([1, 3])}, "observation",
    ),
    "actions Dict": ({"action_space": spaces.Dict(a=BOX64)}, "action_space"),
    "actions Tuple": ({"action_space": spaces.Tuple([BOX64])}, "action_space"),
    "actions without bounds": ({"action_space": BOX64}, "action_space"),
    "actions of whole numbers": ({"action_space": spaces.Box(-5, 5, (1,), np.int64)}, "action_space"),
    "actions of shape (0,)": ({"action_space": spaces.Box(-1, 1, (0,))}, "action_space"),
    "actions from 1": ({"action_space": spaces.Discrete(3, start=1)}, "action_space"),
}  # fmt: skip

IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
# what does not fit -> arguments of REINFORCE, the observation space, words of which one is in the error
ODD_POLICIES: dict[str, tuple[dict[str, Any], spaces.Space | None, str]] = {
    "CnnPolicy for a vector": ({"policy": "CnnPolicy"}, None, "images"),
    "CnnPolicy for images of floats": ({"policy": "CnnPolicy"}, spaces.Box(0, 1, (3, 36, 36), np.float32), "images"),
    "CnnPolicy for small images": ({"policy": "CnnPolicy"}, spaces.Box(0, 255, (3, 8, 8), np.uint8), "36 x 36"),
    "MultiInputPolicy for a vector": ({"policy": "MultiInputPolicy"}, None, "Dict"),
    "MlpPolicy for a Dict": ({"policy": "MlpPolicy"}, spaces.Dict(a=BOX64), "MultiInputPolicy"),
    "MlpPolicy for an image": ({"policy": "MlpPolicy"}, IMAGE, "nothing: it trains"),
    "MlpLstmPolicy": ({"policy": "MlpLstmPolicy"}, None, "RecurrentPPO"),
    "MaskableMlpPolicy": ({"policy": "MaskableMlpPolicy"}, None, "action masks"),
    "a policy of DQN": ({"policy": DQNPolicy}, None, "policy must be"),
    "a key that the policy lacks": ({"policy_kwargs": {"net_arc": [8]}}, None, "net_arch"),
    "a layer of no units": ({"policy_kwargs": {"net_arch": [0]}}, None, "nothing: it trains"),
    "an activation by name": ({"policy_kwargs": {"activation_fn": "relu"}}, None, "policy_kwargs"),
    "LBFGS": ({"policy_kwargs": {"optimizer_class": th.optim.LBFGS}}, None, "closure"),
    "SparseAdam": ({"policy_kwargs": {"optimizer_class": th.optim.SparseAdam}}, None, "dense"),
    "an argument that the optimiser lacks": ({"policy_kwargs": {"optimizer_kwargs": {"momentums": 1}}}, None, "policy_kwargs"),
    "an argument of PPO": ({"gae_lambda": 0.9}, None, "gae_lambda"),
    "an argument of A2C": ({"vf_coef": 0.5}, None, "vf_coef"),
    "an argument of nobody": ({"learning_rat": 0.5}, None, "learning_rat"),
    "a greedy baseline without n_episodes": ({"baseline": "greedy"}, None, "n_episodes"),
    "other episodes, but there is one": ({"baseline": "leave_one_out", "n_episodes": 1}, None, "n_episodes"),
    "natural gradient in minibatches": ({"natural_gradient": True, "batch_size": 8}, None, "batch_size"),
    "bootstrap without a value": ({"truncation": "bootstrap", "baseline": "none"}, None, "baseline"),
}

# arguments of the command line; each must end in one line with exit code 2
ODD_COMMANDS = [
    "train --env NoSuchEnvironment-v0",
    "train --env CartPole-v1 --algo nothing",
    "train --env CartPole-v1 --conf-file missing.yml",
    "train --env CartPole-v1 -params nothing:1",
    "train --env CartPole-v1 -params gamma:2",
    "train --env CartPole-v1 -params policy:'CnnPolicy'",
    "train --env CartPole-v1 -n -5",
    "train --env CartPole-v1 --resume nowhere",
    "train --env CartPole-v1 -i nowhere.zip",
    "enjoy --env CartPole-v1 -f nowhere",
    "record-video --env CartPole-v1 -f nowhere",
    "plot-file -i nowhere.pkl",
    "report nowhere",
    "tune --env CartPole-v1 --n-trials 0",
    "compare-baselines --env NoSuchEnvironment-v0",
    "push --env CartPole-v1 -f nowhere -orga me",
    "nothing",
]


def bad_inputs(rng: random.Random) -> Iterator[Case]:
    """Arguments, environments and command lines that cannot be right: an error that names them, or training."""

    def tried(make: Callable[[], REINFORCE], *names: str) -> str:
        return outcome_of(in_child(lambda: trains(make))(), *names)

    for name in inspect.signature(REINFORCE.__init__).parameters:
        for value in ODD_VALUES if name not in ("self", "env", "_init_setup_model") else ():
            arguments = {"policy": "MlpPolicy", "env": "CartPole-v1", "n_steps": 20, "device": "cpu"} | {name: value}
            yield Case(
                "argument",
                f"{name}={value!r}",
                lambda a=arguments, n=name: tried(lambda: REINFORCE(**a), n, "update 1 must", "gSDE"),
            )
    for what, (arguments, name) in ODD_ENVIRONMENTS.items():

        def make(arguments: dict[str, Any] = arguments) -> REINFORCE:
            policy = "MultiInputPolicy" if isinstance(arguments.get("space"), spaces.Dict) else "MlpPolicy"
            return REINFORCE(policy, Odd(**arguments), n_steps=10, device="cpu")

        yield Case("environment", what, lambda make=make, name=name: tried(make, name))
    for what, (arguments, space, name) in ODD_POLICIES.items():
        given = {"policy": "MlpPolicy", "n_steps": 10, "device": "cpu"} | arguments
        yield Case("policy", what, lambda a=given, s=space, n=name: tried(lambda: REINFORCE(env=Odd(space=s), **a), n))
    for line in ODD_COMMANDS:
        yield Case("command line", line, lambda line=line: outcome_of(in_child(lambda: command(line))()))
