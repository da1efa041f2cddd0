# SPDX-License-Identifier: Apache-2.0
"""An exported folder as a running engine with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from bt_megatron.errors import ConversionError
from bt_megatron.inference.engine.engine import Engine, Settings
from bt_megatron.inference.engine.linear import FP8
from bt_megatron.inference.engine.load import end_token, load_model
from bt_megatron.inference.engine.weights import Numbers


@dataclass(frozen=True, slots=True)
class Opened:
    """What answers requests for a folder."""

    engine: Engine
    tokenizer: Tokenizer
    end_id: int | None
    """Token that ends texts."""


def open_folder(folder: Path, settings: Settings, *, fp8: bool = False) -> Opened:
    """Load an exported folder on the GPU in bf16, or on the CPU in float32 if there is none.

    Args:
        folder: what tools.export made, with its tokenizer.
        settings: limits.
        fp8: weights of the layers, keys and values in FP8 (Hopper).

    Raises:
        BtError: the folder is not whole, or holds a model that the engine does not run.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConversionError(
            f"{folder}: no tokenizer.json. Name a folder that tools.export made with a tokenizer."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, config = load_model(
        folder, numbers=Numbers(dtype, fp8), device=device, max_tokens=settings.max_tokens
    )
    if fp8:
        settings = settings.with_cache(FP8)
    engine = Engine(model, settings, device)
    return Opened(engine, Tokenizer.from_file(str(path)), end_token(folder, config))
