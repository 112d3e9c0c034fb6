"""
The pictures of docs/score_function.md and docs/sequences.md.

    python benchmarks/tutorial_pictures.py

Draws docs/score_function_idea.png, _methods.png, _variance.png and _grpo.png in a minute.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch as th
from style import BLUE, GRAY, GREEN, RED, new_figure, save
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from sb3_reinforce import ScoreFunctionEstimator, compare_estimators
from sb3_reinforce.score_function import leave_one_out
from sb3_reinforce.sequences import grpo_advantage

DOCS = Path(__file__).parent.parent / "docs"


def draw_idea() -> None:
    """Left: what ten samples say about the mean. Right: where it goes."""

    def cost(x: th.Tensor) -> th.Tensor:
        return 1.0 + (x < 1.0).float() + (x < -0.5).float()  # stairs: the derivative is 0 everywhere

    th.manual_seed(173)
    figure = new_figure(3.4, width=9)
    left, right = figure.subplots(1, 2)
    grid = th.linspace(-3.5, 5.0, 600)
    for axes in (left, right):
        axes.plot(grid, cost(grid), color="black", linewidth=1.5, label="cost f(x)")
        axes.set(xlabel="x", xlim=(-3.5, 5.0), ylim=(0, 3.9), yticks=[1, 2, 3])
    theta = th.tensor(0.0, requires_grad=True)
    x = Normal(theta, 1.0).sample((10,)).sort().values
    f = cost(x)
    push = -(f - leave_one_out(f)) * x  # descent: minus (cost - b) times the score x - theta
    left.fill_between(grid, Normal(0.0, 1.0).log_prob(grid).exp() * 2, color=BLUE, alpha=0.2, label="p(x; theta)")
    for x_k, f_k, push_k in zip(x.tolist(), f.tolist(), push.tolist(), strict=True):
        colour = GREEN if push_k > 0 else RED
        left.plot(x_k, f_k, "o" if push_k > 0 else "s", color=colour, markersize=7)
        left.annotate(
            "", (x_k + 0.6 * push_k, f_k + 0.25), (x_k, f_k + 0.25), arrowprops=dict(arrowstyle="->", color=colour, lw=2)
        )
    left.set_title("each sample pushes the mean: (b - cost) * score", fontsize="medium")
    optimizer = th.optim.SGD([theta], lr=0.3)
    estimator = ScoreFunctionEstimator(n_samples=10)
    for step in range(31):
        if step in (0, 10, 30):
            density = Normal(theta.item(), 1.0).log_prob(grid).exp() * 2
            style = {0: "-", 10: "--", 30: ":"}[step]
            right.plot(grid, density, style, color=BLUE, linewidth=2, label=f"p after {step} steps")
        optimizer.zero_grad()
        estimator(Normal(theta, 1.0), cost).backward()
        optimizer.step()
    right.set_title("it moves to where the cost is low", fontsize="medium")
    right.legend(loc="upper right", fontsize="small")
    left.legend(loc="upper right", fontsize="small")
    save(figure, DOCS / "score_function_idea.png")


# question, place; an arrow "yes" goes right to the methods, "no" goes down to the next question
QUESTIONS = [
    ("Can you pay for one evaluation\nof every value of x?", '"enumerate"', "exact: no variance"),
    (
        "Can all values be listed,\nand a few are likely?",
        '"sum_and_sample", "without_replacement"',
        "never the same value twice",
    ),
    ("Are they Bernoulli variables, and has\nthe cost a gradient in x?", '"double_cv"', "one evaluation per sample"),
    (
        "Bernoulli or categorical variables,\nand the cost a black box?",
        '"disarm"; "relax"',
        "pairs; a network that learns the cost",
    ),
    ("A few Normal, Poisson or\nGamma variables?", '"measure_valued"', "differences, for each parameter"),
    ("Anything else, or in doubt", '"score", baseline="leave_one_out"', "asks for nothing"),
]


def draw_methods() -> None:
    """Questions from top to bottom; the first "yes" names the method to try first."""
    figure = new_figure(5.6, width=9)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 10), ylim=(-len(QUESTIONS) + 0.45, 0.55))
    axes.axis("off")
    box = dict(boxstyle="round,pad=0.45", linewidth=1.5)
    arrow = dict(arrowstyle="-|>", color=GRAY, lw=1.5)
    for row, (question, methods, why) in enumerate(QUESTIONS):
        last = row == len(QUESTIONS) - 1
        axes.annotate("", (5.4, -row), (3.9, -row), arrowprops=arrow)
        axes.text(4.65, -row + 0.08, "" if last else "yes", color=GRAY, ha="center", va="bottom", fontsize=11)
        if not last:
            axes.annotate("", (2.1, -row - 0.68), (2.1, -row - 0.3), arrowprops=arrow)
            axes.text(2.2, -row - 0.5, "no", color=GRAY, va="center", fontsize=11)
        axes.text(2.1, -row, question, ha="center", va="center", fontsize=11, bbox=dict(**box, fc="white", ec=BLUE))
        axes.text(5.5, -row + 0.13, methods, va="center", fontsize=11.5, weight="bold", color="black", family="monospace")
        axes.text(5.5, -row - 0.17, why, va="center", fontsize=10.5, color=GRAY)
    save(figure, DOCS / "score_function_methods.png")


def problems() -> dict[str, tuple[Distribution, Callable[[th.Tensor], th.Tensor], int]]:
    """Distribution, cost, evaluations per estimate."""
    th.manual_seed(0)
    weights, table = th.randn(20), th.randn(12)
    return {
        "one choice of 12, some of them likely": (
            Categorical(logits=th.linspace(0.0, 4.0, 12).requires_grad_()), lambda x: table[x], 6),
        "20 bits, a cost with a gradient": (
            Independent(Bernoulli(logits=th.zeros(20, requires_grad=True)), 1), lambda x: (x @ weights - 1).square(), 6),
        "20 bits, the same cost as a black box": (
            Independent(Bernoulli(logits=th.zeros(20, requires_grad=True)), 1),
            lambda x: (x.detach() @ weights - 1).square(), 6),
        "3 normal settings, a black box": (
            Independent(Normal(th.zeros(3, requires_grad=True), 1.0), 1), lambda x: (x.round() - 1).square().sum(-1), 12),
    }  # fmt: skip


def draw_variance() -> None:
    """What each method leaves of the variance of leave-one-out, at equal evaluations, on four problems."""
    figure = new_figure(6.2, width=9)
    for axes, (title, (distribution, cost, n_evaluations)) in zip(figure.subplots(2, 2).flat, problems().items(), strict=True):
        result = compare_estimators(distribution, cost, n_evaluations)
        print(title, result, sep="\n", end="\n\n")
        rows = sorted((row for row in result.rows if row.variance > 0), key=lambda row: -row.relative_evaluations)
        for place, row in enumerate(rows):
            reference = row.name == "score, leave_one_out"
            colour, marker = (GRAY, "s") if reference else (BLUE, "o")
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
            axes.plot(row.relative_evaluations, place, marker, color=colour, markersize=7)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.axvline(1.0, color=GRAY, linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(0.2, 4.0)
        axes.set_xticks(ticks := [0.25, 0.5, 1, 2, 4], [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(f"{title}\n{n_evaluations} evaluations", fontsize="medium")
        axes.grid(axis="y", alpha=0)
    figure.supxlabel("variance of the gradient, relative to leave-one-out (less is better)", fontsize="medium")
    save(figure, DOCS / "score_function_variance.png")


def expected_gradients(n_samples: int, gamble: float) -> tuple[float, float]:
    """
    Of RLOO and GRPO with respect to the logit of P(gamble), summed over all batches of K samples.

    Safe costs 1; the gamble costs 0 with probability 0.8, else 10. So E[cost] = 1 + P(gamble).
    """
    probabilities, costs = [1 - gamble, 0.8 * gamble, 0.2 * gamble], th.tensor([1.0, 0.0, 10.0])
    scores = th.tensor([-gamble, 1 - gamble, 1 - gamble])
    totals = th.zeros(2)
    for first in range(n_samples + 1):
        for second in range(n_samples + 1 - first):
            counts = [first, second, n_samples - first - second]
            ways = math.factorial(n_samples) / math.prod(math.factorial(count) for count in counts)
            weight = ways * math.prod(p**count for p, count in zip(probabilities, counts, strict=True))
            x = th.arange(3).repeat_interleave(th.tensor(counts))
            f = costs[x]
            weights = th.stack([f - leave_one_out(f), grpo_advantage(f).float()])
            totals += weight * (weights * scores[x]).mean(1)
    return totals[0].item(), totals[1].item()


def draw_grpo() -> None:
    """Left: the expected gradient of GRPO for some K, beside the true one. Right: following both with K = 8."""
    figure = new_figure(3.4, width=9)
    left, right = figure.subplots(1, 2)
    grid = th.linspace(0.02, 0.98, 25).tolist()
    left.plot(grid, [1.0] * len(grid), color="black", linewidth=2, label="RLOO, any K: exact")
    for n_samples, style in ((2, "-"), (8, "--"), (16, "-."), (32, ":")):
        ratios = [expected_gradients(n_samples, p)[1] / (p * (1 - p)) for p in grid]
        left.plot(grid, ratios, style, color=RED, linewidth=2, label=f"GRPO, K = {n_samples}")
    left.axhline(0.0, color=GRAY, linewidth=1)
    left.set(xlabel="P(gamble)", ylabel="expected gradient / p (1 - p)", ylim=(-1.8, 2.9))
    left.set_title("above 0: away from the gamble", fontsize="medium")
    left.legend(fontsize="small", ncols=2, loc="upper left")
    for index, name, colour, style in ((0, "RLOO", BLUE, "-"), (1, "GRPO", RED, "--")):
        logit, path = 0.0, []
        for _ in range(61):
            gamble = 1 / (1 + math.exp(-logit))
            path.append(1 + gamble)
            logit -= 0.5 * expected_gradients(8, gamble)[index]
        right.plot(path, style, color=colour, linewidth=2.5, label=f"{name}, K = 8")
    right.axhline(1.0, color="black", linewidth=1, linestyle=":")
    right.axhline(2.0, color="black", linewidth=1, linestyle=":")
    right.text(2, 1.02, "always safe", va="bottom")
    right.text(2, 1.98, "always the gamble", va="top")
    right.set(xlabel="updates", ylabel="E[cost]", ylim=(0.9, 2.1))
    right.set_title("following the expected gradients", fontsize="medium")
    right.legend(fontsize="small", loc="center right")
    save(figure, DOCS / "score_function_grpo.png")


if __name__ == "__main__":
    draw_idea()
    draw_methods()
    draw_variance()
    draw_grpo()
