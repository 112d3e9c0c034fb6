"""
A small transformer learns to write arithmetic, such as 6*8-1, that evaluates to a given number.

Nobody shows it any arithmetic: it writes, Python's eval says how far off the value is, and that is the cost of the sequence. K
samples for each target have each other as baseline (RLOO).
"""

import re

import torch as th
from torch.distributions import Categorical

from sb3_reinforce import score_function_loss
from sb3_reinforce.sequences import mask_to_end

SYMBOLS = "0123456789+-*."  # the last one ends the text
N_TARGETS, LENGTH = 40, 6


class Writer(th.nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.targets, self.symbols = th.nn.Embedding(N_TARGETS, width), th.nn.Embedding(len(SYMBOLS), width)
        self.places = th.nn.Parameter(th.randn(LENGTH, width))
        layer = th.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body, self.head = (
            th.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            th.nn.Linear(width, len(SYMBOLS)),
        )

    def forward(self, targets: th.Tensor, tokens: th.Tensor) -> Categorical:
        """The distribution of every next symbol: [N], [N, t] -> batch shape [N, t + 1]."""
        x = th.cat([self.targets(targets)[:, None], self.symbols(tokens)], 1) + self.places[: tokens.shape[1] + 1]
        causal = th.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return Categorical(logits=self.head(self.body(x, mask=causal, is_causal=True)))

    @th.no_grad()
    def write(self, targets: th.Tensor) -> th.Tensor:
        tokens = targets.new_zeros(len(targets), 0)
        while tokens.shape[1] < LENGTH:
            tokens = th.cat([tokens, self(targets, tokens).sample()[:, -1:]], 1)
        return tokens


def cost_of(target: int, tokens: list[int]) -> tuple[float, str]:
    text = "".join(SYMBOLS[token] for token in tokens).partition(".")[0]
    valid = re.fullmatch(r"\d([-+*]\d)+", text)
    return (min(abs(eval(text) - target) / 10, 1) if valid else 2), text


def main(n_updates: int = 600, n_samples: int = 16, seed: int = 0) -> float:
    th.manual_seed(seed)
    writer, targets = Writer(), th.arange(N_TARGETS).repeat(n_samples)
    optimizer = th.optim.Adam(writer.parameters(), lr=3e-3)
    for update in range(n_updates + 1):
        tokens = writer.write(targets)
        costs, texts = zip(*map(cost_of, targets.tolist(), tokens.tolist()), strict=True)
        if update % (n_updates // 4) == 0:
            right = sum(cost == 0 for cost in costs) / len(costs)
            print(
                f"{update:4d}: {right:6.1%} right",
                *(f"{target}={texts[target]}" for target in range(7, N_TARGETS, 8)),
                sep="  ",
            )
        log_prob = writer(targets, tokens[:, :-1]).log_prob(tokens).view(n_samples, N_TARGETS, LENGTH)
        mask = mask_to_end(tokens, end=SYMBOLS.index(".")).view_as(log_prob)
        loss = score_function_loss(log_prob, th.tensor(costs).view(n_samples, N_TARGETS), mask=mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return right


if __name__ == "__main__":
    main()
