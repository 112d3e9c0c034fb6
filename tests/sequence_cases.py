"""All sequences of a tiny language, and the expected gradient over all batches of them."""

import itertools

import torch as th

from tests.score_cases import tensor

END, LENGTH, VOCABULARY = 2, 3, 3


def all_sequences():
    """Tokens [N, T] and mask [N, T]: 15 sequences of at most 3 tokens; behind the end token stands a 1."""
    tokens, masks = [], []
    for row in itertools.product(range(VOCABULARY), repeat=LENGTH):
        length = row.index(END) + 1 if END in row else LENGTH
        if all(token == 1 for token in row[length:]):
            tokens.append(row)
            masks.append([t < length for t in range(LENGTH)])
    return th.tensor(tokens), th.tensor(masks)


TOKENS, MASK = all_sequences()
PREVIOUS = th.cat([th.full_like(TOKENS[:, :1], END), TOKENS[:, :-1]], 1)
# logits of each token, given t and the token before it
THETA = th.randn(LENGTH, VOCABULARY, VOCABULARY, generator=th.Generator().manual_seed(0), dtype=th.float64)
REFERENCE = th.randn(LENGTH, VOCABULARY, VOCABULARY, generator=th.Generator().manual_seed(1), dtype=th.float64)
SEQUENCE_COSTS = th.arange(15, dtype=th.float64).square() % 7
# f_t depends on the tokens up to t alone
TOKEN_COSTS = tensor([[1, -2, 4], [0, 3, 1], [2, 5, -1]])[PREVIOUS, TOKENS].where(MASK, th.nan)


def logits(theta):
    """[N, T, V]"""
    return theta[th.arange(LENGTH), PREVIOUS]


def log_probs(theta):
    """[N, T]; behind the end as well, where they must not matter."""
    return logits(theta).log_softmax(-1).gather(-1, TOKENS[..., None]).squeeze(-1)


def probabilities(theta):
    return log_probs(theta).where(MASK, 0.0).sum(-1).exp()


def exact_gradient(expectation):
    """Of a function of theta that sums over all sequences."""
    return th.autograd.functional.jacobian(expectation, THETA)


def expected_gradient(loss, n_samples):
    """
    sum over all batches of K sequences for one prompt of their probability times the gradient of their loss.

    ``loss(log_prob, rows)`` gets log-probs [K, N^K, T] and the numbers of the sequences [K, N^K], all batches side by side, as
    if each were a prompt. It is a mean over them; here each gets its probability as its weight.
    """
    theta = THETA.clone().requires_grad_()
    rows = th.cartesian_prod(*[th.arange(len(TOKENS))] * n_samples).reshape(-1, n_samples).T
    log_prob = log_probs(theta)[rows]
    at_hand = log_prob.detach().requires_grad_()
    per_batch = th.autograd.grad(loss(at_hand, rows) * rows.shape[1], at_hand)[0]
    weights = probabilities(THETA)[rows].prod(0)
    return th.autograd.grad(log_prob, theta, per_batch * weights[:, None])[0]
