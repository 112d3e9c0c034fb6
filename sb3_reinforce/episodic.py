"""``EpisodicAlgorithm``: rollouts of whole episodes, as a base class for algorithms that learn from them."""

import warnings
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.arguments import check_env, check_episodic, check_inherited
from sb3_reinforce.masking import MaskingAlgorithm
from sb3_reinforce.observations import by_key
from sb3_reinforce.policies import PolicyAliases
from sb3_reinforce.policy_checks import check_policy_arguments, explained_policy_errors
from sb3_reinforce.rollout.failures import explained_failures
from sb3_reinforce.rollout.finite import check_before_normalization
from sb3_reinforce.rollout.infos import UsedInfos, returns_are_sums
from sb3_reinforce.rollout.recording import Recording, Rollout
from sb3_reinforce.rollout.sampling import Sampler, make_sampler, needs_torch, within_bounds
from sb3_reinforce.rollout.spans import Spans
from sb3_reinforce.rollout.squashed import keep_before_tanh
from sb3_reinforce.rollout.streams import ACTOR, ENVIRONMENTS, seed_torch, stream_seed
from sb3_reinforce.rollout.totals import Report, Totals
from sb3_reinforce.running import callbacks, exchange, ranks
from sb3_reinforce.running.normalization import frozen_statistics, merged_statistics, set_statistics, statistics_of
from sb3_reinforce.vec_env.dummy import quicken


class EpisodicAlgorithm(MaskingAlgorithm):
    """
    Plays whole episodes of one policy on any VecEnv, without length bias, and leaves learning from them to a subclass.

    Every rollout starts at a reset and ends with an episode, so no episode mixes two policies. Which episodes are used never
    depends on how soon they end: each environment plays an equal share of ``n_episodes``, or at least ``n_steps`` steps and
    the rest of the episode in flight. Seeding, ``VecNormalize``, ``torchrun`` and resuming to the bit come with it.

    A subclass implements ``train()``, which finds the episodes laid end to end in ``rollout_buffer`` (one row per step,
    ``n_envs=1``: observations, actions, rewards, episode starts), and their lengths in ``rollout``
    (:class:`~sb3_reinforce.rollout.recording.Rollout`). ``examples/reward_weighted_regression.py`` is one in 40 lines.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class of your own)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of ``policy.optimizer``: a number, a function of the remaining progress (from 1 to 0), or a string
        such as ``"lin_3e-4"``, which falls linearly to 0 at the end of ``learn``
    :param n_steps: at least so many steps per environment and update; then the episodes in flight are finished.
        Not used with ``n_episodes``
    :param n_episodes: instead: exactly so many complete episodes per update, a multiple of the number of environments
    :param gamma: discount factor, in [0, 1]
    :param unfinished: ``"finish"``: play the episodes in flight to their end; ``"bootstrap"``: stop at ``n_steps``, and let
        the environments run on into the next rollout, as A2C does; ``rollout.spans`` says which episodes are cut
    :param max_episode_steps: an episode longer than this is a ValueError. Guards against environments whose episodes never end
    :param freeze_normalization_after: environment steps (``num_timesteps``) after which rollouts no longer change the
        statistics of ``VecNormalize``; None: they always do
    :param seed: Seed of everything random. Every rollout draws from its own streams, seeded by this seed and the
        number of the rollout. None: nothing is seeded
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected. It is
        filled at once: its ``add`` and ``compute_returns_and_advantage`` are not called

    All others are those of ``OnPolicyAlgorithm``, but that ``device="auto"`` is a GPU for policies with convolutions alone.

    :raises ValueError: for arguments that cannot be right, alone or together
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = PolicyAliases()
    own_of_each_rank = (*MaskingAlgorithm.own_of_each_rank, "n_episodes", "max_episode_steps")

    #: what this process has played last
    rollout: Rollout

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-3,
        n_steps: int = 512,
        n_episodes: int | None = None,
        gamma: float = 0.99,
        unfinished: Literal["finish", "bootstrap"] = "finish",
        max_episode_steps: int = 100_000,
        freeze_normalization_after: int | None = None,
        ent_coef: float | str | Schedule = 0.0,
        max_grad_norm: float | None = 0.5,
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
        self.n_steps, self.n_episodes, self.gamma, self.seed = n_steps, n_episodes, gamma, seed
        self.unfinished, self.freeze_normalization_after = unfinished, freeze_normalization_after
        self.max_episode_steps, self.max_grad_norm = max_episode_steps, max_grad_norm  # type: ignore[assignment]
        self.learning_rate, self.ent_coef = learning_rate, ent_coef  # type: ignore[assignment]
        # Before the environment is made: what can be refused without it is refused without its cost.
        self._check_arguments()
        check_inherited(
            use_sde, sde_sample_freq, rollout_buffer_class, rollout_buffer_kwargs, stats_window_size, tensorboard_log,
            verbose, device,
        )  # fmt: skip
        check_policy_arguments(policy, self.policy_aliases, policy_kwargs)
        device = self._start(device)
        verbose, tensorboard_log = (verbose, tensorboard_log) if ranks.rank() == 0 else (0, None)  # rank 0 alone writes
        if env is None and _init_setup_model:
            raise ValueError("env must be an environment or the id of one, got None")

        super().__init__(
            policy, env, learning_rate=self.learning_rate, n_steps=n_steps, gamma=gamma,  # type: ignore[arg-type]
            gae_lambda=1.0,  # the Monte-Carlo return, for what reads it off the model or the rollout buffer
            ent_coef=self.ent_coef, vf_coef=0.0, max_grad_norm=max_grad_norm, use_sde=use_sde,  # type: ignore[arg-type]
            sde_sample_freq=sde_sample_freq, rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs, stats_window_size=stats_window_size, seed=seed, device=device,
            tensorboard_log=tensorboard_log, policy_kwargs=dict(policy_kwargs or {}), verbose=verbose, _init_setup_model=False,
        )  # fmt: skip
        self._steps_into_episode: np.ndarray | None = None
        self._warned_of_discarded_steps = False
        # What the environments were seeded with before the reset of the present rollout; None: they were not
        self._environment_seed: int | None = None
        if _init_setup_model:
            self._check_env()
            self._setup_model()

    # ------------------------------------------------------------------------------------- what subclasses override

    def _check_arguments(self) -> None:
        check_episodic(self)

    def _check_env(self) -> None:
        super()._check_env()
        assert self.env is not None, "checked above"
        check_env(self.env, self)

    def _shared_settings(self) -> dict[str, str]:
        return {**super()._shared_settings(), "n_steps or n_episodes": "n_steps" if self.n_episodes is None else "n_episodes"}

    def _keeps_last_observations(self) -> bool:
        """Whether the spans of episodes that a time limit has ended keep the observation behind their last step."""
        return False

    def _seeds_resets(self) -> bool:
        """Whether the environments are seeded before each rollout."""
        return self.seed is not None

    def _evaluate_rollout(self, rollout: Rollout, sampler: Sampler, callback: BaseCallback) -> tuple[Any, Any]:
        """
        Called when the rollout buffer is filled, before the ranks tell each other what they have played.

        :return: any result for :meth:`_finish_rollout`, and what of it the other ranks need
        """
        return None, None

    def _finish_rollout(self, result: Any, totals: Totals) -> None:
        """
        Called before ``on_rollout_end``.

        :param result: what :meth:`_evaluate_rollout` returned first
        :param totals: of all ranks, with what their :meth:`_evaluate_rollout` returned second
        """

    # ------------------------------------------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        self._check_arguments()  # once more: load() may have brought others
        self._recording: Recording | None = None
        self._has_just_been_reset = False
        with explained_policy_errors(self):
            super()._setup_model()

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

    def _next_rollout(self, env: VecEnv) -> None:
        """Advance to the next rollout's streams, which begin with the coming reset of the environments."""
        self._n_rollouts += 1
        self._environment_seed = None
        if self._seeds_resets():
            self._environment_seed = stream_seed(self.seed, self._n_rollouts, ENVIRONMENTS)
            env.seed(self._environment_seed)

    def _begin_rollout(self, env: VecEnv) -> np.random.Generator:
        """
        Seed the streams of the rollout and reset the environments.

        :return: random numbers of the actor
        """
        quicken(env)
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
        actor_seed = stream_seed(self.seed, self._n_rollouts, ACTOR)
        if self.seed is not None or ranks.world_size() > 1:
            seed_torch(actor_seed, self.device)
        return np.random.default_rng(actor_seed)

    def _normalization(self) -> AbstractContextManager[None]:
        """Inside, ``VecNormalize`` keeps its statistics if ``freeze_normalization_after`` steps have been played."""
        after = self.freeze_normalization_after
        return nullcontext() if after is None or self.num_timesteps < after else frozen_statistics(self.env)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Play the episodes of one update and fill the rollout buffer with their steps.

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
        if self._recording is None:
            self._masks = self._find_masks(env)
            self._recording = Recording(self.observation_space, self.action_space, env.num_envs, self._last_obs, self._masks)
        recording = self._recording
        recording.reset()
        sampler = make_sampler(self.policy, env.num_envs, rng, self._samples_values)
        assert self._steps_into_episode is not None, "set by _begin_rollout"
        spans = Spans(
            n_rollout_steps, self.n_episodes, self.unfinished == "finish", self._keeps_last_observations(),
            self.max_episode_steps, self._steps_into_episode,
        )  # fmt: skip
        before = (self.num_timesteps, list(self.ep_info_buffer or ()), list(self.ep_success_buffer or ()))
        # Calling callbacks at each step costs time.
        listening = callbacks.needs_steps(callback)
        used_infos = UsedInfos(self._update_info_buffer, self._stats_window_size, wait=not listening)
        is_box = isinstance(self.action_space, spaces.Box)
        normalized = self._vec_normalize_env
        if normalized is not None:
            check_before_normalization(normalized, self._last_obs, np.zeros(0), 0)
        n_steps = 0
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)

        try:
            with explained_failures(self, recording), self._normalization():
                while spans.continues(n_steps):
                    if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                        self.policy.reset_noise(env.num_envs)

                    action_masks = self._read_masks(n_steps)
                    actions = sampler(self._last_obs, action_masks)
                    clipped_actions = within_bounds(self.policy, actions) if is_box else actions

                    recording.begin_step(self._last_obs, actions, action_masks)
                    new_obs, rewards, dones, infos = env.step(clipped_actions)
                    dones = np.asarray(dones, dtype=bool)  # a VecEnv of one's own may have numbers
                    self.num_timesteps += env.num_envs
                    n_steps += 1
                    if normalized is not None:
                        check_before_normalization(normalized, new_obs, rewards, n_steps)

                    if listening:
                        callback.update_locals(locals())
                        if not callback.on_step():
                            self._abandon_rollout()
                            self._exchange(n_steps, used_infos, before, callback)
                            return False

                    recording.end_step(rewards, dones)
                    self._last_obs, self._last_episode_starts, self._last_infos = new_obs, dones, infos
                    if np.count_nonzero(dones):
                        sampler.start_episodes(dones)
                        used_infos.add(n_steps, infos, spans.end_episodes(n_steps, dones, infos))
        except BaseException as error:
            self._abandon_rollout()
            if isinstance(error, Exception) and self.logger.name_to_value:  # not Ctrl-C
                self.logger.dump(self.num_timesteps)  # nothing recorded is lost
            raise

        used_infos.log_waiting()
        spans.cut_episodes(n_steps, self._last_obs)
        recording.check(self._last_obs)
        rollout = recording.pack(rollout_buffer, spans, returns_are_sums(env))
        keep_before_tanh(rollout, sampler)
        self.rollout, self._steps_into_episode = rollout, spans.steps_into_episode
        result, told = self._evaluate_rollout(rollout, sampler, callback)
        totals = self._exchange(n_steps, used_infos, before, callback, rollout, told)
        if totals.stopped:
            self._abandon_rollout()
            return False
        self._finish_rollout(result, totals)
        self._record_rollout(totals)

        callback.update_locals(locals())
        callbacks.set_num_timesteps(callback, self.num_timesteps)
        callback.on_rollout_end()
        return True

    def _abandon_rollout(self) -> None:
        """Start at a reset next time: where environments run on across rollouts, the steps of a dropped one are missing."""
        if self.unfinished == "bootstrap":
            self._last_obs = self._steps_into_episode = None

    def _exchange(
        self,
        n_steps: int,
        used_infos: UsedInfos,
        before: tuple[int, list[Any], list[Any]],
        callback: BaseCallback,
        rollout: Rollout | None = None,
        told: Any = None,
    ) -> Totals:
        """
        Merge counts, episodes' infos and ``VecNormalize`` statistics of all ranks. With one process this changes nothing.

        :param before: ``num_timesteps``, ``ep_info_buffer`` and ``ep_success_buffer`` from before the rollout
        :param rollout: the episodes that are used; None: a callback has asked to stop
        :param told: what :meth:`_evaluate_rollout` returned for the other ranks
        """
        report = Report(self._own_settings(), n_steps * self.n_envs, self.num_timesteps, rollout is None)
        if rollout is not None:
            report.add_rollout(rollout, told)
        if ranks.world_size() > 1:
            report.infos = list(used_infos.logged)
            report.statistics = statistics_of(self._vec_normalize_env)
        totals = Totals(exchange.gather(report), ranks.rank())
        self._settings_of_ranks = [other.settings for other in totals.reports]
        if len(totals.reports) > 1:
            num_timesteps, *info_buffers = before
            own_steps = self.num_timesteps - num_timesteps
            self.num_timesteps = num_timesteps + sum(other.num_timesteps - num_timesteps for other in totals.reports)
            callbacks.advance_progress_bars(callback, self.num_timesteps - num_timesteps - own_steps)
            self._statistics = {
                name: merged_statistics(start, [other.statistics[name] for other in totals.reports])
                for name, start in self._statistics.items()
            }
            set_statistics(self._vec_normalize_env, self._statistics)
            self.ep_info_buffer, self.ep_success_buffer = (deque(b, self._stats_window_size) for b in info_buffers)
            for info in totals.infos:
                self._update_info_buffer([info], np.ones(1, dtype=bool))
        return totals

    def _record_rollout(self, totals: Totals) -> None:
        """Log the episodes of the rollout; warn once if many steps are discarded."""
        totals.record(self.logger)
        played, discarded = totals.sum("played_steps"), totals.discarded_steps
        if discarded > 0.3 * played and not self._warned_of_discarded_steps and ranks.rank() == 0:
            self._warned_of_discarded_steps = True
            warnings.warn(
                f"{discarded} of {played} steps of a rollout were played by environments that waited for the "
                "others' episodes to end, and are not used (rollout/discarded_steps; said once): use fewer environments, a "
                f"larger n_steps or n_episodes (now n_steps={self.n_steps}, n_episodes={self.n_episodes}, "
                f"{self.n_envs} environments)",
                stacklevel=2,
            )

    # -------------------------------------------------------------------------------------------------------- learn

    def _prepare_reset(self, reset_num_timesteps: bool) -> None:
        # The environments may have changed since the last learn(), or been played with.
        self._recording, self._has_just_been_reset = None, False
        if self._last_obs is not None and len(next(iter(by_key(self._last_obs).values()))) != self.n_envs:
            self._last_obs = None  # of a model saved with another number of environments
        if reset_num_timesteps or self._last_obs is None:
            # SB3 is about to reset the environments: let that be the reset that the first rollout starts at.
            assert self.env is not None, "checked by learn()"
            self._steps_into_episode = None
            self._next_rollout(self.env)
            self._has_just_been_reset = True

    def _on_learning_started(self) -> None:
        if self.verbose >= 1:
            reason = needs_torch(self.policy)
            print("Sampling actions with NumPy" if reason is None else f"Sampling actions with torch: {reason}")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_recording", "rollout"]
