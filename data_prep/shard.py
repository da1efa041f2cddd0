# SPDX-License-Identifier: Apache-2.0
"""One input file becomes one token shard, with a record beside it.

`<name>.shard.json` is written after `<name>.bin` and `<name>.idx` are in place
and removed before they are replaced: a shard with a record is whole. The record
also says when the input was last changed, so that an unchanged one is not read
again to compare it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bt_megatron.data import manifest
from bt_megatron.data.index import TokenShard, TokenShardWriter, shard_paths, token_dtype
from bt_megatron.data.manifest import ShardRecord, SourceRecord, SubsetCounts, TokenizerRecord
from bt_megatron.errors import DataError
from data_prep.documents import Document, read_documents
from data_prep.problems import ProblemKind, ProblemLog
from data_prep.streams import STDIN, RawInput
from data_prep.tokenizer import TextTokenizer

_SUFFIX = ".shard.json"
_FORMAT = 1

# What one batch may hold; encoded, it takes about forty times its text. A command
# that is interrupted ends after the batch.
_BATCH_BYTES = 1_000_000
_BATCH_DOCUMENTS = 1024


class Position(NamedTuple):
    """How far the work on one input is."""

    bytes_read: int
    documents: int
    problems: int


OnPosition = Callable[[Position], None]


class SavedShard(NamedTuple):
    """The content of a `.shard.json`."""

    shard: ShardRecord
    tokenizer: TokenizerRecord
    mtime_ns: int


def write_shard(
    source: Path,
    prefix: Path,
    tokenizer: TextTokenizer,
    *,
    strict: bool = False,
    on_position: OnPosition,
) -> ShardRecord:
    """Tokenize one input into `<prefix>.bin`, `<prefix>.idx` and `<prefix>.shard.json`.

    Memory is bounded by one batch of documents and eight bytes a document.

    Args:
        source: the input; `-` is standard input.
        prefix: path of the shard without suffix.
        tokenizer: makes the ids.
        strict: stop at the first problem.
        on_position: called after each batch; what it raises ends the work.

    Returns:
        The record of the shard.

    Raises:
        DataError: the input cannot be read, or has a problem and strict is set.
    """
    _record_path(prefix).unlink(missing_ok=True)
    problems = ProblemLog(source.name, strict=strict)
    subsets: dict[str, SubsetCounts] = defaultdict(_no_counts)
    writer = TokenShardWriter(prefix, token_dtype(tokenizer.record.vocab_size))
    with writer, RawInput(source) as raw:
        mtime_ns = 0 if source == STDIN else source.stat().st_mtime_ns
        documents = 0
        for batch in _batches(read_documents(raw, problems)):
            for subset, counts in _encode_batch(batch, tokenizer, writer, problems):
                subsets[subset] += counts
                documents += 1
            on_position(Position(raw.bytes_read, documents, problems.total))
        on_position(Position(raw.bytes_read, documents, problems.total))
    total = sum(subsets.values(), start=_no_counts())
    record = ShardRecord(
        name=prefix.name,
        **asdict(total),
        bin_sha256=manifest.sha256_of(shard_paths(prefix)[0]),
        idx_sha256=manifest.sha256_of(shard_paths(prefix)[1]),
        source=SourceRecord(name=source.name, size=raw.bytes_read, sha256=raw.sha256),
        subsets=dict(sorted(subsets.items())),
        problems=problems.records(),
    )
    _save(prefix, SavedShard(record, tokenizer.record, mtime_ns))
    return record


def saved_shards(folder: Path) -> list[SavedShard]:
    """Read the records of the whole shards in a folder, ordered by name."""
    names = sorted(path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}"))
    return [_load(folder / name) for name in names]


def can_reuse(saved: SavedShard, source: Path, folder: Path) -> bool:
    """Say whether a shard stays as it is: true, or false if its files are damaged.

    An input is the one of the record if its size is the same and either the
    time of its last change or, where that differs (a copy), its content.

    Args:
        saved: the record of the shard that the input would be written to.
        source: the input.
        folder: where the shard is.

    Raises:
        DataError: the shard was made from another input; it is not overwritten.
    """
    recorded = saved.shard.source
    size = source.stat().st_size if source != STDIN else 0
    if size != recorded.size or source == STDIN or not _is_unchanged(source, saved):
        raise DataError(
            f"{folder / saved.shard.name}.bin - was made from another input {recorded.name} "
            f"({recorded.size} bytes, sha256 {recorded.sha256[:12]}) than {source} ({size} bytes) "
            "- use another --out, or give the input another name"
        )
    return is_whole(folder, saved.shard)


def is_whole(folder: Path, record: ShardRecord) -> bool:
    """Compare the index and the sizes of a shard's files with its record; `verify` reads all."""
    try:
        shard = TokenShard(folder / record.name)
    except DataError:
        return False
    return (shard.num_documents, shard.num_tokens) == (record.documents, record.tokens)


def _is_unchanged(source: Path, saved: SavedShard) -> bool:
    if source.stat().st_mtime_ns == saved.mtime_ns:
        return True
    return manifest.sha256_of(source) == saved.shard.source.sha256


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(
    batch: list[Document], tokenizer: TextTokenizer, writer: TokenShardWriter, problems: ProblemLog
) -> Iterator[tuple[str, SubsetCounts]]:
    """Write the documents of a batch; yield subset and counts of each one written."""
    encoded = tokenizer.encode([document.text for document in batch])
    for document, ids in zip(batch, encoded, strict=True):
        if isinstance(ids, str):
            problems.add(ProblemKind.TOKENIZER_FAILED, line=document.line, what=ids)
        elif not len(ids):
            what = f"{len(document.text)} characters gave no token"
            problems.add(ProblemKind.NO_TOKENS, line=document.line, what=what)
        else:
            writer.add_document(ids)
            size = len(document.text.encode())
            yield document.subset, SubsetCounts(documents=1, tokens=len(ids), text_bytes=size)


def _no_counts() -> SubsetCounts:
    return SubsetCounts(documents=0, tokens=0, text_bytes=0)


def _record_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + _SUFFIX)


def _save(prefix: Path, saved: SavedShard) -> None:
    body: dict[str, Any] = {"format": _FORMAT, "source_mtime_ns": saved.mtime_ns}
    body |= {"tokenizer": asdict(saved.tokenizer), "shard": asdict(saved.shard)}
    manifest.write_json(_record_path(prefix), body)


def _load(prefix: Path) -> SavedShard:
    path = _record_path(prefix)
    remedy = f"remove {path.name} and run the same command again"
    body = manifest.read_json(path, remedy=remedy)
    if body.get("format") != _FORMAT:
        raise DataError(
            f"{path} - has format {body.get('format')!r}, expected {_FORMAT} - {remedy}"
        )
    return SavedShard(
        manifest.parse_record(ShardRecord, body.get("shard"), where=str(path), remedy=remedy),
        manifest.parse_record(
            TokenizerRecord, body.get("tokenizer"), where=str(path), remedy=remedy
        ),
        manifest.parse_record(int, body.get("source_mtime_ns"), where=str(path), remedy=remedy),
    )
