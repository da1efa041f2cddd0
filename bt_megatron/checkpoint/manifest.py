# SPDX-License-Identifier: Apache-2.0
"""manifest.json: written last, so that a checkpoint without one is not complete.

It says what the checkpoint holds (step, tokens, configuration, layout, versions)
and the size and SHA-256 of every other file, so that damage is found and named.
No torch here: launchers and tools read manifests on login nodes.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bt_megatron.errors import CheckpointError
from bt_megatron.observe.atomic_file import write_atomically

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest; grows when an older reader could not understand it."""
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint."""

    size: int
    """Bytes."""
    sha256: str
    """Of the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a complete checkpoint says of itself."""

    step: int
    """Optimizer steps taken."""
    tokens: int
    """Tokens consumed since the start of the run."""
    config: dict[str, Any]
    """The run's configuration, as a mapping."""
    world_size: int
    """Processes that wrote it."""
    data_fingerprint: str
    """Fingerprint of the training samples; with the seed and the step it is the data position."""
    versions: dict[str, str]
    """Of this project (commit) and of the packages that matter."""
    guard: dict[str, list[float]] = field(default_factory=dict)
    """What decides which batches are left out, as training/guard.py knows it."""
    files: dict[str, FileEntry]
    """Every file but the manifest, by name."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def file_entry(path: Path) -> FileEntry:
    """Measure a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return FileEntry(path.stat().st_size, digest.hexdigest())


def data_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint, without the manifest, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a checkpoint complete; the manifest appears by rename."""
    content = {"format": FORMAT, **asdict(manifest)}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, or it cannot be understood.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        found = content.pop("format")
        if found != FORMAT:
            raise CheckpointError(
                f"{path}: format {found}, this version reads {FORMAT}. "
                "Use the version of this program that wrote it."
            )
        files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        return Manifest(files=files, **content)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so the checkpoint was never finished. Use another one."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). Use another checkpoint.") from error


def find_damage(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Check files against the manifest.

    Args:
        folder: the checkpoint.
        manifest: its manifest.
        names: the files to check.

    Returns:
        One line per damaged file, naming it and what is wrong; empty if all are whole.
    """
    return [line for name in names if (line := _damage(folder / name, manifest.files[name]))]


def _damage(path: Path, expected: FileEntry) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{path}: {size} bytes, the manifest says {expected.size}"
        if file_entry(path).sha256 != expected.sha256:
            return f"{path}: its SHA-256 is not the manifest's, the content was altered"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    return None
