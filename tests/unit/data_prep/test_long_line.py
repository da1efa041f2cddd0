# SPDX-License-Identifier: Apache-2.0
"""A line that is not held in memory is read as `json` reads it."""

import io
import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import long_line
from data_prep.long_line import LongLineError, LongString, parse_long_line
from data_prep.streams import LongLine


def parse(data):
    body = parse_long_line(LongLine(io.BytesIO(data), len(data)))
    if not isinstance(body, dict):
        return body
    return {
        key: "".join(value.pieces()) if isinstance(value, LongString) else value
        for key, value in body.items()
    }


@pytest.fixture
def small(monkeypatch):
    """Pieces and short strings of a few bytes."""
    monkeypatch.setattr(long_line, "_PIECE_BYTES", 37)
    monkeypatch.setattr(long_line, "_SHORT_STRING_BYTES", 20)
    monkeypatch.setattr(long_line, "_MAX_SKELETON_BYTES", 5000)


TEXTS = st.lists(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(['"', "\\", "\\u", "\U0001f9ea", "\n", "plain words ", "\x00", "é", "漢"]),
    ),
    max_size=120,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(
    body=st.dictionaries(
        st.sampled_from(["text", "meta", 'k"e\\y']),
        st.one_of(TEXTS, st.integers(-5, 5), st.lists(TEXTS)),
    ),
    ascii_only=st.booleans(),
    sizes=st.tuples(st.integers(13, 60), st.integers(8, 40)),
)
def test_any_object_is_read_as_it_was_written(body, ascii_only, sizes):
    data = json.dumps(body, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_line, "_PIECE_BYTES", sizes[0])
        patch.setattr(long_line, "_SHORT_STRING_BYTES", sizes[1])
        found = parse(data)
    expected = {key: value for key, value in body.items() if not isinstance(value, list)}
    assert {key: found[key] for key in expected} == expected
    assert found.keys() == body.keys()


BROKEN = {
    "cut off in a string": b'{"text": "' + b"a" * 100,
    "cut off behind it": b'{"text": "' + b"a" * 100 + b'"',
    "two objects": b'{"text": "' + b"a" * 100 + b'"}{}',
    "not UTF-8": b'{"text": "' + b"a" * 60 + b"\xef\xff" + b"a" * 60 + b'"}',
    "surrogate as UTF-8": b'{"text": "' + b"a" * 60 + b"\xed\xa0\x80" + b'"}',
    "lone surrogate": b'{"text": "' + b"a" * 60 + b"\\ud800" + b"a" * 60 + b'"}',
    "no escape": b'{"text": "' + b"a" * 60 + b"\\x41" + b"a" * 60 + b'"}',
    "half an escape": b'{"text": "' + b"a" * 60 + b'\\u12"}',
    "raw newline": b'{"text": "' + b"a" * 60 + b"\x01" + b"a" * 60 + b'"}',
    "in another string": b'{"text": "fine", "meta": "' + b"a" * 60 + b'\\q"}',
    "much outside of strings": b'{"text": "fine", "meta": [' + b"1," * 9000 + b"1]}",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_line_is_an_error(small, data):
    if b"1,1," not in data:
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(data)
    with pytest.raises(LongLineError):
        parse(data)


@pytest.mark.parametrize("data", [b"[" + b" " * 100 + b"]", b'"' + b"a" * 100 + b'"', b"12"])
def test_line_that_is_no_object_is_told_by_its_type(small, data):
    assert type(parse(data)) is type(orjson.loads(data))
