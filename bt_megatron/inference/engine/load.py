# SPDX-License-Identifier: Apache-2.0
"""Models for the engine, from an exported folder or with random weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bt_megatron.checkpoint.hf_config import model_of, read_config
from bt_megatron.checkpoint.safetensors_files import read_tensors
from bt_megatron.config.geometry import expanded_vectors
from bt_megatron.config.schema import DecoderConfig, ModelConfig
from bt_megatron.errors import ConfigError, ConversionError
from bt_megatron.inference.engine.linear import make_linear
from bt_megatron.inference.engine.models import BlockModel, CachedStack, Model, VanillaModel
from bt_megatron.inference.engine.rotary import make_angles
from bt_megatron.inference.engine.shapes import stack_shape
from bt_megatron.inference.engine.stack import Stack
from bt_megatron.inference.engine.weights import (
    Numbers,
    Source,
    StackWeights,
    absorb_norm,
    random_state,
    read_stack,
)

VANILLA_STEP_TOKENS = 4
MIN_HEAD_DIM = 16


def load_model(
    folder: Path,
    *,
    numbers: Numbers,
    device: torch.device,
    max_tokens: int,
    done: Callable[[], None] = lambda: None,
) -> tuple[Model, dict[str, Any]]:
    """Load an exported Block Transformer or a GPT-NeoX model.

    Args:
        folder: with config.json and safetensors.
        numbers: precision.
        device: of the engine.
        max_tokens: longest sequence, prompt and continuation.
        done: called after each layer.

    Returns:
        The model and its config.json.

    Raises:
        BtError: the folder is not whole, or holds a model that the engine does not run.
    """
    config = read_config(folder / "config.json")
    model = model_of(config, str(folder / "config.json"))
    if config.get("official_generate_positions"):
        raise ConversionError(
            f"{folder}/config.json: official_generate_positions is set. The engine numbers "
            "positions as in training; use transformers for the reference's numbering."
        )
    pad_id = config.get("pad_token_id") or 0
    state = read_tensors(folder)
    built = build_model(
        model, state, numbers=numbers, device=device, max_tokens=max_tokens, pad_id=pad_id,
        done=done,
    )  # fmt: skip
    return built, config


def end_token(folder: Path, config: Mapping[str, Any]) -> int | None:
    """Return the id that ends texts: that of generation_config.json, else of config.json."""
    path = folder / "generation_config.json"
    chosen = json.loads(path.read_text()) if path.is_file() else {}
    found = chosen.get("eos_token_id", config.get("eos_token_id"))
    return found[0] if isinstance(found, list) else found


def build_model(
    model: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    numbers: Numbers,
    device: torch.device,
    max_tokens: int,
    pad_id: int = 0,
    done: Callable[[], None] = lambda: None,
) -> Model:
    """Build a model from tensors by official name.

    Raises:
        ConversionError: a kind of model that the engine does not run, or a missing tensor.
        ConfigError: FP8 on a device that has none.
    """
    require_supported(model)
    if numbers.fp8 and not has_fp8(device):
        raise ConfigError("fp8: this GPU has no FP8 products (Hopper or newer has). Leave it out.")
    source = Source(state, device)
    common = {"vocab_size": model.vocab_size, "pad_id": pad_id, "dtype": numbers.dtype}
    positions = -(-max_tokens // (model.block_length if model.is_block else 1)) + 1

    def cached(prefix: str, section: DecoderConfig | None) -> CachedStack:
        assert section is not None
        weights = read_stack(source, prefix, stack_shape(section), numbers, done)
        return CachedStack(Stack(weights, device), make_angles(weights.shape, positions, device))

    def table(name: str) -> Tensor:
        return source.need(name).to(numbers.dtype)

    def follow(name: str, stack: StackWeights, bias: str | None = None) -> Any:
        weight = source.need(name).flatten(1)  # a Conv1d of width one
        given = None if bias is None else source.need(bias)
        absorbed = absorb_norm(weight, given, stack.final_scale, stack.final_bias)
        return make_linear(*absorbed, numbers.dtype, fp8=False)

    if not model.is_block:
        whole = cached("gpt_neox", model.decoder)
        return VanillaModel(
            **common,
            step_tokens=VANILLA_STEP_TOKENS,
            table=table("gpt_neox.embed_in.weight"),
            cached=whole,
            head=follow("embed_out.weight", whole.stack.weights),
        )
    assert model.token_decoder is not None
    assert model.embedder is not None
    blocks = cached("block_decoder.gpt_neox", model.block_decoder)
    shape = stack_shape(model.token_decoder)
    tokens = read_stack(source, "token_decoder.gpt_neox", shape, numbers, done)
    projection = None
    if model.embedder.projection:
        kernel = source.need("embedder.projection_layer.weight")  # [G, E, k]
        bias = source.need("embedder.projection_layer.bias")
        projection = make_linear(kernel.transpose(1, 2).flatten(1), bias, numbers.dtype, fp8=False)
    names = ("token_decoder.expansion_layer.weight", "token_decoder.expansion_layer.bias")
    expanded = expanded_vectors(model)
    return BlockModel(
        **common,
        step_tokens=model.block_length,
        block_table=table("embedder.embeddings.weight"),
        projection=projection,
        cached=blocks,
        expansion=follow(names[0], blocks.stack.weights, names[1]),
        table=table("token_decoder.gpt_neox.embed_in.weight"),
        tokens=Stack(tokens, device),
        angles=make_angles(shape, expanded + model.block_length, device),
        is_prefix=model.token_decoder.strategy == "prefix",
        expanded=expanded,
        head=follow("token_decoder.embed_out.weight", tokens),
    )


def random_model(
    model: ModelConfig, *, numbers: Numbers, device: torch.device, max_tokens: int
) -> Model:
    """Build a model with random weights, for measuring speed."""
    state = random_state(model, device)
    return build_model(model, state, numbers=numbers, device=device, max_tokens=max_tokens)


def require_supported(model: ModelConfig) -> None:
    """Accept or refuse a kind of model.

    Raises:
        ConversionError: the engine has no kernels for one of its parts.
    """
    problems = []
    if model.embedder is not None and model.embedder.kind != "lookup":
        problems.append(f"the embedder is of kind {model.embedder.kind} (only lookup)")
    if model.token_decoder is not None and model.token_decoder.strategy == "cross_attention":
        problems.append("the token decoder cross-attends (only prefix and summation)")
    if problems:
        raise ConversionError(
            f"the engine does not run this model: {'; '.join(problems)}. "
            "Use transformers: python -m tools.generate FOLDER."
        )


def has_fp8(device: torch.device) -> bool:
    """Tell whether a device multiplies in FP8; a CPU does it slowly in float32."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)
