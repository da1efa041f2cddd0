# SPDX-License-Identifier: Apache-2.0
"""Rules about the model and the sequences it reads."""

from bt_megatron.config.data_rules import without_padding
from bt_megatron.config.geometry import (
    ROBERTA_FIRST_POSITION,
    encoder_positions,
    is_t5,
    stacks,
)
from bt_megatron.config.schema import EmbedderConfig, RunConfig

_BLOCK_SECTIONS = ("embedder", "block_decoder", "token_decoder")


def sections_fit_the_architecture(config: RunConfig, world_size: int) -> str | None:
    """A block model has its three parts, a vanilla model its one, and no other."""
    model = config.model
    wanted = _BLOCK_SECTIONS if model.is_block else ("decoder",)
    faults = []
    for name in (*_BLOCK_SECTIONS, "decoder"):
        present = getattr(model, name) is not None
        if present and name not in wanted:
            faults.append(f"model.{name} must be null")
        if not present and name in wanted:
            faults.append(f"model.{name} is missing")
    if not faults:
        return None
    return (
        f"model.architecture is {model.architecture}, which needs {', '.join(wanted)} and no "
        f"other part: {'; '.join(faults)}."
    )


def embedder_fields_fit_its_kind(config: RunConfig, world_size: int) -> str | None:
    """The encoder's sizes belong to the roberta kinds, the projection switch to lookup."""
    embedder = config.model.embedder
    if embedder is None:
        return None
    faults = _lookup_faults(embedder) if embedder.kind == "lookup" else _roberta_faults(embedder)
    if not faults:
        return None
    return f"model.embedder.kind is {embedder.kind}: {'; '.join(faults)}."


def _encoder_sizes(embedder: EmbedderConfig) -> dict[str, int]:
    return {
        "num_layers": embedder.num_layers,
        "num_attention_heads": embedder.num_attention_heads,
        "ffn_hidden_size": embedder.ffn_hidden_size,
    }


def _lookup_faults(embedder: EmbedderConfig) -> list[str]:
    sizes = {**_encoder_sizes(embedder), "num_cls_tokens": embedder.num_cls_tokens}
    return [
        f"model.embedder.{name} ({size}) has no meaning here, leave it out"
        for name, size in sizes.items()
        if size != 0
    ]


def _roberta_faults(embedder: EmbedderConfig) -> list[str]:
    faults = [
        f"model.embedder.{name} ({size}) must be at least 1"
        for name, size in _encoder_sizes(embedder).items()
        if size < 1
    ]
    if embedder.projection:
        faults.append("model.embedder.projection is for lookup (an encoder always has one)")
    wanted = 1 if embedder.kind == "roberta_cls" else 0
    if wanted == 1 and embedder.num_cls_tokens < 1:
        faults.append(
            f"model.embedder.num_cls_tokens ({embedder.num_cls_tokens}) must be at least 1 "
            "(the reference has 3)"
        )
    if wanted == 0 and embedder.num_cls_tokens != 0:
        faults.append(
            f"model.embedder.num_cls_tokens ({embedder.num_cls_tokens}) is for roberta_cls, "
            "leave it out"
        )
    return faults


def block_vector_fills_the_block_decoder(config: RunConfig, world_size: int) -> str | None:
    """Concatenated look-ups are the block decoder's input, with nothing in between."""
    model = config.model
    embedder, block = model.embedder, model.block_decoder
    if embedder is None or block is None or embedder.kind != "lookup" or embedder.projection:
        return None
    joined = embedder.hidden_size * model.block_length
    if joined == block.hidden_size:
        return None
    remedy = "model.embedder.projection=true"
    if block.hidden_size % model.block_length == 0:
        remedy = f"model.embedder.hidden_size={block.hidden_size // model.block_length} or {remedy}"
    return (
        f"model.block_length ({model.block_length}) x model.embedder.hidden_size "
        f"({embedder.hidden_size}) = {joined} must equal model.block_decoder.hidden_size "
        f"({block.hidden_size}). Use {remedy}."
    )


def heads_divide_the_width(config: RunConfig, world_size: int) -> str | None:
    """Every head has the same whole width."""
    faults = [
        f"{key}.num_attention_heads ({stack.num_attention_heads}) does not divide "
        f"{key}.hidden_size ({stack.hidden_size})"
        for key, stack in stacks(config.model)
        if stack.num_attention_heads > 0 and stack.hidden_size % stack.num_attention_heads
    ]
    return "; ".join(faults) + ". Use a number of heads that divides it." if faults else None


def query_groups_divide_the_heads(config: RunConfig, world_size: int) -> str | None:
    """Every key-value head serves the same number of query heads."""
    faults = [
        f"{key}.num_query_groups ({stack.query_groups}) does not divide "
        f"{key}.num_attention_heads ({stack.num_attention_heads})"
        for key, stack in stacks(config.model)
        if stack.query_groups > 0 and stack.num_attention_heads % stack.query_groups
    ]
    return "; ".join(faults) + ". Use a number that divides it, or null." if faults else None


def rotary_cuts_heads_into_pairs(config: RunConfig, world_size: int) -> str | None:
    """Rotary turns pairs of dimensions; without any, positions would not be seen."""
    faults = []
    for key, stack in stacks(config.model):
        if key == "model.embedder" or (key == "model.token_decoder" and is_t5(config.model)):
            continue
        rotated = int(stack.rotary_fraction * stack.head_dim)
        if rotated < 2 or rotated % 2:
            faults.append(
                f"{key}.rotary_fraction ({stack.rotary_fraction}) x head width ({stack.head_dim})"
                f" rotates {rotated} dimensions, which must be even and at least 2"
            )
    return "; ".join(faults) + ". Use fewer heads or another fraction." if faults else None


def positions_fit_the_table(config: RunConfig, world_size: int) -> str | None:
    """RoBERTa's learned positions of a block start at 2 and end inside the table."""
    embedder = config.model.embedder
    if embedder is None or embedder.kind == "lookup":
        return None
    needed = encoder_positions(config.model) + ROBERTA_FIRST_POSITION
    if embedder.max_positions >= needed:
        return None
    return (
        f"model.embedder.max_positions ({embedder.max_positions}) is less than the {needed} that "
        f"a block needs (block_length {config.model.block_length} + CLS tokens "
        f"{embedder.num_cls_tokens} + {ROBERTA_FIRST_POSITION}). Use {needed} or more."
    )


def cross_attention_is_a_t5_decoder(config: RunConfig, world_size: int) -> str | None:
    """cross_attention is the T5 decoder of the reference and takes no other layer style."""
    token = config.model.token_decoder
    if token is None or not is_t5(config.model):
        return None
    wanted = {
        "residual": "sequential",
        "normalization": "rmsnorm",
        "activation": "relu",
        "bias": False,
        "num_query_groups": None,
    }
    faults = [
        f"{name}={'null' if value is None else str(value).lower()}"
        for name, value in wanted.items()
        if getattr(token, name) != value
    ]
    if not faults:
        return None
    return (
        "model.token_decoder.strategy is cross_attention, which is a T5 decoder. "
        f"Set in model.token_decoder: {', '.join(faults)}."
    )


def vanilla_has_no_block_padding(config: RunConfig, world_size: int) -> str | None:
    """A vanilla model has no blocks to pad for."""
    if config.model.is_block:
        return None
    remedy = without_padding(config)
    return remedy and f"model.architecture is vanilla, which has no blocks to pad. {remedy}"


def sequence_is_whole_blocks(config: RunConfig, world_size: int) -> str | None:
    """A sequence must split into blocks with no tokens left over."""
    seq, block = config.data.seq_length, config.model.block_length
    if not config.model.is_block or seq % block == 0:
        return None
    down = seq - seq % block
    return (
        f"data.seq_length ({seq}) is not a multiple of model.block_length ({block}); {seq % block} "
        f"tokens would be left over. Use {f'{down} or ' if down else ''}{down + block}."
    )


def sequence_has_something_to_predict(config: RunConfig, world_size: int) -> str | None:
    """The first block (vanilla: token) of a sequence is never predicted."""
    seq, shift = config.data.seq_length, config.model.target_shift
    if seq >= 2 * shift:
        return None
    unit = "blocks" if config.model.is_block else "tokens"
    return (
        f"data.seq_length ({seq}) holds fewer than two {unit} of {shift}, so nothing could be "
        f"predicted. Use {2 * shift} or more."
    )
