"""What all ranks have played in one rollout: each tells the others in one exchange."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_reinforce.rollout.recording import Rollout
from sb3_reinforce.running.normalization import Statistics


@dataclass
class Report:
    """
    What one rank has played of a rollout.

    :param settings: ``n_envs``, ``n_steps`` and those of its other arguments that may differ from rank to rank
    :param played_steps: environment steps of the rollout, including discarded ones
    :param num_timesteps: what it has counted, from before the rollout on
    :param stopped: whether a callback has asked to stop; then the fields below are empty
    :param n_steps: number of steps that are used
    :param n_episodes: number of episodes that they belong to
    :param n_complete: of these, the episodes that have ended
    :param n_truncated: of these, those that a time limit has ended
    :param total_rewards: undiscounted returns of the complete episodes, where known
    :param infos: of the episodes used: the step of the rollout, and what of ``info`` is for ``ep_info_buffer`` and
        ``ep_success_buffer``
    :param statistics: the running statistics of ``VecNormalize``
    :param result: what the algorithm has computed from its episodes for the other ranks
    """

    settings: dict[str, Any]
    played_steps: int
    num_timesteps: int
    stopped: bool = False
    n_steps: int = 0
    n_episodes: int = 0
    n_complete: int = 0
    n_truncated: int = 0
    total_rewards: list[float] = field(default_factory=list)
    infos: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    result: Any = None

    @property
    def n_envs(self) -> int:
        """Number of its environments."""
        return int(self.settings["n_envs"])

    @property
    def planned_steps(self) -> int:
        """``n_steps * n_envs``."""
        return int(self.settings["n_steps"]) * self.n_envs

    def add_rollout(self, rollout: Rollout, result: Any) -> None:
        """Fill in the fields about the episodes that are used."""
        complete = rollout.episodes[~rollout.episodes["cut"]]
        self.n_steps, self.n_episodes, self.n_complete = rollout.n_steps, len(rollout.episodes), len(complete)
        self.n_truncated = int(complete["truncated"].sum())
        total_rewards = complete["total_reward"]
        self.total_rewards = total_rewards[~np.isnan(total_rewards)].tolist()
        self.result = result


@dataclass(frozen=True)
class Totals:
    """
    The rollout of all ranks together.

    :param reports: one per rank, in the order of the ranks; a plain run has a single one
    :param rank: this one's
    """

    reports: Sequence[Report]
    rank: int

    @cached_property
    def sizes(self) -> list[int]:
        """Steps used, of each rank."""
        return [report.n_steps for report in self.reports]

    @property
    def own_steps(self) -> slice:
        """Which of the steps of all ranks, laid end to end, are this one's."""
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])

    @property
    def n_envs(self) -> list[int]:
        """Environments of each rank."""
        return [report.n_envs for report in self.reports]

    @property
    def stopped(self) -> bool:
        """Whether a callback has asked to stop on any rank."""
        return any(report.stopped for report in self.reports)

    @property
    def total_rewards(self) -> list[float]:
        """Undiscounted returns of the complete episodes, where known."""
        return [total for report in self.reports for total in report.total_rewards]

    @property
    def infos(self) -> list[dict[str, Any]]:
        """Monitor's infos of the episodes used, in the order of their last steps."""
        rows = [row for report in self.reports for row in report.infos]
        return [info for _, info in sorted(rows, key=lambda row: row[0])]

    def sum(self, name: str) -> int:
        """:return: the sum of a field of :class:`Report` over the ranks"""
        return sum(getattr(report, name) for report in self.reports)

    @property
    def discarded_steps(self) -> int:
        """Steps played by environments that waited for the others' episodes to end."""
        return self.sum("played_steps") - self.sum("n_steps")

    def record(self, logger: Logger) -> None:
        """Record mean, std, min and max of the returns, the number of episodes, and shares of steps and time limits."""
        returns, n_complete = self.total_rewards, self.sum("n_complete")
        if returns:
            logger.record("rollout/ep_return_mean", np.mean(returns))
            logger.record("rollout/ep_return_std", np.std(returns))
            logger.record("rollout/ep_return_min", np.min(returns))
            logger.record("rollout/ep_return_max", np.max(returns))
        logger.record("rollout/n_episodes", n_complete)
        logger.record("rollout/discarded_steps", self.discarded_steps)
        logger.record("rollout/discarded_fraction", self.discarded_steps / self.sum("played_steps"))
        if n_complete:
            logger.record("rollout/truncated_fraction", self.sum("n_truncated") / n_complete)
