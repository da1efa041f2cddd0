# SPDX-License-Identifier: Apache-2.0
"""One input to one shard: counts, batches, records, and when a shard is reused."""

import json
import os
import shutil

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bt_megatron.data.index import TokenShard
from bt_megatron.errors import DataError
from data_prep import documents, long_line, shard, streams
from data_prep.shard import can_reuse, saved_shards, write_shard
from data_prep.tokenizer import TextTokenizer


def ignore(position):
    """Show no progress."""


@pytest.fixture
def tokenizer(tokenizer_file):
    return TextTokenizer(tokenizer_file)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz"])
def test_documents_are_those_of_the_input_in_its_order(
    make_input, corpus_bytes, sample_texts, tokenizer_file, tokenizer, out, name
):
    reference = Tokenizer.from_file(str(tokenizer_file))
    expected = [reference.encode(text, add_special_tokens=False).ids for text in sample_texts]
    source = make_input(name, corpus_bytes)
    record = write_shard(source, out / "a", tokenizer, on_position=ignore)
    written = TokenShard(out / "a")
    assert [written.document(i).tolist() for i in range(written.num_documents)] == expected
    assert written.dtype == "uint16"
    assert record.documents == 60
    assert record.tokens == sum(len(ids) for ids in expected)
    assert record.text_bytes == sum(len(text.encode()) for text in sample_texts)
    assert record.source.size == source.stat().st_size
    assert {name: counts.documents for name, counts in record.subsets.items()} == {
        "Even": 30,
        "Odd": 30,
    }
    assert record.subsets["Odd"].tokens == sum(len(ids) for ids in expected[1::2])


def test_batch_size_does_not_change_the_bytes(
    monkeypatch, make_input, corpus_bytes, tokenizer, out
):
    source = make_input("a.jsonl", corpus_bytes)
    whole = write_shard(source, out / "a", tokenizer, on_position=ignore)
    monkeypatch.setattr(shard, "_BATCH_CHARACTERS", 3000)
    positions = []
    pieces = write_shard(source, out / "a", tokenizer, on_position=positions.append)
    assert pieces == whole
    assert len(positions) > 10
    assert positions == sorted(positions)
    assert positions[-1] == (source.stat().st_size, 60, 0)


def test_problems_are_in_the_record(make_input, corpus_bytes, tokenizer, out):
    source = make_input("a.jsonl", b"broken\n" + corpus_bytes + b'{"text": " "}\n')
    record = write_shard(source, out / "a", tokenizer, on_position=ignore)
    assert record.documents == 60
    assert {kind: problem.count for kind, problem in record.problems.items()} == {
        "invalid_json": 1,
        "whitespace_text": 1,
    }
    assert record.problems["whitespace_text"].examples[0].startswith("a.jsonl:62: ")


def test_text_without_tokens_and_text_that_fails_are_counted(make_input, tmp_path, out):
    words = Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}))
    words.normalizer = normalizers.Replace("nothing", "")
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "t.json"))
    rows = [{"text": text} for text in ("a a", "nothing", "unknown", "a")]
    source = make_input("a.jsonl", b"\n".join(json.dumps(row).encode() for row in rows))
    record = write_shard(source, out / "a", TextTokenizer(tmp_path / "t.json"), on_position=ignore)
    assert record.tokens == 3
    assert {kind: problem.count for kind, problem in record.problems.items()} == {
        "no_tokens": 1,
        "tokenizer_failed": 1,
    }
    assert TokenShard(out / "a").lengths.tolist() == [2, 1]


def test_huge_line_is_a_document(make_input, tokenizer, out):
    text = "word and number 1234 " * 60_000  # more than a batch
    source = make_input("a.jsonl.zst", json.dumps({"text": text}).encode() + b'\n{"text": "b"}')
    record = write_shard(source, out / "a", tokenizer, on_position=ignore)
    assert record.documents == 2
    assert record.text_bytes == len(text) + 1


@pytest.fixture
def small_parts(monkeypatch):
    """Long lines, parts and batches of a few thousand characters."""
    monkeypatch.setattr(streams, "LONG_LINE_BYTES", 3000)
    monkeypatch.setattr(long_line, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(long_line, "_SHORT_STRING_BYTES", 100)
    monkeypatch.setattr(documents, "PART_CHARACTERS", 2000)
    monkeypatch.setattr(documents.cut, "__kwdefaults__", {"size": 2000})
    monkeypatch.setattr(shard, "_BATCH_CHARACTERS", 5000)


def test_documents_that_are_not_held_in_memory_have_the_same_ids(
    small_parts, make_input, corpus_bytes, sample_texts, tokenizer_file, tokenizer, out
):
    reference = Tokenizer.from_file(str(tokenizer_file))
    texts = ["\n".join(sample_texts[i : i + 6]) for i in range(0, 60, 6)] + sample_texts[:5]
    rows = [{"text": text, "meta": {"pile_set_name": "Long"}} for text in texts]
    source = make_input("a.jsonl", b"\n".join(json.dumps(row).encode() for row in rows))
    record = write_shard(source, out / "a", tokenizer, on_position=ignore)
    written = TokenShard(out / "a")
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert [written.document(i).tolist() for i in range(len(texts))] == expected
    assert record.problems == {}
    assert (
        record.text_bytes
        == record.subsets["Long"].text_bytes
        == sum(len(text.encode()) for text in texts)
    )


def test_gigantic_lines_with_faults_are_counted(small_parts, make_input, tokenizer, out):
    lines = {
        "invalid_json": b'{"text": "' + b"a " * 4000,
        "text_without_break": b'{"text": "' + b"a" * 20_000 + b'"}',
        "whitespace_text": b'{"text": "' + b" " * 2500 + b'"}',
        "text_not_a_string": b'{"text": 5, "meta": "' + b"a " * 4000 + b'"}',
        "not_an_object": b'["' + b"a " * 4000 + b'"]',
    }
    source = make_input("a.jsonl", b"\n".join([*lines.values(), b'{"text": "fine"}']))
    record = write_shard(source, out / "a", tokenizer, on_position=ignore)
    assert {kind: problem.count for kind, problem in record.problems.items()} == dict.fromkeys(
        lines, 1
    )
    assert record.problems["text_without_break"].examples[0].startswith("a.jsonl:2: ")
    assert record.documents == 1


def test_tokenizer_that_may_not_be_cut_for_gets_long_texts_whole(
    small_parts, monkeypatch, make_input, tmp_path, out
):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<|endoftext|>": 2}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.normalizer = normalizers.Replace("a b", "b")  # of three characters, one of them a space
    words.save(str(tmp_path / "t.json"))
    monkeypatch.setattr(documents, "_MAX_WHOLE_CHARACTERS", 12_000)
    rows = [{"text": "a b " * 2000}, {"text": "a " * 9000}, {"text": "a"}]
    source = make_input("a.jsonl", b"\n".join(json.dumps(row).encode() for row in rows))
    record = write_shard(source, out / "a", TextTokenizer(tmp_path / "t.json"), on_position=ignore)
    assert TokenShard(out / "a").lengths.tolist() == [2000, 1]
    assert record.problems["text_too_long"].examples[0].startswith("a.jsonl:2: 18000 characters")


def test_input_without_documents_makes_an_empty_shard(make_input, tokenizer, out):
    record = write_shard(make_input("a.jsonl", b""), out / "a", tokenizer, on_position=ignore)
    assert (record.documents, record.subsets, record.problems) == (0, {}, {})
    assert TokenShard(out / "a").num_documents == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_no_files(make_input, corpus_bytes, tokenizer, out, error):
    def interrupt(position):
        raise error

    with pytest.raises(error):
        write_shard(
            make_input("a.jsonl", corpus_bytes), out / "a", tokenizer, on_position=interrupt
        )
    assert list(out.iterdir()) == []


def test_large_vocabulary_gets_int32(make_input, tmp_path, out):
    vocabulary = {f"w{i}": i for i in range(65_500)} | {"<|endoftext|>": 65_500}
    words = Tokenizer(models.WordLevel(vocabulary))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "t.json"))
    source = make_input("a.jsonl", b'{"text": "w65499 w1"}')
    write_shard(source, out / "a", TextTokenizer(tmp_path / "t.json"), on_position=ignore)
    written = TokenShard(out / "a")
    assert written.dtype == "int32"
    assert written.document(0).tolist() == [65_499, 1]


@pytest.fixture
def made(make_input, corpus_bytes, tokenizer, out):
    """An input, and the saved record of its shard."""
    source = make_input("a.jsonl", corpus_bytes)
    write_shard(source, out / "a", tokenizer, on_position=ignore)
    (saved,) = saved_shards(out)
    return source, saved


def test_unchanged_input_is_reused_without_reading_it(monkeypatch, made, out):
    source, saved = made
    monkeypatch.setattr(shard.manifest, "sha256_of", lambda path: pytest.fail("read again"))
    assert can_reuse(saved, source, out)


def test_copy_of_the_input_is_reused(made, out, tmp_path):
    source, saved = made
    copy = tmp_path / "copy" / "a.jsonl"
    copy.parent.mkdir()
    shutil.copyfile(source, copy)
    os.utime(copy, ns=(1, 1))
    assert can_reuse(saved, copy, out)


@pytest.mark.parametrize("content", [b"other size\n", None], ids=["size", "content"])
def test_another_input_of_the_same_name_is_refused(made, out, content):
    source, saved = made
    source.write_bytes(content or source.read_bytes().replace(b"e", b"E"))
    os.utime(source, ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.bin - was made from another input.*another --out"):
        can_reuse(saved, source, out)


@pytest.mark.parametrize("name", ["a.bin", "a.idx"])
def test_damaged_shard_is_not_reused(made, out, name):
    source, saved = made
    (out / name).write_bytes((out / name).read_bytes()[:-2])
    assert not can_reuse(saved, source, out)


def test_broken_record_is_named(made, out):
    (out / "a.shard.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"a\.shard\.json.*remove a\.shard\.json"):
        saved_shards(out)
