"""
What several ranks do in test_distributed.py and test_ranks.py: run by torchrun, one process per rank.

``python distributed_cases.py CASE FOLDER``: each rank writes its results to FOLDER/CASE-rank.pkl.
"""

import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.nn.utils import parameters_to_vector

from sb3_reinforce import REINFORCE, Baseline, Episodes, TrainingCheckpoint, episodic
from sb3_reinforce.baselines import BASELINES
from sb3_reinforce.running import exchange, normalization, ranks
from tests.envs import SMALL, NoCallback, RewardListEnv, ScriptedEnv, baseline_of, collect, scripted_sampler, tabular_model
from tests.masked_envs import ScriptedMasks

# The trajectories that each environment plays, by number. Their lengths differ, and so do the ranks' numbers of episodes and
# of steps.
SCRIPTS = ([0, 5, 7], [3, 1], [9, 2, 4, 6])
# The environments of each rank, by number of ranks
ENVS_OF_RANK = {1: ((0, 1, 2),), 2: ((0, 1), (2,)), 3: ((0,), (1,), (2,))}


class LooksAtAll(Baseline):
    """A user's baseline that needs everything that episodes have, of all ranks."""

    needs = frozenset({"values"})

    def __init__(self) -> None:
        self.past = 0.0

    def predict(self, episodes: Episodes) -> th.Tensor:
        assert len(episodes.observations) == len(episodes.values) == len(episodes.returns) == episodes.lengths.sum()
        # environments are numbered over all ranks
        level = self.past + (episodes.env_indices * episodes.lengths).sum() / 100
        return level + 0.1 * episodes.observations.double().mean() + 0.2 * episodes.values.flip(0)

    def update(self, episodes: Episodes) -> None:
        self.past = episodes.returns.max().item()


GRADIENT_CASES: dict[str, dict[str, Any]] = {
    f"{baseline}-{reduction}-{mode}": dict(baseline=baseline, loss_reduction=reduction, mode=mode)
    for baseline in (*BASELINES, "own")
    if baseline != "greedy"  # which plays the environments twice: scripted ones cannot
    for reduction in ("episode", "step")
    for mode in ("n_steps", "n_episodes")
} | {
    "normalize_advantage": dict(baseline="mean", normalize_advantage=True, mode="n_steps"),
    "discount_state": dict(baseline="leave_one_out", discount_state=True, mode="n_steps"),
    "returns": dict(baseline="per_step", returns="episode", mode="n_episodes"),
    "entropy": dict(baseline="none", ent_coef=0.3, mode="n_steps"),
    "clipping": dict(baseline="none", max_grad_norm=0.1, mode="n_steps"),
    "natural gradient": dict(baseline="value", natural_gradient=True, cg_max_steps=3, mode="n_steps"),
    "several epochs": dict(baseline="value", n_epochs=3, n_value_epochs=3, mode="n_steps"),
    "chunks": dict(baseline="value", chunk_size=2, mode="n_steps"),
    "memory": dict(policy="MlpLstmPolicy", baseline="value", n_epochs=2, bptt_steps=1, chunk_size=2, mode="n_steps"),
    "memory, natural gradient": dict(policy="MlpLstmPolicy", baseline="optimal", natural_gradient=True, mode="n_episodes"),
    "masks": dict(policy="MaskableMlpPolicy", baseline="value", n_epochs=2, chunk_size=2, ent_coef=0.1, mode="n_steps"),
    "masks, natural gradient": dict(policy="MaskableMlpPolicy", baseline="optimal", natural_gradient=True, mode="n_episodes"),
    "memory and masks": dict(policy="MaskableMlpLstmPolicy", baseline="leave_one_out", n_epochs=2, mode="n_episodes"),
    "cut": dict(baseline="value", unfinished="bootstrap", truncation="bootstrap", mode="n_steps"),
}


def updated(case: str) -> dict[str, Any]:
    """
    Two updates on scripted episodes, observations and rewards normalised by frozen statistics.

    :param case: a key of GRADIENT_CASES
    :return: parameters, logged values, and the baseline's state
    """
    arguments = dict(GRADIENT_CASES[case])
    indices = ENVS_OF_RANK[ranks.world_size()][ranks.rank()]
    if arguments.pop("mode") == "n_episodes":
        arguments["n_episodes"] = 2 * len(indices)
    else:
        arguments["n_steps"] = 4
    if arguments["baseline"] == "own":
        arguments["baseline"] = LooksAtAll()
    scripted_env = ScriptedMasks if "Maskable" in arguments.get("policy", "") else ScriptedEnv
    env = DummyVecEnv([lambda: scripted_env(SMALL) for _ in indices])
    for scripted, index in zip(env.envs, indices, strict=True):
        scripted.script = [SMALL.trajectories()[number] for number in SCRIPTS[index]]
    normalized = VecNormalize(env, training=False)
    normalized.obs_rms.mean, normalized.obs_rms.var = np.array([0.3, 0.1]), np.array([0.5, 0.7])
    normalized.ret_rms.var = np.array(1.7)
    model = tabular_model(normalized, **arguments)
    original, episodic.make_sampler = episodic.make_sampler, scripted_sampler(env)
    try:
        n_updates = 1 if arguments.get("unfinished") == "bootstrap" else 2
        for _ in range(n_updates):
            collect(model).train()
    finally:
        episodic.make_sampler = original
    logged = {key: float(value) for key, value in model.logger.name_to_value.items() if not key.startswith("time/")}
    parameters = {name: tensor.numpy().copy() for name, tensor in model.policy.state_dict().items()}
    return {"parameters": parameters, "logged": logged, "state": baseline_of(model).state_dict()}


class Watch(BaseCallback):
    """Notes what a callback sees; stops at the given call."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.seen: list[int] = []
        self.at_rollout_end: list[tuple[int, bytes]] = []
        self.first_observation: np.ndarray | None = None
        self.stop_at = stop_at

    def _on_rollout_start(self) -> None:
        parameters = b"".join(tensor.numpy().tobytes() for tensor in self.model.policy.state_dict().values())
        self.at_rollout_end.append((self.model.num_timesteps, parameters))

    def _on_step(self) -> bool:
        self.seen.append(self.num_timesteps)
        if self.first_observation is None:
            self.first_observation = self.locals["new_obs"].copy()
        return self.n_calls != self.stop_at


def training(folder: Path) -> dict[str, Any]:
    """Learns CartPole with running normalisation and a different number of environments on each rank."""
    rank = ranks.rank()
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=1 + rank))
    model = REINFORCE(
        "MlpPolicy",
        env,
        n_steps=100 + 50 * rank,
        seed=3,
        policy_kwargs=dict(net_arch=[8]),
        batch_size=64 if rank == 0 else 32,
        n_epochs=2,
        value_batch_size=None if rank == 0 else 16,
        normalize_advantage=True,
        verbose=1,
    )
    with th.no_grad():  # learn() starts from rank 0's parameters
        model.policy.action_net.bias.fill_(float(rank))
    model.set_logger(configure(str(folder / f"log{rank}"), ["csv"]))
    own = Watch()
    evaluation = EvalCallback(make_vec_env("CartPole-v1"), eval_freq=1, best_model_save_path=str(folder / f"best{rank}"))
    evaluation.eval_env = VecNormalize(evaluation.eval_env, training=False, norm_reward=False)
    shown = EveryNTimesteps(400, evaluation)
    print(f"rank {rank} speaks before learn")
    model.learn(2_000, callback=[own, shown])
    model.save(folder / f"model{rank}")
    return {
        "parameters": {name: tensor.numpy() for name, tensor in model.policy.state_dict().items()},
        "statistics": normalization.statistics_of(env),
        "infos": [(info["r"], info["l"]) for info in model.ep_info_buffer],
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "seen": own.seen,
        "at_rollout_end": own.at_rollout_end,
        "first_observation": own.first_observation,
        "own_steps": len(own.seen) * env.num_envs,
        "evaluations": evaluation.n_calls,
    }


def unseeded() -> np.ndarray:
    """The first actions of a model without a seed, where the user has seeded torch alike on all ranks."""
    env = DummyVecEnv([lambda: RewardListEnv([0.0] * 30)])
    model = REINFORCE("MlpPolicy", env, n_steps=1)
    th.manual_seed(7)
    model.learn(1)
    return model.rollout_buffer.actions.flatten()


def stopping() -> dict[str, Any]:
    """The callback of rank 1 stops in the third rollout, that of rank 0 never."""
    rank = ranks.rank()
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 10)])
    model = REINFORCE("MlpPolicy", env, n_steps=20, seed=0)
    model.learn(10_000, callback=Watch(stop_at=45 if rank == 1 else None))
    return {"num_timesteps": model.num_timesteps, "n_updates": model._n_updates}


def counted() -> list[int]:
    """Number of exchanges from the end of one rollout to the end of the next, with three epochs of the value network."""
    at_rollout_end: list[int] = []

    class Mark(NoCallback):
        def _on_rollout_end(self) -> None:
            at_rollout_end.append(count)

    count = 0

    def counting(exchange: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            return exchange(*args, **kwargs)

        return wrapper

    names = ("all_reduce", "all_gather", "broadcast")
    originals = [getattr(ranks.dist, name) for name in names]
    for name, original in zip(names, originals, strict=True):
        setattr(ranks.dist, name, counting(original))
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 10)])
    REINFORCE("MlpPolicy", env, n_steps=20, n_value_epochs=3, seed=0).learn(4 * 2 * 20, callback=Mark())
    for name, original in zip(names, originals, strict=True):
        setattr(ranks.dist, name, original)
    return np.diff(at_rollout_end).tolist()


def asked_to_stop(folder: Path) -> dict[str, Any]:
    """Rank 1 asks its TrainingCheckpoint to stop in the third rollout: all ranks finish that update and save."""

    class Signal(NoCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 45 and ranks.rank() == 1:
                saving.stop()
            return True

    saving = TrainingCheckpoint(folder / "checkpoints")
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 10)])
    model = REINFORCE("MlpPolicy", env, n_steps=20, seed=0, chunk_size=8 + ranks.rank())
    model.learn(10_000, callback=[saving, Signal()])
    again = REINFORCE.resume(folder / "checkpoints", env)
    return {
        "num_timesteps": (model.num_timesteps, again.num_timesteps),
        "n_updates": model._n_updates,
        "newest": str(saving.newest),
        "chunk_size": again.chunk_size,
    }


def meddling() -> dict[str, Any]:
    """A callback of rank 0 alone changes the policy in the second rollout, and the learning rate in the third."""

    class Meddling(NoCallback):
        def _on_rollout_end(self) -> None:
            policy = self.model.policy
            bias.append(policy.action_net.bias[0].item())
            at_rollout_end.append(parameters_to_vector(policy.parameters()).tolist())
            if ranks.rank() == 0 and self.model._n_rollouts == 2:
                with th.no_grad():
                    policy.action_net.bias += 1.0
            if ranks.rank() == 0 and self.model._n_rollouts == 3:
                self.model.learning_rate = 0.1

    at_rollout_end: list[list[float]] = []
    bias: list[float] = []
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 10)])
    model = REINFORCE("MlpPolicy", env, n_steps=20, baseline="none", seed=0, policy_kwargs=dict(net_arch=[]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(5 * 2 * 20, callback=Meddling())
    return {"warnings": [str(warning.message) for warning in caught], "parameters": at_rollout_end, "bias": bias}


def greedy() -> int:
    """The greedy baseline's steps count: 2 environments, each with 10 sampled steps and 10 greedy ones."""
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 10)] * 2)
    return REINFORCE("MlpPolicy", env, n_episodes=2, baseline="greedy", seed=0).learn(81).num_timesteps


def refusal() -> str:
    """The error of learn() where ranks have different arguments, which ends the group."""
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 10)])
    try:
        REINFORCE("MlpPolicy", env, n_steps=20, n_value_epochs=1 + ranks.rank()).learn(20)
    except ValueError as error:
        message = str(error)
    try:
        REINFORCE("MlpPolicy", env)
    except ranks.LostRankError as error:
        return f"{message}; then: {error}"
    return message


def exchanges() -> dict[str, Any]:
    """All exchanges, on values that show which rank they come from."""
    rank = ranks.rank()
    parameters = [th.nn.Parameter(th.zeros(2)), th.nn.Parameter(th.zeros(2)), th.nn.Parameter(th.zeros(1, 1))]
    parameters[0].grad = th.tensor([1.0, 10.0]) * (rank + 1)
    if rank == 1:
        parameters[2].grad = th.tensor([[5.0]])
    sums = exchange.sum_gradients(parameters, (rank + 1, 0.5))
    many = th.nn.Parameter(th.zeros(exchange.MOST_GATHERED))
    many.grad = th.full_like(many, rank + 1.0)
    exchange.sum_gradients([many])
    norm = th.nn.BatchNorm1d(1)
    norm.running_mean.fill_(rank + 4)
    exchange.broadcast_buffers(norm)
    return {
        "gather": exchange.gather({"rank": rank, "ragged": th.arange(rank + 1)}),
        # lengths on both sides of what fits into one exchange
        "lengths": [[len(text) for text in exchange.gather("x" * (n + rank))] for n in (8_000, 8_165, 8_166, 100_000)],
        "many": many.grad.unique().tolist(),
        "broadcast": exchange.broadcast({"of rank": rank, "tensor": th.full((3,), rank)}),
        "grads": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "sums": sums,
        "buffer": norm.running_mean.item(),
        # rank 0 has 1, 2; rank 1 has 6
        "moments": exchange.moments(np.array([1.0, 2.0]) if rank == 0 else th.tensor([6.0]), np.full(1 + rank, 7.0)),
    }


def all_of_them(folder: Path) -> dict[str, Any]:
    """All cases that do not end the processes."""
    REINFORCE("MlpPolicy", "CartPole-v1", device="cpu")  # the constructor joins the group
    assert ranks.world_size() == 2
    found: dict[str, Any] = {"exchanges": exchanges()}
    found["gradients"] = {case: updated(case) for case in GRADIENT_CASES}
    found["training"] = training(folder)
    found["unseeded"] = unseeded()
    found["stopping"] = stopping()
    found["counted"] = counted()
    found["asked_to_stop"] = asked_to_stop(folder)
    found["meddling"] = meddling()
    found["greedy"] = greedy()
    found["refusal"] = refusal()
    return found


class Trouble(gym.Wrapper):
    """Rewards are NaN after 300 steps."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.n_steps = 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self.n_steps += 1
        if self.n_steps > 300:
            reward = float("nan")
        return observation, reward, terminated, truncated, info


def trouble(kind: str, folder: Path) -> None:
    """Trains for ever, until the test kills a rank or, with "nan", the rewards of rank 1 become NaN."""
    env = gym.make("CartPole-v1")
    if kind == "nan" and os.environ["RANK"] == "1":
        env = Trouble(env)
    model = REINFORCE("MlpPolicy", env, n_steps=100, seed=0)
    (folder / f"started{ranks.rank()}").write_text(str(os.getpid()))
    try:
        model.learn(10**9)
    except Exception as error:
        (folder / f"error{ranks.rank()}").write_text(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    case, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("error", RuntimeWarning)
    if case in ("all", "gradients"):
        if case == "all":
            results = all_of_them(folder)
        else:
            ranks.start("cpu")
            results = {"gradients": {case: updated(case) for case in GRADIENT_CASES}}
        (folder / f"{case}-{ranks.rank()}.pkl").write_bytes(pickle.dumps(results))
    else:
        trouble(case, folder)
