"""REINFORCE: arguments, rollouts of whole episodes, one policy gradient step per rollout."""

import copy
import io
import math
import pathlib
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from torch.nn import functional as F

from sb3_reinforce import checkpoint, distributed
from sb3_reinforce.arguments import (
    NotFiniteError,
    check_arguments,
    check_clip_range,
    check_count,
    check_env,
    check_finite,
    check_spaces,
)
from sb3_reinforce.baselines import (
    BASELINES,
    Baseline,
    Episodes,
    GreedyBaseline,
    NoBaseline,
    ValueBaseline,
    checked_prediction,
    join_episodes,
    make_baseline,
)
from sb3_reinforce.buffers import (
    Batch,
    EpisodeStorage,
    EpisodeTracker,
    Share,
    by_key,
    check_before_normalization,
    count_rows,
    map_arrays,
    stack_observations,
)
from sb3_reinforce.greedy import play_greedy
from sb3_reinforce.natural_gradient import check_policy, natural_step
from sb3_reinforce.returns import episode_return, reward_to_go
from sb3_reinforce.sampling import make_sampler, needs_torch, overrides, policy_class
from sb3_reinforce.save_util import check_model_file, same_optimizer_kind
from sb3_reinforce.schedules import make_schedule, plain_schedule
from sb3_reinforce.scores import Scores
from sb3_reinforce.training_state import frozen_statistics

SelfREINFORCE = TypeVar("SelfREINFORCE", bound="REINFORCE")

# Streams of random numbers within one rollout, see REINFORCE._random_stream.
ACTOR, ENVIRONMENTS, SHUFFLING = range(3)

# Baselines whose b depends on the own step alone: ranks need not tell each other their episodes. By exact type, because
# a subclass may look at all of them.
POINTWISE = (NoBaseline, ValueBaseline, GreedyBaseline)
# What else than schedules and spaces must be the same on all ranks, so that they make the same updates. n_steps,
# n_episodes and batch_size are each rank's own.
SAME_ON_ALL_RANKS = (
    "policy_class", "gamma", "returns", "discount_state", "normalize_advantage", "loss_reduction", "truncation",
    "unfinished", "freeze_normalization_after", "n_epochs", "n_value_epochs", "max_grad_norm", "natural_gradient",
    "cg_max_steps", "cg_damping", "use_sde",
)  # fmt: skip
# Arguments that may change with the progress of training, and the attributes with the functions made of them
SCHEDULES = {
    "learning_rate": "lr_schedule", "value_learning_rate": "_value_lr_schedule", "ent_coef": "_ent_coef_schedule",
    "clip_range": "_clip_range_schedule", "target_kl": "_target_kl_schedule",
}  # fmt: skip
COUNTERS = ("num_timesteps", "_n_rollouts", "_n_updates", "ep_info_buffer", "ep_success_buffer")


class REINFORCE(OnPolicyAlgorithm):
    """
    REINFORCE, the Monte-Carlo policy gradient, on whole episodes.

    For N complete episodes of T_i steps, all played with the current parameters, and a divisor D, the gradient is::

        g = 1/D sum_i sum_t gamma^(c t) grad log pi(a_it | s_it) (R_it - b_it)

    Paper: Williams (1992), "Simple statistical gradient-following algorithms for connectionist reinforcement learning".

    Every rollout starts at a reset and ends with an episode, so no episode mixes two policies; V stands for what is
    missing only where a time limit cut an episode (see ``truncation``). While sampling, neither values nor
    log-probabilities are computed. ``rollout_buffer.advantages`` holds the weights gamma^(c t) (R - b) of the scores. The
    defaults were chosen by measurement on CartPole-v1, Acrobot-v1, LunarLander-v3, Pendulum-v1 and HalfCheetah-v5:
    ``docs/results.md``.

    Under ``torchrun`` each process ("rank") plays episodes of its own, and the sums are over those of all ranks
    (``docs/scaling.md``); ``n_steps``, ``n_episodes`` and ``batch_size`` are then per rank.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class of your own)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of the policy: a number, a function of the remaining progress (from 1 to 0), or a string such
        as ``"lin_3e-4"``, which falls linearly to 0 at the end of ``learn``
    :param n_steps: at least so many steps per environment and update; then the episodes in flight are finished.
        Not used with ``n_episodes``
    :param n_episodes: instead: exactly so many complete episodes per update, a multiple of the number of environments
    :param gamma: discount factor, in [0, 1]
    :param returns: ``"reward_to_go"``: R_t = sum_{k>=t} gamma^(k-t) r_k; ``"episode"``: the textbook formula
        R_t = sum_{k>=0} gamma^k r_k, the same for every t: right as well, with more variance
    :param discount_state: whether to weight step t by gamma^t (c = 1 above). True gives the true gradient of the
        discounted return, False (as everybody does it) values late steps as much as early ones
    :param baseline: ``"none"``, ``"mean"``, ``"leave_one_out"``, ``"per_step"``, ``"moving_average"``, ``"value"``,
        ``"optimal"``, ``"greedy"`` or your own :class:`~sb3_reinforce.baselines.Baseline` object. ``"greedy"`` plays each
        reset a second time, so it needs ``n_episodes`` equal to the number of environments
    :param normalize_advantage: whether to turn R - b into (A - mean(A)) / std(A) over the steps of the batch.
        Biased: mean and standard deviation depend on the own episode, and dividing by the standard deviation makes the
        step size adaptive
    :param loss_reduction: ``"episode"``: D = N; ``"step"``: D = n_steps * n_envs, or with ``n_episodes`` the number of
        steps played. Default: ``"step"`` with ``n_steps`` and ``"episode"`` with ``n_episodes``, for which the expected
        gradient has exactly the true direction. The other two divide by a number that depends on the episodes: a ratio
        estimator, biased by O(1/N)
    :param truncation: what an episode ended by a time limit (``TimeLimit.truncated``) is worth beyond it:
        ``"terminal"``: nothing; ``"bootstrap"``: gamma * V(s_T), which needs ``baseline="value"`` and reward-to-go. The
        latter estimates the gradient as if there were no limit, with a bias as large as the error of V there; the former is
        unbiased for the return up to the limit.
        Default: ``"bootstrap"`` where these two are given, ``"terminal"`` elsewhere. To a policy that does not see the
        clock, the end of a time limit is noise: counted as an end, HalfCheetah-v5 stays at 37 instead of 490 within
        200,000 steps
    :param unfinished: ``"finish"``: play the episodes in flight to their end; ``"bootstrap"``: stop at ``n_steps``,
        count V of the cut step and let the environments run on into the next rollout, as A2C does. It needs
        ``baseline="value"``, and excludes ``returns="episode"`` and ``n_episodes``
    :param max_episode_steps: an episode that is longer than this ends the run with a ValueError, so that an
        environment without end is no run without end
    :param freeze_normalization_after: environment steps (``num_timesteps``) after which rollouts no longer change the
        statistics of ``VecNormalize``; None: they always do. Each change of them changes the policy, too, against all that
        a step within ``target_kl`` has gained, if the states visited drift: docs/theory.md
    :param n_epochs: optimiser passes over a batch. 1 with ``batch_size=None`` is REINFORCE. More steps on one batch are
        off-policy: then the loss is PPO's clipped importance ratio, whose gradient at the sampling parameters is the same
    :param batch_size: steps per minibatch; None: the whole batch in one optimiser step. A minibatch estimates the
        full-batch loss
    :param clip_range: of the importance ratio where there are several optimiser steps; a number or a schedule
    :param chunk_size: steps per forward and backward pass, whose gradients are added up: bounds memory and changes
        nothing else (batch norm and dropout in train mode excepted). None: all at once
    :param ent_coef: weight of the entropy, which has the same divisor D; a number, a schedule or ``"lin_0.01"``
    :param value_learning_rate: of the value network, which has an optimiser of its own (the policy's class and
        arguments) over the parameters that only the value depends on; a number, a schedule or ``"lin_1e-3"``
    :param n_value_epochs: passes over the batch in which the value network is fitted, after the policy step and after its
        output bias was moved by the mean error
    :param value_batch_size: steps per minibatch of that fit; None: the whole batch
    :param max_grad_norm: The maximum value for the gradient clipping of the policy; None: no clipping
    :param natural_gradient: whether to precondition the gradient by the inverse Fisher information of the score, and to
        step as far as ``target_kl`` allows. It is one step on the whole batch (``n_epochs=1``, ``batch_size=None``);
        ``learning_rate``, ``max_grad_norm`` and the policy's optimiser are then without effect.
        See :mod:`sb3_reinforce.natural_gradient`
    :param target_kl: with ``natural_gradient``: KL divergence from the policy before to the one after an update, in nats and
        to second order; a step of more than 1.5 times that is halved. A number, a schedule or ``"lin_0.02"``
    :param cg_max_steps: with ``natural_gradient``: steps of the conjugate gradients at most
    :param cg_damping: with ``natural_gradient``: what is added to the diagonal of the Fisher information
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration.
        Its log-probability is marginal, so the gradient is exact only if the noise is new at each step,
        ``sde_sample_freq=1``. And SB3's policies let no gradient from the standard deviation into the network, of whose last
        layer it is made; ``model.policy.action_dist.learn_features = True`` does (van Raffin et al. 2021 leave it off)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected. It is
        filled at once, one row per step and ``n_envs=1``: its ``add`` and ``compute_returns_and_advantage`` are not called
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation.
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed of everything random. Every rollout draws from streams of its own, made of the seed and the
        number of the rollout. None: nothing is seeded
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for arguments that cannot be right, alone or together
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-3,
        n_steps: int = 512,
        n_episodes: int | None = None,
        gamma: float = 0.99,
        returns: Literal["reward_to_go", "episode"] = "reward_to_go",
        discount_state: bool = False,
        baseline: str | Baseline = "value",
        normalize_advantage: bool = False,
        loss_reduction: Literal["episode", "step"] | None = None,
        truncation: Literal["terminal", "bootstrap"] | None = None,
        unfinished: Literal["finish", "bootstrap"] = "finish",
        max_episode_steps: int = 100_000,
        freeze_normalization_after: int | None = None,
        n_epochs: int = 1,
        batch_size: int | None = None,
        clip_range: float | str | Schedule = 0.2,
        chunk_size: int | None = None,
        ent_coef: float | str | Schedule = 0.0,
        value_learning_rate: float | str | Schedule = 1e-2,
        n_value_epochs: int = 4,
        value_batch_size: int | None = None,
        max_grad_norm: float | None = 0.5,
        natural_gradient: bool = False,
        target_kl: float | str | Schedule = 0.01,
        cg_max_steps: int = 10,
        cg_damping: float = 0.1,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.n_episodes = n_episodes
        self.returns = returns
        self.discount_state = discount_state
        self.baseline = baseline
        self.normalize_advantage = normalize_advantage
        self.loss_reduction = loss_reduction
        self.truncation = truncation
        self.unfinished = unfinished
        self.max_episode_steps = max_episode_steps
        self.freeze_normalization_after = freeze_normalization_after
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.clip_range = clip_range
        self.chunk_size = chunk_size
        self.value_learning_rate = value_learning_rate
        self.n_value_epochs = n_value_epochs
        self.value_batch_size = value_batch_size
        self.natural_gradient = natural_gradient
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.n_steps, self.gamma, self.max_grad_norm = n_steps, gamma, max_grad_norm  # type: ignore[assignment]
        self.learning_rate, self.ent_coef = learning_rate, ent_coef  # type: ignore[assignment]
        self.seed = seed
        # Before the environment is made: what can be refused without it is refused without its cost.
        check_arguments(self)
        check_count("stats_window_size", stats_window_size)
        check_clip_range(self)
        device = distributed.start(device)
        if distributed.rank() > 0:  # rank 0 alone prints and logs
            verbose, tensorboard_log = 0, None
        if isinstance(env, (gym.Env, VecEnv)):
            check_spaces(env.observation_space, env.action_space)
        elif env is None and _init_setup_model:
            raise ValueError("env must be an environment or the id of one, got None")

        super().__init__(
            policy,
            env,
            learning_rate=self.learning_rate,  # type: ignore[arg-type]
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=1.0,  # the Monte-Carlo return; kept for what reads it off the model or the rollout buffer
            ent_coef=self.ent_coef,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=dict(policy_kwargs or {}),
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
        )

        # Rollouts begun so far: the random streams of a rollout are made of the seed and this number.
        self._n_rollouts = 0
        self._steps_into_episode: np.ndarray | None = None
        self._baseline_state: dict[str, Any] = {}
        self._warned_of_discarded_steps = self._warned_of_other_starts = False
        # What the environments were seeded with before the reset of the present rollout; None: they were not
        self._environment_seed: int | None = None
        # Of a checkpoint that this run goes on from: what learn() is to put back, and the file; see checkpoint.py.
        self._resumed: dict[str, Any] | None = None
        self._checkpoint: pathlib.Path | None = None

        if _init_setup_model:
            check_env(self)
            self._setup_model()

    # VecNormalize's statistics at the last rollout's end, which all ranks had then
    _statistics: dict[str, tuple[float, np.ndarray, np.ndarray]]
    # The observation is an array, or a dict of arrays for Dict spaces
    _last_obs: Any
    lr_schedule: Schedule
    _value_lr_schedule: Schedule
    _ent_coef_schedule: Schedule
    _clip_range_schedule: Schedule
    _target_kl_schedule: Schedule

    # ---------------------------------------------------------------------------------------------------- set-up

    def _setup_lr_schedule(self) -> None:
        """Make all schedules, of the arguments, of what was loaded, or of what ``load`` was given in its place."""
        self._scheduled: dict[str, Any] = {}
        self._renew_schedules()

    def _renew_schedules(self) -> None:
        """Make the schedules of arguments that were assigned since: callbacks may do so, as with the ``ent_coef`` of A2C."""
        for name, attribute in SCHEDULES.items():
            value = plain_schedule(getattr(self, name))
            if name not in self._scheduled or value != self._scheduled[name]:
                setattr(self, attribute, make_schedule(name, value))
                setattr(self, name, value)
                self._scheduled[name] = value

    def _setup_model(self) -> None:
        check_arguments(self)  # once more: load() may have brought others
        self._storage: EpisodeStorage | None = None
        self._has_just_been_reset = False
        super()._setup_model()
        if self.natural_gradient:
            check_policy(self.policy)
        self._baseline = make_baseline(self.baseline)
        if self._baseline_state.get("baseline") == _full_name(self._baseline):
            self._baseline.load_state_dict(self._baseline_state["state"])
        if "values" in self._baseline.needs:
            self._value_parameters = self._value_only_parameters()
            own = set(self._value_parameters)
            # What else is in a shared extractor stays as the policy left it: batch norm keeps its statistics.
            self._value_modules = [
                m for m in self.policy.modules() if 0 < len({*m.parameters()}) == len({*m.parameters()} & own)
            ]
            self.value_optimizer = self.policy.optimizer_class(
                self._value_parameters,
                lr=self._value_lr_schedule(1.0),
                **self.policy.optimizer_kwargs,  # type: ignore[call-arg]
            )

    def _value_only_parameters(self) -> list[th.nn.Parameter]:
        """
        The parameters that V depends on and the policy does not, whatever the policy's class calls them: found by
        differentiating both at one observation.
        """
        self.policy.set_training_mode(False)
        # Copies: the spaces' own random numbers stay untouched.
        observation_space, action_space = copy.deepcopy((self.observation_space, self.action_space))
        observation_space.seed(0)
        obs_tensor, _ = self.policy.obs_to_tensor(observation_space.sample())
        action = th.zeros((1, get_action_dim(action_space)), device=self.device)
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        # What depends on what shows even where the numbers are NaN, as those of a policy that masks its actions may be.
        validate_args = th.distributions.Distribution._validate_args
        th.distributions.Distribution.set_default_validate_args(False)
        try:
            log_prob, entropy = self._log_prob_and_entropy(obs_tensor, action)
            policy_output = log_prob.sum() if entropy is None else log_prob.sum() + entropy.sum()
            of_policy = th.autograd.grad(policy_output, parameters, allow_unused=True)
            of_value = th.autograd.grad(self.policy.predict_values(obs_tensor).sum(), parameters, allow_unused=True)
        finally:
            th.distributions.Distribution.set_default_validate_args(validate_args)
        found = [p for p, v, pi in zip(parameters, of_value, of_policy, strict=True) if v is not None and pi is None]
        if not found:
            raise ValueError(
                f"baseline={self.baseline!r} needs a value network, but in {policy_class(self.policy).__name__} no parameter "
                "belongs to the value alone: give the policy a value head of its own, or choose another baseline"
            )
        return found

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators (python, numpy, pytorch, gym, action_space) and of all rollouts to
        come.

        :param seed: None changes nothing
        """
        if seed is not None:
            self.seed = seed
        super().set_random_seed(seed)

    # -------------------------------------------------------------------------------------------------- rollouts

    def _stream_seed(self, stream: int) -> int:
        """
        A seed for one stream of the present rollout, 31 bits.

        Never the bare seed: gymnasium's ``reset(seed=s)`` is ``np.random.default_rng(s)``, so an actor seeded alike
        plays the very numbers that the environment draws, and the gradient is wrong. Without a seed it comes from torch's
        global generator, as all of SB3's sampling does: a user may have seeded that one.

        :param stream: ACTOR, ENVIRONMENTS or SHUFFLING
        """
        rank = distributed.rank()
        if self.seed is None:
            drawn = int(th.randint(2**31 - 1, ()))
            if distributed.world_size() == 1:
                return drawn
            # A user may have seeded the generator, and alike on all ranks.
            return int(np.random.SeedSequence([drawn, rank]).generate_state(1)[0] >> 1)
        return int(np.random.SeedSequence([self.seed, self._n_rollouts, rank, stream]).generate_state(1)[0] >> 1)

    def _next_rollout(self, env: VecEnv) -> None:
        """Go on to the next rollout's streams, and let the environments' coming reset begin theirs."""
        self._n_rollouts += 1
        # The greedy baseline comes back to the same resets, so these are seeded in any case.
        seeded = self.seed is not None or "greedy" in self._baseline.needs
        self._environment_seed = self._stream_seed(ENVIRONMENTS) if seeded else None
        if self._environment_seed is not None:
            env.seed(self._environment_seed)

    def _begin_rollout(self, env: VecEnv) -> np.random.Generator:
        """
        Seed the streams of the rollout and reset the environments.

        :return: random numbers of the actor
        """
        if self.unfinished == "bootstrap" and not self._has_just_been_reset:
            self._n_rollouts += 1
        elif not self._has_just_been_reset:
            self._next_rollout(env)
            with self._normalization():
                self._last_obs = env.reset()
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self._has_just_been_reset = False
        if self.unfinished == "finish" or self._steps_into_episode is None:
            self._steps_into_episode = np.zeros(env.num_envs, dtype=np.int64)
        actor_seed = self._stream_seed(ACTOR)
        if self.seed is not None or distributed.world_size() > 1:
            # For gSDE, dropout and whatever the torch sampler leaves to torch. Not th.manual_seed, which asks every kind of
            # accelerator in turn.
            th.default_generator.manual_seed(actor_seed)
            if self.device.type == "cuda":
                th.cuda.manual_seed(actor_seed)
        if self._storage is None:
            self._storage = EpisodeStorage(self.observation_space, self.action_space, env.num_envs, self._last_obs)
        return np.random.default_rng(actor_seed)

    def _normalization(self) -> AbstractContextManager[None]:
        """Inside, ``VecNormalize`` learns nothing if ``freeze_normalization_after`` steps have been played."""
        after = self.freeze_normalization_after
        frozen = after is not None and self.num_timesteps >= after
        return frozen_statistics(self.env) if frozen else nullcontext()

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Play the episodes of one update and fill the rollout buffer with their steps, returns and advantages.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: steps per environment after which the episodes in flight are the last ones
        :return: False if the callback stopped training, on any rank: what was played of this rollout is then dropped
        :raises ValueError: for a reward or an observation that is not finite, and for an episode without end
        """
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        rng = self._begin_rollout(env)
        assert self._storage is not None
        assert self._steps_into_episode is not None
        storage = self._storage
        storage.reset()
        sample_actions = make_sampler(self.policy, env.num_envs, rng)
        tracker = EpisodeTracker(
            n_rollout_steps,
            self.n_episodes,
            self.unfinished == "finish",
            self._bootstraps_truncated(),
            self.max_episode_steps,
            self._steps_into_episode,
        )
        # Without a listener the callback's step would cost time for nothing.
        listening = _listens(callback)
        is_box = isinstance(self.action_space, spaces.Box)
        n_steps = 0
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        shared = distributed.world_size() > 1
        before = (self.num_timesteps, list(self.ep_info_buffer or ()), list(self.ep_success_buffer or ()))
        used_infos: list[tuple[int, dict[str, Any]]] = []

        normalized = self._vec_normalize_env
        if normalized is not None:
            check_before_normalization(normalized, self._last_obs, np.zeros(0), 0)

        try:
            with self._normalization():
                while tracker.goes_on(n_steps):
                    if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                        self.policy.reset_noise(env.num_envs)

                    actions = sample_actions(self._last_obs)
                    clipped_actions = self._within_bounds(actions) if is_box else actions

                    new_obs, rewards, dones, infos = env.step(clipped_actions)
                    self.num_timesteps += env.num_envs
                    n_steps += 1
                    if normalized is not None:
                        check_before_normalization(normalized, new_obs, rewards, n_steps)

                    if listening:
                        callback.update_locals(locals())
                        if not callback.on_step():
                            self._abandon_rollout()
                            self._exchange(self._share(n_steps, used_infos, stopped=True), before, callback)
                            return False

                    storage.add(self._last_obs, actions, rewards)
                    self._last_obs = new_obs
                    self._last_episode_starts = dones
                    if np.count_nonzero(dones):
                        for index in tracker.end_episodes(n_steps, dones, infos):
                            self._update_info_buffer([infos[index]], dones[[index]])
                            if shared:
                                kept = {key: infos[index][key] for key in ("episode", "is_success") if key in infos[index]}
                                used_infos.append((n_steps, kept))
        except BaseException as error:
            last_obs = self._last_obs
            self._abandon_rollout()
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            # Where a NaN or an infinite number is the cause, that is the better message.
            storage.check_finite(last_obs, [])
            if self.logger.name_to_value:
                self.logger.dump(self.num_timesteps)  # nothing recorded is lost
            if dead := _dead_workers(env):
                named = ", ".join(f"environment {index} died (exit code {code})" for index, code in dead.items())
                raise RuntimeError(f"{named} in step {n_steps} of the rollout: what it printed tells why") from error
            for index in _failed_environments(error):
                error.add_note(f"raised by environment {index} in step {n_steps} of the rollout")
            raise

        tracker.cut_episodes(n_steps, self._last_obs)
        storage.check_finite(self._last_obs, tracker.episodes)
        own_rewards = normalized is None or not normalized.norm_reward
        self._batch = storage.pack(rollout_buffer, tracker.episodes, own_rewards)
        self._steps_into_episode = tracker.steps_into_episode
        greedy = None
        if "greedy" in self._baseline.needs:
            assert self._environment_seed is not None, "seeded by _next_rollout"
            first_observations = {key: stored[0] for key, stored in storage.observations.items()}
            n_timesteps = self.num_timesteps
            greedy = play_greedy(self, env, sample_actions, self._environment_seed, first_observations)
            distributed.advance_progress_bars(callback, self.num_timesteps - n_timesteps)
        self._compute_returns(rollout_buffer, self._batch, greedy)
        if not self._exchange(self._share(n_steps, used_infos), before, callback):
            self._abandon_rollout()
            return False
        self._compute_advantages(rollout_buffer)
        self._record_rollout()

        callback.update_locals(locals())
        _update_num_timesteps(callback, self.num_timesteps)
        callback.on_rollout_end()
        return True

    def _within_bounds(self, actions: np.ndarray) -> np.ndarray:
        """What the policy drew, as the environments take it: for Box actions clipped to, or scaled to, the bounds."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)  # type: ignore[return-value]
        return np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)

    def _abandon_rollout(self) -> None:
        """Where environments run on across rollouts, what was played of a dropped one is missing: start anew."""
        if self.unfinished == "bootstrap":
            self._last_obs = self._steps_into_episode = None

    def _returns_of(self, rewards: th.Tensor, lengths: th.Tensor, last_values: th.Tensor | None = None) -> th.Tensor:
        """R_t of episodes laid end to end, as ``returns`` says, shape [S]."""
        returns_of = reward_to_go if self.returns == "reward_to_go" else episode_return
        return returns_of(rewards, lengths, self.gamma, last_values)

    def _share(self, n_steps: int, used_infos: list[tuple[int, dict[str, Any]]], stopped: bool = False) -> Share:
        """
        What the other ranks are to know of this rank's rollout.

        :param n_steps: steps played by each environment
        :param used_infos: see :class:`~sb3_reinforce.buffers.Share`
        :param stopped: whether a callback has asked to stop
        """
        share = Share(self.n_envs, self.n_steps * self.n_envs, n_steps * self.n_envs, self.num_timesteps, stopped)
        if distributed.world_size() > 1:
            share.infos = used_infos[-self._stats_window_size :]
            share.statistics = distributed.statistics_of(self._vec_normalize_env)
        if stopped:
            return share
        complete = [episode for episode in self._batch.episodes if not episode.cut]
        share.n_steps, share.n_episodes, share.n_complete = self._batch.n_steps, len(self._batch.episodes), len(complete)
        share.n_truncated = sum(episode.truncated for episode in complete)
        share.total_rewards = [episode.total_reward for episode in complete if episode.total_reward is not None]
        if type(self._baseline) not in POINTWISE:
            of_a_user = type(self._baseline) not in BASELINES.values()
            share.episodes = self._episodes if of_a_user else replace(self._episodes, observations=None)
        return share

    def _exchange(self, share: Share, before: tuple[int, list[Any], list[Any]], callback: BaseCallback) -> bool:
        """
        Tell the other ranks what was played, and take over what holds for all of them. A plain run has nobody to tell.

        :param share: this rank's
        :param before: ``num_timesteps``, ``ep_info_buffer`` and ``ep_success_buffer`` from before the rollout
        :param callback: of which progress bars go on by the others' steps
        :return: False if a callback has asked to stop on any rank
        """
        self._shares = distributed.gather(share)
        if len(self._shares) > 1:
            num_timesteps, *info_buffers = before
            own_steps = self.num_timesteps - num_timesteps
            self.num_timesteps = num_timesteps + sum(other.num_timesteps - num_timesteps for other in self._shares)
            distributed.advance_progress_bars(callback, self.num_timesteps - num_timesteps - own_steps)
            self._statistics = {
                name: distributed.merged_statistics(before, [other.statistics[name] for other in self._shares])
                for name, before in self._statistics.items()
            }
            distributed.set_statistics(self._vec_normalize_env, self._statistics)
            self.ep_info_buffer, self.ep_success_buffer = (deque(b, self._stats_window_size) for b in info_buffers)
            for _, info in sorted((row for other in self._shares for row in other.infos), key=lambda row: row[0]):
                self._update_info_buffer([info], np.ones(1, dtype=bool))
        return not any(other.stopped for other in self._shares)

    def _compute_returns(self, rollout_buffer: RolloutBuffer, batch: Batch, greedy_returns: th.Tensor | None = None) -> None:
        """Values (V before its fit), returns and what else the baseline needs of the packed rollout."""
        observations = map_arrays(lambda array: th.as_tensor(array[:, 0]), rollout_buffer.observations)
        values = self._values_of(observations, batch.n_steps) if "values" in self._baseline.needs else None

        last_values = th.zeros(len(batch.episodes), dtype=th.float64)
        goes_on = [i for i, episode in enumerate(batch.episodes) if episode.last_observation is not None]
        if goes_on:
            stacked = stack_observations([batch.episodes[i].last_observation for i in goes_on], observations)
            last_values[goes_on] = self._values_of(stacked, len(goes_on))

        rewards = th.as_tensor(rollout_buffer.rewards[:, 0], dtype=th.float64)
        returns = self._returns_of(rewards, batch.lengths, last_values)

        self._episodes = Episodes(
            returns=returns,
            lengths=batch.lengths,
            env_indices=batch.env_indices,
            fixed_count=self.n_episodes is not None,
            values=values,
            observations=observations,
            first_steps=batch.first_steps,
            greedy_returns=greedy_returns,
        )
        if "scores" in self._baseline.needs:
            actions = th.as_tensor(rollout_buffer.actions[:, 0], dtype=th.float32)
            self._episodes = self._with_scores(self._episodes, actions)
        rollout_buffer.returns[:, 0] = returns.numpy()
        if values is not None:
            rollout_buffer.values[:, 0] = values.numpy()

    def _compute_advantages(self, rollout_buffer: RolloutBuffer) -> None:
        """Advantages of the packed rollout, gamma^(c t) (R - b), where b may be made of all ranks' episodes."""
        parts = [share.episodes for share in self._shares if share.episodes is not None]
        if len(parts) > 1:
            self._all_episodes = join_episodes(parts, [share.n_envs for share in self._shares])
            first = sum(share.n_steps for share in self._shares[: distributed.rank()])
        else:
            self._all_episodes, first = self._episodes, 0
        own = slice(first, first + self._batch.n_steps)
        self._baseline_values = checked_prediction(self._baseline, self._all_episodes)[own]
        advantages = self._episodes.returns - self._baseline_values
        if self.normalize_advantage:
            [(n, mean, squares)] = distributed.moments(advantages)
            if n > 1:
                advantages = (advantages - mean) / (math.sqrt(squares / (n - 1)) + 1e-8)
        advantages = self._state_weights(self._episodes) * advantages
        rollout_buffer.advantages[:, 0] = advantages.numpy()

    def _state_weights(self, episodes: Episodes) -> th.Tensor:
        """gamma^(c t) of each step, shape [S], float64."""
        return self.gamma ** episodes.steps.double() if self.discount_state else th.ones_like(episodes.returns)

    def _with_scores(self, episodes: Episodes, actions: th.Tensor) -> Episodes:
        """The episodes with what the scores of their actions, shape [S, action dimensions], come to: X.S and abs(S)^2."""
        weights = self._state_weights(episodes)
        blocks = Scores(self, episodes.observations, actions).of_episodes(
            episodes.lengths, th.stack([weights, weights * episodes.returns])
        )
        # [n, 2, P] each: S and X. Of these only two scalars per episode are kept.
        products = th.cat([(block[:, :1] * block).sum(2, dtype=th.float64).cpu() for block in blocks])
        return replace(episodes, score_squares=products[:, 0], score_products=products[:, 1])

    def _values_of(self, observations: Any, n_rows: int) -> th.Tensor:
        """V(s) of each row, in evaluation mode and without gradient, shape [n_rows], float64, on the CPU."""
        self.policy.set_training_mode(False)
        values = []
        with th.no_grad():
            for rows in self._chunks(slice(0, n_rows)):
                chunk = map_arrays(lambda array, rows=rows: array[rows].to(self.device), observations)  # type: ignore[misc]
                values.append(self.policy.predict_values(chunk).flatten().double().cpu())
        return th.cat(values)

    def _record_rollout(self) -> None:
        returns = [total for share in self._shares for total in share.total_rewards]
        n_complete = sum(share.n_complete for share in self._shares)
        played = sum(share.played_steps for share in self._shares)
        discarded = played - sum(share.n_steps for share in self._shares)
        if returns:
            self.logger.record("rollout/ep_return_mean", np.mean(returns))
            self.logger.record("rollout/ep_return_std", np.std(returns))
            self.logger.record("rollout/ep_return_min", np.min(returns))
            self.logger.record("rollout/ep_return_max", np.max(returns))
        self.logger.record("rollout/n_episodes", n_complete)
        self.logger.record("rollout/discarded_steps", discarded)
        self.logger.record("rollout/discarded_fraction", discarded / played)
        if n_complete:
            n_truncated = sum(share.n_truncated for share in self._shares)
            self.logger.record("rollout/truncated_fraction", n_truncated / n_complete)
        if discarded > 0.3 * played and not self._warned_of_discarded_steps and distributed.rank() == 0:
            self._warned_of_discarded_steps = True
            warnings.warn(
                f"{discarded} of {played} steps of a rollout were played by environments that waited for the "
                "others' episodes to end, and are not used (rollout/discarded_steps; said once): use fewer environments, a "
                f"larger n_steps or n_episodes (now n_steps={self.n_steps}, n_episodes={self.n_episodes}, "
                f"{self.n_envs} environments)",
                stacklevel=2,
            )

    # -------------------------------------------------------------------------------------------------- updates

    def train(self) -> None:
        """
        Update the policy by the gradient of the rollout buffer's episodes, then fit the baseline to them.

        :raises ValueError: if the gradient or a parameter becomes NaN or infinite; the parameters from before the
            update are put back
        """
        self._renew_schedules()
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        if self.natural_gradient:
            self.logger.record("train/target_kl", self._target_kl_schedule(self._current_progress_remaining))
        else:
            self._update_learning_rate(self.policy.optimizer)
        rng = np.random.default_rng(self._stream_seed(SHUFFLING))
        next(self.rollout_buffer.get(1))  # SB3 flattens [S, 1, ...] to [S, ...] at the first get()

        # One step on the whole batch needs no old log-probabilities: there the importance ratio is 1.
        several_steps = self.n_epochs > 1 or self._count_minibatches(self.batch_size) > 1
        if several_steps:
            self.rollout_buffer.log_probs[:, 0] = self._log_probs()
            self.policy.set_training_mode(True)

        with self._put_back_on_failure():
            steps = [
                self._policy_step(rows, several_steps, n_rows)
                for _ in range(self.n_epochs)
                for rows, n_rows in self._minibatches(self.batch_size, rng)
            ]
            distributed.broadcast_buffers(self.policy)
            log_ratio = self._log_probs() - self.rollout_buffer.log_probs[:, 0]
            # E[(r - 1) - log r] >= 0, as SB3's PPO; source: Schulman, "Approximating KL divergence" (2020)
            kl = np.expm1(log_ratio) - log_ratio
            returns, values = self.rollout_buffer.returns, self.rollout_buffer.values
            # Ranks wait for each other at each exchange: one for all three.
            (_, approx_kl, _), *of_returns = distributed.moments(kl, returns, returns - values)
            self._fit_baseline(rng, *of_returns)
            self._check_parameters()
            # Last: a checkpoint taken after an interruption goes by this number.
            self._n_updates += int(self.n_epochs)  # which may be NumPy's

        self.logger.record("train/policy_gradient_loss", np.mean([step["policy_loss"] for step in steps]))
        self.logger.record("train/entropy_loss", np.mean([step["entropy_loss"] for step in steps]))
        self.logger.record("train/grad_norm", np.mean([step["grad_norm"] for step in steps]))
        self.logger.record("train/approx_kl", approx_kl)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if several_steps:
            self.logger.record("train/clip_fraction", np.mean([step["clip_fraction"] for step in steps]))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def _check_parameters(self) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.policy.parameters()):
            raise NotFiniteError("a parameter of the policy has become NaN or infinite")

    @contextmanager
    def _put_back_on_failure(self) -> Iterator[None]:
        """
        Whatever fails inside, parameters, optimisers and the baseline are afterwards as they were before.

        :raises ValueError: instead of what was raised inside, if the cause is a number that is not finite
        """
        parameters = self.policy.state_dict()
        last_good = {name: tensor.clone() for name, tensor in parameters.items()}
        optimizers = [self.policy.optimizer, *([self.value_optimizer] if "values" in self._baseline.needs else [])]
        moments = [
            {
                parameter: {name: _copy(value) for name, value in moment.items()}
                for parameter, moment in optimizer.state.items()
            }
            for optimizer in optimizers
        ]
        baseline_state, n_updates = copy.deepcopy(self._baseline.state_dict()), self._n_updates
        try:
            yield
        except BaseException as error:
            for name, tensor in parameters.items():
                tensor.copy_(last_good[name])
            for optimizer, saved in zip(optimizers, moments, strict=True):
                optimizer.state.clear()
                optimizer.state.update(saved)
            self._baseline.load_state_dict(baseline_state)
            self._n_updates = n_updates
            # "Expected parameter ...": torch's distributions, of a mean or logit that is NaN
            if not isinstance(error, NotFiniteError) and not str(error).startswith("Expected parameter"):
                raise
            rates = f"learning_rate (now {self.learning_rate!r})"
            if self.natural_gradient:
                rates = f"target_kl (now {self.target_kl!r})"
            if "values" in self._baseline.needs:
                rates += f" or value_learning_rate (now {self.value_learning_rate!r})"
            raise ValueError(
                f"update {self._n_updates + 1} must give finite numbers, and the parameters from before it were put back: "
                f"{str(error).splitlines()[0]}; lower {rates}, or scale the observations or the rewards (largest return "
                f"{np.abs(self.rollout_buffer.returns).max():.3g}), for example by VecNormalize"
            ) from error

    def _policy_step(self, rows: slice | np.ndarray, several_steps: bool, n_rows: int | None = None) -> dict[str, float]:
        """
        One optimiser step on the given rows of the rollout buffer: -1/D sum (A log pi) - ent_coef/D sum H.

        :param rows: a minibatch, or all rows
        :param several_steps: whether the parameters may have left those that sampled: then A log pi becomes PPO's
            min(A r, A clip(r)) with the importance ratio r = pi / pi_old
        :param n_rows: size of the minibatch, all ranks' rows together; None: there are no other ranks
        :return: losses, gradient norm before clipping and fraction of clipped ratios
        :raises NotFiniteError: if the gradient is NaN or infinite; the parameters are then as they were
        """
        ent_coef = self._ent_coef_schedule(self._current_progress_remaining)
        clip_range = self._clip_range_schedule(self._current_progress_remaining)
        n_rows = n_rows or count_rows(rows)
        # A minibatch stands for the whole batch: its sum is scaled up by S / n_rows.
        scale = sum(share.n_steps for share in self._shares) / n_rows / self._divisor()
        policy_sum = entropy_sum = n_clipped = 0.0

        self.policy.optimizer.zero_grad()
        for chunk in self._chunks(rows):
            data = self._samples(chunk)
            log_prob, entropy = self._log_prob_and_entropy(data.observations, data.actions)
            if several_steps:
                ratio = th.exp(log_prob - data.old_log_prob)
                clipped_ratio = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
                policy_loss = -th.min(data.advantages * ratio, data.advantages * clipped_ratio).sum()
                n_clipped += (th.abs(ratio.detach() - 1) > clip_range).sum().item()
            else:
                self.rollout_buffer.log_probs[chunk, 0] = log_prob.detach().cpu().numpy()
                ratio = None
                policy_loss = -(data.advantages * log_prob).sum()
            if entropy is None:
                # No closed form: H = -E[log pi], whose gradient is -E[log pi * grad log pi] (the gradient of a mere
                # mean of -log pi has expectation zero).
                weight = log_prob if ratio is None else ratio
                entropy_loss, entropy = (log_prob.detach() * weight).sum(), -log_prob
            else:
                entropy_loss = -entropy.sum()
            loss = policy_loss + ent_coef * entropy_loss if ent_coef else policy_loss
            (scale * loss).backward()
            policy_sum += policy_loss.item()
            entropy_sum += entropy.detach().sum().item()

        policy_sum, entropy_sum, n_clipped = distributed.sum_gradients(
            self.policy.parameters(), (policy_sum, entropy_sum, n_clipped)
        )
        max_norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = th.nn.utils.clip_grad_norm_(self.policy.parameters(), max_norm).item()
        if not np.isfinite(grad_norm):
            raise NotFiniteError(f"the norm of the gradient is {grad_norm}")
        if self.natural_gradient:
            target_kl = self._target_kl_schedule(self._current_progress_remaining)
            natural_step(self, [p for p in self.policy.parameters() if p.grad is not None], target_kl)
        else:
            self.policy.optimizer.step()
        return {
            "policy_loss": scale * policy_sum,
            "entropy_loss": -entropy_sum / n_rows,
            "grad_norm": grad_norm,
            "clip_fraction": n_clipped / n_rows,
        }

    def _fit_baseline(self, rng: np.random.Generator, returns: distributed.Moments, errors: distributed.Moments) -> None:
        """
        After the policy step: fit the value network, where the baseline uses it, then the baseline's own state.

        Only the value's own parameters move; what it shares with the policy gets no gradient and stays in evaluation mode.

        :param rng: for the order of minibatches
        :param returns: moments of the returns of all ranks
        :param errors: moments of what V, as it is, is short of them
        :raises NotFiniteError: if the loss of the value network is NaN or infinite
        """
        parameters = [parameter for parameter in getattr(self, "_value_parameters", []) if parameter.requires_grad]
        if "values" in self._baseline.needs and parameters:
            self.policy.set_training_mode(False)
            for module in self._value_modules:
                module.train()
            update_learning_rate(self.value_optimizer, self._value_lr_schedule(self._current_progress_remaining))
            (*_, squares), (_, residual, unexplained) = returns, errors
            # First the mean, at once and exactly: until V has crept to where the returns are, the policy takes full steps (of
            # Adam) along noise. On Acrobot-v1 two of ten seeds lost their entropy that way before they had met the goal.
            head = getattr(self.policy, "value_net", None)
            if isinstance(head, th.nn.Linear) and any(head.bias is parameter for parameter in parameters):
                with th.no_grad():
                    head.bias.add_(residual)
            losses = []
            in_one_piece = self.value_batch_size is None and self.chunk_size is None
            whole = self._samples(slice(0, self._batch.n_steps)) if in_one_piece else None
            for _ in range(self.n_value_epochs):
                for rows, n_rows in self._minibatches(self.value_batch_size, rng):
                    self.value_optimizer.zero_grad()
                    loss_sum = 0.0
                    for chunk in self._chunks(rows):
                        data = whole or self._samples(chunk)
                        predicted = self.policy.predict_values(data.observations).flatten()
                        loss = F.mse_loss(predicted, data.returns, reduction="sum") / n_rows
                        loss.backward(inputs=parameters)
                        loss_sum += loss.item()
                    (loss_sum,) = distributed.sum_gradients(parameters, (loss_sum,))
                    if not np.isfinite(loss_sum):
                        raise NotFiniteError(f"the loss of the value network is {loss_sum}")
                    self.value_optimizer.step()
                    losses.append(loss_sum)
            self.logger.record("train/value_loss", np.mean(losses))
            self.logger.record("train/explained_variance", 1 - unexplained / squares if squares > 0 else np.nan)
        self._baseline.update(self._all_episodes)

    def _bootstraps_truncated(self) -> bool:
        """Whether V counts where a time limit ended an episode; see ``truncation``."""
        if self.truncation is None:
            return "values" in self._baseline.needs and self.returns == "reward_to_go"
        return self.truncation == "bootstrap"

    def _divisor(self) -> float:
        """D: episodes or steps of all ranks; see ``loss_reduction``."""
        reduction = self.loss_reduction or ("step" if self.n_episodes is None else "episode")
        if reduction == "episode":
            return sum(share.n_episodes for share in self._shares)
        # Fixed before the rollout where it can be: dividing by the steps that happened to be played is a ratio estimator.
        return sum(share.planned_steps if self.n_episodes is None else share.n_steps for share in self._shares)

    def _log_prob_and_entropy(self, observations: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        log pi(a|s) and the entropy of pi(.|s), without the values unless the policy's class leaves no other way.

        :param actions: as the rollout buffer gives them, float
        :return: both of shape [n]; no entropy where it has no closed form
        """
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        if overrides(self.policy, "evaluate_actions"):
            _, log_prob, entropy = self.policy.evaluate_actions(observations, actions)
        else:
            distribution = self.policy.get_distribution(observations)
            log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        if log_prob.shape != actions.shape[:1]:
            raise TypeError(
                f"the policy must give one log-probability per action, shape {tuple(actions.shape[:1])}, "
                f"got shape {tuple(log_prob.shape)} from {policy_class(self.policy).__name__}"
            )
        return log_prob, entropy

    def _log_probs(self) -> np.ndarray:
        """log pi(a|s) of all rows of the rollout buffer, in evaluation mode and without gradient, shape [S]."""
        self.policy.set_training_mode(False)
        log_probs = []
        with th.no_grad():
            for chunk in self._chunks(slice(0, self._batch.n_steps)):
                data = self._samples(chunk)
                log_probs.append(self._log_prob_and_entropy(data.observations, data.actions)[0].cpu().numpy())
        return np.concatenate(log_probs)

    def _samples(self, rows: slice | np.ndarray) -> RolloutBufferSamples:
        return self.rollout_buffer._get_samples(rows)  # type: ignore[arg-type]

    def _count_minibatches(self, batch_size: int | None) -> int:
        """The number of minibatches that a pass needs on the rank with most steps."""
        return 1 if batch_size is None else max(-(-share.n_steps // batch_size) for share in self._shares)

    def _minibatches(self, batch_size: int | None, rng: np.random.Generator) -> Iterator[tuple[slice | np.ndarray, int]]:
        """
        All rows of the rollout buffer once: in order and at once, or shuffled in minibatches; with each the number of rows
        that all ranks together have in theirs.

        All ranks make the same number of minibatches. Several ranks split their rows evenly among them, so that no
        rank's steps weigh more than another's; of a rank with very few steps, some minibatches are then empty.
        """
        sizes = [share.n_steps for share in self._shares]
        n_minibatches = self._count_minibatches(batch_size)
        if n_minibatches == 1:
            yield slice(0, self._batch.n_steps), sum(sizes)
            return
        order = rng.permutation(self._batch.n_steps)
        if len(sizes) == 1:
            assert batch_size is not None
            parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        else:
            parts = np.array_split(order, n_minibatches)
        for position, part in enumerate(parts):
            # np.array_split gives the first `size % n` parts one more
            shared = sum(size // n_minibatches + (position < size % n_minibatches) for size in sizes)
            yield part, len(part) if len(sizes) == 1 else shared

    def _chunks(self, rows: slice | np.ndarray) -> Iterator[slice | np.ndarray]:
        """The same rows, at most ``chunk_size`` of them at a time."""
        n_rows = count_rows(rows)
        size = self.chunk_size or max(n_rows, 1)
        for start in range(0, n_rows, size):
            stop = min(start + size, n_rows)
            yield slice(rows.start + start, rows.start + stop) if isinstance(rows, slice) else rows[start:stop]

    @distributed.fails_for_all
    def learn(
        self: SelfREINFORCE,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "REINFORCE",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfREINFORCE:
        """
        Train for at least ``total_timesteps`` environment steps; the last rollout is played to the end of its episodes.

        :param total_timesteps: The total number of samples (env steps) to train on, those included that are discarded
        :param callback: Callback(s) called at every step with state of the algorithm.
        :param log_interval: number of updates from one log row to the next; None: no rows
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        :raises ValueError: see :meth:`collect_rollouts` and :meth:`train`
        """
        check_arguments(self)
        check_clip_range(self)
        check_env(self)
        check_finite("total_timesteps", total_timesteps)
        check_count("log_interval", log_interval, optional=True)
        if type(make_baseline(self.baseline)) is not type(self._baseline):
            raise ValueError(
                f"baseline must stay the one that the model was made with, {type(self._baseline).__name__}, got "
                f"{self.baseline!r}: make a new model, or load(path, baseline=...) a saved one"
            )
        self._renew_schedules()
        if reset_num_timesteps:
            self._resumed = self._checkpoint = None
        # an environment that is new is reset in here
        with nullcontext() if reset_num_timesteps else self._normalization():
            total_timesteps, callback = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
        callback.on_training_start(locals(), globals())
        iteration = checkpoint.begin_learning(self, callback, total_timesteps)
        assert self.env is not None
        if self.verbose >= 1:
            reason = needs_torch(self.policy)
            print("Sampling actions with NumPy" if reason is None else f"Sampling actions with torch: {reason}")

        try:
            while self.num_timesteps < total_timesteps:
                if not self.collect_rollouts(self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps):
                    break
                iteration += 1
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                self.train()
                # After the update, unlike SB3's own loop: the row then shows the update that its episodes made.
                if log_interval is not None and iteration % log_interval == 0:
                    self.dump_logs(iteration)
                if distributed.any_rank(not checkpoint.update_ended(callback, iteration)):
                    break
        except BaseException:
            checkpoint.learning_failed(callback, iteration)
            raise

        callback.on_training_end()
        distributed.any_rank(False)  # what rank 0 has to write is there when learn() returns
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if distributed.world_size() > 1:
            self._meet(total_timesteps, reset_num_timesteps)
        # The environments may have changed since the last learn(), or been played with.
        self._storage, self._has_just_been_reset = None, False
        if self._last_obs is not None and len(next(iter(by_key(self._last_obs).values()))) != self.n_envs:
            self._last_obs = None  # of a model saved with another number of environments
        if reset_num_timesteps or self._last_obs is None:
            # SB3 is about to reset the environments: let that be the reset that the first rollout starts at.
            assert self.env is not None
            self._steps_into_episode = None
            self._next_rollout(self.env)
            self._has_just_been_reset = True
        learning = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if distributed.rank() > 0:
            self._logger = Logger(folder=None, output_formats=[])  # also in the place of a user's own
        return learning

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if distributed.rank() > 0:
            callback, progress_bar = distributed.callbacks_of_this_rank(callback), False
        return super()._init_callback(callback, progress_bar)

    def _meet(self, total_timesteps: int, reset_num_timesteps: bool) -> None:
        """
        All ranks begin alike: with rank 0's parameters, optimisers, baseline, ``VecNormalize`` statistics and counters.

        :raises ValueError: if arguments that must be the same are not
        """
        schedules = {name: getattr(self, attribute) for name, attribute in SCHEDULES.items()}
        distributed.check_equal(
            {
                "total_timesteps": total_timesteps,
                "reset_num_timesteps": reset_num_timesteps,
                "baseline": _full_name(self._baseline),
                "n_episodes is None": self.n_episodes is None,
                "observation_space": self.observation_space,
                "action_space": self.action_space,
                **{name: getattr(self, name) for name in SAME_ON_ALL_RANKS},
                **{f"{name} at start and end": (schedule(1.0), schedule(0.0)) for name, schedule in schedules.items()},
            }
        )
        state = distributed.broadcast(
            {
                "parameters": self.get_parameters(),
                "baseline": self._baseline.state_dict(),
                "statistics": distributed.statistics_of(self._vec_normalize_env),
                "counters": {name: getattr(self, name) for name in COUNTERS},
            }
        )
        self._statistics = state["statistics"]
        if distributed.rank() > 0:
            self.verbose, self.tensorboard_log = 0, None  # once more: load() may have brought others
            super().set_parameters(state["parameters"], device=self.device)
            self._baseline.load_state_dict(state["baseline"])
            distributed.set_statistics(self._vec_normalize_env, state["statistics"])
            for name, value in state["counters"].items():
                setattr(self, name, value)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last episodes run beyond total_timesteps; a schedule such as `lambda p: 1e-3 * p` must not turn negative.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    # ----------------------------------------------------------------------------------------------- save and load

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_storage", "_baseline", "_baseline_values", "_batch", "_episodes", "_all_episodes", "_shares", "_statistics",
            "_value_parameters", "_value_modules", "_scheduled",
            "_resumed", "_checkpoint",
        ]  # fmt: skip

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        value_optimizer = ["value_optimizer"] if "values" in self._baseline.needs else []
        return ["policy", *value_optimizer, "policy.optimizer"], []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file, the baseline's state with them.

        Under ``torchrun`` rank 0 alone writes, if ``path`` is no open file.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        if distributed.rank() > 0 and isinstance(path, (str, pathlib.Path)):
            return
        self._baseline_state = {"baseline": _full_name(self._baseline), "state": self._baseline.state_dict()}
        super().save(path, exclude, include)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfREINFORCE],
        path: str | pathlib.Path | io.BufferedIOBase,
        *args: Any,
        **kwargs: Any,
    ) -> SelfREINFORCE:
        """
        Load the model from a zip-file, as every Stable-Baselines3 algorithm does; see there for the arguments.

        :param path: path to the file (or a file-like) where to load the agent from
        :return: new model instance with loaded parameters
        :raises ValueError: if the file is torn or is no saved model
        """
        check_model_file(path)
        return super().load(path, *args, **kwargs)

    @classmethod
    def resume(
        cls: type[SelfREINFORCE],
        path: str | pathlib.Path,
        env: GymEnv | str,
        device: th.device | str | None = None,
    ) -> SelfREINFORCE:
        """
        Go on from a checkpoint of :class:`~sb3_reinforce.checkpoint.TrainingCheckpoint`, as if training had never stopped.

        Call ``learn(total - model.num_timesteps, reset_num_timesteps=False, callback=...)`` next, with the callbacks of the
        first run: their counters and best scores are put back when it starts. With a seed, on the CPU, and with environments
        whose past ``reset(seed)`` erases, parameters, statistics and logged rows are then bit for bit those of a run that was
        never stopped.

        :param path: the folder, whose newest good checkpoint is taken (a warning names those that are not), or one file
        :param env: the environment, made and wrapped as in the first run; ``VecNormalize`` gets the saved statistics
        :param device: None: that of the first run
        :return: the model
        :raises ValueError: if a file, or all in the folder, are damaged or of another algorithm, version or environment
        """
        return checkpoint.resume(cls, path, env, device)

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters from a zip-file or a dictionary, also those of an A2C or PPO model with the same networks.

        A model of another algorithm brings no state of the value optimiser, and perhaps the state of another class of
        optimiser: those are left as they are, with a warning for the latter.

        :param load_path_or_dict: Location of the saved data (path or file-like, see ``save``), or a nested dictionary
            as ``get_parameters`` returns it
        :param exact_match: whether each module and each of its parameters must be there
        :param device: Device on which the code should run.
        """
        if isinstance(load_path_or_dict, dict):
            params = dict(load_path_or_dict)
        else:
            check_model_file(load_path_or_dict)
            params = load_from_zip_file(load_path_or_dict, device=device, load_data=False)[1]
        own = self.get_parameters()
        params.setdefault("value_optimizer", own.get("value_optimizer"))
        if "value_optimizer" not in own:
            del params["value_optimizer"]
        for name in ("policy.optimizer", "value_optimizer"):
            if name in params and name in own and not same_optimizer_kind(params[name], own[name]):
                params[name] = own[name]
                warnings.warn(
                    f"the saved state of {name} belongs to another class of optimiser and was not loaded", stacklevel=2
                )
        super().set_parameters(params, exact_match=exact_match, device=device)


def _copy(value: Any) -> Any:
    # deepcopy copies tensors, too, at ten times the cost
    return value.clone() if isinstance(value, th.Tensor) else copy.deepcopy(value)


def _full_name(obj: object) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _listens(callback: BaseCallback) -> bool:
    """Whether a callback does anything at each step: not so a missing one, nor one that says ``needs_steps = False``."""
    if type(callback) is CallbackList:
        return any(_listens(one) for one in callback.callbacks)
    if type(callback) is ConvertCallback:
        return callback.callback is not None
    return getattr(callback, "needs_steps", True)


def _update_num_timesteps(callback: BaseCallback, num_timesteps: int) -> None:
    """At the end of a rollout, for callbacks that were not called at each step, which is what tells them otherwise."""
    callback.num_timesteps = num_timesteps
    for child in callback.callbacks if isinstance(callback, CallbackList) else []:
        _update_num_timesteps(child, num_timesteps)


def _dead_workers(env: VecEnv) -> dict[int, int | None]:
    """Exit codes of the environments of a SubprocVecEnv whose process has ended; -9: killed, perhaps for want of memory."""
    processes = env.unwrapped.processes if isinstance(env.unwrapped, SubprocVecEnv) else []
    for process in processes:
        process.join(0.1)  # one that has just closed its pipe is about to end
    return {index: process.exitcode for index, process in enumerate(processes) if not process.is_alive()}


def _failed_environments(error: Exception) -> list[int]:
    """Indices of the environments of a DummyVecEnv that an error came from."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [frame.f_locals["env_idx"] for frame in frames if frame.f_code is DummyVecEnv.step_wait.__code__]
