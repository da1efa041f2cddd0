# SPDX-License-Identifier: Apache-2.0
"""Triton kernels that draw a token for each row; sampling.py says how.

A program has one row. If nobody in the batch asks for more than the best token, a kernel of
its own finds it. In the other one, greedy rows read their logits once, rows that sample
twice more, and rows with top_k or top_p as often as a bisection of float32 takes (up to 32
times each), from the L2 cache. What a row does not ask for, it does not pay for.
"""
# ruff: noqa: ANN001, ANN201, ANN202  (the compiler types the kernel's arguments)

from dataclasses import dataclass

import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class SamplingShape:
    """What the kernel is compiled for."""

    vocab: int
    logits_stride: int
    tokens: int
    """k"""
    tile: int
    """Tokens of a tile."""


@triton.jit
def _logits(logits, seen, column, inside, penalty):
    # Logits of some columns after the penalty; -inf outside.
    x = tl.load(logits + column, mask=inside, other=float("-inf")).to(tl.float32)
    if penalty != 1.0:
        occurred = tl.load(seen + column, mask=inside, other=0) != 0
        x = tl.where(occurred, tl.where(x > 0, x / penalty, x * penalty), x)
    return x


@triton.jit
def _to_key(value):
    # An integer that is ordered as the float is.
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _from_key(key):
    bits = tl.where(key >= 0, key, key ^ 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _count_and_mass(logits, seen, penalty, best, rate, threshold, shape: tl.constexpr):
    # How many logits reach the threshold, and the sum of exp((x - best) * rate) over them.
    tile: tl.constexpr = shape.tile
    count = tl.zeros((tile,), tl.int32)
    mass = tl.zeros((tile,), tl.float32)
    for start in range(0, shape.vocab, tile):
        column = start + tl.arange(0, tile)
        inside = column < shape.vocab
        x = _logits(logits, seen, column, inside, penalty)
        reaches = inside & (x >= threshold)
        count += reaches.to(tl.int32)
        mass += tl.where(reaches, tl.exp((x - best) * rate), 0.0)
    return tl.sum(count), tl.sum(mass)


@triton.jit
def _threshold(logits, seen, penalty, best, rate, top_k, top_p, shape: tl.constexpr):
    # The smallest logit that top_k and then top_p keep, by bisection of ordered floats.
    lowest = _to_key(tl.full((), -3.4028234663852886e38, tl.float32)).to(tl.int64)
    above = _to_key(best).to(tl.int64) + 1
    low, high = lowest, above
    if (top_k > 0) & (top_k < shape.vocab):
        while high - low > 1:
            middle = (low + high) // 2
            at = _from_key(middle.to(tl.int32))
            count, _ = _count_and_mass(logits, seen, penalty, best, rate, at, shape)
            if count >= top_k:
                low = middle
            else:
                high = middle
    if top_p < 1.0:
        at = _from_key(low.to(tl.int32))
        _, whole = _count_and_mass(logits, seen, penalty, best, rate, at, shape)
        high = above
        while high - low > 1:
            middle = (low + high) // 2
            at = _from_key(middle.to(tl.int32))
            _, mass = _count_and_mass(logits, seen, penalty, best, rate, at, shape)
            if mass >= top_p * whole:
                low = middle
            else:
                high = middle
    return _from_key(low.to(tl.int32))


@triton.jit
def _draw(logits, seen, penalty, best, rate, threshold, number, shape: tl.constexpr):
    # The first token at which the summed probability exceeds `number`.
    tile: tl.constexpr = shape.tile
    _, whole = _count_and_mass(logits, seen, penalty, best, rate, threshold, shape)
    target = number * whole
    passed = tl.zeros((), tl.float32)
    token = tl.full((), -1, tl.int32)
    last = tl.zeros((), tl.int32)  # in case rounding leaves the target beyond the end
    for start in range(0, shape.vocab, tile):
        if token < 0:
            column = start + tl.arange(0, tile)
            inside = column < shape.vocab
            x = _logits(logits, seen, column, inside, penalty)
            power = tl.where(inside & (x >= threshold), tl.exp((x - best) * rate), 0.0)
            mass = tl.sum(power)
            last = tl.maximum(last, tl.max(tl.where(power > 0, column, 0)))
            if passed + mass > target:
                exceeds = (passed + tl.cumsum(power, axis=0) > target) & (power > 0)
                first = tl.min(tl.where(exceeds, column, shape.vocab))
                token = tl.where(first < shape.vocab, first, last)
            passed += mass
    return tl.where(token < 0, last, token)


@triton.jit
def keep_count(whole, token):
    """Count a drawn token of the row at `whole`; return whether it was alive."""
    alive, remaining = tl.load(whole + 1), tl.load(whole + 2)
    if alive != 0:
        tl.store(whole + 3, tl.load(whole + 3) + 1)
        tl.store(whole + 2, remaining - 1)
        if (token == tl.load(whole + 4)) | (remaining <= 1):
            tl.store(whole + 1, 0)
    return alive != 0


@triton.jit
def greedy_kernel(logits, whole, tokens, place, shape: tl.constexpr):
    """Take the best token of one row and keep count; arguments as below."""
    tile: tl.constexpr = shape.tile
    row = tl.program_id(0).to(tl.int64)
    logits += row * shape.logits_stride
    top = tl.full((tile,), float("-inf"), tl.float32)
    at = tl.zeros((tile,), tl.int32)
    for start in range(0, shape.vocab, tile):
        column = start + tl.arange(0, tile)
        x = tl.load(logits + column, mask=column < shape.vocab, other=float("-inf"))
        x = x.to(tl.float32)
        higher = x > top
        at = tl.where(higher, start, at)
        top = tl.where(higher, x, top)
    best = tl.max(top)
    token = tl.min(tl.where(top == best, at + tl.arange(0, tile), shape.vocab))
    token = tl.minimum(token, shape.vocab - 1)  # also where logits are NaN
    tl.store(tokens + row * shape.tokens + place, token)
    keep_count(whole + row * 8, token)


@triton.jit
def sampling_kernel(logits, whole, real, tokens, logprobs, seen, place, shape: tl.constexpr):
    """Draw one row's token and keep count.

    Args:
        logits: [B, V].
        whole: [B, 8] int32, columns as in `rows.Whole`; written.
        real: [B, 3] float32, columns as in `rows.Real`.
        tokens: [B, k] int32, written at `place`.
        logprobs: [B, k] float32, written at `place`.
        seen: [B, V] uint8, written for rows with a penalty.
        place: of the token in the block.
        shape: a SamplingShape.
    """
    tile: tl.constexpr = shape.tile
    row = tl.program_id(0).to(tl.int64)
    logits += row * shape.logits_stride
    seen += row * shape.vocab
    whole += row * 8
    temperature, top_p = tl.load(real + row * 3), tl.load(real + row * 3 + 1)
    penalty = tl.load(real + row * 3 + 2)

    top = tl.full((tile,), float("-inf"), tl.float32)
    plain_top = tl.full((tile,), -1.0e30, tl.float32)
    plain_mass = tl.zeros((tile,), tl.float32)
    at = tl.zeros((tile,), tl.int32)
    for start in range(0, shape.vocab, tile):
        column = start + tl.arange(0, tile)
        inside = column < shape.vocab
        plain = tl.load(logits + column, mask=inside, other=float("-inf")).to(tl.float32)
        x = plain
        if penalty != 1.0:
            occurred = tl.load(seen + column, mask=inside, other=0) != 0
            x = tl.where(occurred, tl.where(x > 0, x / penalty, x * penalty), x)
        higher = x > top
        at = tl.where(higher, column, at)
        top = tl.where(higher, x, top)
        shrink = tl.exp(-tl.abs(plain - plain_top))  # of the smaller of both
        rises = plain > plain_top
        plain_mass = tl.where(rises, plain_mass * shrink + 1.0, plain_mass + shrink)
        plain_top = tl.where(rises, plain, plain_top)
    best = tl.max(top)
    token = tl.min(tl.where(top == best, at, shape.vocab))
    token = tl.minimum(token, shape.vocab - 1)  # also where logits are NaN
    highest = tl.max(plain_top)
    log_mass = highest + tl.log(tl.sum(plain_mass * tl.exp(plain_top - highest)))

    drawn = tl.load(whole + 3)
    if temperature > 0:
        rate = 1.0 / temperature
        top_k = tl.load(whole + 5)
        threshold = tl.full((), float("-inf"), tl.float32)
        if ((top_k > 0) & (top_k < shape.vocab)) | (top_p < 1.0):
            threshold = _threshold(logits, seen, penalty, best, rate, top_k, top_p, shape)
        low = tl.load(whole + 6).to(tl.uint32, bitcast=True).to(tl.uint64)
        seed = low | (tl.load(whole + 7).to(tl.uint32, bitcast=True).to(tl.uint64) << 32)
        zero = drawn * 0
        word, _, _, _ = tl.philox(seed, drawn, zero, zero, zero)
        number = (word.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * 2.3283064365386963e-10
        token = _draw(logits, seen, penalty, best, rate, threshold, number, shape)
    chosen = tl.load(logits + token).to(tl.float32)
    tl.store(tokens + row * shape.tokens + place, token)
    tl.store(logprobs + row * shape.tokens + place, chosen - log_mass)
    if keep_count(whole, token) & (penalty != 1.0):
        tl.store(seen + token, 1)
