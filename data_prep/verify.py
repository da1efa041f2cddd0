# SPDX-License-Identifier: Apache-2.0
"""Everything that a data folder says of itself, checked against its bytes."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bt_megatron.data.index import TokenShard, shard_paths
from bt_megatron.data.manifest import Manifest, ShardRecord, load_manifest, sha256_of
from bt_megatron.errors import DataError
from data_prep.tokenizer import read_tokenizer, vocabulary_size

_TOKENS_AT_ONCE = 1 << 24

OnBytes = Callable[[int], None]


def find_faults(folder: Path, *, on_bytes: OnBytes) -> Iterator[str]:
    """Yield what is wrong in a data folder, one sentence each; nothing if it is sound.

    Args:
        folder: a data folder.
        on_bytes: called with the number of bytes checked since the last call.

    Raises:
        DataError: there is no manifest to check against.
    """
    manifest = load_manifest(folder)
    yield from _tokenizer_faults(folder, manifest)
    for record in manifest.shards:
        yield from _shard_faults(folder, record, manifest, on_bytes)
    listed = {path for record in manifest.shards for path in shard_paths(folder / record.name)}
    for path in sorted([*folder.glob("*.bin"), *folder.glob("*.idx")]):
        if path not in listed:
            yield f"{path} - is not in the manifest"


def bytes_to_check(folder: Path) -> int:
    """Sum the sizes of the shards' files that are there."""
    paths = [
        path
        for record in load_manifest(folder).shards
        for path in shard_paths(folder / record.name)
    ]
    return sum(path.stat().st_size for path in paths if path.exists())


def _tokenizer_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    recorded = manifest.tokenizer
    path = folder / recorded.file
    try:
        content, tokenizer = read_tokenizer(path)
    except DataError as error:
        yield str(error)
        return
    if (found := hashlib.sha256(content).hexdigest()) != recorded.sha256:
        yield f"{path} - has sha256 {found}, the manifest says {recorded.sha256}"
    if (size := vocabulary_size(tokenizer)) != recorded.vocab_size:
        yield f"{path} - has {size} ids, the manifest says {recorded.vocab_size}"
    if not 0 <= recorded.eos_id < recorded.vocab_size:
        yield f"{path} - EOS id {recorded.eos_id} is outside of {recorded.vocab_size} ids"


def _shard_faults(
    folder: Path, record: ShardRecord, manifest: Manifest, on_bytes: OnBytes
) -> Iterator[str]:
    bin_path, idx_path = shard_paths(folder / record.name)
    for path, recorded in ((bin_path, record.bin_sha256), (idx_path, record.idx_sha256)):
        try:
            found = sha256_of(path, on_bytes=on_bytes)
        except DataError as error:
            yield str(error)
            return
        if found != recorded:
            yield f"{path} - has sha256 {found}, the manifest says {recorded}"
    try:
        shard = TokenShard(folder / record.name)
    except DataError as error:
        yield str(error)
        return
    if shard.dtype != np.dtype(manifest.dtype):
        yield f"{idx_path} - has {shard.dtype} tokens, the manifest says {manifest.dtype}"
    yield from _count_faults(shard, record)
    yield from _token_faults(shard, manifest.tokenizer.vocab_size)


def _count_faults(shard: TokenShard, record: ShardRecord) -> Iterator[str]:
    sums = {
        "documents": sum(counts.documents for counts in record.subsets.values()),
        "tokens": sum(counts.tokens for counts in record.subsets.values()),
        "text_bytes": sum(counts.text_bytes for counts in record.subsets.values()),
    }
    found = {"documents": shard.num_documents, "tokens": shard.num_tokens}
    for key, total in sums.items():
        stated = getattr(record, key)
        if found.get(key, stated) != stated:
            yield f"{shard.prefix}.idx - has {found[key]} {key}, the manifest says {stated}"
        if total != stated:
            yield f"{shard.prefix} - its subsets add up to {total} {key}, the shard has {stated}"


def _token_faults(shard: TokenShard, vocab_size: int) -> Iterator[str]:
    """Find ids outside of the vocabulary; the first one is named with its document."""
    if shard.num_documents and (empty := np.flatnonzero(shard.lengths == 0)).size:
        yield f"{shard.prefix}.idx - {empty.size} documents are empty, first document {empty[0]}"
    count, first = 0, -1
    for start in range(0, shard.num_tokens, _TOKENS_AT_ONCE):
        piece = shard.tokens[start : start + _TOKENS_AT_ONCE]
        outside = np.flatnonzero((piece < 0) | (piece >= vocab_size))
        count += outside.size
        if outside.size and first < 0:
            first = start + int(outside[0])
    if count:
        ends = np.cumsum(shard.lengths, dtype=np.int64)
        document = int(np.searchsorted(ends, first, side="right"))
        yield (
            f"{shard.prefix}.bin - {count} ids are outside of the vocabulary of {vocab_size}; the "
            f"first is {shard.tokens[first]}, at token {first} in document {document}"
        )
