# SPDX-License-Identifier: Apache-2.0
"""Weights outside of training: a folder of canonical tensors and the model they belong to.

model.safetensors (or shards with an index)    canonical names, see names.py
model.yaml                                     the `model` section
source.json                                    where they came from
tokenizer.json                                 optional
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from bt_megatron.checkpoint.folder import complete_checkpoints
from bt_megatron.checkpoint.manifest import MANIFEST
from bt_megatron.checkpoint.safetensors_files import has_tensors, read_tensors, write_tensors
from bt_megatron.checkpoint.whole_folder import whole_folder
from bt_megatron.config.load import load_model, to_mapping
from bt_megatron.config.schema import ModelConfig
from bt_megatron.errors import BtError, CheckpointError

MODEL_FILE = "model.yaml"
SOURCE_FILE = "source.json"
TOKENIZER_FILE = "tokenizer.json"


def write_weights(
    folder: Path,
    weights: Mapping[str, Tensor],
    model: ModelConfig,
    *,
    info: Mapping[str, Any] | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Write a weights folder; it appears by rename when it is complete.

    Args:
        folder: must not exist.
        weights: by canonical name.
        model: the model they belong to.
        info: what is known of the source; plain values.
        tokenizer: a tokenizer.json to copy.

    Raises:
        CheckpointError: the folder exists or cannot be written.
    """
    with whole_folder(folder) as partial:
        write_tensors(partial, weights)
        section = yaml.safe_dump({"model": to_mapping(model)}, sort_keys=False)
        (partial / MODEL_FILE).write_text(section)
        (partial / SOURCE_FILE).write_text(json.dumps(dict(info or {}), indent=1) + "\n")
        if tokenizer is not None:
            shutil.copyfile(tokenizer, partial / TOKENIZER_FILE)


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    """Read a weights folder, a training checkpoint, or the newest checkpoint of a run.

    Args:
        path: a weights folder, a folder checkpoints/step_XXXXXXXX, or a run's folder.

    Returns:
        Weights by canonical name, the model, and what is known of the source: `path` always;
        `step`, `tokens`, `run`, `data`, `versions` of a checkpoint; `tokenizer` (path of a
        tokenizer.json) and `eos_id` where they are known.

    Raises:
        CheckpointError: there is nothing of the kind, or it is damaged.
    """
    if (path / MANIFEST).is_file():
        return _read_checkpoint(path)
    newest = next(complete_checkpoints(path / "checkpoints"), None)
    if newest is not None:
        return _read_checkpoint(newest)
    if (path / MODEL_FILE).is_file() and has_tensors(path):
        return _read_folder(path)
    raise CheckpointError(
        f"{path}: neither a weights folder ({MODEL_FILE} and tensors) nor a checkpoint "
        f"({MANIFEST}) nor a run with a complete one. Name runs/NAME, "
        "runs/NAME/checkpoints/step_XXXXXXXX or a folder of tools.import_checkpoint."
    )


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    info: dict[str, Any] = {"path": str(folder)}
    try:
        recorded = json.loads((folder / SOURCE_FILE).read_bytes())
        info |= recorded
    except FileNotFoundError:
        pass  # a folder that someone made by hand
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / SOURCE_FILE}: not an object in JSON ({error}). Remove it or repair it."
        ) from error
    if (folder / TOKENIZER_FILE).is_file():
        info["tokenizer"] = str(folder / TOKENIZER_FILE)
    return read_tensors(folder), load_model(folder / MODEL_FILE), info


def _read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    from bt_megatron.checkpoint.read import read_checkpoint_weights  # torch.distributed: seconds

    weights, model, info = read_checkpoint_weights(folder)
    return weights, model, {"path": str(folder), **info, **_data_facts(info.get("data"))}


def _data_facts(data: str | None) -> dict[str, Any]:
    """Return tokenizer and EOS of a data folder, if it is still where the run read it."""
    from bt_megatron.data.manifest import load_manifest

    if data is None:
        return {}
    try:
        record = load_manifest(Path(data)).tokenizer
    except BtError:
        return {}
    return {"tokenizer": str(Path(data) / record.file), "eos_id": record.eos_id}
