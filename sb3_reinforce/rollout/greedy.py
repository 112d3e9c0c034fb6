"""One episode of the greedy policy per environment, from the resets of a rollout, for the greedy baseline."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.action_masks import ActionMasks, check_choices
from sb3_reinforce.observations import by_key
from sb3_reinforce.rollout.finite import check_finite
from sb3_reinforce.rollout.sampling import Sampler, within_bounds
from sb3_reinforce.rollout.spans import Spans
from sb3_reinforce.running.normalization import frozen_statistics


@dataclass(frozen=True)
class GreedyEpisodes:
    """
    :param rewards: of one episode per environment, laid end to end, shape [S'], float64
    :param lengths: steps of each, shape [n_envs]
    :param n_rows: steps that each environment has played, including those after its episode
    :param same_starts: whether every environment began as it had begun the rollout
    """

    rewards: th.Tensor
    lengths: th.Tensor
    n_rows: int
    same_starts: bool


def play_greedy(
    env: VecEnv,
    policy: ActorCriticPolicy,
    sampler: Sampler,
    seed: int,
    first_observations: dict[Any, np.ndarray],
    max_episode_steps: int,
    on_step: Callable[[], None],
    masks: ActionMasks | None = None,
) -> GreedyEpisodes:
    """
    Play one deterministic episode per environment, from the resets that the rollout began with.

    Callbacks do not see these steps, and neither does ``ep_info_buffer``; a Monitor's file does. Statistics of
    ``VecNormalize`` are frozen meanwhile.

    :param seed: what the environments were seeded with before the rollout's reset
    :param first_observations: what they then began with, by key (None for a space without keys)
    :param masks: of the environments, if the policy takes them
    :raises ValueError: for an episode without end, and for a reward that is not finite
    """
    spans = Spans(1, env.num_envs, True, False, max_episode_steps, np.zeros(env.num_envs, np.int64))
    rewards: list[np.ndarray] = []
    with frozen_statistics(env):
        env.seed(seed)
        observations = env.reset()
        sampler.start_episodes(np.ones(env.num_envs, dtype=bool))
        now = by_key(observations)
        same_starts = all(np.array_equal(np.asarray(now[key], then.dtype), then) for key, then in first_observations.items())
        dones: np.ndarray = np.ones(env.num_envs, dtype=bool)
        infos: Any = ()
        try:
            while spans.continues(len(rewards)):
                allowed = None
                if masks is not None:
                    allowed = masks.read(observations, dones, infos, len(rewards))
                    check_choices(allowed[None], masks.space, "of the greedy episodes", len(rewards))
                actions = within_bounds(policy, sampler.greedy(observations, allowed))
                observations, reward, dones, infos = env.step(actions)
                rewards.append(np.array(reward))
                on_step()
                sampler.start_episodes(np.asarray(dones, dtype=bool))
                spans.end_episodes(len(rewards), dones, infos)
        except Exception as error:
            error.add_note(f"raised in step {len(rewards) + 1} of the greedy episodes")
            raise
    ends = spans.ended["end"][spans.ended["env_index"].argsort()]
    played = np.arange(len(rewards)) < ends[:, None]  # [n_envs, T]
    stacked = np.array(rewards, dtype=np.float64)
    check_finite("reward", np.where(played.T, stacked, 0.0), where="of the greedy episodes")
    return GreedyEpisodes(th.as_tensor(stacked.T[played]), th.as_tensor(ends), len(rewards), same_starts)


def warn_of_other_starts() -> None:
    """Warn that ``reset(seed=...)`` of the environments does not obey its seed."""
    warnings.warn(
        "the environments do not begin alike after a reset with the same seed, so the greedy episodes are played from other "
        'starts (said once): baseline="greedy" is then as right, but of less use; make reset(seed=...) obey its seed',
        stacklevel=3,
    )
