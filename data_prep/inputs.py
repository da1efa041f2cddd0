# SPDX-License-Identifier: Apache-2.0
"""The inputs of a command: checked, named and measured before any work."""

from pathlib import Path

from bt_megatron.errors import DataError
from data_prep.streams import STDIN

_SUFFIXES = (".zst", ".gz", ".jsonl", ".json")


def name_shards(inputs: list[Path]) -> dict[str, Path]:
    """Name the shard of each input: its file name without .jsonl, .zst, .gz.

    Args:
        inputs: files, or `-` alone for standard input, whose shard is `stdin`.

    Returns:
        Inputs by shard name, ordered by name, whatever the order of the arguments.

    Raises:
        DataError: an input is missing or a folder, `-` is not alone, or two
            inputs would make the same shard.
    """
    check_inputs(inputs)
    named: dict[str, Path] = {}
    for path in inputs:
        name = shard_name(path)
        if name in named:
            raise DataError(
                f"{named[name]} and {path} - both would make the shard {name!r} - rename one, or "
                "tokenize them into two folders"
            )
        named[name] = path
    return dict(sorted(named.items()))


def check_inputs(inputs: list[Path]) -> None:
    """Raise a DataError for an input that cannot be read as a file, and for `-` among files."""
    if STDIN in inputs and len(inputs) > 1:
        raise DataError(
            f"- - standard input stands among {len(inputs)} inputs - give it alone, or only files"
        )
    for path in inputs:
        if path.is_dir():
            raise DataError(f"{path} - is a folder, expected files - give {path}/*.jsonl.zst")
        if path != STDIN and not path.exists():
            raise DataError(f"{path} - not found - check the path")


def shard_name(path: Path) -> str:
    """Strip the suffixes that say how a file is packed; its other dots stay."""
    if path == STDIN:
        return "stdin"
    name = path.name
    while Path(name).suffix in _SUFFIXES:
        name = Path(name).stem
    return name


def total_size(inputs: list[Path]) -> int | None:
    """Sum the sizes of files in bytes; None for standard input."""
    if STDIN in inputs:
        return None
    return sum(path.stat().st_size for path in inputs)
