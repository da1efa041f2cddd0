# SPDX-License-Identifier: Apache-2.0
"""The two kinds of models as the engine runs them: prompts into the cache, then steps.

A step writes k tokens of every row. For a block model it is one block: the block written
last goes through the block decoder, its output is expanded, and the token decoder writes
the next block from it. A vanilla model runs its stack k times. Steps allocate nothing that
outlives them and ask nothing of the host, so that a CUDA graph can hold one.

The last block (vanilla: token) of a prompt is left to the first step, so a prompt needs
keys and values only: no expansion, no logits, and of the last layer no attention.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bt_megatron.inference.engine.linear import FP8, FP8_MAX, Linear
from bt_megatron.inference.engine.rows import Prompts, Rows, Wanted, Whole
from bt_megatron.inference.engine.shapes import StackShape
from bt_megatron.inference.engine.stack import Attention, Stack


class Scores(NamedTuple):
    """What a model thinks of known tokens."""

    logprobs: Tensor
    """Float32."""
    is_best: Tensor
    """Bool: no token is more likely."""


@dataclass(frozen=True, slots=True)
class CachedStack:
    """The stack that sees the whole context."""

    stack: Stack
    angles: Tensor

    @property
    def shape(self) -> StackShape:
        """Return the numbers of the stack."""
        return self.stack.shape

    def append(self, x: Tensor, rows: Rows, cache: Tensor) -> None:
        """Run over one new position of each row: x [B, h], in place; lengths grow."""

        def attend(layer: int, mixed: Tensor, out: Tensor) -> None:
            ops.attend_cached(mixed, cache[layer], rows, self.angles, self.shape, out)

        ops = self.stack.ops
        self.stack.run(x, attend)
        rows.whole[:, Whole.LENGTH] += rows.whole[:, Whole.ALIVE]

    def read(self, x: Tensor, prompts: Prompts, cache: Tensor) -> None:
        """Store keys and values of prompts: x [B * n, h], used up.

        Prompts may be shorter than n: what is beyond their length is not stored.
        """
        count = prompts.lengths.shape[0]
        attend = self._attention_to_all(count, prompts, cache)
        last = self.shape.layers - 1
        for layer in range(last):
            self.stack.run_layer(layer, x, attend)
        mixed = self.stack.keys_values(last, x).unflatten(0, (count, -1))
        self.stack.ops.store_prompts(mixed, cache[last], prompts, self.angles, self.shape)

    def run_whole(self, x: Tensor, count: int, *, fp8: bool) -> None:
        """Run over whole sequences without a cache: x [B * n, h], in place.

        Args:
            x: the residual stream.
            count: B.
            fp8: round keys and values as a cache in FP8 does.
        """
        self.stack.run(x, self._attention_to_all(count, None, None, fp8=fp8))

    def _attention_to_all(
        self, count: int, prompts: Prompts | None, cache: Tensor | None, *, fp8: bool = False
    ) -> Attention:
        shape, ops = self.shape, self.stack.ops

        def attend(layer: int, mixed: Tensor, out: Tensor) -> None:
            sequences = mixed.unflatten(0, (count, -1))  # [B, n, (a + 2 g) d]
            if prompts is None or cache is None:
                ops.rotate_prompts(sequences, self.angles, shape)
            else:
                ops.store_prompts(sequences, cache[layer], prompts, self.angles, shape)
            if fp8:
                known = mixed[:, shape.attended :]  # keys, already rotated, and values
                known.copy_(known.clamp(-FP8_MAX, FP8_MAX).to(FP8))
            heads = sequences.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2)
            query, key, value = heads.split([shape.heads, shape.groups, shape.groups], dim=1)
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=shape.heads != shape.groups
            )
            out.unflatten(0, (count, -1)).copy_(attended.transpose(1, 2).flatten(2))

        return attend


@dataclass(slots=True)
class VanillaModel:
    """GPT-NeoX: one stack over tokens."""

    vocab_size: int
    pad_id: int
    dtype: torch.dtype
    step_tokens: int
    table: Tensor
    """[V, h]"""
    cached: CachedStack
    head: Linear
    cache: Tensor | None = None
    position_tokens: int = 1

    def read_prompts(self, tokens: Tensor, prompts: Prompts) -> None:
        """Put prompts [B, n] into the cache."""
        assert self.cache is not None
        x = F.embedding(tokens.flatten(), self.table)
        self.cached.read(x, prompts, self.cache)

    def step(self, rows: Rows, wanted: Wanted) -> None:
        """Write the next k tokens of each row."""
        assert self.cache is not None
        stack = self.cached.stack
        for place in range(self.step_tokens):
            x = F.embedding(rows.tokens[:, place - 1], self.table)
            self.cached.append(x, rows, self.cache)
            logits = stack.finish(x, self.head, self.dtype)
            stack.ops.sample(logits, rows, place, plain=wanted.plain)
            if wanted.top:
                stack.ops.keep_best(logits, rows, place)

    def score(self, tokens: Tensor, *, fp8_cache: bool = False) -> Scores:
        """Return scores [B, s - 1] of tokens [B, s] from the second on."""
        x = F.embedding(tokens[:, :-1].flatten(), self.table)
        self.cached.run_whole(x, tokens.shape[0], fp8=fp8_cache)
        return score_targets(self.cached.stack, x, self.head, tokens[:, 1:])


@dataclass(slots=True)
class BlockModel:
    """Block Transformer with a lookup embedder and a GPT-NeoX token decoder."""

    vocab_size: int
    pad_id: int
    dtype: torch.dtype
    step_tokens: int
    block_table: Tensor
    """[V, E] of the embedder"""
    projection: Linear | None
    """From the concatenated vectors of a block, if the embedder has one"""
    cached: CachedStack
    expansion: Linear
    """[r * H, G]"""
    table: Tensor
    """[V, H] of the token decoder"""
    tokens: Stack
    angles: Tensor
    """Of positions in a block"""
    is_prefix: bool
    expanded: int
    """r"""
    head: Linear
    cache: Tensor | None = None

    @property
    def position_tokens(self) -> int:
        """Return k: a position of the cache is a block."""
        return self.step_tokens

    @property
    def block_positions(self) -> int:
        """Return q, positions of the token decoder for one block."""
        return self.expanded + self.step_tokens - 1 if self.is_prefix else self.step_tokens

    def embed(self, tokens: Tensor) -> Tensor:
        """Turn blocks into vectors: [M, k] -> [M, G]."""
        vectors = F.embedding(tokens, self.block_table).flatten(1)
        if self.projection is None:
            return vectors
        return self.projection(vectors, self.dtype)

    def read_prompts(self, tokens: Tensor, prompts: Prompts) -> None:
        """Put prompts [B, n * k] into the cache."""
        assert self.cache is not None
        x = self.embed(tokens.reshape(-1, self.step_tokens))
        self.cached.read(x, prompts, self.cache)

    def step(self, rows: Rows, wanted: Wanted) -> None:
        """Write the next block of each row."""
        assert self.cache is not None
        x = self.embed(rows.tokens)
        self.cached.append(x, rows, self.cache)
        expanded = self._expand(x)
        shape, ops = self.tokens.shape, self.tokens.ops
        past = x.new_empty(
            shape.layers, 2, self.block_positions, rows.count, shape.groups * shape.head_dim
        )
        first = 0
        for place in range(self.step_tokens):
            x = self._token_inputs(expanded, rows.tokens, place)
            self._decode(x, past, first)
            first += x.shape[0] // rows.count
            last = x.view(rows.count, -1, x.shape[-1])[:, -1]
            logits = self.tokens.finish(last, self.head, self.dtype)
            ops.sample(logits, rows, place, plain=wanted.plain)
            if wanted.top:
                ops.keep_best(logits, rows, place)

    def _expand(self, x: Tensor) -> Tensor:
        # [B, G] -> [B, r, H]
        expanded = self.cached.stack.finish(x, self.expansion, self.dtype)
        return expanded.view(x.shape[0], self.expanded, -1)

    def _token_inputs(self, expanded: Tensor, tokens: Tensor, place: int) -> Tensor:
        # Inputs [B * new, H] of the positions that the token at `place` comes from.
        if self.is_prefix:
            if place == 0:
                return expanded.flatten(0, 1)
            return F.embedding(tokens[:, place - 1], self.table)
        last = tokens[:, place - 1] if place else torch.zeros_like(tokens[:, 0])
        return F.embedding(last, self.table) + expanded[:, place]

    def _decode(self, x: Tensor, past: Tensor, first: int) -> None:
        # New positions x [B * new, H], in place.
        def attend(layer: int, mixed: Tensor, out: Tensor) -> None:
            ops.attend_in_block(mixed, past[layer], first, self.angles, self.tokens.shape, out)

        ops = self.tokens.ops
        self.tokens.run(x, attend)

    def score(self, tokens: Tensor, *, fp8_cache: bool = False) -> Scores:
        """Return scores [B, s - k] of tokens [B, s], whole blocks, from the second block on."""
        blocks = tokens.unflatten(1, (-1, self.step_tokens))
        x = self.embed(blocks[:, :-1].flatten(0, 1))
        self.cached.run_whole(x, tokens.shape[0], fp8=fp8_cache)
        expanded = self._expand(x)  # [M, r, H], M = B * (N - 1)
        targets = blocks[:, 1:].flatten(0, 1)  # [M, k]
        inputs = F.pad(targets[:, :-1], (0 if self.is_prefix else 1, 0))
        known = F.embedding(inputs, self.table)
        states = torch.cat([expanded, known], dim=1) if self.is_prefix else known + expanded
        rows, shape = states.shape[0], self.tokens.shape
        past = x.new_empty(shape.layers, 2, states.shape[1], rows, shape.groups * shape.head_dim)
        flat = states.flatten(0, 1)
        self._decode(flat, past, 0)
        predicting = flat.view(rows, -1, flat.shape[-1])[:, -self.step_tokens :].flatten(0, 1)
        return score_targets(self.tokens, predicting, self.head, tokens[:, self.step_tokens :])


Model = BlockModel | VanillaModel

SCORED_AT_ONCE = 4096
"""Rows whose logits exist at a time in score()."""


def score_targets(stack: Stack, x: Tensor, head: Linear, targets: Tensor) -> Scores:
    """Score each target: residual stream x [M, H], targets [B, M / B]."""
    logprobs, best = [], []
    parts = zip(x.split(SCORED_AT_ONCE), targets.flatten().split(SCORED_AT_ONCE), strict=True)
    for part, wanted in parts:
        logits = stack.finish(part, head, x.dtype).float()
        found = logits.log_softmax(-1).gather(1, wanted[:, None].long())
        logprobs.append(found[:, 0])
        best.append(logits.argmax(-1) == wanted)
    return Scores(torch.cat(logprobs).view_as(targets), torch.cat(best).view_as(targets))
