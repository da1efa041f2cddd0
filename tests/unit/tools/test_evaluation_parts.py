# SPDX-License-Identifier: Apache-2.0
"""What is measured, and on which documents."""

import json
import shutil

import numpy as np
import pytest

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.errors import DataError
from tests.scripted_model import ScriptedModel
from tests.tiny_run import VOCABULARY
from tools.evaluation_parts import held_out_parts, needle_parts, open_held_out, position_part


def open_text(data, config=None, sources=()):
    return open_held_out(data, config, sources=sources, tokenizer=data / "tokenizer.json")


def subsets_of(source):
    lines = source.read_bytes().splitlines()
    return [json.loads(line)["meta"]["pile_set_name"] for line in lines]


def test_the_text_that_was_tokenized_tells_the_subsets(tiny_data):
    source = tiny_data.parent / "text.jsonl"
    expected = subsets_of(source)
    found = open_text(tiny_data, sources=[source])

    assert set(found.by_subset) == set(expected)
    for name, documents in found.by_subset.items():
        assert {expected[index] for index in documents} == {name}
    assert sum(map(len, found.by_subset.values())) == len(expected)
    corpus = TokenCorpus.open(tiny_data)
    assert [len(tokens) for tokens in found.documents()] == corpus.lengths.tolist()


def test_only_held_out_documents(tiny_data):
    config = DataConfig(path=str(tiny_data), validation_fraction=0.3, seed=7)
    some, every = open_text(tiny_data, config), open_text(tiny_data)
    (documents,), (total,) = some.by_subset.values(), every.by_subset.values()

    assert 0 < len(documents) < len(total)
    assert some.settings != every.settings


def test_parts_and_what_they_depend_on(tiny_data):
    text = open_text(tiny_data, sources=[tiny_data.parent / "text.jsonl"])
    model = ScriptedModel(vocab_size=VOCABULARY, max_length=128)
    parts = held_out_parts(model, text, max_tokens=1_000)
    assert [part.name for part in parts] == [f"held-out/{name}" for name in text.by_subset]
    parts.append(position_part(model, text, context_length=64, pieces=2))
    for part in parts:
        found = part.measure(on_progress=lambda *at: None)
        assert found.name == part.name
        assert found.metrics["loss"] == pytest.approx(np.log(VOCABULARY), rel=1e-6)
    names = [part.name for part in needle_parts(model, None, text, samples=3)]
    assert names == ["needle/question", "needle/verbatim"]
    more = held_out_parts(model, text, max_tokens=2_000)
    assert more[0].settings != parts[0].settings


def test_another_tokenizer_and_another_text_are_refused(tiny_data, tmp_path):
    other = tmp_path / "tokenizer.json"
    shutil.copyfile(tiny_data / "tokenizer.json", other)
    other.write_text(other.read_text() + " ")
    with pytest.raises(DataError, match="made with another tokenizer than"):
        open_held_out(tiny_data, None, sources=[], tokenizer=other)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"no shard of .* was made of this file"):
        open_text(tiny_data, sources=[text])


def test_a_run_that_held_nothing_out(tiny_data):
    config = DataConfig(path=str(tiny_data), validation_fraction=0.0)
    with pytest.raises(DataError, match="held out none of its documents"):
        open_text(tiny_data, config)
