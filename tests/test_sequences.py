"""Sequences of tokens: the expected gradient over all batches is exact, and wrong variants are seen."""

import math

import pytest
import torch as th

from sb3_reinforce import Baseline, score_function_loss
from sb3_reinforce.baselines import MovingAverageBaseline
from sb3_reinforce.score_function import leave_one_out
from sb3_reinforce.sequences import (
    cost_at_end,
    cost_to_go,
    exact_kl_to_reference,
    grpo_advantage,
    kl_to_reference,
    leave_one_out_to_go,
    mask_to_end,
    remax_baseline,
    sequence_log_prob,
    token_surrogate,
)
from tests import sequence_cases as cases
from tests.score_cases import tensor
from tests.sequence_cases import MASK, SEQUENCE_COSTS, THETA, TOKEN_COSTS, exact_gradient, expected_gradient

EXACT = exact_gradient(lambda theta: cases.probabilities(theta) @ SEQUENCE_COSTS)
EXACT_TOKENS = exact_gradient(lambda theta: cases.probabilities(theta) @ TOKEN_COSTS.nansum(-1))


def close(found, expected, factor=1.0):
    return th.allclose(found, factor * expected, atol=1e-10, rtol=0)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_mask_to_end():
    tokens = th.tensor([[5, 2, 2, 0], [2, 7, 7, 7], [1, 1, 1, 1], [1, 1, 1, 2]])
    T, F = True, False
    assert mask_to_end(tokens, end=2).tolist() == [[T, T, F, F], [T, F, F, F], [T, T, T, T], [T, T, T, T]]


def test_sums_of_sequences():
    values = tensor([[[1, 2, 4]], [[1, math.nan, 8]]])
    mask = th.tensor([[[True, True, True]], [[True, False, False]]])
    assert sequence_log_prob(values, mask).tolist() == [[7], [1]]
    assert cost_to_go(values, mask).tolist() == [[[7, 6, 4]], [[1, 0, 0]]]
    assert cost_at_end(tensor([[3], [5]]), mask).tolist() == [[[0, 0, 3]], [[5, 0, 0]]]
    # a prompt in front, a hole in the middle: C of the tokens themselves
    assert cost_to_go(tensor([9, 1, 9, 2]), th.tensor([False, True, False, True])).tolist() == [0, 3, 0, 2]


def test_leave_one_out_to_go():
    # C = (7, 6, 4), (1), (3, 2): at t = 0 (1+3)/2, (7+3)/2, (7+1)/2; at t = 1 the others of the first are the third alone;
    # at t = 2 only the first lives: its own b is that of t = 1, the last with others; the others' is its C = 4
    to_go = tensor([[7, 6, 4], [1, 0, 0], [3, 2, 0]])
    mask = th.tensor([[True, True, True], [True, False, False], [True, True, False]])
    assert leave_one_out_to_go(to_go, mask).tolist() == [[2, 2, 2], [5, 4, 4], [4, 6, 4]]


def test_remax_baseline():
    assert remax_baseline([True, False], 3).tolist() == [[1, 0]] * 3
    with pytest.raises(ValueError, match=r"shape \[B\], one cost per prompt, got \(2, 1\)"):
        remax_baseline([[1], [0]], 3)


def test_grpo_advantage():
    # f = 1, 2, 6: mean 3, variance (4 + 1 + 9)/2 = 7; equal costs have no advantage
    found = grpo_advantage([[1, 4], [2, 4], [6, 4]], eps=0.5)
    th.testing.assert_close(found[:, 0], tensor([-2, -1, 3]) / (math.sqrt(7) + 0.5))
    assert found[:, 1].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"K >= 2 samples on axis 0, got shape \(1, 3\)"):
        grpo_advantage([[1, 2, 3]])


def test_loss_by_hand():
    """Two prompts, two samples: value and weights of the tokens."""
    log_prob = th.zeros(2, 2, 2, dtype=th.float64, requires_grad=True)
    mask = th.tensor([[[True, True], [True, False]], [[True, False], [True, True]]])
    # per sequence: costs 1, 4 | 3, 8, so f - b = -2, -4 | 2, 4; every token of a sequence the same, over K * B = 4
    loss = score_function_loss(log_prob, [[1, 4], [3, 8]], mask=mask)
    assert loss.item() == 4
    found = th.autograd.grad(loss, log_prob)[0]
    assert (found * 4).tolist() == [[[-2, -2], [-4, 0]], [[2, 0], [4, 4]]]
    # per token: C = (3, 2), (5) | (1), (7, 6). b of the first prompt: (1, 1), (3); of the second: (7), (5, 5)
    loss = score_function_loss(log_prob, [[[1, 2], [5, 9]], [[1, 9], [1, 6]]], mask=mask)
    assert loss.item() == (3 + 5 + 1 + 7) / 4
    found = th.autograd.grad(loss, log_prob)[0]
    assert (found * 4).tolist() == [[[2, 1], [-2, 0]], [[-2, 0], [2, 1]]]


# --- enumerated -------------------------------------------------------------------------------------------------------


GREEDY = SEQUENCE_COSTS[4]  # of any fixed sequence
PER_SEQUENCE = [
    (b, k) for b in ("none", "leave_one_out", "remax", 2.5) for k in (1, 2, 3, 4) if (b, k) != ("leave_one_out", 1)
]


@pytest.mark.parametrize(("baseline", "n_samples"), PER_SEQUENCE)
def test_cost_per_sequence_is_exact(baseline, n_samples):
    def loss(log_prob, rows):
        b = remax_baseline(GREEDY.expand(rows.shape[1]), n_samples) if baseline == "remax" else baseline
        return score_function_loss(log_prob, SEQUENCE_COSTS[rows], b, mask=MASK[rows])

    assert close(expected_gradient(loss, n_samples), EXACT)


def own_values(to_go):
    return tensor([1, 5, -2]).expand_as(to_go)


def previous_sample(to_go):
    return to_go.roll(1, 0)


PER_TOKEN = [
    *[("none", k) for k in (1, 2, 3, 4)], *[("leave_one_out", k) for k in (2, 3, 4)], (own_values, 1), (previous_sample, 3)
]  # fmt: skip


@pytest.mark.parametrize(("baseline", "n_samples"), PER_TOKEN)
def test_cost_per_token_is_exact(baseline, n_samples):
    def loss(log_prob, rows):
        return score_function_loss(log_prob, TOKEN_COSTS[rows], baseline, mask=MASK[rows])

    assert close(expected_gradient(loss, n_samples), EXACT_TOKENS)


WRONG = {
    "padding in the sum": lambda lp, rows: score_function_loss(lp.sum(-1), SEQUENCE_COSTS[rows], "none"),
    "without the end token": lambda lp, rows: score_function_loss(
        sequence_log_prob(lp, (MASK & (cases.TOKENS != cases.END))[rows]), SEQUENCE_COSTS[rows], "none"
    ),
    "mean over the tokens of a sequence": lambda lp, rows: score_function_loss(
        sequence_log_prob(lp, MASK[rows]) / MASK[rows].sum(-1), SEQUENCE_COSTS[rows], "none"
    ),
    "mean over all tokens of the batch": lambda lp, rows: (
        (lp * (SEQUENCE_COSTS[rows] - leave_one_out(SEQUENCE_COSTS[rows]))[..., None]).where(MASK[rows], 0.0).sum((0, 2))
        / MASK[rows].sum((0, 2))
    ).mean(),
    "GRPO": lambda lp, rows: score_function_loss(lp, grpo_advantage(SEQUENCE_COSTS[rows]), "none", mask=MASK[rows]),
}


@pytest.mark.parametrize("loss", WRONG.values(), ids=WRONG)
def test_wrong_variants_are_seen(loss):
    """Not the gradient, and not a multiple of it either: the cosine is below 0.99."""
    found = expected_gradient(loss, 2)
    assert th.nn.functional.cosine_similarity(found.flatten(), EXACT.flatten(), dim=0) < 0.99


def test_a_baseline_with_its_own_sample_shortens_the_gradient():
    def loss(log_prob, rows):
        return score_function_loss(log_prob, SEQUENCE_COSTS[rows], "mean", mask=MASK[rows])

    assert close(expected_gradient(loss, 3), EXACT, 2 / 3)

    def loss_of_tokens(log_prob, rows):
        return score_function_loss(log_prob, TOKEN_COSTS[rows], lambda to_go: to_go.mean(0).expand_as(to_go), mask=MASK[rows])

    assert not close(expected_gradient(loss_of_tokens, 3), EXACT_TOKENS)


def test_cost_to_go_of_the_next_token_is_wrong():
    def loss(log_prob, rows):
        later = TOKEN_COSTS[rows].roll(-1, -1).where(MASK[rows].roll(-1, -1), 0.0)
        return score_function_loss(log_prob, later, "none", mask=MASK[rows])

    assert not close(expected_gradient(loss, 1), EXACT_TOKENS)


def test_grpo_prefers_a_gamble_to_a_better_mean():
    """
    One token chooses: safe costs 1; a gamble costs 0 with probability 0.8, else 10, so 2 on average. With p = P(gamble) the
    gradient with respect to its logit is p (1 - p) (2 - 1) = 1/4 at p = 1/2: descent leaves the gamble. Two samples differ
    with probability 2 p (1 - p), the gamble then wins by 0.8 to 0.2, and only that counts: GRPO's is
    2 p (1 - p) * 1/2 * (0.2 - 0.8) / sqrt(2) = -0.15 / sqrt(2).
    """
    costs, probability = tensor([1, 0, 10]), tensor([0.5, 0.4, 0.1])
    scores = tensor([-0.5, 0.5, 0.5])  # d log p / d logit
    true = grpo = 0.0
    for first in range(3):
        for second in range(3):
            pair, weight = th.tensor([first, second]), probability[first] * probability[second]
            log_prob = th.zeros(2, 1, dtype=th.float64, requires_grad=True)
            for cost, baseline in ((costs[pair], "leave_one_out"), (grpo_advantage(costs[pair], eps=1e-12), "none")):
                loss = score_function_loss(log_prob, cost, baseline, mask=th.ones(2, 1, dtype=bool))
                gradient = weight * th.autograd.grad(loss, log_prob)[0].flatten() @ scores[pair]
                true, grpo = (true + gradient, grpo) if baseline == "leave_one_out" else (true, grpo + gradient)
    assert true.item() == pytest.approx(0.25)
    assert grpo.item() == pytest.approx(-0.15 / math.sqrt(2))


def test_second_derivatives():
    theta = THETA.flatten()

    def expected(theta):
        return cases.probabilities(theta.view_as(THETA)) @ TOKEN_COSTS.nansum(-1)

    def surrogate(theta):
        log_prob = cases.log_probs(theta.view_as(THETA)).where(MASK, 0.0)
        baseline = tensor([1, 5, -2]).expand_as(log_prob)
        return cases.probabilities(THETA) @ token_surrogate(log_prob, TOKEN_COSTS.where(MASK, 0.0), baseline)

    hessian = th.autograd.functional.hessian
    assert surrogate(theta).item() == pytest.approx(expected(theta).item())
    assert close(hessian(surrogate, theta), hessian(expected, theta))


# --- KL to a reference ------------------------------------------------------------------------------------------------

REFERENCE_LOG_PROBS = cases.log_probs(cases.REFERENCE)


def kl(theta):
    ratio = (cases.log_probs(theta) - REFERENCE_LOG_PROBS).where(MASK, 0.0).sum(-1)
    return cases.probabilities(theta) @ ratio


@pytest.mark.parametrize("n_samples", [1, 2])
@pytest.mark.parametrize("per_token", [True, False])
def test_kl_as_a_cost_is_exact(n_samples, per_token):
    """E[cost + 0.5 KL], the cost per sequence."""
    exact = exact_gradient(lambda theta: cases.probabilities(theta) @ SEQUENCE_COSTS + 0.5 * kl(theta))

    def loss(log_prob, rows):
        penalty = 0.5 * kl_to_reference(log_prob, REFERENCE_LOG_PROBS[rows], MASK[rows])
        cost = SEQUENCE_COSTS[rows]
        cost = cost_at_end(cost, MASK[rows]) + penalty if per_token else cost + penalty.sum(-1)
        baseline = "leave_one_out" if n_samples > 1 else "none"
        return score_function_loss(log_prob, cost, baseline, mask=MASK[rows])

    assert close(expected_gradient(loss, n_samples), exact)


def expected_loss(loss):
    """Gradient of a loss per sequence, averaged over all sequences with their probabilities held."""
    return exact_gradient(lambda theta: cases.probabilities(THETA) @ loss(theta))


def test_exact_kl_is_exact():
    def loss(theta):
        log_prob = cases.log_probs(theta).where(MASK, 0.0)
        cost = exact_kl_to_reference(cases.logits(theta), cases.logits(cases.REFERENCE), MASK)
        return token_surrogate(log_prob, cost, th.zeros_like(cost))

    assert (cases.probabilities(THETA) @ loss(THETA)).item() == pytest.approx(kl(THETA).item())
    assert close(expected_loss(loss), exact_gradient(kl))


def test_exact_kl_has_its_gradient_in_the_loss():
    """Through score_function_loss, with cost_gradient=True: one token, so that nothing follows it, p = softmax(theta)."""
    theta = tensor([0.3, -0.8, 0.5], grad=True)
    q = tensor([0.1, 0.2, -0.4])
    mask = th.ones(3, 1, dtype=bool)
    cost = exact_kl_to_reference(theta.expand(3, 1, 3), q.expand(3, 1, 3), mask)
    log_prob = theta.log_softmax(0)[:, None]
    found = th.autograd.grad(score_function_loss(log_prob, cost, cost_gradient=True, mask=mask), theta)[0]
    # every sample has the same KL, so leave-one-out takes all of the score's part away
    p_q = th.autograd.functional.jacobian(
        lambda theta: theta.softmax(0) @ (theta.log_softmax(0) - q.log_softmax(0)), theta.detach()
    )
    th.testing.assert_close(found, p_q)


def test_kl_estimates_in_the_loss_are_wrong():
    def ratio(theta):
        return (cases.log_probs(theta) - REFERENCE_LOG_PROBS).where(MASK, 0.0)

    assert close(expected_loss(lambda theta: ratio(theta).sum(-1)), th.zeros_like(THETA))  # k1
    exact = exact_gradient(kl)
    assert not close(expected_loss(lambda theta: (th.exp(-ratio(theta)) - 1 + ratio(theta)).sum(-1)), exact)  # k3, GRPO's
    # k3 of whole sequences: the gradient of KL(q || p)
    reverse = exact_gradient(lambda theta: -cases.probabilities(cases.REFERENCE) @ ratio(theta).sum(-1))
    assert close(expected_loss(lambda theta: th.exp(-ratio(theta).sum(-1)) - 1 + ratio(theta).sum(-1)), reverse)
    assert not close(reverse, exact)


def test_a_forbidden_token_adds_nothing_to_the_exact_kl():
    logits = tensor([[0.0, 0.0, -math.inf]], grad=True)
    found = exact_kl_to_reference(logits, tensor([[math.log(1 / 4), math.log(3 / 4), -math.inf]]), th.tensor([True]))
    # 1/2 log 2 + 1/2 log(2/3)
    assert found.item() == pytest.approx(0.5 * math.log(4 / 3))
    assert th.autograd.grad(found.sum(), logits)[0].isfinite().all()


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_nothing_leaks_through_the_mask(per_token, junk):
    """Log-probs, costs and own values behind the mask do not matter, whatever they are."""
    generator = th.Generator().manual_seed(0)
    clean = th.randn(3, 2, 4, generator=generator, dtype=th.float64)
    mask = th.rand(3, 2, 4, generator=generator) < 0.6
    mask[..., 0] = True
    cost = th.randn(3, 2, 4, generator=generator, dtype=th.float64)
    results = []
    for fill in (0.0, junk):
        log_prob = clean.where(mask, fill).requires_grad_()
        filled = cost.where(mask, fill) if per_token else cost[..., 0]
        baseline = cost.flip(0).where(mask, fill) if per_token else "leave_one_out"
        loss = score_function_loss(log_prob, filled, baseline, mask=mask)
        results.append((loss, th.autograd.grad(loss, log_prob)[0]))
        assert (results[-1][1][~mask] == 0).all()
    assert th.equal(results[0][0], results[1][0])
    assert th.equal(results[0][1], results[1][1])


def test_kl_has_no_nan_from_behind_the_mask():
    mask = th.tensor([[True, False]])
    assert kl_to_reference(tensor([[-1, math.nan]]), tensor([[-3, -math.inf]]), mask).tolist() == [[2, 0]]
    logits = tensor([[[0, 0], [math.nan, 1]]], grad=True)
    found = exact_kl_to_reference(logits, tensor([[[0, 0], [math.nan, 2]]]), mask)
    assert found.tolist() == [[0, 0]]
    assert th.autograd.grad(found.sum(), logits)[0].tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_prompts_and_holes_are_left_out(baseline):
    """The same tokens behind a prompt and around what a tool wrote have the same gradient."""
    cost = tensor([[1, 2, 4], [3, 5, 1]])
    log_prob = th.zeros(2, 3, dtype=th.float64, requires_grad=True)
    expected = th.autograd.grad(score_function_loss(log_prob, cost, baseline, mask=th.ones(2, 3, dtype=bool)), log_prob)[0]
    places = th.tensor([1, 2, 4])
    wide, wide_cost = th.full((2, 6), math.nan, dtype=th.float64), th.full((2, 6), math.nan, dtype=th.float64)
    wide[:, places], wide_cost[:, places] = 0.0, cost
    mask = wide_cost.isfinite()
    found = th.autograd.grad(score_function_loss(wide.requires_grad_(), wide_cost, baseline, mask=mask), wide)[0]
    assert th.equal(found[:, places], expected)


def test_dtypes():
    """Costs of any kind; the loss has the dtype of log_prob."""
    log_prob = th.zeros(2, 1, 2, dtype=th.bfloat16, requires_grad=True)
    mask = [[[True, True]], [[True, False]]]
    for cost in ([[True], [False]], [[[True, False]], [[False, True]]]):
        loss = score_function_loss(log_prob, cost, mask=mask)
        assert (loss.dtype, loss.item()) == (th.bfloat16, 0.5)


GOOD = th.zeros(2, 3, 4, requires_grad=True)
ALL = th.ones(2, 3, 4, dtype=bool)
HOLLOW = ALL.clone()
HOLLOW[1, 2] = False


class Nothing(Baseline):
    def predict(self, episodes):
        return th.zeros_like(episodes.returns)


@pytest.mark.parametrize(
    ("log_prob", "cost", "baseline", "mask", "message"),
    [
        (GOOD, th.zeros(2, 3), "none", ALL.long(), r"mask must be bool.*got torch.int64.*mask.bool\(\)"),
        (GOOD, th.zeros(2, 3), "none", ALL[..., :2], r"mask must be bool, of the shape of log_prob \(2, 3, 4\).*\(2, 3, 2\)"),
        (GOOD, th.zeros(2, 3), "none", HOLLOW, r"at least one True per sequence, got none for sample 1, element \[2\]"),
        (GOOD, th.zeros(2), "none", ALL, r"cost must have the shape of log_prob.*\(2, 3\): one per sequence, got \(2,\)"),
        (GOOD, th.zeros(3, 2), "none", ALL, r"got \(3, 2\)"),
        (GOOD, None, "none", ALL, "cost must be numbers, got None"),
        (GOOD, th.full((2, 3), math.nan), "none", ALL, r"cost must be finite, got nan for sample 0, element \[0\]"),
        (GOOD, th.full((2, 3, 4), math.inf), "none", ALL, r"cost must be finite, got inf for sample 0, element \[0, 0\]"),
        (GOOD[0, 0], th.zeros(4), "none", ALL[0, 0], r"shape \[K, ..., T\], one log-prob per token, got shape \(4,\)"),
        ([1.0], th.zeros(4), "none", ALL, "log_prob must be a tensor of shape.*got list"),
        (GOOD.detach(), th.zeros(2, 3), "none", ALL, "log_prob must be a tensor with gradient"),
        (GOOD - th.inf, th.zeros(2, 3), "none", ALL, r"log_prob must be finite, got -inf for sample 0, element \[0, 0\]"),
        (GOOD[:1], th.zeros(1, 3), "leave_one_out", ALL[:1], "K must be >= 2, got 1"),
        (GOOD[:1], th.zeros(1, 3, 4), "leave_one_out", ALL[:1], "K must be >= 2, got 1"),
        (GOOD, th.zeros(2, 3, 4), "optimal", ALL, "a cost per token takes baseline 'none', 'leave_one_out'.*got 'optimal'"),
        (GOOD, th.zeros(2, 3, 4), MovingAverageBaseline(), ALL, "a cost per token takes baseline.*MovingAverageBaseline"),
        (GOOD, th.zeros(2, 3, 4), Nothing(), ALL, "a cost per token takes baseline.*Nothing"),
        (GOOD, th.zeros(2, 3, 4), th.zeros(2, 3), ALL, r"baseline must be a number or have the shape.*\(2, 3, 4\)"),
        (GOOD, th.zeros(2, 3, 4), math.nan, ALL, "baseline must be finite"),
    ],
)  # fmt: skip
def test_bad_input(log_prob, cost, baseline, mask, message):
    with pytest.raises(ValueError, match=message):
        score_function_loss(log_prob, cost, baseline, mask=mask)


def test_bad_shapes_of_the_pieces():
    with pytest.raises(ValueError, match=r"cost must have the shape of mask without T, \(2, 3\), got \(2, 1\)"):
        cost_at_end(th.zeros(2, 1), ALL)
    with pytest.raises(ValueError, match=r"must have equal shapes.*got \[\(2, 3, 4\), \(1, 3, 4\)"):
        kl_to_reference(GOOD, GOOD[:1], ALL)
    with pytest.raises(ValueError, match=r"the shape \[K, ..., T, V\], mask \[K, ..., T\], got"):
        exact_kl_to_reference(GOOD, GOOD, ALL)
