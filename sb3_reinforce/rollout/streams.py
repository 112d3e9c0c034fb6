"""Seeds of a rollout's random numbers: a stream of its own for each thing that draws."""

import numpy as np
import torch as th

from sb3_reinforce.running import ranks

# The streams of one rollout
ACTOR, ENVIRONMENTS, SHUFFLING = range(3)


def stream_seed(seed: int | None, n_rollouts: int, stream: int) -> int:
    """
    A seed for one stream of one rollout of this rank.

    Never the bare seed: gymnasium's ``reset(seed=s)`` is ``np.random.default_rng(s)``, so an actor seeded alike
    plays the very numbers that the environment draws, and the gradient is wrong.

    :param seed: the model's; None: the seed comes from torch's global generator, as all of SB3's sampling does, because a
        user may have seeded that one
    :return: 31 bits
    """
    rank = ranks.rank()
    if seed is not None:
        words = [seed, n_rollouts, rank, stream]
    else:
        drawn = int(th.randint(2**31 - 1, ()))
        if ranks.world_size() == 1:
            return drawn
        words = [drawn, rank]  # a user may have seeded the generator alike on all ranks
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def seed_torch(seed: int, device: th.device) -> None:
    """Seed what draws from torch's global generators: gSDE, dropout, distributions that NumPy does not know."""
    # Not th.manual_seed, which asks every kind of accelerator in turn
    th.default_generator.manual_seed(seed)
    if device.type == "cuda":
        th.cuda.manual_seed(seed)
