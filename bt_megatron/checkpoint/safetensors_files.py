# SPDX-License-Identifier: Apache-2.0
"""Tensors in safetensors files: one file, or shards with an index (Hugging Face's layout)."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bt_megatron.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DEFAULT_SHARD_GB = 5.0


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], *, max_shard_gb: float = DEFAULT_SHARD_GB
) -> None:
    """Write model.safetensors, or shards and their index if it would be too large.

    Args:
        folder: an existing folder.
        tensors: by name; names that share one tensor are stored once.
        max_shard_gb: largest file, in units of 10**9 bytes.
    """
    compact = {id(tensor): _compact(tensor) for tensor in tensors.values()}
    named = {name: compact[id(tensor)] for name, tensor in tensors.items()}
    save_torch_state_dict(named, folder, max_shard_size=int(max_shard_gb * 1e9))
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors lets only the owner read; others serve these files


def _compact(tensor: Tensor) -> Tensor:
    # A table without its padding rows is a part of a larger tensor; safetensors refuses those.
    is_whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_whole and tensor.is_contiguous() else tensor.clone().contiguous()


def has_tensors(folder: Path) -> bool:
    """Tell whether a folder holds tensors in this layout."""
    return (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()


def read_tensors(source: Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or a folder with one or with shards and an index, on CPU.

    Raises:
        CheckpointError: there is none, a shard is missing, or a file is damaged.
    """
    if source.is_file():
        return _read_file(source)
    if (source / INDEX_FILE).is_file():
        return _read_shards(source)
    if (source / SINGLE_FILE).is_file():
        return _read_file(source / SINGLE_FILE)
    pickled = sorted(path.name for path in source.glob("*.bin")) if source.is_dir() else []
    hint = f" It has {pickled[0]}: save it as safetensors first." if pickled else ""
    raise CheckpointError(
        f"{source}: neither {SINGLE_FILE} nor {INDEX_FILE} is there.{hint} "
        "Name a .safetensors file or a folder that holds one."
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}). Copy it again from its source."
        ) from error


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX_FILE
    try:
        places: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index}: not an index of shards ({error}). Copy it again from its source."
        ) from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: named in {INDEX_FILE} and not there. Copy all shards."
            )
        tensors |= _read_file(folder / name)
    absent = sorted(set(places) - set(tensors))
    if absent:
        raise CheckpointError(
            f"{index}: {len(absent)} of {len(places)} tensors are in no shard, the first is "
            f"{absent[0]}. Copy index and shards from one source."
        )
    return tensors
