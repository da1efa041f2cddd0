# SPDX-License-Identifier: Apache-2.0
"""The manifest of a data folder: which shards, made from what, by which tokenizer.

`python -m data_prep tokenize` writes `manifest.json` last and by rename, so a
folder that has one is complete. The trainer reads it to know the documents,
the vocabulary and the fingerprint of the data. No torch here.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from bt_megatron.errors import DataError

FORMAT = 1
FILE_NAME = "manifest.json"

_TOKENIZE = "python -m data_prep tokenize INPUT... --tokenizer tokenizer.json --out"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRecord:
    """The tokenizer that made the ids."""

    file: str
    """Name of its tokenizer.json, inside the data folder."""
    sha256: str
    """Of that file."""
    vocab_size: int
    """Largest id, added tokens included, plus one."""
    eos_id: int
    """End of a document; not stored in the shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetCounts:
    """What one named part of the corpus amounts to."""

    documents: int
    """Documents kept."""
    tokens: int
    """Their ids, without end-of-document tokens."""
    text_bytes: int
    """Their text, as UTF-8."""

    def __add__(self, other: Self) -> "SubsetCounts":
        return SubsetCounts(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            text_bytes=self.text_bytes + other.text_bytes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """The input file of a shard, as it was on disk (compressed)."""

    name: str
    """File name without folders; `-` for standard input."""
    size: int
    """Bytes."""
    sha256: str
    """Of those bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemRecord:
    """How often one kind of problem was met in an input, and where first."""

    count: int
    """Exact number."""
    examples: tuple[str, ...]
    """The first few, as `file:line: what`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """One pair `<name>.bin`, `<name>.idx` and the input it was made from."""

    name: str
    """Prefix of the two files in the data folder."""
    documents: int
    """Documents, in the order of the input; one sequence each."""
    tokens: int
    """Ids in the .bin file."""
    text_bytes: int
    """UTF-8 bytes of the texts that were kept."""
    bin_sha256: str
    """Of the .bin file."""
    idx_sha256: str
    """Of the .idx file."""
    source: SourceRecord
    """The input."""
    subsets: dict[str, SubsetCounts]
    """Counts by subset (`meta.pile_set_name`)."""
    problems: dict[str, ProblemRecord]
    """What was wrong with the input, by kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a data folder holds.

    The counts of the whole follow from the shards, so they are properties;
    the file states them as well, for people, and loading compares the two.
    """

    tokenizer: TokenizerRecord
    """What made the ids."""
    dtype: str
    """Type of the ids in every shard."""
    shards: tuple[ShardRecord, ...]
    """Ordered by name; this is the order of the corpus."""

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def subsets(self) -> dict[str, SubsetCounts]:
        """Counts by subset over all shards, ordered by name."""
        return _sum_by_key(
            [(name, counts) for shard in self.shards for name, counts in shard.subsets.items()]
        )

    @property
    def problems(self) -> dict[str, int]:
        """Problems by kind over all shards, ordered by name."""
        return _sum_by_key(
            [
                (kind, record.count)
                for shard in self.shards
                for kind, record in shard.problems.items()
            ]
        )

    @property
    def fingerprint(self) -> str:
        """Hex digest of the tokens and their order; equal for equal corpora only."""
        digest = hashlib.sha256(f"{self.dtype} {self.tokenizer.eos_id}\n".encode())
        for shard in self.shards:
            digest.update(f"{shard.bin_sha256} {shard.idx_sha256}\n".encode())
        return digest.hexdigest()


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `folder/manifest.json` under another name and rename it."""
    totals = {name: asdict(counts) for name, counts in manifest.subsets.items()}
    body = {"format": FORMAT, **asdict(manifest), "subsets": totals, "problems": manifest.problems}
    write_json(folder / FILE_NAME, body)


def load_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        DataError: it is missing, of another format, or contradicts itself.
    """
    path = folder / FILE_NAME
    remedy = f"`{_TOKENIZE} {folder}` makes it"
    if not path.is_file():
        raise DataError(f"{path} - not found: no data folder, or one left unfinished - {remedy}")
    body = read_json(path, remedy=remedy)
    if body.get("format") != FORMAT:
        raise DataError(f"{path} - has format {body.get('format')!r}, expected {FORMAT} - {remedy}")
    totals = {key: body.pop(key, None) for key in ("format", "subsets", "problems")}
    manifest = parse_record(Manifest, body, where=str(path), remedy=remedy)
    subsets = {name: asdict(counts) for name, counts in manifest.subsets.items()}
    for key, expected in (("subsets", subsets), ("problems", manifest.problems)):
        if totals[key] != expected:
            raise DataError(
                f"{path}: {key} - says {totals[key]}, but its shards add up to {expected} "
                f"- {remedy}"
            )
    return manifest


def sha256_of(path: Path, *, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hash a file in pieces.

    Args:
        path: the file.
        on_bytes: called with the size of each piece, for progress.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
                if on_bytes:
                    on_bytes(len(piece))
    except OSError as error:
        raise DataError(f"{path} - cannot be read: {error.strerror} - restore the file") from error
    return digest.hexdigest()


def write_json(path: Path, body: dict[str, Any]) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        DataError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} - cannot be read as JSON: {error} - {remedy}") from error
    if not isinstance(body, dict):
        raise DataError(f"{path} - holds a {type(body).__name__}, expected an object - {remedy}")
    return body


def parse_record[T](kind: type[T], body: Any, *, where: str, remedy: str) -> T:
    """Make a record of this module from parsed JSON.

    Args:
        kind: a dataclass, or a type that stands in one.
        body: what `json.loads` gave.
        where: file and dotted key, for messages.
        remedy: what to do about a wrong file.

    Raises:
        DataError: a key is missing or unknown, or a value has another type.
    """
    try:
        value: T = _parse(kind, body, where)
    except _ShapeError as error:
        raise DataError(f"{error} - {remedy}") from error
    return value


class _ShapeError(Exception):
    """JSON that is not what the record says; carries where and what."""


def _parse(kind: Any, body: Any, where: str) -> Any:
    origin = get_origin(kind)
    _require_type(origin or (dict if hasattr(kind, "__dataclass_fields__") else kind), body, where)
    if origin is dict:
        _, item = get_args(kind)
        return {key: _parse(item, value, f"{where}: {key}") for key, value in body.items()}
    if origin is tuple:
        item, _ = get_args(kind)
        return tuple(_parse(item, value, f"{where}[{i}]") for i, value in enumerate(body))
    if not hasattr(kind, "__dataclass_fields__"):
        return body
    names = {field.name for field in fields(kind)}
    if body.keys() != names:
        raise _ShapeError(f"{where} - has the keys {sorted(body)}, expected {sorted(names)}")
    hints = get_type_hints(kind)
    return kind(**{name: _parse(hints[name], body[name], f"{where}: {name}") for name in names})


def _require_type(kind: Any, body: Any, where: str) -> None:
    expected = list if kind is tuple else kind
    if type(body) is not expected:
        raise _ShapeError(f"{where} - is a {type(body).__name__}, expected {expected.__name__}")


def _sum_by_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for key, value in pairs:
        totals[key] = totals[key] + value if key in totals else value
    return dict(sorted(totals.items()))
