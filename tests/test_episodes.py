"""Episodes of several ranks as one."""

import torch as th

from sb3_reinforce import Episodes
from sb3_reinforce.episodes import join_episodes


def test_join_episodes():
    def part(first: float, lengths: list[int], envs: list[int]) -> Episodes:
        n = sum(lengths)
        return Episodes(
            returns=first + th.arange(n), lengths=th.tensor(lengths), env_indices=th.tensor(envs), fixed_count=False,
            observations={"a": th.full((n, 2), first)}, first_steps=th.zeros(len(lengths), dtype=th.int64),
        )  # fmt: skip

    joined = join_episodes([part(0.0, [2, 1], [0, 1]), part(10.0, [1], [0]), part(20.0, [1, 1], [0, 0])], [2, 1, 1])
    assert joined.returns.tolist() == [0, 1, 2, 10, 20, 21]
    assert joined.env_indices.tolist() == [0, 1, 2, 3, 3]
    assert joined.groups.tolist() == [0, 0, 1, 2, 3, 3]
    assert joined.observations["a"][:, 0].tolist() == [0, 0, 0, 10, 20, 20]
    assert joined.values is None
    assert not joined.fixed_count
