# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.export RUN_OR_CHECKPOINT OUT`: weights to a standalone Hugging Face folder.

The folder is written next to OUT, loaded back with transformers, compared with the
trainer's model, and renamed to OUT only if the logits agree.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers.utils import logging as transformers_logging

from bt_megatron.checkpoint.safetensors_files import DEFAULT_SHARD_GB, has_tensors
from bt_megatron.checkpoint.weights import SOURCE_FILE, read_weights
from bt_megatron.checkpoint.whole_folder import whole_folder
from bt_megatron.config.schema import LayoutConfig, ModelConfig
from bt_megatron.errors import BtError, ConversionError
from bt_megatron.inference.comparison import (
    Comparison,
    compare_logits,
    exported_logits,
    sample_tokens,
)
from bt_megatron.inference.export_folder import DTYPES, write_model
from bt_megatron.inference.model_card import model_card
from bt_megatron.inference.tokenizer_files import EndToken, find_end_token, write_tokenizer

LogitsFunction = Callable[[Mapping[str, Tensor], ModelConfig, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What the user decides."""

    dtype: str = "bf16"
    """Stored precision: bf16 or fp32."""
    max_shard_gb: float = DEFAULT_SHARD_GB
    """Largest file of tensors, in units of 10**9 bytes."""
    tokenizer: Path | None = None
    """A tokenizer.json; None: the one of the source."""
    overwrite: bool = False
    """Replace OUT if it is an exported model; it stays as it is until the new one is checked."""
    eos_token: str | None = None
    """Text of the token that ends documents; None: the source's, else <|endoftext|>."""


def trainer_logits(weights: Mapping[str, Tensor], model: ModelConfig, tokens: Tensor) -> Tensor:
    """Return the logits [b, s - shift, v] of the trainer's own model for tokens [b, s], float32.

    Comm: starts and ends a process group of one.
    """
    from bt_megatron.parallel.groups import build_groups, start_processes, stop_processes

    start_processes()  # first: it makes Megatron-Core importable where there is no CUDA
    from bt_megatron.model.build import reference_logits

    try:
        build_groups(LayoutConfig(), seed=0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return reference_logits(weights, model, tokens.to(device)).cpu()
    finally:
        stop_processes()


def export(
    source: Path,
    out: Path,
    options: ExportOptions,
    *,
    logits_of: LogitsFunction = trainer_logits,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Export weights, check them, and only then let the folder appear.

    Args:
        source: a run, a training checkpoint or a weights folder.
        out: the folder to make.
        options: what the user decides.
        logits_of: the model to compare with.
        report: called with a line at each stage.

    Returns:
        The measured comparison.

    Raises:
        BtError: the source cannot be read or expressed, OUT exists, or the logits differ.
    """
    may_replace = _is_exported if options.overwrite else _never
    with whole_folder(out, may_replace=may_replace) as folder:
        report(f"reading {source}")
        weights, model, info = read_weights(source)
        tokenizer, end = _find_tokenizer(info, options, vocab_size=model.vocab_size)
        max_length = info.get("seq_length")
        report(f"writing {sum(weight.numel() for weight in weights.values()):,} parameters")
        write_model(
            folder,
            weights,
            model,
            dtype=options.dtype,
            end_id=info.get("eos_id", 0) if end is None else end.id,
            max_length=max_length,
            random_left_padding=bool(info.get("random_left_padding")),
            max_shard_gb=options.max_shard_gb,
        )
        if tokenizer is not None and end is not None:
            write_tokenizer(folder, tokenizer, end, max_length=max_length)
        report("comparing with the trainer's model")
        tokens = sample_tokens(model)
        exported = exported_logits(folder, tokens, shift=model.target_shift)
        original = logits_of(weights, model, tokens).float()
        stored = original
        if any(weight.dtype != DTYPES[options.dtype] for weight in weights.values()):
            rounded = {name: w.to(DTYPES[options.dtype]).float() for name, w in weights.items()}
            stored = logits_of(rounded, model, tokens).float()
        comparison = compare_logits(exported, stored, original)
        comparison.require()
        has_tokenizer = tokenizer is not None
        card = model_card(model, info, comparison, dtype=options.dtype, has_tokenizer=has_tokenizer)
        (folder / "README.md").write_text(card)
        known = {key: info[key] for key in ("run", "step", "tokens", "versions") if key in info}
        (folder / SOURCE_FILE).write_text(json.dumps(known, indent=1) + "\n")
    return comparison


def _never(folder: Path) -> bool:
    return False


def _is_exported(folder: Path) -> bool:
    return (folder / "config.json").is_file() and has_tensors(folder)


def _find_tokenizer(
    info: Mapping[str, Any], options: ExportOptions, *, vocab_size: int
) -> tuple[Path | None, EndToken | None]:
    known = info.get("tokenizer")
    path = options.tokenizer or (Path(known) if known else None)
    if path is None:
        return None, None
    if not path.is_file():
        raise ConversionError(f"{path}: not there. Pass --tokenizer tokenizer.json.")
    eos_id = info.get("eos_id") if options.eos_token is None else None
    end = find_end_token(path, vocab_size=vocab_size, text=options.eos_token, eos_id=eos_id)
    return path, end


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.export",
        description="Export weights as a Hugging Face folder that stands alone.",
    )
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_CHECKPOINT", help="run, checkpoint or weights folder"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="stored precision")
    parser.add_argument("--max-shard-gb", type=float, default=DEFAULT_SHARD_GB)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json (default: the source's)")
    parser.add_argument("--eos-token", help="token that ends documents (default: the source's)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT if it is an exported model"
    )
    arguments = parser.parse_args(argv)
    console = Console(stderr=True)
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"megatron\.")  # about packages it can do without
    options = ExportOptions(
        dtype=arguments.dtype,
        max_shard_gb=arguments.max_shard_gb,
        tokenizer=arguments.tokenizer,
        eos_token=arguments.eos_token,
        overwrite=arguments.overwrite,
    )
    try:
        with console.status("starting") as status:
            done = export(arguments.source, arguments.out, options, report=status.update)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(  # noqa: T201
        f"{arguments.out}: logits differ from the trainer's by {done.difference:.3g} "
        f"(allowed {done.allowed:.3g}); by {done.rounding:.3g} before rounding to "
        f"{arguments.dtype}, with the same best token in {done.agreement:.2%}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
