# SPDX-License-Identifier: Apache-2.0
"""Documents of good lines, and the kind of each bad one."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_megatron.errors import DataError
from data_prep.documents import UNNAMED_SUBSET, read_documents
from data_prep.problems import ProblemLog
from data_prep.streams import RawInput


def documents_of(path, *, strict=False):
    problems = ProblemLog(path.name, strict=strict)
    with RawInput(path) as raw:
        return list(read_documents(raw, problems)), problems.records()


GOOD = b'{"text": "good", "meta": {"pile_set_name": "Books"}}'

BAD_LINES = {
    "blank": (b"  \t", "blank_line"),
    "invalid UTF-8": (b'{"text": "na\xefve"}', "invalid_utf8"),
    "UTF-8 of a surrogate": (b'{"text": "\xed\xa0\x80"}', "invalid_utf8"),
    "cut off": (b'{"text": "abc', "invalid_json"),
    "two objects": (b'{"text": "a"}{"text": "b"}', "invalid_json"),
    "lone surrogate escape": (b'{"text": "\\ud800"}', "invalid_json"),
    "raw control character": (b'{"text": "a\x00b"}', "invalid_json"),
    "not a number": (b'{"text": "a", "meta": {"score": NaN}}', "invalid_json"),
    "deep nesting": (b"[" * 5000, "too_deep"),
    "deep but sound": (b'{"text": "a", "m": %b}' % (b"[" * 2000 + b"]" * 2000), "too_deep"),
    "list": (b'["text"]', "not_an_object"),
    "string": (b'"text"', "not_an_object"),
    "null": (b"null", "not_an_object"),
    "no text": (b'{"content": "abc"}', "missing_text"),
    "empty object": (b"{}", "missing_text"),
    "number": (b'{"text": 5}', "text_not_a_string"),
    "null text": (b'{"text": null}', "text_not_a_string"),
    "text list": (b'{"text": ["a"]}', "text_not_a_string"),
    "empty text": (b'{"text": ""}', "empty_text"),
    "spaces": (b'{"text": " \\n\\t"}', "whitespace_text"),
    "Unicode spaces": ('{"text": "\u2028\u3000\\u0085"}'.encode(), "whitespace_text"),
}


@pytest.mark.parametrize(("line", "kind"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_is_counted_and_the_others_are_read(make_input, line, kind):
    path = make_input("a.jsonl", b"\n".join([GOOD, line, GOOD, line]))
    documents, problems = documents_of(path)
    assert [(d.line, d.text, d.subset) for d in documents] == [
        (1, "good", "Books"),
        (3, "good", "Books"),
    ]
    assert {kind: record.count for kind, record in problems.items()} == {kind: 2}
    assert problems[kind].examples[0].startswith("a.jsonl:2: ")


@pytest.mark.parametrize(("line", "kind"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_strict_stops_at_the_bad_line(make_input, line, kind):
    path = make_input("a.jsonl", b"\n".join([GOOD, line, GOOD]))
    with pytest.raises(DataError, match=rf"^a\.jsonl:2: .* - {kind} - .*--strict"):
        documents_of(path, strict=True)


@pytest.mark.parametrize(
    "meta",
    ["", ', "meta": null', ', "meta": 5', ', "meta": {}', ', "meta": {"pile_set_name": 3}',
     ', "meta": {"pile_set_name": ""}'],
)  # fmt: skip
def test_document_without_subset_name_is_kept(make_input, meta):
    documents, problems = documents_of(make_input("a.jsonl", b'{"text": "a"%b}' % meta.encode()))
    assert [d.subset for d in documents] == [UNNAMED_SUBSET]
    assert problems == {}


def test_line_separators_inside_a_text_do_not_cut_it(make_input):
    text = "one\u2028two\u2029three\u0085four\x1cfive\r\nsix\x00"
    line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
    documents, problems = documents_of(make_input("a.jsonl.zst", line * 2))
    assert [d.text for d in documents] == [text, text]
    assert problems == {}


def test_windows_line_ends_are_no_problem(make_input):
    documents, problems = documents_of(make_input("a.jsonl", GOOD + b"\r\n" + GOOD + b"\r\n"))
    assert len(documents) == 2
    assert problems == {}


def test_quote_of_a_bad_line_is_short_and_printable(make_input):
    path = make_input("a.jsonl", b"\xff\x1b[31m" + b"x" * 100_000)
    (example,) = documents_of(path)[1]["invalid_utf8"].examples
    assert example.isprintable()
    assert example.isascii()
    assert len(example) < 200


TEXTS = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: t and not t.isspace())


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=20), ascii_only=st.booleans())
def test_every_text_comes_back_as_it_was(tmp_path_factory, texts, ascii_only):
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    path.write_bytes("".join(row + "\n" for row in rows).encode())
    documents, problems = documents_of(path)
    assert [d.text for d in documents] == texts
    assert problems == {}


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200))
def test_no_bytes_crash_the_reader_and_every_line_is_accounted_for(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(b"x" + content)  # no magic number, no byte order mark
    documents, problems = documents_of(path)
    lines = (b"x" + content).removesuffix(b"\n").count(b"\n") + 1
    assert len(documents) + sum(record.count for record in problems.values()) == lines
