"""
A small transformer learns to write arithmetic that evaluates to a given number. Python says how far off a text is: its cost.
The 16 texts for each target have each other as baseline (RLOO); a reward for entropy keeps it trying.
"""

import re

import torch as th
from torch.distributions import Categorical

from sb3_reinforce import score_function_loss
from sb3_reinforce.sequences import mask_to_end, sequence_log_prob

SYMBOLS, END = "0123456789+-*.", 13  # "." ends a text
N_TARGETS, LENGTH = 20, 6  # the prompt is one token: 14 stands for the target 0, 15 for 1, ...


class Writer(th.nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.embedding = th.nn.Embedding(len(SYMBOLS) + N_TARGETS, width)
        self.places = th.nn.Parameter(th.randn(LENGTH, width))
        layer = th.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = th.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = th.nn.Linear(width, len(SYMBOLS))

    def forward(self, tokens: th.Tensor) -> Categorical:  # of the symbol after each token, batch shape [N, t]
        mask = th.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.body(self.embedding(tokens) + self.places[: tokens.shape[1]], mask=mask, is_causal=True)
        return Categorical(logits=self.head(hidden))


def main(n_updates: int = 300, n_samples: int = 16, seed: int = 0) -> float:
    th.manual_seed(seed)
    writer, targets = Writer(), th.arange(N_TARGETS).repeat(n_samples)
    optimizer = th.optim.Adam(writer.parameters(), lr=3e-3)
    for update in range(n_updates + 1):
        tokens = targets[:, None] + len(SYMBOLS)
        with th.no_grad():
            for _ in range(LENGTH):
                tokens = th.cat([tokens, writer(tokens).sample()[:, -1:]], 1)
        texts = ["".join(SYMBOLS[token] for token in row[1:]).partition(".")[0] for row in tokens.tolist()]
        values = [eval(text) if re.fullmatch(r"\d([-+*]\d)+", text) else 1e9 for text in texts]
        distance = (th.tensor(values) - targets).abs().view(n_samples, N_TARGETS)
        cost = (distance > 0) + (distance / 10).clamp(max=2)
        log_prob = writer(tokens[:, :-1]).log_prob(tokens[:, 1:]).view(n_samples, N_TARGETS, LENGTH)
        mask = mask_to_end(tokens[:, 1:], END).view_as(log_prob)
        loss = score_function_loss(log_prob, cost + 0.07 * sequence_log_prob(log_prob.detach(), mask), mask=mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update % (n_updates // 4) == 0:
            right = (distance == 0).float().mean().item()
            print(f"{update} updates: {right:.1%} right;", ", ".join(f"{n} = {texts[n]}" for n in range(3, 20, 4)))
    return right


if __name__ == "__main__":
    main()
