# SPDX-License-Identifier: Apache-2.0
"""Published checksums against the files that were copied.

A .bin file that is cut into pieces has the SHA-256 of the joined file as well as
one for each piece; both can be checked without joining. What was hashed is
kept in `checksum.json` beside the files, every few gigabytes also in the middle
of one, so the command goes on where it was interrupted. A file that has
changed since (size or time of change) is hashed again.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bt_megatron.data.manifest import parse_record, read_json, write_json
from bt_megatron.data.pieces import bin_files
from bt_megatron.errors import DataError
from data_prep.resumable_hash import ResumableSha256

STATE_NAME = "checksum.json"

PUBLISHED = {
    "pile_0.87_deduped_text_document.bin": (
        "0cd548efd15974d5cca78f9baddbd59220ca675535dcfc0c350087c79f504693"
    ),
}
"""SHA-256 by file name. Source: EleutherAI/pythia, README, "Reproducing Training": the joined file
of pythia_deduped_pile_idxmaps."""

_READ_BYTES = 1 << 24
_BYTES_BETWEEN_SAVES = 1 << 32
_SUMS_LINE = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>.+)")

OnBytes = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A file, or pieces that make one, and the hash that it should have."""

    name: str
    paths: tuple[Path, ...]
    sha256: str | None
    """Published; None: only say what it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hashed:
    """What is known of the hash of one file or joined file."""

    stamp: tuple[str, ...]
    """Name, size and time of change of each part, as name:size:ns."""
    bytes_done: int
    state: str
    """Of the hash after so many bytes; empty when it is done."""
    sha256: str
    """Empty while it is not done."""


def find_wanted(
    folder: Path, *, sums: Path | None = None, sha256: str | None = None
) -> list[Wanted]:
    """Say which files of a folder to hash, and what they should have.

    Args:
        folder: with .bin and .idx files.
        sums: a file as sha256sum writes it; the files that it names are checked.
        sha256: hash of the one .bin file of the folder, joined.

    Returns:
        What to hash. Without `sums`, every .bin file (joined) and .idx file; those whose names
        are in `PUBLISHED` have that hash.

    Raises:
        DataError: a file is missing, a line of `sums` is not one, or it is not clear which file
            `sha256` is of.
    """
    if sums is not None:
        return [_listed(folder, name, value) for name, value in _read_sums(sums)]
    prefixes = sorted(path.with_name(path.name[:-4]) for path in folder.glob("*.idx"))
    if not prefixes:
        raise DataError(f"{folder} - holds no .idx file - check the path")
    if sha256 is not None and len(prefixes) != 1:
        raise DataError(
            f"{folder} - holds {len(prefixes)} shards, and --sha256 is of one - use --sums FILE"
        )
    wanted = []
    for prefix in prefixes:
        for name, paths in (
            (f"{prefix.name}.bin", bin_files(prefix)),
            (f"{prefix.name}.idx", (prefix.with_name(f"{prefix.name}.idx"),)),
        ):
            given = sha256 if name.endswith(".bin") and sha256 else PUBLISHED.get(name)
            wanted.append(Wanted(name=name, paths=paths, sha256=given))
    return wanted


def hash_all(wanted: Sequence[Wanted], *, kept_in: Path, on_bytes: OnBytes) -> dict[str, str]:
    """Hash what is wanted, going on from what was done before.

    Args:
        wanted: files.
        kept_in: the file that says what was done.
        on_bytes: called with the size of each piece of work, also of what was done before.

    Returns:
        SHA-256 by name.

    Raises:
        DataError: a file cannot be read.
    """
    known = _load_state(kept_in)
    hashes = {}
    for item in wanted:
        for record in _hash_one(item, known.get(item.name), on_bytes):
            known[item.name] = record
            write_json(kept_in, {name: asdict(k) for name, k in known.items()})
        hashes[item.name] = known[item.name].sha256
    return hashes


def total_bytes(wanted: Sequence[Wanted]) -> int:
    """Sum the sizes of all files.

    Raises:
        DataError: one is missing.
    """
    return sum(_size(path) for item in wanted for path in item.paths)


def _hash_one(item: Wanted, known: Hashed | None, on_bytes: OnBytes) -> Iterator[Hashed]:
    """Hash one file; yield records to be kept, the last of which is done."""
    stamp = tuple(_stamp(path) for path in item.paths)
    hashed, done = ResumableSha256(), 0
    if known is not None and known.stamp == stamp:
        if known.sha256:
            on_bytes(known.bytes_done)
            yield known
            return
        resumed = ResumableSha256.resume(known.state)
        if resumed is not None:
            hashed, done = resumed, known.bytes_done
            on_bytes(done)
    saved = done
    for piece in _read_from(item.paths, done):
        hashed.update(piece)
        done += len(piece)
        on_bytes(len(piece))
        state = hashed.state()
        if state is not None and done - saved >= _BYTES_BETWEEN_SAVES:
            saved = done
            yield Hashed(stamp=stamp, bytes_done=done, state=state, sha256="")
    if tuple(_stamp(path) for path in item.paths) != stamp:
        raise DataError(f"{item.paths[0]} - changed while it was hashed - run the command again")
    yield Hashed(stamp=stamp, bytes_done=done, state="", sha256=hashed.hexdigest())


def _read_from(paths: Sequence[Path], start: int) -> Iterator[bytes]:
    """Yield the bytes of files that follow each other, from a byte on."""
    for path in paths:
        size = _size(path)
        if start >= size:
            start -= size
            continue
        try:
            with path.open("rb") as stream:
                stream.seek(start)
                while piece := stream.read(_READ_BYTES):
                    yield piece
        except OSError as error:
            raise _unreadable(path, error) from error
        start = 0


def _read_sums(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} - cannot be read: {error} - check the path") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        match = _SUMS_LINE.fullmatch(line)
        if match:
            pairs.append((match["name"], match["sha256"].lower()))
        elif line.strip() and not line.startswith("#"):
            raise DataError(
                f"{path}:{number} - is not `<64 hex digits>  <file>`, as sha256sum writes it - "
                "mend the line"
            )
    if not pairs:
        raise DataError(f"{path} - names no file - use a file as sha256sum writes it")
    return pairs


def _listed(folder: Path, name: str, sha256: str) -> Wanted:
    path = folder / name
    paths: tuple[Path, ...] = (path,)
    if not path.exists() and path.suffix == ".bin":
        paths = bin_files(path.with_name(path.name[:-4]))
    return Wanted(name=name, paths=paths, sha256=sha256)


def _load_state(path: Path) -> dict[str, Hashed]:
    if not path.exists():
        return {}
    remedy = "remove it, and all is hashed again"
    body = read_json(path, remedy=remedy)
    return {
        name: parse_record(Hashed, record, where=f"{path}: {name}", remedy=remedy)
        for name, record in body.items()
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return f"{path.name}:{status.st_size}:{status.st_mtime_ns}"


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} - cannot be read: {error.strerror} - copy the file again")
