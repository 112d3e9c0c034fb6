"""``GradientDiagnostics``: how noisy the policy gradient is, logged while training."""

import warnings

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce.arguments import check_count, check_fraction

# the second names: what this module had until 0.1
from sb3_reinforce.compare import BaselineComparison as BaselineComparison
from sb3_reinforce.compare import BaselineVariance as BaselineVariance
from sb3_reinforce.compare import compare_baselines as compare_baselines
from sb3_reinforce.episode_gradients import EpisodeGradients as EpisodeGradients
from sb3_reinforce.episode_gradients import episode_gradients
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.scores import Scores
from sb3_reinforce.update.steps import sequences_of, steps_of


class GradientDiagnostics(BaseCallback):
    """
    Logs how noisy the policy gradient is, every so many updates, through the model's logger with the row of that update.

    With g_i the policy gradient of episode i and gbar their mean over N episodes (N >= 2, else nothing is logged):

    - ``gradient/variance``: trS = sum_i abs(g_i - gbar)^2 / (N - 1)
    - ``gradient/noise_scale``: trS / G2 in episodes, G2 = abs(gbar)^2 - trS / N, both averaged over the updates measured
      before dividing: how many episodes it takes until signal and noise are equal. Left out while the averaged G2 is not
      above 0: then the gradient cannot be told from zero. Source: McCandlish et al. (2018), "An Empirical Model of
      Large-Batch Training", appendix A
    - ``gradient/snr``: N G2 / trS, from the same averages; below 1 an update is mostly noise
    - ``gradient/variance_reduction``: trS without a baseline over trS with the one in use, on the same episodes
    - ``gradient/fisher_trace``: mean over the steps of abs(grad log pi)^2; over evenly spaced ones for a large policy
    - ``gradient/score_mean_z``: t-statistic of the episodes' scores along one random direction, the same in all updates.
      E[score] = 0, so it should look like a standard normal number; with few episodes its tails are Student's

    Training is not changed by it: nothing random is drawn that training would draw. With several optimiser steps per batch
    all this is of the first one.

    :param every_n_updates: from one measurement to the next; the first update is measured
    :param decay: share of the past in the averages of trS and G2, in [0, 1)
    :param verbose: Verbosity level: 0 for no output
    :raises ValueError: if the arguments are out of range, or the model is no REINFORCE
    """

    # REINFORCE need not call it at each step.
    needs_steps = False

    def __init__(self, every_n_updates: int = 20, decay: float = 0.9, verbose: int = 0):
        super().__init__(verbose)
        check_count("every_n_updates", every_n_updates)
        check_fraction("decay", decay)
        if decay == 1.0:
            raise ValueError("decay must be below 1, got 1: nothing new would enter the averages")
        self.every_n_updates, self.decay = every_n_updates, decay
        self.n_rollouts = 0
        # Averages of trS and G2. They start at 0; only their quotient is used, where that cancels.
        self._variance = self._mean_square = 0.0
        self._direction: th.Tensor | None = None
        self._warned = False

    def _init_callback(self) -> None:
        if not isinstance(self.model, REINFORCE):
            raise ValueError(
                f"GradientDiagnostics needs a REINFORCE, whose batches are whole episodes, got {type(self.model).__name__}"
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if (self.n_rollouts - 1) % self.every_n_updates == 0:
            assert isinstance(self.model, REINFORCE)
            for name, value in self.measure(self.model).items():
                self.logger.record(f"gradient/{name}", value)

    def measure(self, model: REINFORCE) -> dict[str, float]:
        """
        :param model: after a rollout and before its update
        :return: the metrics without their prefix; what cannot be computed is left out
        """
        batch, episodes = model.batch, model.batch.episodes
        n = len(episodes.lengths)
        if n < 2:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "GradientDiagnostics logs nothing of a batch of one episode, which has no variance (said once): raise "
                    "n_steps or n_episodes",
                    stacklevel=2,
                )
            return {}
        sequences = sequences_of(model.policy, episodes.lengths, model.bptt_steps)
        scores = Scores(model.policy, steps_of(model.rollout_buffer, episodes, sequences), model.chunk_size)
        if self._direction is None or len(self._direction) != scores.n_parameters:
            direction = th.randn(scores.n_parameters, generator=th.Generator().manual_seed(0))
            self._direction = (direction / direction.norm()).to(model.device)

        used = th.as_tensor(model.rollout_buffer.advantages.reshape(-1), dtype=th.float64)
        plain, reduced = batch.weights * episodes.returns, batch.weights * (episodes.returns - batch.baseline)
        # Normalised advantages have another scale, which must not count as a reduction.
        weights = th.stack([used, plain, th.ones_like(used)] + ([reduced] if model.normalize_advantage else []))
        gradients = episode_gradients(scores, episodes.lengths, weights, self._direction)
        variances = gradients.variance.tolist()
        variance, mean_square = variances[0], float(gradients.mean_square[0])
        self._variance = self.decay * self._variance + (1 - self.decay) * variance
        self._mean_square = self.decay * self._mean_square + (1 - self.decay) * mean_square
        metrics = {"variance": variance, "fisher_trace": scores.mean_square_norm()}
        if self._mean_square > 0:
            metrics["noise_scale"] = self._variance / self._mean_square
        if self._variance > 0:
            metrics["snr"] = n * self._mean_square / self._variance
        with_baseline = variances[3 if model.normalize_advantage else 0]
        if with_baseline > 0:
            metrics["variance_reduction"] = variances[1] / with_baseline
        assert gradients.along is not None
        along = gradients.along[:, 2]
        spread = float(along.std())
        if spread > 0:
            metrics["score_mean_z"] = float(along.mean()) / (spread / n**0.5)
        return metrics
