# SPDX-License-Identifier: Apache-2.0
"""Small data folders with a manifest, and a model to read them."""

import json

from bt_megatron.data.index import TokenShardWriter, shard_paths
from bt_megatron.data.manifest import (
    Manifest,
    ShardRecord,
    SourceRecord,
    TokenizerRecord,
    save_manifest,
    sha256_of,
)

STACK = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
MODEL = {
    "vocab_size": 64,
    "embedder": {"hidden_size": 8},
    "block_decoder": STACK,
    "token_decoder": STACK,
}


def write_tokenizer(path, *, words=12, eos=2):
    vocabulary = {f"w{i}": i for i in range(words) if i != eos}
    body = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": eos, "content": "<|endoftext|>", "special": True}],
    }
    path.write_text(json.dumps(body))
    return path


def make_folder(folder, *, documents=((5, 6, 7), (8,)), eos=2, words=12):
    """Write a data folder with a manifest."""
    folder.mkdir()
    with TokenShardWriter(folder / "a", "uint16") as writer:
        for document in documents:
            writer.add_document(document)
    tokenizer = write_tokenizer(folder / "tokenizer.json", words=words, eos=eos)
    bin_path, idx_path = shard_paths(folder / "a")
    record = ShardRecord(
        name="a",
        documents=len(documents),
        tokens=sum(map(len, documents)),
        text_bytes=0,
        bin_sha256=sha256_of(bin_path),
        idx_sha256=sha256_of(idx_path),
        source=SourceRecord(name="a.jsonl", size=0, sha256=""),
        subsets={},
        problems={},
    )
    made_by = TokenizerRecord(
        file="tokenizer.json", sha256=sha256_of(tokenizer), vocab_size=words, eos_id=eos
    )
    save_manifest(Manifest(tokenizer=made_by, dtype="uint16", shards=(record,)), folder)
    return folder
