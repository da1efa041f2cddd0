# SPDX-License-Identifier: Apache-2.0
"""The benchmark of tokenisation on a few documents: real commands, and errors in one line."""

import json
from pathlib import Path

import pytest
import zstandard

from bt_megatron.errors import DataError
from data_prep.train_tokenizer import train_tokenizer
from tools.bench_tokenize import main, write_corpus

SAMPLE = Path(__file__).parents[3] / "data_prep/sample/state-of-the-union-and-moby-dick.jsonl.zst"


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(SAMPLE, tmp_path / "corpus", most=25)


@pytest.fixture
def tokenizer(corpus, tmp_path):
    train_tokenizer([corpus.plain], vocab_size=400, out=tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def test_part_of_a_corpus_is_every_so_many_lines(corpus, tmp_path):
    part = write_corpus(corpus.packed, tmp_path / "part", every=10)
    lines = corpus.plain.read_bytes().split(b"\n")[:-1]
    assert part.plain.read_bytes().split(b"\n")[:-1] == lines[::10]
    assert part.documents == 3
    assert part.text_bytes == sum(len(json.loads(line)["text"].encode()) for line in lines[::10])
    with zstandard.open(part.packed, "rb") as stream:
        assert stream.read() == part.plain.read_bytes()


def test_rows_have_the_names_of_the_benchmark_file(corpus, tokenizer, tmp_path):
    out = tmp_path / "data.json"
    words = [str(corpus.packed), "--tokenizer", str(tokenizer), "--benchmark", str(out)]
    assert main([*words, "--runs", "1", "--workers", "1"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["case"], row["metric"]) for row in rows] == [
        (f"data/tokenize/{name}", metric)
        for name in ("ours", "hf")
        for metric in ("mb_per_cpu_s", "peak_memory_gib")
    ]
    assert all(row["detail"]["identical_to_ours"] for row in rows[::2])
    assert all(row["value"] > 0 for row in rows)


def test_what_is_missing_is_named(corpus, tokenizer, tmp_path, capsys):
    words = ["--tokenizer", str(tokenizer), "--benchmark", str(tmp_path / "data.json")]
    assert main([str(tmp_path / "none.zst"), *words]) == DataError.exit_code
    assert "none.zst - cannot be read" in capsys.readouterr().err
    assert main([str(corpus.packed), *words, "--megatron", str(tmp_path)]) == DataError.exit_code
    assert "tools/preprocess_data.py - not found" in capsys.readouterr().err
