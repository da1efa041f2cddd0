# SPDX-License-Identifier: Apache-2.0
"""Two engines, the same ids: for any text, not only for good ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.engines import Encoded, FastEngine, ReferenceEngine, has_fast_engine

needs_fast_engine = pytest.mark.skipif(not has_fast_engine(), reason="fastokens is not installed")


@pytest.fixture(scope="module", params=["neox", "trained"])
def engines(request, repository, tokenizer_file):
    neox = repository / "tests/fixtures/tokenizers/gpt-neox-20b.json"
    path = neox if request.param == "neox" else tokenizer_file
    return FastEngine(path.read_bytes()), ReferenceEngine(Tokenizer.from_file(str(path)))


# Marks that combine, everything that is or looks like whitespace, added tokens, and any other.
PIECES = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.characters(min_codepoint=32, max_codepoint=126),
    st.characters(min_codepoint=0x300, max_codepoint=0x36F),
    st.sampled_from(list(" \n\t\r\x0b\x1c\x85\xa0\u2028\u3000\u200b\ufeff")),
    st.sampled_from(["'s", "'ll", "  ", "<|endoftext|>", "<|padding|>", " " * 24, "\u1100\u1161"]),
)
TEXTS = st.lists(st.lists(PIECES, max_size=40).map("".join), min_size=1, max_size=8)


@needs_fast_engine
@settings(max_examples=300, deadline=None)
@given(texts=TEXTS)
def test_ids_are_those_of_tokenizers(engines, texts):
    fast, reference = (engine.encode(texts) for engine in engines)
    assert fast.ids.tolist() == reference.ids.tolist()
    assert fast.lengths.tolist() == reference.lengths.tolist()


@needs_fast_engine
def test_long_texts_of_every_sort(engines, sample_texts):
    joined = "\n\n".join(sample_texts)
    texts = [joined, joined.upper(), joined[::-1], joined.replace(" ", ""), " " * 5000, ""]
    fast, reference = (engine.encode(texts) for engine in engines)
    assert np.array_equal(fast.ids, reference.ids)
    assert fast.lengths.tolist() == reference.lengths.tolist()


@needs_fast_engine
def test_no_texts_have_no_ids(engines):
    for engine in engines:
        ids, lengths = engine.encode([])
        assert (len(ids), len(lengths)) == (0, 0)


def test_row_of_a_text():
    encoded = Encoded(np.arange(6, dtype=np.uint32), np.array([2, 0, 4]))
    assert [encoded.row(i).tolist() for i in range(3)] == [[0, 1], [], [2, 3, 4, 5]]
