# SPDX-License-Identifier: Apache-2.0
"""Training: GPT-NeoX's layout, the same file every time, problems reported."""

import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from bt_megatron.errors import DataError
from data_prep.train_tokenizer import train_tokenizer


@pytest.fixture
def corpus(make_input, corpus_bytes):
    return make_input("corpus.jsonl.zst", corpus_bytes)


def test_layout_is_that_of_gpt_neox(tokenizer_file, repository):
    trained = Tokenizer.from_file(str(tokenizer_file))
    neox = Tokenizer.from_file(str(repository / "tests/fixtures/tokenizers/gpt-neox-20b.json"))
    assert trained.token_to_id("<|endoftext|>") == 0
    assert trained.token_to_id("<|padding|>") == 1
    assert trained.get_vocab_size() == 600
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        assert str(getattr(trained, part)) == str(getattr(neox, part))
    assert type(trained.decoder) is type(neox.decoder)


def test_every_byte_has_a_token(tokenizer_file):
    trained = Tokenizer.from_file(str(tokenizer_file))
    text = "".join(map(chr, range(1, 0x250))) + "漢字\U0001f9ea"
    composed = trained.normalizer.normalize_str(text)
    assert trained.decode(trained.encode(text).ids) == composed


def test_same_texts_give_the_same_file_with_any_number_of_threads(tmp_path, corpus):
    contents = []
    for threads in ("1", "4"):
        out = tmp_path / f"t{threads}.json"
        command = [sys.executable, "-m", "data_prep", "train-tokenizer", str(corpus)]
        subprocess.run(
            [*command, "--vocab-size", "500", "--out", str(out)],
            check=True,
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            capture_output=True,
        )
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


def test_packing_of_the_input_does_not_matter(tmp_path, make_input, corpus_bytes, tokenizer_file):
    out = tmp_path / "t.json"
    train_tokenizer([make_input("a.jsonl.gz", corpus_bytes)], vocab_size=600, out=out)
    assert out.read_bytes() == tokenizer_file.read_bytes()


def test_problems_are_reported_and_the_rest_is_used(make_input, corpus_bytes, tmp_path, capsys):
    good, bad = make_input("good.jsonl", corpus_bytes), make_input("bad.jsonl", b'{"a": 1}\n')
    train_tokenizer([good, bad], vocab_size=300, out=tmp_path / "t.json")
    printed = capsys.readouterr().err
    assert "1 x missing_text: the line is skipped" in printed
    assert "bad.jsonl:1: " in printed
    assert "300 entries from 60 texts" in printed


def test_strict_stops_and_writes_nothing(make_input, corpus_bytes, tmp_path):
    corpus = make_input("bad.jsonl", corpus_bytes + b"broken\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:61: .*invalid_json"):
        train_tokenizer([corpus], vocab_size=300, out=tmp_path / "t.json", strict=True)
    assert not (tmp_path / "t.json").exists()


def test_too_little_text_is_said(make_input, tmp_path, capsys):
    corpus = make_input("small.jsonl", b'{"text": "ab ab ab"}\n')
    train_tokenizer([corpus], vocab_size=4096, out=tmp_path / "t.json")
    printed = capsys.readouterr().err
    assert "WARNING" in printed
    assert "asked for 4096 entries, made 260" in printed


@pytest.mark.parametrize("content", [b"", b"broken\n"], ids=["empty", "broken"])
def test_no_text_is_an_error(make_input, tmp_path, content):
    with pytest.raises(DataError, match="no text to train on"):
        train_tokenizer([make_input("a.jsonl", content)], vocab_size=300, out=tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_too_small_vocabulary_and_folder_as_output_are_refused(corpus, tmp_path):
    with pytest.raises(DataError, match="257 entries are fewer than the 258"):
        train_tokenizer([corpus], vocab_size=257, out=tmp_path / "t.json")
    with pytest.raises(DataError, match=r"is a folder.*tokenizer\.json"):
        train_tokenizer([corpus], vocab_size=300, out=tmp_path)
