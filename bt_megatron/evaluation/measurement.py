# SPDX-License-Identifier: Apache-2.0
"""One thing that was measured, and a folder that keeps such things as they come."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bt_megatron.errors import DataError
from bt_megatron.observe.atomic_file import write_atomically

SCHEMA = 1
OnProgress = Callable[[int, int], None]
"""Is told how many requests are answered, and of how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The result of one evaluation."""

    name: str
    """What was evaluated, as group/task: zero-shot/hellaswag."""
    metrics: dict[str, float]
    """Numbers by name."""
    detail: dict[str, Any] = field(default_factory=dict)
    """What is needed to judge them: samples, split, curves."""


class Counter:
    """Turns "this many more" into "this many of all"."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._done, self._total, self._report = 0, total, report
        report(0, total)

    def __call__(self, count: int) -> None:
        """Count `count` more as done."""
        self._done += count
        self._report(self._done, self._total)


class MeasurementFolder:
    """Keeps each measurement in a file of its own, under what it was measured with.

    Written when it is there and by rename, so an interrupted evaluation goes on after its last
    finished part. Another model or another setting is another key: such files are measured anew.
    """

    def __init__(self, folder: Path, *, identity: Mapping[str, Any]) -> None:
        """Name the folder; it is made when there is something to keep.

        Args:
            folder: of the evaluation.
            identity: what all parts depend on: the model, versions.
        """
        self.path = folder
        self._identity = dict(identity)

    def load(self, name: str, settings: Mapping[str, Any]) -> Measurement | None:
        """Return a measurement that was made with these settings, or None.

        Raises:
            DataError: its file is not what this program writes.
        """
        path = self._file(name)
        if not path.is_file():
            return None
        try:
            value = orjson.loads(path.read_bytes())
            found = Measurement(**value["measurement"])
            # Names that differ may share a file; then the later one stands in it.
            return found if (value["key"], found.name) == (self._key(settings), name) else None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not a measurement of this program ({error}). Delete it, and it is "
                "measured again."
            ) from error

    def save(self, measurement: Measurement, settings: Mapping[str, Any]) -> None:
        """Keep a measurement.

        Raises:
            DataError: the folder cannot be written.
        """
        content = {
            "schema": SCHEMA,
            "key": self._key(settings),
            "identity": self._identity,
            "settings": dict(settings),
            "measurement": asdict(measurement),
        }
        path = self._file(measurement.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}). Pass --out.") from error

    def _file(self, name: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_+." else "-" for c in name)
        return self.path / "parts" / f"{safe}.json"

    def _key(self, settings: Mapping[str, Any]) -> str:
        both = {"schema": SCHEMA, "identity": self._identity, "settings": dict(settings)}
        return hashlib.sha256(orjson.dumps(both, option=orjson.OPT_SORT_KEYS)).hexdigest()


def fingerprint(folder: Path) -> str:
    """Return a digest of an exported model: its configuration, code, tokenizer and weights.

    Reads every byte, about a second per gigabyte.
    """
    digest = hashlib.sha256()
    kinds = ("config.json", "tokenizer.json", "*.py", "*.safetensors")
    for path in sorted(path for kind in kinds for path in folder.glob(kind)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
