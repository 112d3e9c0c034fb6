"""The greedy policy's episodes from the resets of a rollout, for the baseline that is made of them."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.baselines import at_same_step
from sb3_reinforce.buffers import EpisodeTracker, by_key
from sb3_reinforce.training_state import frozen_statistics

if TYPE_CHECKING:
    from sb3_reinforce.reinforce import REINFORCE
    from sb3_reinforce.sampling import Sampler


def play_greedy(
    model: "REINFORCE", env: VecEnv, sampler: "Sampler", seed: int, first_observations: dict[Any, np.ndarray]
) -> th.Tensor:
    """
    Play one deterministic episode per environment, from the resets that the rollout began with.

    The steps count in ``num_timesteps``. Callbacks do not see them, and neither does ``ep_info_buffer``; a Monitor's file
    does. Statistics of ``VecNormalize`` are frozen meanwhile.

    :param model: the algorithm, after a rollout of one episode per environment
    :param env: its environments
    :param sampler: the rollout's
    :param seed: what the environments were seeded with before the rollout's reset
    :param first_observations: what they then began with, by key (None for a space without keys)
    :return: R_t of the greedy episode at the same t, or at its last t where it was shorter, shape [S]
    :raises ValueError: for an episode without end, and for a reward that is not finite
    """
    with frozen_statistics(env):
        env.seed(seed)
        observations = env.reset()
        _warn_of_other_starts(model, observations, first_observations)
        tracker = EpisodeTracker(1, env.num_envs, True, False, model.max_episode_steps, np.zeros(env.num_envs, np.int64))
        rewards: list[np.ndarray] = []
        try:
            while tracker.goes_on(len(rewards)):
                observations, reward, dones, infos = env.step(model._within_bounds(sampler.greedy(observations)))
                model.num_timesteps += env.num_envs
                rewards.append(np.array(reward))
                tracker.end_episodes(len(rewards), dones, infos)
        except Exception as error:
            error.add_note(f"raised in step {len(rewards) + 1} of the greedy episodes")
            raise
    played = sorted(tracker.episodes, key=lambda episode: episode.env_index)
    laid_end_to_end = np.concatenate([np.array([r[e.env_index] for r in rewards[: e.end]], np.float64) for e in played])
    if not np.isfinite(laid_end_to_end).all():
        bad = laid_end_to_end[~np.isfinite(laid_end_to_end)][0]
        raise ValueError(f"reward must be finite, got {bad} in an episode of the greedy policy: mend the environment")
    lengths = th.tensor([episode.length for episode in played])
    returns = model._returns_of(th.as_tensor(laid_end_to_end), lengths)
    return at_same_step(returns, lengths, model._batch.lengths)


def _warn_of_other_starts(model: "REINFORCE", observations: Any, first_observations: dict[Any, np.ndarray]) -> None:
    # VecNormalize shows the same observation otherwise, once its statistics have moved on.
    if model._warned_of_other_starts or model.get_vec_normalize_env() is not None:
        return
    now = by_key(observations)
    if all(np.array_equal(np.asarray(now[key], then.dtype), then) for key, then in first_observations.items()):
        return
    model._warned_of_other_starts = True
    warnings.warn(
        "the environments do not begin alike after a reset with the same seed, so the greedy episodes are played from other "
        'starts (said once): baseline="greedy" is then as right, but of less use; make reset(seed=...) obey its seed',
        stacklevel=2,
    )
