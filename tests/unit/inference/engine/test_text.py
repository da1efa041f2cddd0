# SPDX-License-Identifier: Apache-2.0
"""Streamed text equals the decoded whole, and ends before the first stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bt_megatron.inference.engine.requests import Options, Request, RequestError
from bt_megatron.inference.engine.text import TextStream, overlap
from tests.small_tokenizer import write_small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return Tokenizer.from_file(str(write_small_tokenizer(path)))


def stream(tokenizer, text, *, stop=(), size=4):
    """Return the pieces that are passed on, and whether a stop string ended it."""
    tokens = tokenizer.encode(text).ids
    pieces = []
    request = Request([], Options())
    listener = TextStream(tokenizer, stop, lambda request, piece: pieces.append(piece))
    for end in range(size, len(tokens) + size, size):
        request.tokens = tokens[:end]
        if end >= len(tokens):
            request.finish("length")
        if listener(request):
            return pieces, True
    return pieces, False


TEXTS = st.text(alphabet="the quick fox. äß€😀\n", min_size=1, max_size=60)


@given(text=TEXTS, size=st.integers(1, 5))
def test_pieces_make_up_the_text(tokenizer, text, size):
    pieces, stopped = stream(tokenizer, text, size=size)
    assert "".join(pieces) == text
    assert not stopped
    assert pieces[-1] == ""
    assert not any("\ufffd" in piece for piece in pieces)


@given(text=TEXTS, stop=st.lists(st.text(alphabet="the ä.", min_size=1, max_size=3), max_size=3))
def test_nothing_of_a_stop_string_is_passed_on(tokenizer, text, stop):
    pieces, stopped = stream(tokenizer, text, stop=stop)
    places = [text.find(one) for one in stop if one in text]
    assert stopped == bool(places)
    assert "".join(pieces) == (text[: min(places)] if places else text)


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("abab", "abc", 2), ("abc", "abc", 0), ("xa", "aa", 1), ("", "a", 0)],
)
def test_overlap(text, stop, length):
    assert overlap(text, stop) == length


def test_stop_strings_that_cannot_be_meant(tokenizer):
    for stop in (["a", ""], ["a"] * 17):
        with pytest.raises(RequestError, match="at most 16"):
            TextStream(tokenizer, stop)
