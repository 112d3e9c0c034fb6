"""The metrics in sections, as the W&B workspace, the W&B report and the HTML page show them. The names are SB3's."""

from typing import Literal, NamedTuple

STEP_KEY = "global_step"
# of the returns and lengths of an update's episodes
STATISTICS = ("mean", "std", "min", "max")
RETURNS: tuple[Literal["return", "positive"], ...] = ("return", "positive", "return", "return")


class Metric(NamedTuple):
    """One metric and its panel."""

    key: str
    title: str
    kind: Literal["line", "histogram", "video"] = "line"
    #: "return": an episode's reward; "positive": 0 at least; "share": 0 to 1; bands do not go beyond
    values: Literal["any", "return", "positive", "share"] = "any"


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
            Metric("rollout/ep_rew_mean", "Episode return, mean of the last 100", values="return"),
            *(
                Metric(f"rollout/ep_return_{name}", f"Episode return of the update, {name}", "line", values)
                for name, values in zip(STATISTICS, RETURNS, strict=True)
            ),
            Metric("rollout/ep_return_hist", "Episode returns of the update", "histogram"),
            Metric("episode/return", "Return of single episodes", values="return"),
            Metric("eval/mean_reward", "Evaluation, mean return", values="return"),
            Metric("eval/mean_ep_length", "Evaluation, mean episode length", values="positive"),
            Metric("rollout/success_rate", "Success rate, last 100 episodes", values="share"),
            Metric("eval/success_rate", "Success rate in evaluation", values="share"),
            Metric("eval/video", "An evaluation episode", "video"),
        ),
    ),
    Section(
        "Gradient",
        "How noisy is the estimate, and does the baseline help? Variance of the gradients of single episodes, signal to "
        "noise, variance without the baseline over variance with it, and a test that the mean score is zero.",
        (
            Metric("gradient/variance", "Variance of the episodes' gradients", values="positive"),
            Metric("gradient/snr", "Signal-to-noise ratio", values="positive"),
            Metric("gradient/noise_scale", "Noise scale, episodes"),
            Metric("gradient/variance_reduction", "Variance reduction by the baseline", values="positive"),
            Metric("gradient/score_mean_z", "Mean score, t-statistic"),
            Metric("gradient/fisher_trace", "Fisher trace per step", values="positive"),
            Metric("train/grad_norm", "Gradient norm before clipping", values="positive"),
        ),
    ),
    Section(
        "Policy",
        "How fast does the policy change, and does it still explore? The loss is no measure of progress.",
        (
            Metric("train/entropy_loss", "Entropy loss (minus the entropy)"),
            Metric("train/approx_kl", "KL between the policy before and after", values="positive"),
            Metric("train/std", "Standard deviation of the actions, exp(log_std)", values="positive"),
            Metric("train/policy_gradient_loss", "Policy gradient loss"),
            Metric("train/clip_fraction", "Clipped ratios", values="share"),
            Metric("train/learning_rate", "Learning rate", values="positive"),
            Metric("train/target_kl", "KL divergence aimed at (natural gradient)", values="positive"),
            Metric("train/n_updates", "Updates", values="positive"),
            Metric("histogram/actions", "Actions", "histogram"),
            Metric("histogram/advantages", "Advantages", "histogram"),
        ),
    ),
    Section(
        "Value baseline",
        "Does V explain the returns? 1 is perfect, 0 is no better than a constant. Where returns hardly vary, as in a solved "
        "task, it may be NaN or far below 0 although V is good: see the loss.",
        (
            Metric("train/value_loss", "Value loss", values="positive"),
            Metric("train/explained_variance", "Explained variance, before the fit"),
            Metric("histogram/returns", "Returns of the steps", "histogram"),
        ),
    ),
    Section(
        "Rollouts",
        "What is an update made of, and how much of what was played is not used?",
        (
            Metric("rollout/ep_len_mean", "Episode length, mean of the last 100", values="positive"),
            *(
                Metric(f"rollout/ep_length_{name}", f"Episode length of the update, {name}", values="positive")
                for name in STATISTICS
            ),
            Metric("rollout/ep_length_hist", "Episode lengths of the update", "histogram"),
            Metric("episode/length", "Length of single episodes", values="positive"),
            Metric("rollout/n_episodes", "Episodes of the update", values="positive"),
            Metric("rollout/discarded_fraction", "Discarded steps, share of those played", values="share"),
            Metric("rollout/discarded_steps", "Discarded steps", values="positive"),
            Metric("rollout/truncated_fraction", "Episodes ended by a time limit", values="share"),
        ),
    ),
    Section(
        "Speed",
        "Steps per second since training began.",
        (
            Metric("time/fps", "Steps per second", values="positive"),
            Metric("time/time_elapsed", "Seconds", values="positive"),
            Metric("time/iterations", "Iterations", values="positive"),
            Metric("time/total_timesteps", "Steps", values="positive"),
        ),
    ),
)


def all_metrics() -> dict[str, Metric]:
    """:return: every metric of the dashboard by its key"""
    return {metric.key: metric for section in SECTIONS for metric in section.metrics}
