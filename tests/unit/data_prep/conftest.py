# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer and small corpora, made once."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from data_prep.train_tokenizer import train_tokenizer

SAMPLE = Path("data_prep/sample/state-of-the-union-and-moby-dick.jsonl.zst")


def json_lines(records):
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


@pytest.fixture(scope="session")
def repository():
    return Path(__file__).parents[3]


@pytest.fixture(scope="session")
def sample_texts(repository):
    """Sixty texts of the sample corpus, cut short."""
    with zstandard.open(repository / SAMPLE, "rb") as stream:
        lines = stream.read().split(b"\n")[:360:6]
    return [json.loads(line)["text"][:2000] for line in lines]


@pytest.fixture(scope="session")
def corpus_bytes(sample_texts):
    """JSON Lines of the texts, in two subsets."""
    return json_lines(
        {"text": text, "meta": {"pile_set_name": ("Odd" if i % 2 else "Even")}}
        for i, text in enumerate(sample_texts)
    )


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory, corpus_bytes):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "corpus.jsonl").write_bytes(corpus_bytes)
    train_tokenizer([folder / "corpus.jsonl"], vocab_size=600, out=folder / "tokenizer.json")
    return folder / "tokenizer.json"


@pytest.fixture
def make_input(tmp_path):
    """Write bytes as an input file, compressed as its name says."""

    def make(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".zst"):
            content = zstandard.ZstdCompressor(write_checksum=True).compress(content)
        elif name.endswith(".gz"):
            content = gzip.compress(content)
        path.write_bytes(content)
        return path

    return make
