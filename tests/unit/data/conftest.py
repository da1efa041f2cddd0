# SPDX-License-Identifier: Apache-2.0
"""Small corpora on disk."""

import itertools

import numpy as np
import pytest

from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.index import TokenShardWriter

EOS = 0


@pytest.fixture(scope="session")
def write_shard(tmp_path_factory):
    """Return a function that writes documents as a shard and names its prefix."""
    folder, numbers = tmp_path_factory.mktemp("shards"), itertools.count()

    def write(documents, *, dtype="uint16"):
        prefix = folder / f"shard.{next(numbers)}"
        with TokenShardWriter(prefix, dtype) as writer:
            for document in documents:
                writer.add_document(np.asarray(document, dtype=np.int64))
        return prefix

    return write


@pytest.fixture(scope="session")
def make_corpus(write_shard):
    """Return a function that makes a corpus of one shard."""

    def make(documents):
        return TokenCorpus.from_shards([write_shard(documents)], eos_id=EOS, vocab_size=50_304)

    return make


@pytest.fixture(scope="session")
def numbered_corpus(make_corpus):
    """Return a corpus of 300 documents in which no token comes twice."""
    lengths = np.random.default_rng(0).integers(1, 120, size=300)
    return make_corpus(np.split(np.arange(1, lengths.sum() + 1), np.cumsum(lengths)[:-1]))
