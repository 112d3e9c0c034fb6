"""The metrics in sections, as the W&B workspace, the W&B report and the HTML page show them. The names are SB3's."""

from typing import Literal, NamedTuple

STEP_KEY = "global_step"
# of the returns and lengths of an update's episodes
STATISTICS = ("mean", "std", "min", "max")


class Metric(NamedTuple):
    """One metric and its panel."""

    key: str
    title: str
    kind: Literal["line", "histogram", "video"] = "line"


class Section(NamedTuple):
    """Panels that answer one question."""

    title: str
    question: str
    metrics: tuple[Metric, ...]


SECTIONS = (
    Section(
        "Learning",
        "Does the return rise? Raw episode returns of each update, deterministic evaluation, share of successes.",
        (
            Metric("rollout/ep_rew_mean", "Episode return, mean of the last 100"),
            *(Metric(f"rollout/ep_return_{name}", f"Episode return of the update, {name}") for name in STATISTICS),
            Metric("rollout/ep_return_hist", "Episode returns of the update", "histogram"),
            Metric("episode/return", "Return of single episodes"),
            Metric("eval/mean_reward", "Evaluation, mean return"),
            Metric("eval/mean_ep_length", "Evaluation, mean episode length"),
            Metric("rollout/success_rate", "Success rate, last 100 episodes"),
            Metric("eval/success_rate", "Success rate in evaluation"),
            Metric("eval/video", "An evaluation episode", "video"),
        ),
    ),
    Section(
        "Gradient",
        "How noisy is the estimate, and does the baseline help? Variance of the gradients of single episodes, signal to "
        "noise, variance without the baseline over variance with it, and a test that the mean score is zero.",
        (
            Metric("gradient/variance", "Variance of the episodes' gradients"),
            Metric("gradient/snr", "Signal-to-noise ratio"),
            Metric("gradient/noise_scale", "Noise scale, episodes"),
            Metric("gradient/variance_reduction", "Variance reduction by the baseline"),
            Metric("gradient/score_mean_z", "Mean score, t-statistic"),
            Metric("gradient/fisher_trace", "Fisher trace per step"),
            Metric("train/grad_norm", "Gradient norm before clipping"),
        ),
    ),
    Section(
        "Policy",
        "How fast does the policy change, and does it still explore? The loss is no measure of progress.",
        (
            Metric("train/entropy_loss", "Entropy loss (minus the entropy)"),
            Metric("train/approx_kl", "KL between the policy before and after"),
            Metric("train/std", "Standard deviation of the actions, exp(log_std)"),
            Metric("train/policy_gradient_loss", "Policy gradient loss"),
            Metric("train/clip_fraction", "Clipped ratios"),
            Metric("train/learning_rate", "Learning rate"),
            Metric("train/target_kl", "KL divergence aimed at (natural gradient)"),
            Metric("train/n_updates", "Updates"),
            Metric("histogram/actions", "Actions", "histogram"),
            Metric("histogram/advantages", "Advantages", "histogram"),
        ),
    ),
    Section(
        "Value baseline",
        "Does V explain the returns? 1 is perfect, 0 is no better than a constant.",
        (
            Metric("train/value_loss", "Value loss"),
            Metric("train/explained_variance", "Explained variance, before the fit"),
            Metric("histogram/returns", "Returns of the steps", "histogram"),
        ),
    ),
    Section(
        "Rollouts",
        "What is an update made of, and how much of what was played is not used?",
        (
            Metric("rollout/ep_len_mean", "Episode length, mean of the last 100"),
            *(Metric(f"rollout/ep_length_{name}", f"Episode length of the update, {name}") for name in STATISTICS),
            Metric("rollout/ep_length_hist", "Episode lengths of the update", "histogram"),
            Metric("episode/length", "Length of single episodes"),
            Metric("rollout/n_episodes", "Episodes of the update"),
            Metric("rollout/discarded_fraction", "Discarded steps, share of those played"),
            Metric("rollout/discarded_steps", "Discarded steps"),
            Metric("rollout/truncated_fraction", "Episodes ended by a time limit"),
        ),
    ),
    Section(
        "Speed",
        "Steps per second since training began.",
        (
            Metric("time/fps", "Steps per second"),
            Metric("time/time_elapsed", "Seconds"),
            Metric("time/iterations", "Iterations"),
            Metric("time/total_timesteps", "Steps"),
        ),
    ),
)


def all_metrics() -> dict[str, Metric]:
    """:return: every metric of the dashboard by its key"""
    return {metric.key: metric for section in SECTIONS for metric in section.metrics}
