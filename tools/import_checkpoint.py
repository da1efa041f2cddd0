# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.import_checkpoint SOURCE OUT`: weights of others to a weights folder.

SOURCE is an official Block Transformer checkpoint (a folder or its model.safetensors),
a GPT-NeoX or Pythia checkpoint in Hugging Face's format, or one of our exports.
`checkpoint.initialize_from: OUT` starts a run from the result.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bt_megatron.checkpoint.hf_config import model_of, read_config
from bt_megatron.checkpoint.infer import Choices, infer_model
from bt_megatron.checkpoint.names import from_official
from bt_megatron.checkpoint.safetensors_files import read_tensors
from bt_megatron.checkpoint.uptrain import partition
from bt_megatron.checkpoint.weights import TOKENIZER_FILE, write_weights
from bt_megatron.config.load import load_model
from bt_megatron.config.params import count_parameters
from bt_megatron.config.schema import ModelConfig
from bt_megatron.errors import BtError, ConversionError


def import_weights(
    source: Path, choices: Choices
) -> tuple[dict[str, Tensor], ModelConfig, Path | None]:
    """Read a checkpoint of others.

    Args:
        source: folder or .safetensors file.
        choices: what an official Block Transformer checkpoint does not say.

    Returns:
        Weights by canonical name, their model, and a tokenizer.json if there is one.

    Raises:
        BtError: it cannot be read, or is not of a kind that can be converted.
    """
    if not source.exists():
        raise ConversionError(f"{source}: not there. Name a folder or a .safetensors file.")
    folder = source.parent if source.is_file() else source
    tensors = read_tensors(source)
    model = _model(tensors, folder / "config.json", choices)
    tokenizer = folder / TOKENIZER_FILE
    return from_official(tensors, model), model, tokenizer if tokenizer.is_file() else None


def _model(tensors: Mapping[str, Tensor], config: Path, choices: Choices) -> ModelConfig:
    is_official_block = any(name.startswith("embedder.") for name in tensors)
    if config.is_file():
        content = read_config(config)
        if "model_type" in content or not is_official_block:
            return _refuse_choices(model_of(content, str(config)), choices)
    if is_official_block:
        return infer_model(tensors, choices)
    raise ConversionError(
        f"{config}: not there, and the tensors are not a Block Transformer's. A GPT-NeoX "
        "checkpoint needs its config.json, which tells its heads."
    )


def _refuse_choices(model: ModelConfig, choices: Choices) -> ModelConfig:
    if choices != Choices():
        given = ", ".join(f"--{name.replace('_', '-')}" for name in _given(choices))
        raise ConversionError(f"{given}: config.json tells this already. Leave it out.")
    return model


def _given(choices: Choices) -> list[str]:
    return [name for name in choices.__slots__ if getattr(choices, name) is not None]


def import_checkpoint(
    source: Path, out: Path, *, choices: Choices, uptrain_to: Path | None = None
) -> ModelConfig:
    """Write a weights folder from a checkpoint of others.

    Args:
        source: folder or .safetensors file.
        out: folder to make.
        choices: what an official Block Transformer checkpoint does not say.
        uptrain_to: a model YAML of a Block Transformer to start from a vanilla source.

    Returns:
        The model that was written.

    Raises:
        BtError: as `import_weights`, or the models do not fit, or OUT exists.
    """
    weights, model, tokenizer = import_weights(source, choices)
    info: dict[str, Any] = {"imported_from": str(source)}
    if uptrain_to is not None:
        target = load_model(uptrain_to)
        weights, model = partition(weights, model, target), target
        info["uptrain_method"] = "partition"
    write_weights(out, weights, model, info=info, tokenizer=tokenizer)
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.import_checkpoint",
        description="Import official Block Transformer, GPT-NeoX or exported checkpoints.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder or .safetensors file")
    parser.add_argument("out", type=Path, metavar="OUT", help="weights folder to make")
    parser.add_argument(
        "--uptrain-to", type=Path, metavar="MODEL.yaml", help="start this block model from SOURCE"
    )
    unsaid = parser.add_argument_group("what official Block Transformer tensors do not say")
    unsaid.add_argument("--num-attention-heads", type=int, help="default: by the width rule")
    unsaid.add_argument("--token-num-attention-heads", type=int, help="default: as above")
    unsaid.add_argument("--embedder-num-attention-heads", type=int, help="default: by width")
    unsaid.add_argument("--strategy", choices=("prefix", "summation"))
    unsaid.add_argument("--embedder", choices=("roberta", "roberta_cls"))
    unsaid.add_argument("--block-length", type=int)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    choices = Choices(**{name: getattr(arguments, name) for name in Choices.__slots__})
    try:
        model = import_checkpoint(
            arguments.source, arguments.out, choices=choices, uptrain_to=arguments.uptrain_to
        )
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    total = count_parameters(model).total
    print(f"{arguments.out}: {model.architecture} model, {total:,} parameters")  # noqa: T201
    for name in ("block_decoder", "token_decoder", "decoder"):
        stack = getattr(model, name)
        if stack is not None:
            layers, width, heads = stack.num_layers, stack.hidden_size, stack.num_attention_heads
            print(f"  {name}: {layers} layers, width {width}, {heads} heads")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
