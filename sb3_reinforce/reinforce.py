"""REINFORCE: the formula, its arguments, and one policy gradient step per rollout."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_reinforce import estimate
from sb3_reinforce.arguments import NotFiniteError, check_baseline, check_clip_range, check_reinforce
from sb3_reinforce.baselines import Baseline, BaselineName, checked_prediction, full_name, make_baseline
from sb3_reinforce.episodes import Episodes
from sb3_reinforce.episodic import EpisodicAlgorithm
from sb3_reinforce.losses import clipped_loss, count_clipped, entropy_loss, importance_ratio, score_loss
from sb3_reinforce.migration import explains_missing_arguments
from sb3_reinforce.natural_gradient import check_policy, natural_step
from sb3_reinforce.rollout.greedy import GreedyEpisodes, play_greedy, warn_of_other_starts
from sb3_reinforce.rollout.recording import Rollout
from sb3_reinforce.rollout.sampling import Sampler
from sb3_reinforce.rollout.streams import SHUFFLING, stream_seed
from sb3_reinforce.rollout.totals import Totals
from sb3_reinforce.running import callbacks, ranks
from sb3_reinforce.running.exchange import broadcast_buffers, moments, sum_gradients
from sb3_reinforce.running.settings import settings_of
from sb3_reinforce.update.chunk_size import chunk_size_of, default_chunk_size
from sb3_reinforce.update.chunks import add_gradients
from sb3_reinforce.update.likelihood import kl_terms, log_prob_and_entropy, log_probs_of, shared_features
from sb3_reinforce.update.records import record_update
from sb3_reinforce.update.rows import Rows
from sb3_reinforce.update.step_size import default_learning_rates
from sb3_reinforce.update.steps import Selection, sequences_of
from sb3_reinforce.update.undo import undone_on_failure
from sb3_reinforce.update.value_fit import ValueFit


class REINFORCE(EpisodicAlgorithm):
    """
    REINFORCE, the Monte-Carlo policy gradient, on whole episodes.

    For N complete episodes of T_i steps, all played with the current parameters, and a divisor D, the gradient is::

        g = 1/D sum_i sum_t gamma^(c t) grad log pi(a_it | s_it) (R_it - b_it)

    Paper: Williams (1992), "Simple statistical gradient-following algorithms for connectionist reinforcement learning".

    Every rollout starts at a reset and ends with an episode, so no episode mixes two policies. V replaces the missing rest of
    a return only where a time limit has cut the episode (see ``truncation``). Neither values nor log-probabilities are
    computed while sampling. After a rollout ``batch`` holds all terms of the formula, and ``rollout_buffer.advantages`` the
    weights gamma^(c t) (R - b). ``docs/results.md`` tells how the defaults were chosen. Under ``torchrun`` the sums are over
    the episodes of all ranks (``docs/scaling.md``); ``n_steps``, ``n_episodes`` and ``batch_size`` are per rank.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, with memory MlpLstmPolicy, CnnLstmPolicy,
        MultiInputLstmPolicy; for environments with action masks MaskableMlpPolicy, MaskableMlpLstmPolicy and so on, see
        :mod:`sb3_reinforce.action_masks`; or a class of your own)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: of the policy: a number, a function of the remaining progress (from 1 to 0), or a string such as
        ``"lin_3e-4"``, which falls linearly to 0 at the end of ``learn``. None: 3e-3, with convolutions 3e-4
    :param n_steps: at least so many steps per environment and update, then the episodes in flight are finished
    :param n_episodes: instead: exactly so many complete episodes per update, a multiple of the number of environments
    :param gamma: discount factor, in [0, 1]
    :param returns: ``"reward_to_go"``: R_t = sum_{k>=t} gamma^(k-t) r_k; ``"episode"``: the textbook formula
        R_t = sum_{k>=0} gamma^k r_k, the same for every t: unbiased, too, with more variance
    :param discount_state: whether to weight step t by gamma^t (c = 1 above). True gives the true gradient of the
        discounted return; False, the usual choice, values late steps as much as early ones
    :param baseline: ``"none"``, ``"mean"``, ``"leave_one_out"``, ``"per_step"``, ``"moving_average"``, ``"value"``,
        ``"optimal"``, ``"greedy"`` or your own :class:`~sb3_reinforce.baselines.Baseline` object. ``"greedy"`` plays each
        reset a second time, so it needs ``n_episodes`` equal to the number of environments
    :param normalize_advantage: whether to turn R - b into (A - mean(A)) / std(A) over the steps of the batch.
        Biased: mean and standard deviation depend on the episode itself. The division makes the step size adaptive
    :param loss_reduction: ``"episode"``: D = N; ``"step"``: D = n_steps * n_envs, or with ``n_episodes`` the number of
        steps played. Default: ``"step"`` with ``n_steps`` and ``"episode"`` with ``n_episodes``, for which the expected
        gradient has exactly the true direction. The other two divide by a number that depends on the episodes: a ratio
        estimator, biased by O(1/N)
    :param truncation: what an episode ended by a time limit (``TimeLimit.truncated``) is worth beyond it:
        ``"terminal"``: nothing, unbiased for the return up to the limit; ``"bootstrap"``: gamma * V(s_T), as if there were
        no limit, with a bias as large as the error of V there; it needs ``baseline="value"`` and reward-to-go.
        Default: ``"bootstrap"`` where these two are given, ``"terminal"`` elsewhere: to a policy that does not see the
        clock, the end of a time limit is noise
    :param unfinished: ``"finish"``: play the episodes in flight to their end; ``"bootstrap"``: stop at ``n_steps``,
        add V of the state reached and let the environments run on into the next rollout, as A2C does. It needs
        ``baseline="value"``, and excludes ``returns="episode"`` and ``n_episodes``
    :param max_episode_steps: an episode longer than this is a ValueError. Guards against environments whose episodes never end
    :param freeze_normalization_after: environment steps (``num_timesteps``) after which rollouts no longer change the
        statistics of ``VecNormalize``; None: they always do. A change of the statistics changes the policy, too, and may undo
        what an update has gained: docs/theory.md
    :param n_epochs: optimiser passes over a batch. 1 with ``batch_size=None`` is REINFORCE. More steps on one batch are
        off-policy: then the loss is PPO's clipped importance ratio, whose gradient at the sampling parameters is the same
    :param batch_size: steps per minibatch; None: the whole batch in one optimiser step. A minibatch estimates the
        full-batch loss. With a recurrent policy whole episodes of about so many steps
    :param clip_range: of the importance ratio where there are several optimiser steps; a number or a schedule
    :param chunk_size: steps per forward and backward pass, whose gradients are added up: bounds memory and changes
        nothing else (except with batch norm and dropout in train mode); no episode of a recurrent policy is cut. None: as
        many as fit a CPU's cache or a part of a GPU's memory, by a rule that depends on the network alone; with batch norm
        all at once, as a large number does it
    :param ent_coef: weight of the entropy, which has the same divisor D; a number, a schedule or ``"lin_0.01"``
    :param value_learning_rate: of the value network, which has an optimiser of its own (the policy's class and arguments)
        over the parameters that only the value depends on; as ``learning_rate``. None: 1e-2, with convolutions 1e-3
    :param n_value_epochs: passes over the batch that fit the value network, after the policy step and after its
        output bias was moved by the mean error
    :param value_batch_size: steps per minibatch of that fit; None: the whole batch
    :param max_grad_norm: The maximum value for the gradient clipping of the policy; None: no clipping
    :param natural_gradient: whether to precondition the gradient by the inverse Fisher information, and to step as far as
        ``target_kl`` allows: one step on the whole batch (``n_epochs=1``, ``batch_size=None``), where ``learning_rate`` and
        ``max_grad_norm`` have no effect. See :mod:`sb3_reinforce.natural_gradient`
    :param target_kl: with ``natural_gradient``: KL divergence from the policy before to the one after an update, in nats and
        to second order; a step of more than 1.5 times that is halved. A number, a schedule or ``"lin_0.02"``
    :param cg_max_steps: with ``natural_gradient``: steps of the conjugate gradients at most
    :param cg_damping: with ``natural_gradient``: added to the diagonal of the Fisher information
    :param bptt_steps: with a recurrent policy: cut the gradient through its memory after so many steps, counted from the
        episode's start. Biased: what an action owes to the memory of earlier windows gets no gradient. None: full
        backpropagation through time, exact
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration.
        Its log-probability is marginal, so the gradient is exact only with ``sde_sample_freq=1``. And SB3 stops the gradient
        from the standard deviation into the network; ``model.policy.action_dist.learn_features = True`` lets it through
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE; -1: at the beginning of the rollout
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected. It is
        filled at once, one row per step and ``n_envs=1``: its ``add`` and ``compute_returns_and_advantage`` are not called
    :param seed: Seed of everything random; every rollout has random streams of its own. None: nothing is seeded

    ``rollout_buffer_kwargs``, ``stats_window_size``, ``tensorboard_log``, ``policy_kwargs``, ``verbose``, ``device`` and
    ``_init_setup_model`` are those of ``OnPolicyAlgorithm``, but that ``device="auto"`` is a GPU for convolutions alone.

    :raises ValueError: for arguments that cannot be right, alone or together
    """

    schedules: ClassVar[dict[str, str]] = {
        "learning_rate": "lr_schedule", "value_learning_rate": "_value_lr_schedule", "ent_coef": "_ent_coef_schedule",
        "clip_range": "_clip_range_schedule", "target_kl": "_target_kl_schedule",
    }  # fmt: skip
    own_of_each_rank = (*EpisodicAlgorithm.own_of_each_rank, "batch_size", "value_batch_size", "chunk_size")

    _value_lr_schedule: Schedule
    _ent_coef_schedule: Schedule
    _clip_range_schedule: Schedule
    _target_kl_schedule: Schedule
    #: the terms of the formula, of the last rollout
    batch: estimate.Batch

    @explains_missing_arguments
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule | None = None,
        n_steps: int = 512,
        n_episodes: int | None = None,
        gamma: float = 0.99,
        returns: Literal["reward_to_go", "episode"] = "reward_to_go",
        discount_state: bool = False,
        baseline: BaselineName | Baseline = "value",
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
        value_learning_rate: float | str | Schedule | None = None,
        n_value_epochs: int = 4,
        value_batch_size: int | None = None,
        max_grad_norm: float | None = 0.5,
        natural_gradient: bool = False,
        target_kl: float | str | Schedule = 0.01,
        cg_max_steps: int = 10,
        cg_damping: float = 0.1,
        bptt_steps: int | None = None,
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
        self.returns, self.discount_state, self.truncation = returns, discount_state, truncation
        self.baseline, self.normalize_advantage, self.loss_reduction = baseline, normalize_advantage, loss_reduction
        self.n_epochs, self.batch_size, self.clip_range, self.chunk_size = n_epochs, batch_size, clip_range, chunk_size
        self.value_learning_rate, self.n_value_epochs = value_learning_rate, n_value_epochs
        self.value_batch_size, self.natural_gradient, self.target_kl = value_batch_size, natural_gradient, target_kl
        self.cg_max_steps, self.cg_damping, self.bptt_steps = cg_max_steps, cg_damping, bptt_steps
        self._warned_of_other_starts = False
        check_clip_range(clip_range)
        super().__init__(
            policy, env, learning_rate, n_steps=n_steps, n_episodes=n_episodes, gamma=gamma,  # type: ignore[arg-type]
            unfinished=unfinished, max_episode_steps=max_episode_steps, ent_coef=ent_coef, max_grad_norm=max_grad_norm,
            freeze_normalization_after=freeze_normalization_after, use_sde=use_sde, sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class, rollout_buffer_kwargs=rollout_buffer_kwargs, seed=seed, device=device,
            stats_window_size=stats_window_size, tensorboard_log=tensorboard_log, policy_kwargs=policy_kwargs,
            verbose=verbose, _init_setup_model=_init_setup_model,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_reinforce(self)

    def _check_env(self) -> None:
        super()._check_env()
        check_baseline(self.baseline, self.n_episodes, self.n_envs, ranks.world_size())

    def _setup_model(self) -> None:
        with default_learning_rates(self):
            super()._setup_model()
        if self.natural_gradient:
            check_policy(self.policy)
        self._default_chunk_size = default_chunk_size(self.policy)
        self._baseline = make_baseline(self.baseline)
        # its name in models saved before December 2026
        self._saved_state = vars(self).pop("_baseline_state", self._saved_state)
        self._samples_values = "values" in self._baseline.needs
        self._value_fit = ValueFit(self.policy, self.baseline) if self._samples_values else None
        if self._value_fit is not None:
            self.value_optimizer = self._value_fit.make_optimizer(self._value_lr_schedule(1.0))

    def _check_training(self) -> None:
        super()._check_training()
        check_clip_range(self.clip_range)
        if type(make_baseline(self.baseline)) is not type(self._baseline):
            raise ValueError(
                f"baseline must stay the one that the model was made with, {type(self._baseline).__name__}, got "
                f"{self.baseline!r}: make a new model, or load(path, baseline=...) a saved one"
            )

    def _shared_settings(self) -> dict[str, str]:
        # Of its state, rank 0's is copied to the others.
        return {**super()._shared_settings(), **settings_of("baseline", self._baseline, self._baseline.state_dict())}

    def _extra_state(self) -> dict[str, Any]:
        return {"baseline": full_name(self._baseline), "state": self._baseline.state_dict()}

    def _set_extra_state(self, state: dict[str, Any]) -> None:
        if state.get("baseline") == full_name(self._baseline):  # load() may have been given another one
            self._baseline.load_state_dict(state["state"])

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_baseline", "_value_fit", "batch"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(["value_optimizer"] if self._value_fit else []), "policy.optimizer"], []

    # --------------------------------------------------------------------------------------------------- estimate

    def _keeps_last_observations(self) -> bool:
        """Whether V counts where a time limit has ended an episode; see ``truncation``."""
        return estimate.bootstraps(self._baseline, self.returns, self.truncation)

    def _seeds_resets(self) -> bool:
        return super()._seeds_resets() or "greedy" in self._baseline.needs  # which comes back to the same resets

    def _evaluate_rollout(
        self, rollout: Rollout, sampler: Sampler, callback: BaseCallback
    ) -> tuple[Episodes, Episodes | None]:
        greedy = self._play_greedy(rollout, sampler, callback) if "greedy" in self._baseline.needs else None
        episodes = estimate.make_episodes(
            rollout, self.policy, self._baseline, self.returns, self.gamma, self.discount_state,
            self.n_episodes is not None, chunk_size_of(self), self.bptt_steps, greedy, sampler.values,
        )  # fmt: skip
        return episodes, estimate.needed_by_other_ranks(self._baseline, episodes)

    def _finish_rollout(self, result: Episodes, totals: Totals) -> None:
        all_episodes, own_steps = estimate.join_ranks(result, totals)
        b = checked_prediction(self._baseline, all_episodes)[own_steps]
        advantages = result.returns - b
        if self.normalize_advantage:
            advantages = estimate.normalized(advantages, *moments(advantages)[0])
        weights = estimate.state_weights(result, self.gamma, self.discount_state)
        divisor = estimate.divisor_of(totals, self.loss_reduction, self.n_episodes)
        self.batch = estimate.Batch(result, all_episodes, b, weights, weights * advantages, divisor, totals.sizes)
        self.rollout.buffer.advantages[:, 0] = self.batch.advantages.numpy()

    def _play_greedy(self, rollout: Rollout, sampler: Sampler, callback: BaseCallback) -> GreedyEpisodes:
        """The greedy policy's episodes from the rollout's resets; their steps count in ``num_timesteps``."""
        assert self.env is not None, "it has played"
        assert self._environment_seed is not None, "see _seeds_resets"

        def count() -> None:
            self.num_timesteps += self.n_envs

        seed, first, longest = self._environment_seed, rollout.first_observations, self.max_episode_steps
        greedy = play_greedy(self.env, self.policy, sampler, seed, first, longest, count, self._masks)
        callbacks.advance_progress_bars(callback, greedy.n_rows * self.n_envs)
        # VecNormalize shows the same observation otherwise, once its statistics have moved on.
        if not (greedy.same_starts or self._warned_of_other_starts or self._vec_normalize_env is not None):
            self._warned_of_other_starts = True
            warn_of_other_starts()
        return greedy

    # ----------------------------------------------------------------------------------------------------- update

    def train(self) -> None:
        """
        Update the policy by the gradient of the rollout buffer's episodes, then fit the baseline to them.

        :raises ValueError: if the gradient or a parameter becomes NaN or infinite; the parameters from before the
            update are restored
        """
        self._renew_schedules()
        if self.natural_gradient:
            self.logger.record("train/target_kl", self._target_kl_schedule(self._current_progress_remaining))
        else:
            self._update_learning_rate(self.policy.optimizer)
        rng = np.random.default_rng(stream_seed(self.seed, self._n_rollouts, SHUFFLING))
        buffer, baseline, fit = self.rollout_buffer, self._baseline, self._value_fit
        sequences = sequences_of(self.policy, self.batch.episodes.lengths, self.bptt_steps)
        rows = Rows(buffer, self.batch.sizes, chunk_size_of(self), sequences)
        # One step on the whole batch needs no old log-probabilities: there the importance ratio is 1.
        batch_sizes, value_sizes = self._of_ranks("batch_size"), self._of_ranks("value_batch_size")
        several_steps = self.n_epochs > 1 or rows.count_minibatches(batch_sizes) > 1
        if several_steps:
            buffer.log_probs[:, 0] = log_probs_of(self.policy, rows)

        optimizers = [self.policy.optimizer, *([] if fit is None else [self.value_optimizer])]
        rates = ["target_kl" if self.natural_gradient else "learning_rate", *([] if fit is None else ["value_learning_rate"])]
        with undone_on_failure(self, optimizers, baseline, rates):
            self.policy.set_training_mode(True)
            steps = [
                self._policy_step(rows, minibatch, n_rows, several_steps)
                for _ in range(self.n_epochs)
                for minibatch, n_rows in rows.minibatches(batch_sizes, rng)
            ]
            broadcast_buffers(self.policy)
            # Ranks wait for each other at each exchange: one for all three.
            features = None if fit is None else shared_features(self.policy, rows)
            kl, errors = kl_terms(self.policy, rows, features), buffer.returns - buffer.values
            of_kl, of_returns, of_errors = moments(kl, buffer.returns, errors)
            value_loss = None
            if fit is not None:
                update_learning_rate(self.value_optimizer, self._value_lr_schedule(self._current_progress_remaining))
                value_loss = fit.fit(rows, rng, self.value_optimizer, of_errors[1], self.n_value_epochs, value_sizes, features)
            baseline.update(self.batch.all_episodes)
            if not all(bool(parameter.isfinite().all()) for parameter in self.policy.parameters()):
                raise NotFiniteError("a parameter of the policy has become NaN or infinite")
            # Last: a checkpoint taken after an interruption goes by this number.
            self._n_updates += int(self.n_epochs)  # which may be NumPy's

        record_update(self.logger, self.policy, steps, of_kl, of_returns, of_errors, value_loss, self._n_updates)

    def _policy_step(self, rows: Rows, minibatch: Selection, n_rows: float, several_steps: bool) -> dict[str, float]:
        """
        One optimiser step on the given rows of the rollout buffer: -1/D sum (A log pi) - ent_coef/D sum H.

        :param n_rows: number of rows in the minibatches of all ranks together
        :param several_steps: whether the parameters may have left those that sampled: then A log pi becomes PPO's
            min(A r, A clip(r)) with the importance ratio r = pi / pi_old
        :return: losses, gradient norm before clipping and fraction of clipped ratios
        :raises NotFiniteError: if the gradient is NaN or infinite; the parameters are then as they were
        """
        policy, ent_coef = self.policy, self._ent_coef_schedule(self._current_progress_remaining)
        clip_range = self._clip_range_schedule(self._current_progress_remaining)
        # A minibatch stands for the whole batch: its sum is scaled up by S / n_rows.
        scale = rows.n_total / n_rows / self.batch.divisor

        def loss_of(policy: ActorCriticPolicy, chunk: Selection) -> tuple[th.Tensor, tuple[float, ...]]:
            data = rows.samples(chunk)
            log_prob, entropy = log_prob_and_entropy(policy, data)
            if several_steps:
                ratio = importance_ratio(log_prob, data.old_log_prob)
                policy_loss = clipped_loss(ratio, data.advantages, clip_range)
            else:
                ratio = None
                rows.buffer.log_probs[chunk, 0] = log_prob.detach().cpu().numpy()
                policy_loss = score_loss(log_prob, data.advantages)
            loss = policy_loss + ent_coef * entropy_loss(entropy, log_prob, ratio) if ent_coef else policy_loss
            entropy_sum = (-log_prob if entropy is None else entropy).detach().sum().item()
            n_clipped = 0 if ratio is None else count_clipped(ratio, clip_range)
            return scale * loss, (policy_loss.item(), entropy_sum, n_clipped)

        policy.optimizer.zero_grad()
        sums = add_gradients(policy, rows.chunks(minibatch), loss_of, 3)
        policy_sum, entropy_sum, n_clipped = sum_gradients(policy.parameters(), sums)
        max_norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = th.nn.utils.clip_grad_norm_(policy.parameters(), max_norm).item()
        if not np.isfinite(grad_norm):
            raise NotFiniteError(f"the norm of the gradient is {grad_norm}")
        if self.natural_gradient:
            target_kl = self._target_kl_schedule(self._current_progress_remaining)
            parameters = [parameter for parameter in policy.parameters() if parameter.grad is not None]
            natural_step(policy, rows, parameters, target_kl, self.cg_max_steps, self.cg_damping)
        else:
            policy.optimizer.step()
        of_step = {"policy_loss": scale * policy_sum, "entropy_loss": -entropy_sum / n_rows, "grad_norm": grad_norm}
        return {**of_step, "clip_fraction": n_clipped / n_rows} if several_steps else of_step
