# SPDX-License-Identifier: Apache-2.0
"""Lists of documents to leave out, because an earlier one is the same or nearly so.

Data folders are compared with each other and with themselves, in the order in
which they are given: the first document of each group stays. The token shards
are not touched; a run names the lists in `data.drop`. Hashes and signatures
are kept in parts of a million documents, so the command goes on where it was
interrupted, and an added folder costs only itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.drop_list import DropList, save_drop_list
from bt_megatron.data.sources import open_corpus
from bt_megatron.errors import DataError
from data_prep.duplicates import SignatureTable, near_repeated, repeated
from data_prep.signatures import Documents, OnBytes, exact_hashes, signatures

_PART_DOCUMENTS = 1 << 20

Compute = Callable[..., NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A data folder to be compared."""

    path: Path
    corpus: TokenCorpus

    @property
    def name(self) -> str:
        """Name of its list."""
        return self.path.resolve().name


@dataclass(frozen=True, kw_only=True, slots=True)
class Deduplicated:
    """What became of one folder."""

    name: str
    documents: int
    exact: int
    """Documents with the ids of an earlier one."""
    near: int
    """Further documents that are near duplicates."""
    tokens: int
    """Ids of all documents."""
    dropped_tokens: int
    """Ids of those that are left out."""
    list_path: Path


def open_folders(paths: Sequence[Path], *, tokenizer: Path | None) -> list[Folder]:
    """Open the data folders.

    Raises:
        DataError: one holds no data, or two would have lists of the same name.
    """
    given = str(tokenizer) if tokenizer is not None else None
    folders = [
        Folder(path=path, corpus=open_corpus(DataConfig(path=str(path), tokenizer=given)))
        for path in paths
    ]
    names = [folder.name for folder in folders]
    for folder in folders:
        if names.count(folder.name) > 1:
            raise DataError(
                f"{folder.path} - two folders are named {folder.name}, and so would be their "
                "lists - rename one"
            )
    return folders


def deduplicate(
    folders: Sequence[Folder],
    *,
    threshold: float | None,
    out: Path,
    on_bytes: OnBytes,
    on_stage: Callable[[str], None],
) -> list[Deduplicated]:
    """Write `<out>/<name>.drop.npz` for each folder.

    Args:
        folders: in the order in which documents come first.
        threshold: similarity of near duplicates; none: equal ids only.
        out: for the lists and what was computed; made if need be.
        on_bytes: called with the bytes of ids done since the last call; each folder's once for
            hashes and once more for signatures.
        on_stage: called with a line for people.

    Returns:
        What was found, in the order of the folders.
    """
    out.mkdir(parents=True, exist_ok=True)
    exact = repeated(np.concatenate(_parts(folders, "exact", exact_hashes, out, on_bytes)))
    near = np.zeros_like(exact)
    if threshold is not None:
        table = SignatureTable(_parts(folders, "minhash", signatures, out, on_bytes))
        near = near_repeated(
            table,
            threshold=threshold,
            is_out=exact,
            on_band=lambda band, bands: on_stage(f"near duplicates: band {band} of {bands}"),
        )
    results, first = [], 0
    for folder in folders:
        last = first + folder.corpus.num_documents
        results.append(_save(folder, exact[first:last], near[first:last], out))
        first = last
    return results


def deduplicated_table(results: Sequence[Deduplicated]) -> Table:
    """Lay out what was found, one folder a line."""
    table = Table(title="documents to leave out")
    table.add_column("folder", min_width=10, overflow="fold")
    for column in ("documents", "exact", "near", "tokens left", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        left = result.tokens - result.dropped_tokens
        table.add_row(
            result.name,
            f"{result.documents:,}",
            f"{result.exact:,}",
            f"{result.near:,}",
            f"{left:,}",
            f"{left / result.tokens:.1%}" if result.tokens else "n/a",
        )
    return table


def _save(
    folder: Folder, exact: NDArray[np.bool_], near: NDArray[np.bool_], out: Path
) -> Deduplicated:
    dropped = np.flatnonzero(exact | near)
    path = out / f"{folder.name}.drop.npz"
    save_drop_list(DropList(dropped, folder.corpus.fingerprint), path)
    return Deduplicated(
        name=folder.name,
        documents=folder.corpus.num_documents,
        exact=int(exact.sum()),
        near=int(near.sum()),
        tokens=folder.corpus.num_tokens,
        dropped_tokens=int(folder.corpus.lengths[dropped].sum(dtype=np.int64)),
        list_path=path,
    )


def _parts(
    folders: Sequence[Folder], kind: str, compute: Compute, out: Path, on_bytes: OnBytes
) -> list[NDArray[Any]]:
    """Map what is kept of each million documents, after computing what is missing."""
    parts = []
    for folder in folders:
        corpus = folder.corpus
        documents = Documents(corpus)
        for first in range(0, corpus.num_documents, _PART_DOCUMENTS):
            last = min(first + _PART_DOCUMENTS, corpus.num_documents)
            path = out / f"{corpus.fingerprint[:16]}.{kind}.{first:012d}.npy"
            if path.exists():
                on_bytes(int(corpus.lengths[first:last].sum(dtype=np.int64)) * _id_bytes(corpus))
            else:
                temporary = path.with_name(path.name + ".tmp")
                with temporary.open("wb") as stream:
                    np.save(stream, compute(documents, first, last, on_bytes=on_bytes))
                temporary.replace(path)
            parts.append(_map(path, last - first))
    return parts or [np.zeros((0, 2), dtype=np.uint64)]


def _map(path: Path, rows: int) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} - cannot be mapped: {error} - remove it") from error
    if len(array) != rows:
        raise DataError(f"{path} - is of {len(array)} documents, not {rows} - remove it")
    return array


def _id_bytes(corpus: TokenCorpus) -> int:
    return corpus.headers[0].dtype.itemsize
