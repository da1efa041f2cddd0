# SPDX-License-Identifier: Apache-2.0
"""The n-gram models against counting by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.ngram_model import ADDITIONS, DISCOUNTS, NgramModel, count_pairs, fit

V = 6
ids = st.lists(st.integers(0, V - 1), min_size=2, max_size=40)


def pieces(stream: list[int], *, cut: int | None = None):
    """Contexts and tokens of a stream, in one piece or two."""
    array = np.array(stream, dtype=np.int64)
    cut = len(array) if cut is None else cut
    parts = [array[: cut + 1], array[cut:]]
    return [(part[:-1], part[1:]) for part in parts if len(part) > 1]


def by_hand(stream: list[int], *, addition: float, discount: float) -> np.ndarray:
    """[V, V] p(token | context), written out from the formulas."""
    tokens, pairs = Counter(stream[1:]), Counter(zip(stream, stream[1:], strict=False))
    table = np.zeros((V, V))
    for u in range(V):
        after = {w: c for (context, w), c in pairs.items() if context == u}
        seen = sum(after.values())
        for w in range(V):
            lower = (tokens[w] + addition) / (len(stream) - 1 + addition * V)
            if seen == 0:
                table[u, w] = lower
            else:
                kept = max(after.get(w, 0) - discount, 0) / seen
                table[u, w] = kept + discount * len(after) / seen * lower
    return table


@given(ids, st.floats(1e-4, 10), st.floats(0.02, 0.98), st.integers(0, 40))
def test_probabilities_are_those_of_the_formulas(stream, addition, discount, cut):
    counts = count_pairs(pieces(stream, cut=min(cut, len(stream) - 1)), vocab_size=V)
    model = NgramModel(counts, addition=addition, discount=discount)
    contexts, tokens = np.divmod(np.arange(V * V), V)
    expected = by_hand(stream, addition=addition, discount=discount)
    np.testing.assert_allclose(model.bigram(contexts, tokens).reshape(V, V), expected, rtol=1e-12)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(model.unigram(np.arange(V)).sum(), 1.0, rtol=1e-12)


@given(ids)
def test_counts_are_those_of_a_counter(stream):
    counts = count_pairs(pieces(stream), vocab_size=V)
    pairs = Counter(zip(stream, stream[1:], strict=False))
    assert counts.keys.tolist() == sorted(u * V + w for u, w in pairs)
    assert counts.counts.sum() == len(stream) - 1
    assert counts.contexts.tolist() == [Counter(stream[:-1])[u] for u in range(V)]
    assert counts.successors.tolist() == [len({w for c, w in pairs if c == u}) for u in range(V)]


def test_an_empty_text_says_nothing():
    model = NgramModel(count_pairs([], vocab_size=V), addition=1.0, discount=0.5)
    np.testing.assert_allclose(model.bigram(np.array([0, 1]), np.array([2, 2])), 1 / V)


def test_the_fit_is_the_best_of_the_grid():
    random = np.random.default_rng(0)
    training, held_out = (
        np.cumsum(random.integers(0, 3, size=n)) % V for n in (60, 200)
    )  # each token is followed by one of three
    train = count_pairs(pieces(training.tolist()), vocab_size=V)
    test = count_pairs(pieces(held_out.tolist()), vocab_size=V)
    model = fit(train, test)

    def loss(addition: float, discount: float) -> float:
        table = by_hand(training.tolist(), addition=addition, discount=discount)
        return -np.log(table[held_out[:-1], held_out[1:]]).sum()

    best = min(DISCOUNTS, key=lambda discount: loss(model.addition, discount))
    assert model.discount == pytest.approx(best)
    unigram_losses = [
        -np.log(NgramModel(train, addition=a, discount=0.5).unigram(held_out[1:])).sum()
        for a in ADDITIONS
    ]
    assert model.addition == pytest.approx(ADDITIONS[int(np.argmin(unigram_losses))])


def test_a_text_with_structure_is_better_told_by_pairs():
    stream = [0, 1, 2, 3, 4, 5] * 50
    model = fit(
        count_pairs(pieces(stream), vocab_size=V), count_pairs(pieces(stream), vocab_size=V)
    )
    contexts, tokens = np.arange(V), (np.arange(V) + 1) % V
    assert (model.bigram(contexts, tokens) > 0.99).all()
    assert (model.unigram(tokens) < 0.2).all()
