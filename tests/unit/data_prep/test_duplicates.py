# SPDX-License-Identifier: Apache-2.0
"""Equal documents are found exactly, and near ones as their true similarity says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.duplicates import SignatureTable, near_repeated, repeated
from data_prep.signatures import shingle_hashes


@given(rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_all_but_the_first_of_equal_rows_are_marked(rows):
    hashes = np.array(rows, dtype=np.uint64).reshape(-1, 2)
    expected = [row in rows[:i] for i, row in enumerate(rows)]
    assert repeated(hashes).tolist() == expected


@given(ids=st.lists(st.integers(0, 3), max_size=30))
def test_shingles_are_the_different_runs(ids):
    runs = {tuple(ids[i : i + 5]) for i in range(max(1, len(ids) - 4))} if ids else set()
    assert len(shingle_hashes(np.array(ids, dtype=np.uint16))) == len(runs)


def _signatures(rng, size, *, changed=0.0, of=None):
    table = rng.integers(0, 2**32, size=(size, 128), dtype=np.uint32) if of is None else of.copy()
    spots = rng.random(table.shape) < changed
    table[spots] = rng.integers(0, 2**32, size=int(spots.sum()), dtype=np.uint32)
    return table


@pytest.mark.parametrize("cut", [1, 7, 40], ids=str)
def test_groups_are_found_over_parts_and_their_first_stays(cut):
    rng = np.random.default_rng(0)
    different = _signatures(rng, 40)
    near, far = _signatures(rng, 40, changed=0.03, of=different), _signatures(rng, 40, changed=0.6)
    everything = np.concatenate((different, far, near))
    table = SignatureTable(np.split(everything, range(cut, len(everything), cut)))
    bands = []
    marks = near_repeated(
        table,
        threshold=0.8,
        is_out=np.zeros(120, dtype=np.bool_),
        on_band=lambda band, total: bands.append((band, total)),
    )
    assert marks.tolist() == [False] * 80 + [True] * 40
    assert bands[-1][0] == bands[-1][1] == len(bands)


def test_documents_that_are_out_do_not_lead():
    rng = np.random.default_rng(0)
    table = np.repeat(_signatures(rng, 1), 3, axis=0)
    marks = near_repeated(
        SignatureTable([table]),
        threshold=0.8,
        is_out=np.array([True, False, False]),
        on_band=lambda *_: None,
    )
    assert marks.tolist() == [False, False, True]
