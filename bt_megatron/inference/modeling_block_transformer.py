# SPDX-License-Identifier: Apache-2.0
"""Block Transformer (arXiv 2406.02657) for Hugging Face transformers, in one file.

This file travels inside every exported checkpoint and needs torch and
transformers only. An embedder turns each block of k tokens into one vector,
the block decoder attends over blocks, and its output for a block is expanded
into vectors from which the token decoder writes the tokens of the next block,
looking at nothing else. The first block of a sequence is therefore never
predicted. Shapes:

    B sequences    N blocks    S tokens    k tokens per block    V vocabulary
    r expanded vectors per block    E, G, H widths of embedder, block and token decoder
    M independent rows of the token decoder (one per predicted block)
    q positions of a row            a heads, d their width
"""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

IGNORED_LABEL = -100
SHORT_ATTENTION = 64
"""Fused attention kernels refuse 65,536 and more rows * heads; rows this short do without."""
ROBERTA_PAD_ID = 1
ROBERTA_CLS_ID = 0
T5_BUCKETS, T5_MAX_DISTANCE = 32, 128


class BlockTransformerConfig(PretrainedConfig):
    """Sizes and kinds of the three parts, each a plain dictionary."""

    model_type = "block_transformer"

    def __init__(
        self,
        *,
        vocab_size: int = 50304,
        block_length: int = 4,
        embedder: dict[str, Any] | None = None,
        block_decoder: dict[str, Any] | None = None,
        token_decoder: dict[str, Any] | None = None,
        init_std: float = 0.02,
        left_padding: int = 0,
        official_generate_positions: bool = False,
        **kwargs: Any,
    ) -> None:
        """Take the sections.

        Args:
            vocab_size: rows of the token tables.
            block_length: k, tokens per block.
            embedder: kind (lookup, roberta, roberta_cls), hidden_size, projection, ...
            block_decoder: num_layers, hidden_size, num_attention_heads, ...
            token_decoder: as block_decoder, with strategy (prefix, summation,
                cross_attention) and prefix_length.
            init_std: standard deviation of new weights.
            left_padding: pads that forward() puts in front unless it is told otherwise:
                block_length - 1 if training put random numbers of pads in front of documents.
                Every token from the second on then has a prediction.
            official_generate_positions: number positions in generation as the reference's
                generate() does (all prefix vectors at 0), not as in training.
            **kwargs: what every transformers config takes, and pad_token_id: the id that
                training put in front of documents.
        """
        self.vocab_size = vocab_size
        self.block_length = block_length
        self.embedder = embedder or {}
        self.block_decoder = block_decoder or {}
        self.token_decoder = token_decoder or {}
        self.init_std = init_std
        self.left_padding = left_padding
        self.official_generate_positions = official_generate_positions
        self.pad_token_id = kwargs.pop("pad_token_id", 0)
        # The T5 token decoder has one table for input and output.
        is_t5 = self.token_decoder.get("strategy") == "cross_attention"
        super().__init__(**{**kwargs, "tie_word_embeddings": is_t5})

    @property
    def hidden_size(self) -> int:
        """Width of the block decoder."""
        return int(self.block_decoder["hidden_size"])

    @property
    def num_expanded(self) -> int:
        """Number of vectors made from one context embedding."""
        is_prefix = self.token_decoder["strategy"] == "prefix"
        return self.token_decoder["prefix_length"] if is_prefix else self.block_length


class KeyValues:
    """Keys and values of a stack of layers for all positions seen so far."""

    def __init__(self) -> None:
        self.layers: dict[Any, tuple[Tensor, Tensor]] = {}
        self.visible: Tensor | None = None  # [B, positions] bool

    @property
    def length(self) -> int:
        """Positions seen."""
        return 0 if self.visible is None else self.visible.shape[1]

    def see(self, visible: Tensor) -> Tensor:
        """Append the visibility [B, new] of new positions; return all of it [B, all]."""
        known = [] if self.visible is None else [self.visible]
        self.visible = torch.cat([*known, visible], dim=1)
        return self.visible

    def append(self, layer: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's keys and values [B, a, new, d]; return all of them."""
        if layer in self.layers:
            past_key, past_value = self.layers[layer]
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        self.layers[layer] = (key, value)
        return key, value

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        self.visible = None if self.visible is None else self.visible[rows]
        self.layers = {name: (k[rows], v[rows]) for name, (k, v) in self.layers.items()}


class BlockTransformerCache:
    """State of generation: all blocks for the block decoder, one block for the token decoder."""

    is_compileable = False
    is_croppable = False

    def __init__(self, *, left_padding: int = 0, official_positions: bool = False) -> None:
        """Start empty.

        Args:
            left_padding: pads that go in front of the first tokens.
            official_positions: see BlockTransformerConfig.official_generate_positions.
        """
        self.left_padding = left_padding
        self.official_positions = official_positions
        self.num_tokens = 0  # without the pads in front
        self.blocks = KeyValues()
        self.tokens = KeyValues()
        self.expanded: Tensor | None = None  # [B, r, H] for the current block
        self.tail: tuple[Tensor, Tensor] | None = None  # ids and mask [B, < k] of that block

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens seen, as transformers counts them."""
        return self.num_tokens

    def start_block(self, expanded: Tensor) -> None:
        """Forget the last block's tokens; `expanded` [B, r, H] is what the next one sees."""
        self.tokens = KeyValues()
        self.expanded = expanded

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given rows (beam search)."""
        self.blocks.select(beam_idx)
        self.tokens.select(beam_idx)
        if self.expanded is not None:
            self.expanded = self.expanded[beam_idx]
        if self.tail is not None:
            self.tail = (self.tail[0][beam_idx], self.tail[1][beam_idx])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    *,
    bias: Tensor | float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attend to the visible keys.

    Args:
        query: [B, a, q, d].
        key: [B, groups, keys, d].
        value: as key.
        visible: bool, broadcastable to [B, 1, q, keys]. A query that sees nothing averages
            over everything, as in the reference.
        bias: [a, q, keys] added to the scores.
        scale: factor of the scores; none: d ** -0.5.

    Returns:
        [B, q, a * d].
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if key.shape[2] > SHORT_ATTENTION and not isinstance(bias, Tensor):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    else:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = (query * scale @ key.transpose(-1, -2)).float() + bias
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        out = scores.softmax(-1).to(value.dtype) @ value
    return out.transpose(1, 2).flatten(2)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """Cut into heads: [B, q, a * d] -> [B, a, q, d]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def causally_visible(keys: Tensor, queries: int, *, itself: bool) -> Tensor:
    """Return which keys the last `queries` positions see: [B, 1, queries, keys] bool.

    Args:
        keys: [B, keys] bool, False for pads.
        queries: number of query positions, the last ones of the keys.
        itself: whether a pad sees itself (so that no position is without keys).
    """
    length = keys.shape[1]
    position = torch.arange(length, device=keys.device)
    query = position[length - queries :, None]
    seen = (position <= query) & keys[:, None, :]
    return (seen | (position == query) if itself else seen)[:, None]


def rotary_tables(positions: Tensor, config: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [q, rotated dimensions] in float32 (rotate-half form)."""
    rotated = int(config.hidden_size // config.num_attention_heads * config.rotary_fraction)
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=positions.device) / rotated
    angles = torch.outer(positions.float(), config.rotary_base**-exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first dimensions of each head of [B, a, q, d]."""
    cosines, sines = (table.to(states.dtype) for table in tables)
    part, rest = states.split([cosines.shape[-1], states.shape[-1] - cosines.shape[-1]], dim=-1)
    first, second = part.chunk(2, dim=-1)
    turned = part * cosines + torch.cat([-second, first], dim=-1) * sines
    return torch.cat([turned, rest], dim=-1)


class GPTNeoXAttention(nn.Module):
    """Causal self-attention; the fused projection holds q heads, k, v per query group."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.groups = config.num_query_groups or self.heads
        self.width = config.hidden_size // self.heads
        rows = (self.heads + 2 * self.groups) * self.width
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=config.bias)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(
        self, hidden: Tensor, *, visible: Tensor, rotary: Any, past: KeyValues, index: int
    ) -> Tensor:
        """Attend: [B, q, h] -> [B, q, h]; `past` takes the keys and values of layer `index`."""
        shape = (*hidden.shape[:2], self.groups, -1, self.width)
        fused = self.query_key_value(hidden).view(shape)  # [B, q, groups, heads/groups + 2, d]
        query = fused[..., :-2, :].flatten(2, 3).transpose(1, 2)
        key, value = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)
        key, value = past.append(index, rotate(key, rotary), value)
        return self.dense(attend(rotate(query, rotary), key, value, visible))


class GPTNeoXMLP(nn.Module):
    """Feed-forward part; with swiglu the first projection holds gate and up."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.activation = config.activation
        inner = config.ffn_hidden_size or 4 * config.hidden_size
        rows = 2 * inner if self.activation == "swiglu" else inner
        self.dense_h_to_4h = nn.Linear(config.hidden_size, rows, bias=config.bias)
        self.dense_4h_to_h = nn.Linear(inner, config.hidden_size, bias=config.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform [..., h]."""
        hidden = self.dense_h_to_4h(hidden)
        if self.activation == "swiglu":
            gate, up = hidden.chunk(2, dim=-1)
            return self.dense_4h_to_h(F.silu(gate) * up)
        return self.dense_4h_to_h(F.gelu(hidden) if self.activation == "gelu" else F.relu(hidden))


def make_norm(config: SimpleNamespace) -> nn.Module:
    """Return the normalisation layer that the section asks for."""
    kind = nn.LayerNorm if config.normalization == "layernorm" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_epsilon)


class GPTNeoXLayer(nn.Module):
    """Attention and feed-forward part, side by side (parallel) or in turn (sequential)."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.parallel = config.residual == "parallel"
        self.input_layernorm = make_norm(config)
        self.post_attention_layernorm = make_norm(config)
        self.attention = GPTNeoXAttention(config)
        self.mlp = GPTNeoXMLP(config)

    def forward(self, hidden: Tensor, **attention: Any) -> Tensor:
        """Transform [B, q, h]."""
        attended = hidden + self.attention(self.input_layernorm(hidden), **attention)
        residual = hidden if self.parallel else attended
        return attended + self.mlp(self.post_attention_layernorm(residual))


class GPTNeoXStack(nn.Module):
    """Layers and final norm, with a token table in the token decoder."""

    def __init__(self, section: dict[str, Any], *, vocab_size: int | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(**section)
        if vocab_size is not None:
            self.embed_in = nn.Embedding(vocab_size, self.config.hidden_size)
        self.layers = nn.ModuleList(
            GPTNeoXLayer(self.config) for _ in range(self.config.num_layers)
        )
        self.final_layer_norm = make_norm(self.config)

    def forward(
        self, hidden: Tensor, *, positions: Tensor, keys: Tensor, past: KeyValues, itself: bool
    ) -> Tensor:
        """Run the stack.

        Args:
            hidden: [B, q, h] new positions.
            positions: [q] rotary positions of the new ones.
            keys: [B, q] bool, False for pads.
            past: what was seen before; the new positions are added to it.
            itself: whether a pad sees itself.

        Returns:
            [B, q, h] after the final norm.
        """
        visible = causally_visible(past.see(keys), hidden.shape[1], itself=itself)
        rotary = rotary_tables(positions, self.config)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, visible=visible, rotary=rotary, past=past, index=index)
        return self.final_layer_norm(hidden)


class BlockDecoder(nn.Module):
    """Causal attention over blocks: [B, N, G] -> [B, N, G]."""

    def __init__(self, config: BlockTransformerConfig) -> None:
        super().__init__()
        self.gpt_neox = GPTNeoXStack(config.block_decoder)

    def forward(self, embeddings: Tensor, mask: Tensor, past: KeyValues) -> Tensor:
        """Run over new blocks; `mask` [B, N] is False for blocks of pads only."""
        first = past.length
        positions = torch.arange(first, first + mask.shape[1], device=mask.device)
        return self.gpt_neox(embeddings, positions=positions, keys=mask, past=past, itself=True)


class LookupEmbedder(nn.Module):
    """Vectors from a table, concatenated in token order; pads are tokens like any other."""

    def __init__(self, config: BlockTransformerConfig) -> None:
        super().__init__()
        section = SimpleNamespace(**config.embedder)
        self.embeddings = nn.Embedding(config.vocab_size, section.hidden_size)
        self.projection_layer = None
        if section.projection:
            taps = config.block_length
            self.projection_layer = nn.Conv1d(section.hidden_size, config.hidden_size, taps)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed: ids [M, k] -> [M, G]; the mask is not used."""
        vectors = self.embeddings(ids)  # [M, k, E]
        if self.projection_layer is None:
            return vectors.flatten(1)
        return self.projection_layer(vectors.transpose(1, 2))[..., 0]


class RobertaSelfAttention(nn.Module):
    """Query, key and value projections of a RoBERTa layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """Attend: [M, q, E] -> [M, q, E]."""
        parts = (part(hidden) for part in (self.query, self.key, self.value))
        query, key, value = (split_heads(part, self.heads) for part in parts)
        return attend(query, key, value, visible)


class RobertaResidual(nn.Module):
    """Projection, residual and norm after each part of a RoBERTa layer."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, update: Tensor, residual: Tensor) -> Tensor:
        """Join: [M, q, inputs] and [M, q, E] -> [M, q, E]."""
        return self.LayerNorm(residual + self.dense(update))


class RobertaLayer(nn.Module):
    """Post-norm encoder layer."""

    def __init__(self, section: SimpleNamespace) -> None:
        super().__init__()
        width, inner = section.hidden_size, section.ffn_hidden_size
        self.attention = nn.ModuleDict(
            {
                "self": RobertaSelfAttention(width, section.num_attention_heads),
                "output": RobertaResidual(width, width),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = RobertaResidual(inner, width)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """Transform [M, q, E]."""
        attended = self.attention["self"](hidden, visible)
        hidden = self.attention["output"](attended, hidden)
        return self.output(F.gelu(self.intermediate["dense"](hidden)), hidden)


class RobertaEmbedder(nn.Module):
    """A RoBERTa encoder over each block; its outputs (or its CLS outputs) become one vector."""

    def __init__(self, config: BlockTransformerConfig) -> None:
        super().__init__()
        section = SimpleNamespace(**config.embedder)
        width = section.hidden_size
        self.num_cls = section.num_cls_tokens if section.kind == "roberta_cls" else 0
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, width),
                "position_embeddings": nn.Embedding(section.max_positions, width),
                "token_type_embeddings": nn.Embedding(1, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-5),
            }
        )
        layers = nn.ModuleList(RobertaLayer(section) for _ in range(section.num_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        taps = self.num_cls or config.block_length
        self.projection_layer = nn.Conv1d(width, config.hidden_size, taps)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed: ids and mask [M, k] -> [M, G]; pads are not attended to."""
        ids = F.pad(ids, (self.num_cls, 0), value=ROBERTA_CLS_ID)
        mask = F.pad(mask, (self.num_cls, 0), value=True)
        counted = (ids != ROBERTA_PAD_ID).long()
        tables = self.embeddings
        hidden = tables["word_embeddings"](ids) + tables["token_type_embeddings"].weight[0]
        positions = counted.cumsum(-1) * counted + ROBERTA_PAD_ID
        hidden = tables["LayerNorm"](hidden + tables["position_embeddings"](positions))
        for layer in self.encoder["layer"]:
            hidden = layer(hidden, mask[:, None, None, :])
        outputs = hidden[:, : self.num_cls or None]  # [M, taps, E]
        return self.projection_layer(outputs.transpose(1, 2))[..., 0]


class Expansion(nn.Conv1d):
    """Linear map from a context embedding to r vectors; the reference stores it as a Conv1d."""

    def __init__(self, config: BlockTransformerConfig) -> None:
        width = config.token_decoder["hidden_size"]
        super().__init__(config.hidden_size, config.num_expanded * width, 1)
        self.num_expanded = config.num_expanded

    def forward(self, context: Tensor) -> Tensor:
        """Expand: [..., G] -> [..., r, H]."""
        expanded = F.linear(context, self.weight.squeeze(-1), self.bias)
        return expanded.unflatten(-1, (self.num_expanded, -1))


class GPTNeoXTokenDecoder(nn.Module):
    """Token decoder of the prefix and summation strategies."""

    def __init__(self, config: BlockTransformerConfig) -> None:
        super().__init__()
        self.is_prefix = config.token_decoder["strategy"] == "prefix"
        self.gpt_neox = GPTNeoXStack(config.token_decoder, vocab_size=config.vocab_size)
        width = config.token_decoder["hidden_size"]
        self.embed_out = nn.Linear(width, config.vocab_size, bias=False)
        self.expansion_layer = Expansion(config)

    def forward(
        self, expanded: Tensor, ids: Tensor, mask: Tensor, past: KeyValues, *, official: bool
    ) -> Tensor:
        """Run over tokens that follow those in `past`.

        Args:
            expanded: [M, r, H].
            ids: [M, t] next tokens of the block.
            mask: [M, t] bool, False for pads.
            past: what was seen of this block.
            official: number prefix vectors as the reference's generate() does.

        Returns:
            [M, t, H] states that predict the token after each; on the first call
            [M, t + 1, H], the first of which predicts the block's first token.
        """
        first, tokens = past.length, self.gpt_neox.embed_in
        if self.is_prefix:
            states = tokens(ids)
            states = states if first else torch.cat([expanded, states], dim=1)
        else:
            shifted = ids if first else F.pad(ids, (1, 0), value=0)  # placeholder 0 in front
            states = tokens(shifted) + expanded[:, first : first + shifted.shape[1]]
        leading = states.shape[1] - ids.shape[1]
        positions = torch.arange(first, first + states.shape[1], device=ids.device)
        if official and self.is_prefix:
            positions = (positions - expanded.shape[1] + 1).clamp(min=0)
        keys = F.pad(mask, (leading, 0), value=True)
        states = self.gpt_neox(states, positions=positions, keys=keys, past=past, itself=False)
        return states[:, max(leading - 1, 0) :]

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V]."""
        return self.embed_out(hidden)


class T5Attention(nn.Module):
    """T5 attention: unscaled scores, no biases."""

    def __init__(self, section: SimpleNamespace, *, has_bias: bool = False) -> None:
        super().__init__()
        self.heads, width = section.num_attention_heads, section.hidden_size
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        if has_bias:
            self.relative_attention_bias = nn.Embedding(T5_BUCKETS, self.heads)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [M, a, q, d] of states [M, q, H]."""
        key, value = self.k(states), self.v(states)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def position_bias(self, queries: int, keys: int) -> Tensor:
        """Return the bias [a, queries, keys] by bucketed distance (T5, causal form)."""
        device = self.relative_attention_bias.weight.device
        position = torch.arange(keys, device=device)
        distance = (position[keys - queries :, None] - position).clamp(min=0)
        exact = T5_BUCKETS // 2
        ratio = (distance.float() / exact).clamp(min=1).log() / math.log(T5_MAX_DISTANCE / exact)
        far = (exact + (ratio * (T5_BUCKETS - exact)).long()).clamp(max=T5_BUCKETS - 1)
        buckets = torch.where(distance < exact, distance, far)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)

    def forward(
        self, hidden: Tensor, key: Tensor, value: Tensor, *, visible: Tensor, bias: Any = 0.0
    ) -> Tensor:
        """Attend: hidden [M, q, H], key and value [M, a, keys, d] -> [M, q, H]."""
        query = split_heads(self.q(hidden), self.heads)
        return self.o(attend(query, key, value, visible, bias=bias, scale=1.0))


class T5Layer(nn.Module):
    """Self-attention, cross-attention to the expanded vectors, feed-forward part."""

    def __init__(self, section: SimpleNamespace, index: int) -> None:
        super().__init__()
        width, inner = section.hidden_size, section.ffn_hidden_size or 4 * section.hidden_size
        linears = {"wi": (width, inner), "wo": (inner, width)}
        linears = {name: nn.Linear(*shape, bias=False) for name, shape in linears.items()}
        parts = {
            "SelfAttention": T5Attention(section, has_bias=index == 0),
            "EncDecAttention": T5Attention(section),
            "DenseReluDense": nn.ModuleDict(linears),
        }
        norms = (nn.RMSNorm(width, eps=section.norm_epsilon) for _ in parts)
        pairs = zip(parts.items(), norms, strict=True)
        self.layer = nn.ModuleList(
            nn.ModuleDict({name: part, "layer_norm": norm}) for (name, part), norm in pairs
        )
        self.index = index

    def forward(
        self, hidden: Tensor, expanded: Tensor, *, visible: Tensor, bias: Tensor, past: KeyValues
    ) -> Tensor:
        """Transform [M, q, H]; the block's expanded vectors [M, r, H] are all visible."""
        own, cross, last = self.layer
        attention, normed = own["SelfAttention"], own["layer_norm"](hidden)
        key_value = past.append(self.index, *attention.keys_values(normed))
        hidden = hidden + attention(normed, *key_value, visible=visible, bias=bias)
        attention, name = cross["EncDecAttention"], ("cross", self.index)
        if name not in past.layers:
            past.layers[name] = attention.keys_values(expanded)
        everything = torch.ones_like(visible[..., :1])
        normed = cross["layer_norm"](hidden)
        hidden = hidden + attention(normed, *past.layers[name], visible=everything)
        part = last["DenseReluDense"]
        return hidden + part["wo"](part["wi"](last["layer_norm"](hidden)).relu())


class T5TokenDecoder(nn.Module):
    """Token decoder of the cross-attention strategy: a T5 decoder with a tied head."""

    START_ID = 1

    def __init__(self, config: BlockTransformerConfig) -> None:
        super().__init__()
        section = SimpleNamespace(**config.token_decoder)
        width = section.hidden_size
        self.shared = nn.Embedding(config.vocab_size, width)
        layers = nn.ModuleList(T5Layer(section, index) for index in range(section.num_layers))
        norm = nn.RMSNorm(width, eps=section.norm_epsilon)
        self.decoder = nn.ModuleDict(
            {"embed_tokens": self.shared, "block": layers, "final_layer_norm": norm}
        )
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.lm_head.weight = self.shared.weight
        self.expansion_layer = Expansion(config)

    def forward(
        self, expanded: Tensor, ids: Tensor, mask: Tensor, past: KeyValues, *, official: bool
    ) -> Tensor:
        """Run over tokens that follow those in `past`; as GPTNeoXTokenDecoder.forward."""
        if past.length == 0:
            ids, mask = F.pad(ids, (1, 0), value=self.START_ID), F.pad(mask, (1, 0), value=True)
        hidden = self.shared(ids)
        visible = causally_visible(past.see(mask), ids.shape[1], itself=False)
        own = self.decoder["block"][0].layer[0].SelfAttention
        bias = own.position_bias(ids.shape[1], past.length)
        for layer in self.decoder["block"]:
            hidden = layer(hidden, expanded, visible=visible, bias=bias, past=past)
        return self.decoder["final_layer_norm"](hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V]."""
        return self.lm_head(hidden * hidden.shape[-1] ** -0.5)


class BlockTransformerForCausalLM(PreTrainedModel, GenerationMixin):
    """Block Transformer with transformers' interface."""

    config_class = BlockTransformerConfig
    main_input_name = "input_ids"
    _no_split_modules = ["GPTNeoXLayer", "RobertaLayer", "T5Layer"]
    _supports_sdpa = True
    _supported_generation_modes = ["greedy_search", "sample", "beam_search", "beam_sample"]
    _tied_weights_keys = {
        "token_decoder.decoder.embed_tokens.weight": "token_decoder.shared.weight",
        "token_decoder.lm_head.weight": "token_decoder.shared.weight",
    }

    def __init__(self, config: BlockTransformerConfig) -> None:
        super().__init__(config)
        lookup = config.embedder["kind"] == "lookup"
        self.embedder = LookupEmbedder(config) if lookup else RobertaEmbedder(config)
        self.block_decoder = BlockDecoder(config)
        is_t5 = config.token_decoder["strategy"] == "cross_attention"
        self.token_decoder = T5TokenDecoder(config) if is_t5 else GPTNeoXTokenDecoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d):
            fan_in = module.weight.shape[1] * module.weight.shape[2]
            nn.init.normal_(module.weight, std=fan_in**-0.5)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)

    def embed_blocks(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Turn blocks into vectors: ids and mask [B, N, k] -> [B, N, G]."""
        vectors = self.embedder(ids.flatten(0, 1), mask.flatten(0, 1))
        return vectors.unflatten(0, ids.shape[:2])

    def decode_blocks(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Attend over blocks: [B, N, G] -> [B, N, G]; `mask` [B, N] is False for pads only."""
        return self.block_decoder(embeddings, mask, KeyValues())

    def decode_tokens(self, expanded: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Predict known blocks: [B, N, r, H], ids and mask [B, N, k] -> states [B, N, k, H]."""
        rows = (expanded.flatten(0, 1), ids[..., :-1].flatten(0, 1), mask[..., :-1].flatten(0, 1))
        states = self.token_decoder(*rows, KeyValues(), official=False)
        return states.unflatten(0, ids.shape[:2])

    def _predict_blocks(self, ids: Tensor, mask: Tensor) -> Tensor:
        # States [B, N-1, k, H] that predict blocks 1..N-1 of ids [B, N, k].
        embeddings = self.embed_blocks(ids[:, :-1], mask[:, :-1])
        context = self.decode_blocks(embeddings, mask[:, :-1].any(-1))
        expanded = self.token_decoder.expansion_layer(context)
        return self.decode_tokens(expanded, ids[:, 1:], mask[:, 1:])

    def forward_blocks(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits [B, N-1, k, V] of blocks 1..N-1.

        Args:
            input_ids: [B, N, k].
            attention_mask: [B, N, k], 0 for pads.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.token_decoder.head(self._predict_blocks(input_ids, mask.bool()))

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        left_padding: int | None = None,
        past_key_values: BlockTransformerCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predict the token after each token.

        Blocks are aligned at the first token, or `left_padding` pads before it. Entries of
        the logits that no block predicts (those of the first block's tokens) are zero, which
        is uniform: the model says nothing about them. They do not count for the loss.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 for pads; with a cache [B, all tokens so far].
            labels: [B, S]; the logits of position i are compared with label i + 1. Labels of
                -100 do not count.
            left_padding: pads in front; None: the configuration's. block_length - 1 gives every
                token from the second on a prediction (the reference's evaluation of models
                trained with padding).
            past_key_values: state of earlier calls; input_ids are the tokens after it.
            use_cache: go on from and return a state; only the last token's logits are computed.
            logits_to_keep: compute the logits of this many last tokens only; 0: of all.
            return_dict: return a ModelOutput instead of a tuple.

        Returns:
            loss (if there are labels) and logits [B, S, V].
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask[:, -input_ids.shape[1] :].bool()
        left_padding = self.config.left_padding if left_padding is None else left_padding
        cache, loss = None, None
        if use_cache:
            cache = past_key_values
            if cache is None:
                cache = BlockTransformerCache(left_padding=left_padding)
            logits = self._advance(input_ids, mask, cache)
        else:
            keep = 0 if labels is not None else logits_to_keep
            logits = self._predict_all(input_ids, mask, left_padding=left_padding, keep=keep)
        if labels is not None:
            first = max(self.config.block_length - left_padding, 1)  # first predicted token
            loss = F.cross_entropy(
                logits[:, first - 1 : -1].flatten(0, 1).float(),
                labels[:, first:].flatten().to(logits.device),
                ignore_index=IGNORED_LABEL,
            )
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return output if return_dict else output.to_tuple()

    def _predict_all(self, ids: Tensor, mask: Tensor, *, left_padding: int, keep: int) -> Tensor:
        # Logits [B, S, V], or [B, keep, V] of the last tokens. Token i + 1 is place
        # left_padding + i + 1 of the padded sequence; places from k on are predicted.
        length, k = ids.shape[1], self.config.block_length
        keep = keep or length
        places = left_padding + length
        padding = (left_padding, k - places % k)  # the place after the end needs its block too
        blocks = F.pad(ids, padding, value=self.config.pad_token_id).unflatten(1, (-1, k))
        block_mask = F.pad(mask, padding, value=False).unflatten(1, (-1, k))
        if blocks.shape[1] == 1:
            width = self.config.vocab_size
            return torch.zeros(*ids.shape, width, dtype=self.dtype, device=ids.device)[:, -keep:]
        states = self._predict_blocks(blocks, block_mask).flatten(1, 2)  # places k, k + 1, ...
        states = states[:, : places - k + 1][:, -keep:]
        logits = self.token_decoder.head(states)
        return F.pad(logits, (0, 0, keep - logits.shape[1], 0))

    def _advance(self, ids: Tensor, mask: Tensor, cache: BlockTransformerCache) -> Tensor:
        # Take new tokens [B, t] into the cache; logits [B, 1, V] of the token after them.
        k = self.config.block_length
        cache.num_tokens += ids.shape[1]
        if cache.tail is None:
            pads = ids.new_full((ids.shape[0], cache.left_padding), self.config.pad_token_id)
            cache.tail = (pads, torch.zeros_like(pads, dtype=torch.bool))
        all_ids = torch.cat([cache.tail[0], ids], dim=1)
        all_mask = torch.cat([cache.tail[1], mask], dim=1)
        whole = all_ids.shape[1] // k * k
        cache.tail = (all_ids[:, whole:], all_mask[:, whole:])
        if whole:
            block_mask = all_mask[:, :whole].unflatten(1, (-1, k))
            embeddings = self.embed_blocks(all_ids[:, :whole].unflatten(1, (-1, k)), block_mask)
            context = self.block_decoder(embeddings, block_mask.any(-1), cache.blocks)
            cache.start_block(self.token_decoder.expansion_layer(context[:, -1]))
            ids, mask = cache.tail
        if cache.expanded is None:
            raise ValueError(
                f"{cache.left_padding} pads and {cache.num_tokens} tokens do not fill a block of "
                f"{k} tokens, so that nothing can be predicted; pass left_padding="
                f"{k - cache.num_tokens}"
            )
        states = self.token_decoder(
            cache.expanded, ids, mask, cache.tokens, official=cache.official_positions
        )
        return self.token_decoder.head(states[:, -1:])

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Continue prompts of any length with transformers' own generation loop.

        Prompts of a batch are padded on the left and come with an attention_mask, as usual.
        Unless `left_padding` says otherwise, as many pads are put in front (inside the model,
        not in the result) as make the prompt end with a whole block.

        Args:
            inputs: [B, S] prompt, also as `input_ids`.
            *args: as GenerationMixin.generate.
            **kwargs: as GenerationMixin.generate; `left_padding`, `official_generate_positions`.
        """
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        length = 1 if prompt is None else prompt.shape[1]
        kwargs.setdefault("left_padding", -length % self.config.block_length)
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        past_key_values: BlockTransformerCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        left_padding: int = 0,
        official_generate_positions: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return what forward() needs for the next step; called by the generation loop."""
        official = official_generate_positions
        official = self.config.official_generate_positions if official is None else official
        if official and not use_cache:
            raise ValueError("official_generate_positions needs use_cache=True")
        inputs = {"attention_mask": attention_mask, "use_cache": use_cache, "logits_to_keep": 1}
        if not use_cache:
            return {**inputs, "input_ids": input_ids, "left_padding": left_padding}
        cache = past_key_values
        if cache is None:
            cache = BlockTransformerCache(left_padding=left_padding, official_positions=official)
        new_ids = input_ids[:, cache.num_tokens :]
        return {**inputs, "input_ids": new_ids, "past_key_values": cache}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # prepare_inputs_for_generation makes our own cache

    def get_input_embeddings(self) -> nn.Module:
        """Return the token decoder's table."""
        decoder = self.token_decoder
        return decoder.shared if isinstance(decoder, T5TokenDecoder) else decoder.gpt_neox.embed_in

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        decoder = self.token_decoder
        return decoder.lm_head if isinstance(decoder, T5TokenDecoder) else decoder.embed_out


BlockTransformerConfig.register_for_auto_class("AutoConfig")
BlockTransformerForCausalLM.register_for_auto_class("AutoModelForCausalLM")
