# SPDX-License-Identifier: Apache-2.0
"""Sizes that follow from a model's configuration: positions, vectors, stacks.

Letters as in model/shapes.py: n blocks per sequence, k tokens per block, r expanded
vectors per block, q positions the token decoder sees per block.
"""

from collections.abc import Iterator

from bt_megatron.config.schema import DecoderConfig, EmbedderConfig, ModelConfig, RunConfig

T5_BUCKETS = 32
"""Buckets of the T5 token decoder's relative bias (reference: T5Config's default)."""
ROBERTA_FIRST_POSITION = 2
"""RoBERTa numbers positions from its pad id + 1 (reference: transformers' RoBERTa)."""


def expanded_vectors(model: ModelConfig) -> int:
    """Return r: vectors made from each context embedding.

    prefix_length for prefix; block_length for summation and cross_attention (the
    reference's default expansion_ratio).
    """
    token = model.token_decoder
    assert token is not None, "only block models have a token decoder"
    return token.prefix_length if token.strategy == "prefix" else model.block_length


def token_positions(model: ModelConfig) -> int:
    """Return q: p + k - 1 with prefixes (the last token is never fed), else k."""
    token = model.token_decoder
    assert token is not None, "only block models have a token decoder"
    if token.strategy == "prefix":
        return token.prefix_length + model.block_length - 1
    return model.block_length


def encoder_positions(model: ModelConfig) -> int:
    """Return the positions per block of the embedder's encoder: k, or c + k with CLS."""
    embedder = model.embedder
    assert embedder is not None, "only block models have an embedder"
    return model.block_length + embedder.num_cls_tokens


def pooled_vectors(model: ModelConfig) -> int:
    """Return how many vectors the embedder joins into one: c with roberta_cls, else k."""
    embedder = model.embedder
    assert embedder is not None, "only block models have an embedder"
    return embedder.num_cls_tokens if embedder.kind == "roberta_cls" else model.block_length


def has_projection(embedder: EmbedderConfig) -> bool:
    """Tell whether the joined vectors pass a linear layer; always so after an encoder."""
    return embedder.projection or embedder.kind != "lookup"


def encoder_stack(embedder: EmbedderConfig) -> DecoderConfig | None:
    """Describe the encoder of the roberta kinds as a stack, for counting.

    RoBERTa's layers have the parameters and products of GPT-NeoX's: biases everywhere,
    two layer norms, no gating.
    """
    if embedder.kind == "lookup":
        return None
    return DecoderConfig(
        num_layers=embedder.num_layers,
        hidden_size=embedder.hidden_size,
        num_attention_heads=embedder.num_attention_heads,
        ffn_hidden_size=embedder.ffn_hidden_size,
        residual="sequential",
    )


def stacks(model: ModelConfig) -> Iterator[tuple[str, DecoderConfig]]:
    """Yield each stack of layers with the dotted key of its section."""
    if model.embedder is not None and (encoder := encoder_stack(model.embedder)) is not None:
        yield "model.embedder", encoder
    for name in ("block_decoder", "token_decoder", "decoder"):
        stack = getattr(model, name)
        if stack is not None:
            yield f"model.{name}", stack


def is_t5(model: ModelConfig) -> bool:
    """Tell whether the token decoder is the T5 decoder (cross-attention, tied head)."""
    return model.token_decoder is not None and model.token_decoder.strategy == "cross_attention"


def fp8_stacks(model: ModelConfig) -> Iterator[tuple[str, DecoderConfig]]:
    """Yield the stacks whose products `kernels.fp8` puts in FP8, with the key of their section.

    A T5 token decoder is of plain torch modules and stays in bf16, as do embedders.
    """
    for key, stack in stacks(model):
        if key != "model.embedder" and not (key == "model.token_decoder" and is_t5(model)):
            yield key, stack


def layer_letters(model: ModelConfig) -> str:
    """Return the model as letters of a layout string, e.g. EbbbtttL; EttttttL if vanilla."""
    if not model.is_block:
        assert model.decoder is not None, "rules.py: a vanilla model has a decoder"
        return f"E{'t' * model.decoder.num_layers}L"
    assert model.block_decoder is not None, "rules.py: a block model has a block decoder"
    assert model.token_decoder is not None, "rules.py: a block model has a token decoder"
    return f"E{'b' * model.block_decoder.num_layers}{'t' * model.token_decoder.num_layers}L"


def sequence_rows(config: RunConfig) -> tuple[int, str]:
    """Return what cp and sequence parallelism cut: how many rows a sequence has, of what."""
    seq, model = config.data.seq_length, config.model
    return (seq // model.block_length, "blocks") if model.is_block else (seq, "tokens")
