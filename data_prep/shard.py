# SPDX-License-Identifier: Apache-2.0
"""One input file becomes one token shard, with a record beside it.

`<name>.shard.json` is written after `<name>.bin` and `<name>.idx` are in place
and removed before they are replaced: a shard with a record is whole. The record
also says when the input was last changed, so that an unchanged one is not read
again to compare it.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bt_megatron.data import manifest
from bt_megatron.data.index import TokenShard, TokenShardWriter, token_dtype
from bt_megatron.data.manifest import ShardRecord, SourceRecord, SubsetCounts, TokenizerRecord
from bt_megatron.errors import DataError
from data_prep.documents import Document, read_documents, whole_documents
from data_prep.parity import ParityCheck
from data_prep.problems import ProblemKind, ProblemLog
from data_prep.streams import STDIN, RawInput
from data_prep.tokenizer import TextTokenizer

_SUFFIX = ".shard.json"
_FORMAT = 2

# What one batch may hold; encoded by `tokenizers`, it takes about forty times its text. A
# command that is interrupted ends after the batch.
_BATCH_CHARACTERS = 2_000_000
_BATCH_DOCUMENTS = 8192


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
    """Of the input."""
    engine: str
    """Package and version that made the ids."""
    compared: int
    """Documents on which the engine was compared with `tokenizers`; 0 if it is that."""


def write_shard(
    source: Path,
    prefix: Path,
    tokenizer: TextTokenizer,
    *,
    strict: bool = False,
    on_position: OnPosition,
) -> ShardRecord:
    """Tokenize one input into `<prefix>.bin`, `<prefix>.idx` and `<prefix>.shard.json`.

    Memory is bounded by one batch of documents and four bytes a document.

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
    writer = TokenShardWriter(prefix, token_dtype(tokenizer.record.vocab_size))
    with writer, RawInput(source) as raw:
        mtime_ns = 0 if source == STDIN else source.stat().st_mtime_ns
        work = _Work(tokenizer, writer, problems)
        documents = read_documents(raw, problems)
        if not tokenizer.can_cut:
            documents = whole_documents(documents, problems)
        for batch in _batches(documents):
            work.encode(batch)
            on_position(Position(raw.bytes_read, work.documents, problems.total))
        on_position(Position(raw.bytes_read, work.documents, problems.total))
    subsets = work.subsets()
    total = sum(subsets.values(), start=SubsetCounts(documents=0, tokens=0, text_bytes=0))
    record = ShardRecord(
        name=prefix.name,
        **asdict(total),
        bin_sha256=writer.bin_sha256,
        idx_sha256=writer.idx_sha256,
        source=SourceRecord(name=source.name, size=raw.bytes_read, sha256=raw.sha256),
        subsets=subsets,
        problems=problems.records(),
    )
    compared = work.check.documents if work.check else 0
    _save(prefix, SavedShard(record, tokenizer.record, mtime_ns, tokenizer.engine.name, compared))
    return record


@dataclass(slots=True)
class _Work:
    """Batches of documents become ids in the shard and counts by subset."""

    tokenizer: TextTokenizer
    writer: TokenShardWriter
    problems: ProblemLog
    documents: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)
    """By subset: documents, tokens, bytes of text."""
    check: ParityCheck | None = None
    _open_tokens: int = 0
    """Of a document whose next part is to come."""

    def __post_init__(self) -> None:
        self.check = self.tokenizer.parity_check()

    def encode(self, batch: list[Document]) -> None:
        """Write the documents of a batch."""
        texts = [document.text for document in batch]
        encoded, complaints = self.tokenizer.encode(texts)
        if self.check:
            self.check.look(texts, encoded, [document.line for document in batch])
        ends = []
        for i, (document, tokens) in enumerate(zip(batch, encoded.lengths.tolist(), strict=True)):
            text = document.text
            size = len(text) if text.isascii() else len(text.encode())
            counts = self.counts.setdefault(document.subset, [0, 0, 0])
            assert i not in complaints or not (self._open_tokens or document.more), (
                "texts are cut for tokenizers only that know every byte"
            )
            self._open_tokens += tokens
            if document.more:
                counts[1] += tokens
                counts[2] += size
            elif self._open_tokens:
                ends.append(self._open_tokens)
                counts[0] += 1
                counts[1] += tokens
                counts[2] += size
                self._open_tokens = 0
            else:
                self._report(document, complaints.get(i))
        self.writer.add_documents(encoded.ids, np.array(ends, dtype=np.int64))
        self.documents += len(ends)

    def subsets(self) -> dict[str, SubsetCounts]:
        """Return the counts of subsets that have documents, ordered by name."""
        return {
            name: SubsetCounts(documents=documents, tokens=tokens, text_bytes=text_bytes)
            for name, (documents, tokens, text_bytes) in sorted(self.counts.items())
            if documents
        }

    def _report(self, document: Document, complaint: str | None) -> None:
        """Count a document that has no ids."""
        if complaint is None:
            what = f"{len(document.text)} characters gave no token"
            self.problems.add(ProblemKind.NO_TOKENS, line=document.line, what=what)
        else:
            self.problems.add(ProblemKind.TOKENIZER_FAILED, line=document.line, what=complaint)


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
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _record_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + _SUFFIX)


def _save(prefix: Path, saved: SavedShard) -> None:
    body: dict[str, Any] = {"format": _FORMAT, "source_mtime_ns": saved.mtime_ns}
    body |= {"engine": saved.engine, "compared_documents": saved.compared}
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
        *_plain_values(body, path, remedy),
    )


def _plain_values(body: dict[str, Any], path: Path, remedy: str) -> tuple[int, str, int]:
    """Return the time of change of the input, the engine, and the documents compared."""

    def value[T](kind: type[T], key: str) -> T:
        return manifest.parse_record(kind, body.get(key), where=f"{path}: {key}", remedy=remedy)

    return value(int, "source_mtime_ns"), value(str, "engine"), value(int, "compared_documents")
