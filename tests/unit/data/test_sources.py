# SPDX-License-Identifier: Apache-2.0
"""Data folders of ours and published ones open by configuration, and only if they fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from bt_megatron.config.load import from_mapping
from bt_megatron.config.schema import BatchConfig, DataConfig, RunConfig
from bt_megatron.data.batches import TrainingBatches
from bt_megatron.data.index import TokenShardWriter, shard_paths
from bt_megatron.data.mixture import Mixture
from bt_megatron.data.sources import open_corpus, open_sources
from bt_megatron.errors import DataError
from tests.data_folders import STACK, make_folder

FIXTURES = Path(__file__).parents[2] / "fixtures"
NEOX = FIXTURES / "tokenizers" / "gpt-neox-20b.json"
PILE = FIXTURES / "data_pipeline" / "pile_0.87_deduped_text_document"


def run(data, vocab_size=50_304):
    model = {
        "vocab_size": vocab_size,
        "embedder": {"hidden_size": 8},
        "block_decoder": STACK,
        "token_decoder": STACK,
    }
    body = {"name": "x", "model": model, "data": data, "train": {"steps": 2}}
    return from_mapping(RunConfig, body, "test")


@pytest.fixture
def published(tmp_path):
    """Copy a published shard, without a manifest, into a folder of its own."""
    folder = tmp_path / "published"
    folder.mkdir()
    for path in shard_paths(PILE):
        shutil.copy(path, folder / path.name)
    return folder


def test_published_shards_open_with_their_tokenizer(published):
    corpus = open_corpus(DataConfig(path=str(published), tokenizer=str(NEOX)))
    assert (corpus.eos_id, corpus.vocab_size, corpus.tokenizer_path) == (0, 50_277, NEOX)
    assert corpus.num_documents > 10


def test_published_rows_are_read_in_the_order_of_training(tmp_path):
    """As Pythia's preshuffled sets: sample j of step i is row i * batch + j."""
    folder = tmp_path / "preshuffled"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 50_277, size=(20, 9))
    with TokenShardWriter(folder / "document", "uint16") as writer:
        for row in rows:
            writer.add_document(row)
    data = {"path": str(folder), "tokenizer": str(NEOX), "packing": "rows", "order": "stored"}
    data |= {"seq_length": 8, "random_left_padding": False, "pad_to_block_boundary": False}
    (source,) = open_sources(run(data | {"validation_fraction": 0}))
    dataset = source.subset(block_length=4, split="train").dataset
    batches = TrainingBatches(
        Mixture.of(dataset, seed=1, order="stored"),
        batch=BatchConfig(global_batch_size=4, micro_batch_size=4),
        dp_rank=0,
        dp_size=1,
        target_shift=4,
    )
    for step in (0, 1, 4):
        (batch,) = batches.micro_batches(step)
        assert batch.tokens.tolist() == rows[4 * step : 4 * step + 4, :8].tolist()
        assert batch.mask.all()


def test_published_shards_do_not_say_what_ids_mean(published):
    with pytest.raises(DataError, match=r"document\.idx and no manifest.*set data\.tokenizer"):
        open_corpus(DataConfig(path=str(published)))


def test_token_that_ends_documents_is_one_of_the_tokenizer(published):
    data = DataConfig(path=str(published), tokenizer=str(NEOX), eos_token="</s>")
    with pytest.raises(DataError, match=r"data.eos_token - '</s>' is none of the 50277 tokens"):
        open_corpus(data)


@pytest.mark.parametrize("content", [None, "{}", '{"model": {"vocab": {}}}', "[1", '{"model": 3}'])
def test_file_that_is_no_tokenizer_is_named(published, tmp_path, content):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"t\.json - .*name a tokenizer\.json"):
        open_corpus(DataConfig(path=str(published), tokenizer=str(path)))


def test_unfinished_folder_is_not_taken_for_a_published_one(published):
    (published / "a.shard.json").write_text("{}")
    with pytest.raises(DataError, match=r"a\.shard\.json and no manifest.*interrupted"):
        open_corpus(DataConfig(path=str(published), tokenizer=str(NEOX)))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_folder_without_shards_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"{name}/manifest\.json - not found"):
        open_corpus(DataConfig(path=str(tmp_path / name), tokenizer=str(NEOX)))


def test_changed_ids_change_the_fingerprint_of_a_published_folder(published):
    data = DataConfig(path=str(published), tokenizer=str(NEOX))
    before = open_corpus(data).fingerprint
    path = published / f"{PILE.name}.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_corpus(data).fingerprint != before


def test_model_smaller_than_the_vocabulary_is_refused(tmp_path):
    folder = make_folder(tmp_path / "a")
    with pytest.raises(DataError, match=r"has 12 ids, model.vocab_size is 8. Use --set"):
        open_sources(run({"path": str(folder)}, vocab_size=8))


def test_mixture_opens_each_folder(tmp_path, published):
    one = make_folder(tmp_path / "one")
    other = make_folder(tmp_path / "other", documents=((9,),))
    mixture = {
        "a": {"path": str(one), "weight": 3},
        "b": {"path": str(other), "weight": 1, "max_epochs": 2},
    }
    sources = open_sources(run({"mixture": mixture, "index_dir": str(tmp_path / "i")}))
    assert [(s.name, s.weight, s.max_epochs) for s in sources] == [("a", 3, None), ("b", 1, 2)]
    assert [s.corpus.num_documents for s in sources] == [2, 1]
    assert {s.indices for s in sources} == {tmp_path / "i"}
    alone = open_sources(run({"path": str(one)}))
    assert (alone[0].name, alone[0].indices) == ("all", one / "packed")


@pytest.mark.parametrize("changes", [{"eos": 3}, {"words": 13}], ids=["eos", "vocabulary"])
def test_mixture_of_other_ids_is_refused(tmp_path, changes):
    one, other = make_folder(tmp_path / "one"), make_folder(tmp_path / "other", **changes)
    mixture = {name: {"path": str(p), "weight": 1} for name, p in (("a", one), ("b", other))}
    with pytest.raises(DataError, match=r"data.mixture.b.path - the ids of .* mean other tokens"):
        open_sources(run({"mixture": mixture}))
