# SPDX-License-Identifier: Apache-2.0
"""The split of documents: disjoint, complete, stable, never empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.data import split as split_module
from bt_megatron.data.split import documents_of_split
from bt_megatron.errors import DataError


def _both(num_documents, fraction, seed):
    return [
        documents_of_split(num_documents, split=side, fraction=fraction, seed=seed)
        for side in ("train", "validation")
    ]


@given(
    num_documents=st.integers(2, 300),
    fraction=st.floats(1e-12, 1.0, exclude_max=True),
    seed=st.integers(0, 2**70),
)
def test_sides_are_disjoint_complete_ascending_and_not_empty(num_documents, fraction, seed):
    train, validation = _both(num_documents, fraction, seed)
    assert len(train) > 0
    assert len(validation) > 0
    assert sorted([*train, *validation]) == list(range(num_documents))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


def test_fraction_of_documents_is_held_out():
    num_documents, fraction = 200_000, 0.03
    _, validation = _both(num_documents, fraction, seed=7)
    deviation = (num_documents * fraction * (1 - fraction)) ** 0.5
    assert abs(len(validation) - num_documents * fraction) < 4 * deviation


def test_zero_fraction_gives_everything_to_training():
    train, validation = _both(5, 0.0, seed=1)
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert validation.tolist() == []


def test_appended_documents_move_no_other():
    short, long = _both(5_000, 0.1, seed=3)[1], _both(9_000, 0.1, seed=3)[1]
    assert np.array_equal(short, long[long < 5_000])


@pytest.mark.parametrize("fraction", [1e-12, 1e-4, 0.05])
def test_larger_fraction_keeps_the_documents_of_a_smaller(fraction):
    """Also where chance alone would have held out none."""
    for seed in range(5):
        small, large = _both(5_000, fraction, seed=seed)[1], _both(5_000, 0.2, seed=seed)[1]
        assert len(small) > 0
        assert set(small) < set(large)


def test_seed_changes_the_split():
    assert not np.array_equal(_both(1_000, 0.1, seed=1)[1], _both(1_000, 0.1, seed=2)[1])


def test_split_is_pinned():
    """A change here changes what every existing run was trained on."""
    assert _both(1_000, 0.01, seed=42)[1].tolist() == PINNED


def test_chunks_do_not_show(monkeypatch):
    whole = _both(1_000, 0.1, seed=5)
    monkeypatch.setattr(split_module, "_CHUNK", 17)
    for expected, found in zip(whole, _both(1_000, 0.1, seed=5), strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("num_documents", [0, 1])
def test_too_small_a_corpus_says_both_numbers(num_documents):
    with pytest.raises(DataError, match=rf"0\.01.*corpus: {num_documents}, at least 2"):
        documents_of_split(num_documents, split="train", fraction=0.01, seed=42)


PINNED = [171, 215, 315, 496, 564, 642, 658, 718, 808, 920]
