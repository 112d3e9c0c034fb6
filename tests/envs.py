"""Environments whose returns and gradients are known, and helpers that read a model's gradient and rollout."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from sb3_reinforce import REINFORCE, Baseline
from sb3_reinforce.bias import MDP, Trajectory
from sb3_reinforce.update.rows import Rows
from sb3_reinforce.update.steps import Selection, count_rows, sequences_of


class RewardListEnv(gym.Env):
    """Pays the given rewards one after the other, then ends. Observation t of the episode is filled with t."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, rewards: list[float], truncated: bool = False):
        self.rewards, self.truncated, self.t = rewards, truncated, 0

    def _observation(self) -> np.ndarray:
        return np.full(2, self.t, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = self.rewards[self.t]
        self.t += 1
        ended = self.t == len(self.rewards)
        return self._observation(), reward, ended and not self.truncated, ended and self.truncated, {}


class OneLife(gym.Wrapper):
    """Ends the episode after each third of the game, as wrappers for Atari do; the game goes on at the next reset."""

    over = True

    def reset(self, **kwargs):
        if self.over:
            return self.env.reset(**kwargs)
        return self.unwrapped._observation(), {}

    def step(self, action):
        observation, reward, self.over, truncated, info = self.env.step(action)
        return observation, float(np.sign(reward)), self.over or self.unwrapped.t % 2 == 0, truncated, info


# Ten trajectories of one or two steps: few enough to enumerate all batches of them.
SMALL = MDP(
    transitions=[[[0.2, 0.3], [0.1, 0.6]], [[0.3, 0.3], [0.0, 0.5]]],
    rewards=[[1.0, -0.5], [2.0, 0.3]],
    start=[1.0, 0.0],
    horizon=2,
)
# Up to seven steps: to be sampled.
LARGER = MDP(
    transitions=[
        [[0.3, 0.3, 0.1], [0.1, 0.2, 0.3]],
        [[0.2, 0.5, 0.2], [0.4, 0.0, 0.2]],
        [[0.1, 0.1, 0.6], [0.6, 0.3, 0.0]],
    ],
    rewards=[[1.0, 0.0], [-1.0, 0.5], [2.0, -0.5]],
    start=[0.6, 0.4, 0.0],
    horizon=7,
)


class MDPEnv(gym.Env):
    """Plays an MDP; the observation is the state, one-hot."""

    def __init__(self, mdp: MDP):
        self.mdp = mdp
        self.observation_space = spaces.Box(0, 1, (mdp.n_states,), np.float32)
        self.action_space = spaces.Discrete(mdp.n_actions)

    def _draw(self, probabilities: np.ndarray) -> int:
        return int(np.searchsorted(np.cumsum(probabilities), self.np_random.random(), side="right"))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.state = 0, self._draw(self.mdp.start)
        return np.eye(self.mdp.n_states, dtype=np.float32)[self.state], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(self.mdp.rewards[self.state, action])
        following = self._draw(self.mdp.transitions[self.state, action])
        self.t += 1
        terminated = following == self.mdp.n_states
        self.state = self.state if terminated else following
        observation = np.eye(self.mdp.n_states, dtype=np.float32)[self.state]
        return observation, reward, terminated, not terminated and self.t == self.mdp.horizon, {}


class ScriptedEnv(gym.Env):
    """Plays the trajectories of ``script`` one after the other, from the first again at a seeded reset."""

    def __init__(self, mdp: MDP):
        self.observation_space = spaces.Box(0, 1, (mdp.n_states,), np.float32)
        self.action_space = spaces.Discrete(mdp.n_actions)
        self.script = mdp.trajectories()[:1]
        self.position = self.t = 0

    @property
    def trajectory(self) -> Trajectory:
        return self.script[self.position % len(self.script)]

    @property
    def scripted_action(self) -> int:
        return self.trajectory.actions[self.t]

    def _observation(self, t: int) -> np.ndarray:
        return np.eye(self.observation_space.shape[0], dtype=np.float32)[self.trajectory.states[t]]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position = 0 if seed is not None else self.position + 1
        self.t = 0
        return self._observation(0), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert action == self.scripted_action
        reward = self.trajectory.rewards[self.t]
        self.t += 1
        ended = self.t == len(self.trajectory.actions)
        return self._observation(self.t - 1 if ended else self.t), reward, ended, False, {}


class ScriptedSampler:
    """The actions of the scripts."""

    values = ()

    def __init__(self, env: DummyVecEnv):
        self.env = env

    def __call__(self, observations: Any, masks: Any = None) -> np.ndarray:
        return np.array([e.unwrapped.scripted_action for e in self.env.envs])

    greedy = __call__

    def start_episodes(self, starts: np.ndarray) -> None: ...


def scripted_sampler(env: DummyVecEnv) -> Callable[..., ScriptedSampler]:
    """A replacement for ``make_sampler``."""
    return lambda *_: ScriptedSampler(env)


def tabular_model(env: VecEnv, **kwargs: Any) -> REINFORCE:
    """
    A softmax policy with one logit per state and action, plain gradient ascent with step size 1, no clipping.

    ``policy="MlpLstmPolicy"``: a small LSTM in front of the logits.
    """
    defaults: dict[str, Any] = dict(
        learning_rate=1.0, max_grad_norm=None, baseline="none", gamma=0.8, seed=0, device="cpu", n_value_epochs=1
    )
    defaults.update(kwargs)
    policy = defaults.pop("policy", "MlpPolicy")
    memory = dict(lstm_hidden_size=4) if "Lstm" in policy else {}
    policy_kwargs = dict(net_arch=[], ortho_init=False, optimizer_class=th.optim.SGD, **memory)
    model = REINFORCE(policy, env, policy_kwargs=policy_kwargs, **defaults)
    with th.no_grad():
        weight = model.policy.action_net.weight
        weight.copy_(th.linspace(-0.6, 0.9, weight.numel()).reshape(weight.shape))
        model.policy.action_net.bias.zero_()
        model.policy.value_net.weight.copy_(th.linspace(0.5, 1.5, weight.shape[1])[None])
        model.policy.value_net.bias.fill_(0.1)
    model._setup_learn(10**9)
    return model


def parameters(model: REINFORCE) -> th.Tensor:
    """A copy of all parameters, as one vector."""
    return nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def baseline_of(model: REINFORCE) -> Baseline:
    """The baseline object, which has no public name where the argument was a text."""
    return model._baseline


def logits(model: REINFORCE) -> th.Tensor:
    """The logits [S, A] of a tabular model."""
    return (model.policy.action_net.weight + model.policy.action_net.bias[:, None]).detach().T.clone()


def rows_of(model: REINFORCE) -> Rows:
    """The steps of the model's last rollout."""
    sequences = sequences_of(model.policy, model.batch.episodes.lengths, model.bptt_steps)
    return Rows(model.rollout_buffer, model.batch.sizes, model.chunk_size, sequences)


def policy_step(model: REINFORCE, minibatch: Selection | None = None, several_steps: bool = False) -> None:
    """One optimiser step of the policy on these rows, by default all."""
    rows = rows_of(model)
    minibatch = rows.all if minibatch is None else minibatch
    model._policy_step(rows, minibatch, count_rows(minibatch), several_steps)


class NoCallback(BaseCallback):
    def _on_step(self) -> bool:
        return True


def collect(model: REINFORCE) -> REINFORCE:
    """Play one rollout of a model that is set up for training, without an update."""
    callback = NoCallback()
    callback.init_callback(model)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def one_update(model: REINFORCE) -> th.Tensor:
    """Play and train once, then restore the parameters. Returns the change of the logits' weights, shape [S, A]."""
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    average = getattr(baseline_of(model), "average", None)
    collect(model).train()
    change = (model.policy.action_net.weight.double() - before["action_net.weight"].double()).detach().T
    model.policy.load_state_dict(before)
    if hasattr(baseline_of(model), "average"):
        baseline_of(model).average = average
    return change


def scripts_by_episodes(mdp: MDP, n_episodes: int) -> Iterator[tuple[list[Trajectory], th.Tensor]]:
    """All sequences of ``n_episodes`` trajectories."""
    if n_episodes == 0:
        yield []
        return
    for rest in scripts_by_episodes(mdp, n_episodes - 1):
        for trajectory in mdp.trajectories():
            yield [*rest, trajectory]


def scripts_by_steps(mdp: MDP, n_steps: int) -> Iterator[list[Trajectory]]:
    """All sequences of trajectories that stop with the first episode to end at or after step ``n_steps``."""
    if n_steps <= 0:
        yield []
        return
    for trajectory in mdp.trajectories():
        for rest in scripts_by_steps(mdp, n_steps - len(trajectory.actions)):
            yield [trajectory, *rest]


def script_probability(script: list[Trajectory], log_policy: th.Tensor) -> float:
    """Probability of a script: the environment's part times the policy's. ``log_policy``: log pi, shape [S, A]."""
    total = 1.0
    for trajectory in script:
        total *= trajectory.env_probability * float(th.exp(log_policy[trajectory.states, trajectory.actions].sum()))
    return total


def expected_change(
    model: REINFORCE, env: VecEnv, mdp: MDP, log_policy: th.Tensor, played: Iterable[list[Trajectory]]
) -> th.Tensor:
    """
    The exact expectation of :func:`one_update`, in which each environment plays one of the scripts, shape [S, A].

    :param env: whose environments are ``ScriptedEnv``
    :param log_policy: log pi, shape [S, A]
    :param played: all scripts of one environment
    """
    possible = [(script, p) for script in played if (p := script_probability(script, log_policy)) > 0]
    expected, total = th.zeros(mdp.n_states, mdp.n_actions, dtype=th.float64), 0.0
    for scripts in itertools.product(possible, repeat=env.num_envs):
        probability = float(np.prod([p for _, p in scripts]))
        for scripted, (script, _) in zip(env.envs, scripts, strict=True):  # type: ignore[attr-defined]
            scripted.unwrapped.script = script
        expected += probability * one_update(model)
        total += probability
    assert total == pytest.approx(1.0, abs=1e-6)
    return expected


BOX = spaces.Box(-1, 1, (3,), np.float32)


class Random(gym.Env):
    """Random observations and rewards; each step ends the episode with probability 1/4."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), float(self.np_random.normal()), self.np_random.random() < 0.25, False, {}


def played(observation_space: spaces.Space, action_space: spaces.Space, policy: Any = "MlpPolicy", **kwargs: Any) -> REINFORCE:
    """A small model after one update on six episodes of :class:`Random`, which are still in its rollout buffer."""
    env = DummyVecEnv([lambda: Random(observation_space, action_space)])
    kwargs["policy_kwargs"] = dict(net_arch=[5], **kwargs.get("policy_kwargs", {}))
    return REINFORCE(policy, env, n_episodes=6, seed=0, device="cpu", **kwargs).learn(1)


class BatchNormDropout(BaseFeaturesExtractor):
    """Batch norm and dropout; ``modes`` holds for each call whether it was in training mode."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 4)
        self.layers = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.modes: list[bool] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.modes.append(self.training)
        return self.layers(observations)


def seeds_of(env: VecEnv) -> list[int | None]:
    """The seeds that the environments get from now on: a list that grows."""
    seeds: list[int | None] = []
    set_seed = env.seed
    env.seed = lambda seed=None: (seeds.append(seed), set_seed(seed))[1]  # type: ignore[method-assign]
    return seeds
