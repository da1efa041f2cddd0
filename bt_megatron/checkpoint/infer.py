# SPDX-License-Identifier: Apache-2.0
"""The model section of an official Block Transformer checkpoint, from its tensors' shapes.

Official checkpoints are bare tensors without a config. Shapes do not tell the number
of heads (the reference's width rule fills it in, unless it is given), nor apart a few
models with equal shapes: there the user must choose.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from bt_megatron.config.schema import (
    DecoderConfig,
    EmbedderConfig,
    ModelConfig,
    TokenDecoderConfig,
)
from bt_megatron.errors import ConversionError

HEAD_WIDTHS = ((256, 32), (1536, 64))
"""Head width up to a model width; 128 above (reference: autofill of head counts)."""
T5_NORM_EPSILON = 1e-6
T5_DROPOUT = 0.1
EXPANSION = "token_decoder.expansion_layer.weight"
PROJECTION = "embedder.projection_layer.weight"
TABLE = "embedder.embeddings.weight"
T5_TABLE = "token_decoder.shared.weight"
T5_BIAS = "token_decoder.decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
T5_WI = "token_decoder.decoder.block.0.layer.2.DenseReluDense.wi.weight"
NEOX_FC1 = "layers.0.mlp.dense_h_to_4h.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What shapes do not say; None: by the rules above."""

    num_attention_heads: int | None = None
    """Heads of the block decoder, and of a GPT-NeoX token decoder without its own number."""
    token_num_attention_heads: int | None = None
    """Heads of a GPT-NeoX token decoder (a T5 decoder tells its heads)."""
    embedder_num_attention_heads: int | None = None
    """Heads of a RoBERTa embedder."""
    strategy: Literal["prefix", "summation"] | None = None
    """Needed where as many vectors are expanded as a block has tokens."""
    embedder: Literal["roberta", "roberta_cls"] | None = None
    """Needed where the embedder is a RoBERTa encoder."""
    block_length: int | None = None
    """Needed for a roberta_cls embedder with a prefix token decoder."""


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes by official name; a missing one is the user's error."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise ConversionError(
            f"{name}: not among the {len(self)} tensors, so this is not a whole Block Transformer "
            "checkpoint. Name its model.safetensors or folder."
        )

    def count(self, prefix: str) -> int:
        """Return the number of layers whose names are `prefix`.{i}.*."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = [int(match[1]) for name in self if (match := pattern.match(name))]
        return max(found, default=-1) + 1


def heads_by_width(width: int) -> int:
    """Return the reference's number of heads: width 32 up to 256, 64 up to 1536, else 128."""
    head_width = next((size for limit, size in HEAD_WIDTHS if width <= limit), 128)
    return max(1, width // head_width)


def infer_model(tensors: Mapping[str, Tensor], choices: Choices) -> ModelConfig:
    """Return the model that official tensors belong to.

    Args:
        tensors: by official name.
        choices: what the shapes do not say.

    Raises:
        ConversionError: a tensor that must be there is not, or a choice is missing or wrong.
    """
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    block = _gpt_neox(shapes, "block_decoder.gpt_neox", choices.num_attention_heads)
    is_t5 = T5_TABLE in shapes
    token_heads = choices.token_num_attention_heads or choices.num_attention_heads
    stack = _t5(shapes) if is_t5 else _gpt_neox(shapes, "token_decoder.gpt_neox", token_heads)
    expanded = shapes[EXPANSION][0] // stack.hidden_size
    embedder = _lookup(shapes) if TABLE in shapes else _roberta(shapes, choices)
    block_length = _block_length(shapes, embedder, expanded, choices, is_t5=is_t5)
    strategy = "cross_attention" if is_t5 else _strategy(expanded, block_length, choices)
    settings: dict[str, Any] = asdict(stack)
    if strategy == "prefix":
        settings["prefix_length"] = expanded
    if is_t5:
        settings["dropout"] = T5_DROPOUT
    table = TABLE if TABLE in shapes else "embedder.embeddings.word_embeddings.weight"
    return ModelConfig(
        vocab_size=shapes[table][0],
        block_length=block_length,
        embedder=embedder,
        block_decoder=block,
        token_decoder=TokenDecoderConfig(**settings, strategy=strategy),
    )


def _gpt_neox(shapes: Shapes, prefix: str, heads: int | None) -> DecoderConfig:
    width = shapes[f"{prefix}.final_layer_norm.weight"][0]
    heads = heads_by_width(width) if heads is None else heads
    if width % heads:
        raise ConversionError(
            f"{prefix}: {heads} heads do not divide its width {width}. Pass another "
            "--num-attention-heads."
        )
    return DecoderConfig(
        num_layers=shapes.count(f"{prefix}.layers"),
        hidden_size=width,
        num_attention_heads=heads,
        ffn_hidden_size=_ffn(width, shapes[f"{prefix}.{NEOX_FC1}"][0]),
    )


def _t5(shapes: Shapes) -> DecoderConfig:
    width = shapes[T5_TABLE][1]
    return DecoderConfig(
        num_layers=shapes.count("token_decoder.decoder.block"),
        hidden_size=width,
        num_attention_heads=shapes[T5_BIAS][1],
        ffn_hidden_size=_ffn(width, shapes[T5_WI][0]),
        residual="sequential",
        normalization="rmsnorm",
        activation="relu",
        bias=False,
        norm_epsilon=T5_NORM_EPSILON,
    )


def _ffn(width: int, inner: int) -> int | None:
    return None if inner == 4 * width else inner


def _lookup(shapes: Shapes) -> EmbedderConfig:
    return EmbedderConfig(hidden_size=shapes[TABLE][1], projection=PROJECTION in shapes)


def _roberta(shapes: Shapes, choices: Choices) -> EmbedderConfig:
    width, taps = shapes[PROJECTION][1:]
    if choices.embedder is None:
        raise ConversionError(
            f"{PROJECTION}: its {taps} taps may be the tokens of a block or CLS tokens. "
            "Pass --embedder roberta or --embedder roberta_cls."
        )
    return EmbedderConfig(
        kind=choices.embedder,
        hidden_size=width,
        num_layers=shapes.count("embedder.encoder.layer"),
        num_attention_heads=choices.embedder_num_attention_heads or heads_by_width(width),
        ffn_hidden_size=shapes["embedder.encoder.layer.0.intermediate.dense.weight"][0],
        num_cls_tokens=taps if choices.embedder == "roberta_cls" else 0,
        max_positions=shapes["embedder.embeddings.position_embeddings.weight"][0],
    )


def _block_length(
    shapes: Shapes, embedder: EmbedderConfig, expanded: int, choices: Choices, *, is_t5: bool
) -> int:
    if embedder.kind == "roberta_cls":
        found = expanded if is_t5 or choices.strategy == "summation" else choices.block_length
    elif PROJECTION in shapes:
        found = shapes[PROJECTION][2]
    else:
        found = shapes["block_decoder.gpt_neox.final_layer_norm.weight"][0] // embedder.hidden_size
    if found is None:
        raise ConversionError(
            "The shapes of a roberta_cls embedder and a prefix token decoder do not tell the "
            "block length. Pass --block-length (4 in the published models)."
        )
    if choices.block_length not in (None, found):
        raise ConversionError(
            f"--block-length is {choices.block_length}, the tensors' shapes say {found}. "
            "Leave it out."
        )
    return found


def _strategy(expanded: int, block_length: int, choices: Choices) -> Literal["prefix", "summation"]:
    if expanded != block_length and choices.strategy == "summation":
        raise ConversionError(
            f"--strategy summation needs {block_length} expanded vectors per block, "
            f"{EXPANSION} makes {expanded}. Leave --strategy out: it is prefix."
        )
    if expanded != block_length:
        return "prefix"
    if choices.strategy is None:
        raise ConversionError(
            f"{EXPANSION}: {expanded} vectors for blocks of {block_length} tokens may be prefixes "
            "or summands. Pass --strategy prefix or --strategy summation."
        )
    return choices.strategy
