"""Minibatches and chunks of the rollout buffer's rows."""

from types import SimpleNamespace

import numpy as np
import pytest

from sb3_reinforce.update import rows


def buffer(size: int) -> SimpleNamespace:
    """Rows asks for the number of rows, and makes the buffer flatten its arrays by a first get()."""
    return SimpleNamespace(buffer_size=size, get=lambda batch_size: iter([None]))


def test_minibatches():
    """Without a size all rows at once and in order; else each row once, shuffled, and the last minibatch has the rest."""
    all_rows = rows.Rows(buffer(7), [7], None)
    assert list(all_rows.minibatches(None, np.random.default_rng(0))) == [(slice(0, 7), 7)]
    assert list(all_rows.minibatches(7, np.random.default_rng(0))) == [(slice(0, 7), 7)]
    minibatches = list(all_rows.minibatches(3, np.random.default_rng(0)))
    assert [n_rows for _, n_rows in minibatches] == [len(part) for part, _ in minibatches] == [3, 3, 1]
    order = np.concatenate([part for part, _ in minibatches]).tolist()
    assert sorted(order) == list(range(7)) != order


def test_chunks():
    assert list(rows.chunks(slice(2, 7), 2)) == [slice(2, 4), slice(4, 6), slice(6, 7)]
    assert [chunk.tolist() for chunk in rows.chunks(np.array([5, 1, 3]), 2)] == [[5, 1], [3]]
    assert list(rows.chunks(slice(2, 7), None)) == [slice(2, 7)]


@pytest.mark.parametrize("sizes", [[10, 3, 1], [8, 8], [1, 9]])
def test_minibatches_of_ranks(sizes: list[int]):
    """All ranks make as many as the largest needs, none above batch_size, each row once; all ranks know the sum."""
    of_ranks = []
    for size in sizes:
        of_ranks.append(list(rows.Rows(buffer(size), sizes, None).minibatches(4, np.random.default_rng(0))))
        assert sorted(np.concatenate([part for part, _ in of_ranks[-1]])) == list(range(size))
    assert {len(minibatches) for minibatches in of_ranks} == {-(-max(sizes) // 4)}
    for minibatch in zip(*of_ranks, strict=True):
        lengths = [len(part) for part, _ in minibatch]
        assert max(lengths) <= 4
        assert {total for _, total in minibatch} == {sum(lengths)}
