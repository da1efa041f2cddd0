# SPDX-License-Identifier: Apache-2.0
"""Several data folders become one: their shards side by side, or joined into a single shard.

Side by side, files get a second name (a hard link) where the file system allows. Joined, the .bin
files are appended by the kernel, and the index is computed from their indices; the result is, byte
for byte, the shard of their inputs one after another.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bt_megatron.data.index import TokenShard, index_bytes, shard_paths
from bt_megatron.data.manifest import (
    FILE_NAME,
    Manifest,
    ProblemRecord,
    ShardRecord,
    SourceRecord,
    SubsetCounts,
    load_manifest,
    save_manifest,
)
from bt_megatron.errors import DataError
from bt_megatron.observe.atomic_file import write_atomically
from data_prep.file_copy import append_file, link_or_copy
from data_prep.folder_lock import lock_folder
from data_prep.problems import MAX_EXAMPLES

OnBytes = Callable[[int], None]

_HASH_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """A shard and where it is."""

    folder: Path
    record: ShardRecord


def merge(folders: list[Path], out: Path, *, join_as: str | None, on_bytes: OnBytes) -> Manifest:
    """Make one data folder of several.

    Shards are in the order of their names, as in a folder made at once.

    Args:
        folders: data folders.
        out: the folder to make; it holds no other shards.
        join_as: name of the single shard to join all into; none: shards stay as they are.
        on_bytes: called with the bytes copied or linked, and hashed, since the last call.

    Raises:
        DataError: a folder is incomplete, a shard damaged, names or tokenizers do not go
            together, or `out` holds something else.
    """
    manifests = {folder: load_manifest(folder) for folder in folders}
    parts = _check(manifests, out)
    first = next(iter(manifests.values()))
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        _check_empty(out, {join_as} if join_as else {part.record.name for part in parts})
        name = first.tokenizer.file
        link_or_copy(folders[0] / name, out / name, on_bytes=lambda size: None)
        if join_as:
            shards = [_join(parts, out / join_as, first, on_bytes)]
        else:
            shards = [_place(part, out, on_bytes) for part in parts]
        manifest = Manifest(tokenizer=first.tokenizer, dtype=first.dtype, shards=tuple(shards))
        save_manifest(manifest, out)
    return manifest


def bytes_to_merge(folders: list[Path]) -> int:
    """Sum the sizes of the shards' files."""
    return sum(
        path.stat().st_size
        for folder in folders
        for record in load_manifest(folder).shards
        for path in shard_paths(folder / record.name)
        if path.exists()
    )


def _check(manifests: dict[Path, Manifest], out: Path) -> list[Part]:
    """Refuse folders that do not go together; return their shards by name."""
    (first, reference), *others = manifests.items()
    for folder, manifest in others:
        if (manifest.tokenizer, manifest.dtype) != (reference.tokenizer, reference.dtype):
            raise DataError(
                f"{folder} - has {manifest.dtype} ids of tokenizer "
                f"{manifest.tokenizer.sha256[:12]} (EOS {manifest.tokenizer.eos_id}), {first} has "
                f"{reference.dtype} of {reference.tokenizer.sha256[:12]} (EOS "
                f"{reference.tokenizer.eos_id}) - tokenize one of them again"
            )
    parts: dict[str, Part] = {}
    for folder, manifest in manifests.items():
        if folder.resolve() == out.resolve():
            raise DataError(f"{out} - is one of the folders to merge - use another --out")
        for record in manifest.shards:
            if record.name in parts:
                raise DataError(
                    f"{parts[record.name].folder} and {folder} - both hold a shard "
                    f"{record.name!r} - rename an input and tokenize it again"
                )
            parts[record.name] = Part(folder, record)
    return [parts[name] for name in sorted(parts)]


def _check_empty(out: Path, expected: set[str]) -> None:
    """Refuse a folder with shards that this merge does not make, or with a manifest of others."""
    present = {path.stem for path in out.glob("*.bin")}
    if (out / FILE_NAME).exists():
        present |= {record.name for record in load_manifest(out).shards}
    if others := sorted(present - expected):
        raise DataError(f"{out} - holds other shards: {', '.join(others)} - use another --out")
    (out / FILE_NAME).unlink(missing_ok=True)


def _place(part: Part, out: Path, on_bytes: OnBytes) -> ShardRecord:
    shard = _open(part)
    for source in shard_paths(shard.prefix):
        link_or_copy(source, out / source.name, on_bytes=on_bytes)
    return part.record


def _open(part: Part) -> TokenShard:
    """Open a shard; the index is checked, and its counts are compared with the record."""
    shard = TokenShard(part.folder / part.record.name)
    found = (shard.num_documents, shard.num_tokens)
    if found != (part.record.documents, part.record.tokens):
        raise DataError(
            f"{shard.prefix}.idx - has {found[0]} documents of {found[1]} tokens, the manifest "
            f"says {part.record.documents} of {part.record.tokens} - run `python -m data_prep "
            f"verify {part.folder}`"
        )
    return shard


def _join(parts: list[Part], prefix: Path, like: Manifest, on_bytes: OnBytes) -> ShardRecord:
    """Append the .bin files, hash what became of each, and write the index of all."""
    bin_path, idx_path = shard_paths(prefix)
    temporary = bin_path.with_name(bin_path.name + ".tmp")
    lengths = [np.zeros(0, np.int32)]
    with temporary.open("wb", buffering=0) as stream:
        for part in parts:
            shard = _open(part)
            lengths.append(np.array(shard.lengths))
            append_file(shard_paths(shard.prefix)[0], stream, on_bytes=on_bytes)
        os.fsync(stream.fileno())
    bin_sha256 = _hash_joined(temporary, parts, on_bytes)
    index = index_bytes(np.concatenate(lengths), np.dtype(like.dtype).newbyteorder("<"))
    temporary.replace(bin_path)
    write_atomically(idx_path, index)
    records = [part.record for part in parts]
    total = sum(
        (counts for record in records for counts in record.subsets.values()),
        start=SubsetCounts(documents=0, tokens=0, text_bytes=0),
    )
    return ShardRecord(
        name=prefix.name,
        **asdict(total),
        bin_sha256=bin_sha256,
        idx_sha256=hashlib.sha256(index).hexdigest(),
        source=_joined_source(records),
        subsets=_joined_subsets(records),
        problems=_joined_problems(records),
    )


def _hash_joined(path: Path, parts: list[Part], on_bytes: OnBytes) -> str:
    """Hash a joined .bin file, and each part of it against its own record."""
    whole = hashlib.sha256()
    with path.open("rb") as stream:
        for part in parts:
            left = shard_paths(part.folder / part.record.name)[0].stat().st_size
            own = hashlib.sha256()
            while left:
                piece = stream.read(min(left, _HASH_BYTES))
                own.update(piece)
                whole.update(piece)
                on_bytes(len(piece))
                left -= len(piece)
            if own.hexdigest() != part.record.bin_sha256:
                path.unlink()
                raise DataError(
                    f"{part.folder / part.record.name}.bin - has sha256 {own.hexdigest()}, the "
                    f"manifest says {part.record.bin_sha256} - copy it again, or remove the shard "
                    "and tokenize its input again"
                )
    return whole.hexdigest()


def _joined_source(records: list[ShardRecord]) -> SourceRecord:
    """Describe the inputs of all: their sizes together, and a hash of their hashes."""
    sources = [record.source for record in records]
    listing = "".join(f"{source.sha256}  {source.name}\n" for source in sources)
    return SourceRecord(
        name=f"{sources[0].name} to {sources[-1].name}, {len(sources)} inputs",
        size=sum(source.size for source in sources),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
    )


def _joined_subsets(records: list[ShardRecord]) -> dict[str, SubsetCounts]:
    totals: dict[str, SubsetCounts] = {}
    for record in records:
        for name, counts in record.subsets.items():
            totals[name] = totals[name] + counts if name in totals else counts
    return dict(sorted(totals.items()))


def _joined_problems(records: list[ShardRecord]) -> dict[str, ProblemRecord]:
    kinds = sorted({kind for record in records for kind in record.problems})
    by_kind = {
        kind: [record.problems[kind] for record in records if kind in record.problems]
        for kind in kinds
    }
    return {
        kind: ProblemRecord(
            count=sum(record.count for record in found),
            examples=tuple(example for record in found for example in record.examples)[
                :MAX_EXAMPLES
            ],
        )
        for kind, found in by_kind.items()
    }
