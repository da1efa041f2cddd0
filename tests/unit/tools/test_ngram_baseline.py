# SPDX-License-Identifier: Apache-2.0
"""The baselines against counting by hand, on the targets that the trainer evaluates."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bt_megatron.config.load import from_mapping
from bt_megatron.config.schema import RunConfig
from bt_megatron.data.batches import ValidationBatches
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.index import TokenShardWriter
from bt_megatron.data.manifest import (
    Manifest,
    ShardRecord,
    SourceRecord,
    SubsetCounts,
    TokenizerRecord,
    save_manifest,
)
from bt_megatron.data.packing import Sample
from bt_megatron.data.split import documents_of_split
from bt_megatron.data.token_bytes import token_byte_lengths
from bt_megatron.errors import DataError
from tools.ngram_baseline import (
    HELD_OUT_EVERY,
    choose_documents,
    context_and_target,
    main,
    measure_baselines,
    within_tokens,
)

EOS, V = 0, 12
# Token i is i letters long, so that bytes and tokens are told apart; token 0 is special.
VOCABULARY = {"<eos>": 0} | {"a" * i: i for i in range(1, V)}
TOKENIZER = {
    "added_tokens": [{"id": EOS, "content": "<eos>", "special": True}],
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": VOCABULARY, "merges": []},
}


def write_data(folder: Path, documents: list[np.ndarray]) -> None:
    """Write a data folder."""
    folder.mkdir()
    with TokenShardWriter(folder / "shard", "uint16") as writer:
        for document in documents:
            writer.add_document(document)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    shard = ShardRecord(
        name="shard",
        documents=len(documents),
        tokens=sum(map(len, documents)),
        text_bytes=0,
        bin_sha256="b",
        idx_sha256="i",
        source=SourceRecord(name="text", size=0, sha256="s"),
        subsets={"all": SubsetCounts(documents=1, tokens=1, text_bytes=1)},
        problems={},
    )
    tokenizer = TokenizerRecord(file="tokenizer.json", sha256="t", vocab_size=V, eos_id=EOS)
    save_manifest(Manifest(tokenizer=tokenizer, dtype="uint16", shards=(shard,)), folder)


def run_config(folder: Path, *, architecture: str, vocab_size: int = 16) -> dict:
    decoder = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    parts = {
        "block": {
            "block_length": 4,
            "embedder": {"hidden_size": 2},
            "block_decoder": decoder,
            "token_decoder": decoder,
        },
        "vanilla": {"decoder": decoder},
    }
    return {
        "name": "tiny",
        "runs_dir": str(folder.parent / "runs"),
        "model": {"architecture": architecture, "vocab_size": vocab_size, **parts[architecture]},
        "data": {"path": str(folder), "seq_length": 16, "validation_fraction": 0.3},
        "train": {"steps": 1},
        "evaluation": {"max_sequences": 9},
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    random = np.random.default_rng(7)
    steps = [random.integers(1, 4, size=n) for n in random.integers(1, 30, size=60)]
    folder = tmp_path_factory.mktemp("ngram") / "data"
    write_data(folder, [1 + np.cumsum(step) % (V - 1) for step in steps])
    return folder


def real_tokens_before(row: np.ndarray, mask: np.ndarray, place: int) -> list[int]:
    return [int(token) for token, real in zip(row[:place], mask[:place], strict=True) if real]


def sums_by_hand(config: RunConfig, smoothing: dict[str, float]) -> dict[str, float]:
    """Targets, bytes and nats, slot by slot over the trainer's own validation batches."""
    corpus = TokenCorpus.open(config.data.path)
    stream = [EOS]
    for document in documents_of_split(
        corpus.num_documents, split="train", fraction=0.3, seed=config.data.seed
    ):
        stream += [*corpus.document(int(document)).tolist(), EOS]
    tokens, contexts = Counter(stream[1:]), Counter(stream[:-1])
    pairs = Counter(zip(stream, stream[1:], strict=False))
    a, d, v = smoothing["addition"], smoothing["discount"], config.model.vocab_size
    lengths = token_byte_lengths(Path(config.data.path) / "tokenizer.json", v)
    k = config.model.block_length if config.model.is_block else 1
    dataset = PackedDataset(corpus, config=config.data, block_length=k, split="validation")
    shift = config.model.target_shift
    batches = ValidationBatches(
        dataset, max_sequences=9, micro_batch_size=2, dp_rank=0, dp_size=1, target_shift=shift
    )
    sums = {"targets": 0, "bytes": 0, "unigram": 0.0, "bigram": 0.0, "stream": len(stream) - 1}
    for batch in batches:
        for row, mask, targets, counts in zip(
            *(t.numpy() for t in (batch.tokens, batch.mask, batch.targets, batch.target_mask)),
            strict=True,
        ):
            for slot in np.flatnonzero(counts):
                w = int(targets[slot])
                u = real_tokens_before(row, mask, slot + shift)[-1]
                p1 = (tokens[w] + a) / (len(stream) - 1 + a * v)
                seen = contexts[u]
                distinct = sum(1 for context, _ in pairs if context == u)
                p2 = (max(pairs[u, w] - d, 0) + d * distinct * p1) / seen if seen else p1
                sums["targets"] += 1
                sums["bytes"] += int(lengths[w])
                sums["unigram"] -= math.log(p1)
                sums["bigram"] -= math.log(p2)
    return sums


@pytest.mark.parametrize("architecture", ["block", "vanilla"])
def test_losses_are_those_of_counting_by_hand(data, architecture):
    config = from_mapping(RunConfig, run_config(data, architecture=architecture), "test")
    report = measure_baselines(config)
    unigram, bigram = report["models"]["unigram"], report["models"]["bigram"]
    expected = sums_by_hand(config, bigram["smoothing"])
    assert report["targets"] == expected["targets"] > 50
    assert report["target_bytes"] == expected["bytes"]
    assert report["training_tokens"] == expected["stream"]
    for model, name in ((unigram, "unigram"), (bigram, "bigram")):
        assert model["loss"] == pytest.approx(expected[name] / expected["targets"], rel=1e-12)
        bits = expected[name] / math.log(2) / expected["bytes"]
        assert model["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    assert bigram["loss"] < unigram["loss"] - 0.3  # this text has structure


def test_the_smoothing_does_not_look_at_validation(data):
    """Other validation targets, same training documents: same smoothing."""
    plain = run_config(data, architecture="block")
    other = plain | {"evaluation": {"max_sequences": 2}}
    reports = [measure_baselines(from_mapping(RunConfig, c, "test")) for c in (plain, other)]
    assert reports[0]["targets"] != reports[1]["targets"]
    smoothing = [report["models"]["bigram"]["smoothing"] for report in reports]
    assert smoothing[0] == smoothing[1]


def test_context_skips_pads_and_starts_at_eos():
    tokens = np.array([EOS, EOS, 5, 6, 7, EOS, EOS, EOS, 8, 9])
    mask = np.array([0, 0, 1, 1, 1, 1, 0, 0, 1, 1], dtype=bool)
    contexts, targets = context_and_target(Sample(tokens, mask), shift=2, eos_id=EOS)
    assert targets.tolist() == [5, 6, 7, EOS, 8, 9]
    assert contexts.tolist() == [EOS, 5, 6, 7, EOS, 8]


def test_a_large_corpus_is_counted_in_part(data):
    config = from_mapping(RunConfig, run_config(data, architecture="block"), "test")
    corpus = TokenCorpus.open(data)
    everything = choose_documents(corpus, config, max_tokens=10**9)
    part = choose_documents(corpus, config, max_tokens=200)
    assert 2 <= len(part) < len(everything)
    assert set(part) <= set(everything)
    with pytest.raises(DataError, match="--max-tokens"):
        choose_documents(corpus, config, max_tokens=5)
    few = within_tokens(corpus, everything, 40)
    assert corpus.lengths[few].sum() <= 40 < corpus.lengths[everything[: len(few) + 1]].sum()
    assert len(within_tokens(corpus, everything, 0)) == 1
    assert len(everything) > HELD_OUT_EVERY


def test_the_command_writes_what_the_plot_reads(data, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(run_config(data, architecture="block")))
    assert main([str(config), "--set", f"runs_dir={tmp_path / 'runs'}"]) == 0
    report = json.loads((tmp_path / "runs" / "tiny" / "baselines.json").read_text())
    assert f"{report['models']['bigram']['loss']:.4f}" in capsys.readouterr().out
    assert main([str(config), "--out", str(tmp_path / "other.json")]) == 0
    assert json.loads((tmp_path / "other.json").read_text()) == report


def test_ids_beyond_the_model_are_an_error(data, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(run_config(data, architecture="vanilla", vocab_size=8)))
    assert main([str(config)]) == 4
    assert "model.vocab_size is 8" in capsys.readouterr().err
