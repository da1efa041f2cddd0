# SPDX-License-Identifier: Apache-2.0
"""Bits per byte: which documents, and the sum over their tokens."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.token_bytes import token_byte_lengths
from bt_megatron.errors import DataError
from bt_megatron.evaluation.held_out import (
    documents_by_subset,
    held_out_documents,
    measure_bits_per_byte,
    spread,
)
from tests.scripted_model import ScriptedModel

NAMES = {"StateOfTheUnion", "MobyDick"}


def test_bits_per_byte_of_a_model_that_knows_nothing(tiny_data):
    """Every token costs log2(v) bits, so the result follows from tokens and bytes alone."""
    corpus = TokenCorpus.open(tiny_data)
    model = ScriptedModel(vocab_size=corpus.vocab_size)
    documents = np.array([0, 3])
    steps = []
    found = measure_bits_per_byte(
        model,
        corpus,
        documents,
        name="held-out/x",
        byte_lengths=token_byte_lengths(corpus.tokenizer_path, model.vocab_size),
        on_progress=lambda *at: steps.append(at),
    )

    tokens = int(corpus.lengths[documents].sum())
    assert found.name == "held-out/x"
    assert found.metrics["loss"] == pytest.approx(math.log(model.vocab_size), rel=1e-6)
    assert found.metrics["bits_per_byte"] == pytest.approx(
        tokens * math.log2(model.vocab_size) / found.detail["text_bytes"], rel=1e-6
    )
    assert found.detail["tokens"] == tokens
    assert found.detail["text_bytes"] == 2 * 3_000  # ASCII, of tests/tiny_run.py
    assert steps[0] == (0, steps[-1][1])
    assert steps[-1][0] == steps[-1][1]


def test_documents_are_those_that_the_run_was_validated_on(tiny_data):
    config = DataConfig(path=str(tiny_data), seq_length=64, validation_fraction=0.3, seed=7)
    corpus = TokenCorpus.open(tiny_data)
    validation = PackedDataset(corpus, config=config, block_length=4, split="validation")
    found = held_out_documents(corpus, config)

    assert len(found) == validation.num_documents
    assert 0 < len(found) < corpus.num_documents
    assert held_out_documents(corpus, None).tolist() == list(range(corpus.num_documents))


def test_subsets_by_label_and_without(tiny_data):
    corpus = TokenCorpus.open(tiny_data)
    documents = np.array([1, 2, 5])
    labels = [f"set-{index % 2}" for index in range(corpus.num_documents)]
    found = documents_by_subset(tiny_data, documents, labels={"text": labels})

    assert {name: ids.tolist() for name, ids in found.items()} == {"set-0": [2], "set-1": [1, 5]}
    (joined,) = documents_by_subset(tiny_data, documents, labels={})
    assert set(joined.split("+")) <= NAMES
    with pytest.raises(DataError, match=r"text: 3 labels for \d+ documents. Pass --source"):
        documents_by_subset(tiny_data, documents, labels={"text": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("limit", "expected"), [(1_000, [0, 1, 2, 3, 4, 5]), (30, [0, 2, 4]), (1, [0])]
)
def test_documents_are_spread_evenly(limit, expected):
    lengths = np.full(6, 10, dtype=np.int32)
    assert spread(np.arange(6), lengths, max_tokens=limit).tolist() == expected


def test_a_tokenizer_without_bytes_gives_no_bits_per_byte():
    corpus = SimpleNamespace(document=lambda index: np.array([1, 2, 3]))
    found = measure_bits_per_byte(
        ScriptedModel(vocab_size=8),
        corpus,
        np.array([0]),
        name="held-out/x",
        byte_lengths=np.zeros(8, dtype=np.int32),
        on_progress=lambda *at: None,
    )
    assert set(found.metrics) == {"loss"}
