# SPDX-License-Identifier: Apache-2.0
"""The engine's kernels, interpreted on the CPU, beside plain torch.

    TRITON_INTERPRET=1 python -m tests.engine_kernels

prints the largest relative error of each operation, and how many drawn tokens differ. Triton
decides when it is imported whether it interprets, so that takes a process of its own.
"""

import json
from collections import defaultdict
from dataclasses import replace

import torch
import triton.runtime.interpreter as interpreter
from torch import Tensor

from bt_megatron.inference.engine import torch_ops, triton_ops
from bt_megatron.inference.engine.cache import make_cache
from bt_megatron.inference.engine.linear import Linear
from bt_megatron.inference.engine.rotary import make_angles
from bt_megatron.inference.engine.rows import Prompts, Real, Rows, Whole, make_rows
from bt_megatron.inference.engine.shapes import StackShape

CPU = torch.device("cpu")
SHAPE = StackShape(
    layers=1, width=64, heads=4, groups=4, head_dim=16, rotary_width=4, rotary_base=1e4, ffn=100,
    parallel=True, layernorm=True, activation="gelu", epsilon=1e-5,
)  # fmt: skip
SHAPES = (
    SHAPE,
    replace(
        SHAPE, width=96, heads=6, groups=2, layernorm=False, activation="swiglu", rotary_width=16
    ),
    replace(SHAPE, width=48, heads=3, groups=3, activation="relu", rotary_width=0),
)
errors: dict[str, float] = defaultdict(float)


def allow_loops() -> None:
    """Let the interpreter take loop bounds from arrays of one element, which NumPy 2.5 refuses."""
    original = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def compare(name: str, got: Tensor, expected: Tensor) -> None:
    error = ((got.float() - expected.float()).norm() / expected.float().norm()).item()
    errors[name] = max(errors[name], error if error == error else float("inf"))


def elementwise(shape: StackShape) -> None:
    x, shift = torch.randn(5, 3, shape.width)[:, 1], torch.randn(shape.width)
    arguments = (x, shift, shape, torch.float32)
    compare("norm", triton_ops.norm(*arguments), torch_ops.norm(*arguments))
    inputs = torch.randn(5, shape.ffn_inputs + 7)[:, 7:]
    got, expected = (torch.zeros(5, 120)[:, 20:] for _ in range(2))
    triton_ops.activate(inputs, got, shape)
    torch_ops.activate(inputs, expected, shape)
    compare("activate", got, expected)


def in_block(shape: StackShape) -> None:
    angles, count = make_angles(shape, 200, CPU), 3
    for first, new in ((0, 2), (2, 1), (4, 1)):
        mixed = torch.randn(count * new, shape.mixed + 13)[:, : shape.mixed]
        past = torch.randn(2, 6, count, shape.groups * 16)
        other = past.clone()
        got, expected = torch.zeros(2, count * new, shape.attended)
        triton_ops.attend_in_block(mixed, past, first, angles, shape, got)
        torch_ops.attend_in_block(mixed, other, first, angles, shape, expected)
        compare("attend_in_block", got, expected)
        compare("attend_in_block, memory", past, other)


def cached(shape: StackShape) -> None:
    angles, count = make_angles(shape, 200, CPU), 4
    rows = make_rows(count, tokens=4, pages=6, vocab_size=8, device=CPU)
    rows.whole[:, Whole.LENGTH] = torch.tensor([0, 149, 32, 63], dtype=torch.int32)
    rows.whole[:, Whole.ALIVE] = torch.tensor([1, 1, 1, 0])
    rows.table.copy_(1 + torch.randperm(count * 6).view(count, 6))
    cache = make_cache(shape, pages=25, dtype=torch.float32, device=CPU)[0].normal_()
    other = cache.clone()
    mixed = torch.randn(count, shape.mixed + 13)[:, : shape.mixed]
    for triton_ops.ENOUGH_PROGRAMS in (1, 512):  # without and with parts
        got, expected = torch.zeros(2, count, shape.attended)
        triton_ops.attend_cached(mixed, cache, rows, angles, shape, got)
        torch_ops.attend_cached(mixed, other, rows, angles, shape, expected)
        compare("attend_cached", got[:-1], expected[:-1])
        compare("attend_cached, memory", cache[1:], other[1:])
    prompts = Prompts(torch.tensor([20, 3, 17], dtype=torch.int32), rows.table[:3])
    mixed = torch.randn(3, 20, shape.mixed + 5)
    twin = mixed.clone()
    triton_ops.store_prompts(mixed[..., : shape.mixed], cache, prompts, angles, shape)
    torch_ops.store_prompts(twin[..., : shape.mixed], other, prompts, angles, shape)
    compare("store_prompts", mixed, twin)
    compare("store_prompts, memory", cache[1:], other[1:])


def narrow() -> None:
    shape = replace(SHAPE, ffn=64)
    weight, bias = torch.randn(shape.mixed + 64, 64), torch.randn(shape.mixed + 64)
    ones = torch.ones(len(bias))
    product = Linear(weight, bias, sums=torch.stack([ones, weight.sum(1)]))
    x, shift = torch.randn(3, 2, 64)[:, 1] + 0.3, torch.randn(64)
    expected = torch_ops.norm(x, shift, shape, torch.float32) @ weight.T + bias
    joined, there = torch.zeros(2, 3, shape.attended + 64)
    torch_ops.activate(expected[:, shape.mixed :], there[:, shape.attended :], shape)
    down = torch.randn(64, shape.attended + 64)
    last = Linear(down, None, sums=torch.stack([0.5 * ones[:64], ones[:64]]))
    for tile in ((64, 64), (32, 32)):
        triton_ops.NARROW_FIRST = triton_ops.NARROW_LAST = tile
        mixed = triton_ops.narrow_first(x, shift, product, shape, joined)
        compare("narrow_first", mixed, expected[:, : shape.mixed])
        compare("narrow_first, activated", joined, there)
        whole = triton_ops.narrow_first(x, shift, product, shape, None)
        compare("narrow_first, whole", whole, expected)
        total = torch.randn(3, 64)
        summed = total + 0.5 * joined @ down.T
        triton_ops.narrow_last(total, joined, last)
        compare("narrow_last", total, summed)


def drawing(count: int = 5, vocab: int = 150) -> None:
    triton_ops.VOCAB_TILE, triton_ops.FEW_ROWS = (128, 1), 0
    rows = make_rows(count, tokens=4, pages=1, vocab_size=vocab, device=CPU)
    rows.whole[:, Whole.ALIVE] = torch.tensor([1, 1, 1, 1, 0])
    rows.whole[:, Whole.REMAINING] = 2
    rows.whole[:, Whole.SEED_LOW :] = torch.randint(-(2**31), 2**31, (count, 2)).int()
    rows.whole[:, Whole.TOP_K] = torch.tensor([0, 0, 20, 0, 0])
    rows.real[:, Real.TEMPERATURE] = torch.tensor([0.0, 1.0, 0.7, 1.5, 0.0])
    rows.real[:, Real.TOP_P] = torch.tensor([1.0, 1.0, 1.0, 0.6, 1.0])
    rows.real[:, Real.PENALTY] = torch.tensor([1.5, 1.0, 1.3, 1.0, 1.0])
    rows.seen.copy_(torch.rand(count, vocab) < 0.4)
    for plain in (False, True):
        if plain:
            rows.real[:, Real.TEMPERATURE] = 0
            rows.real[:, Real.PENALTY] = 1
        other = Rows(*(getattr(rows, name).clone() for name in Rows.__slots__))
        for place in range(2):
            logits = torch.randn(count, vocab) * 3
            triton_ops.sample(logits, rows, place, plain=plain)
            torch_ops.sample(logits, other, place, plain=plain)
        errors["tokens"] += (rows.tokens != other.tokens).sum().item()
        errors["counts"] += (rows.whole != other.whole).sum().item()
        if not plain:
            compare("logprobs", rows.logprobs, other.logprobs)
            penalised = rows.real[:, Real.PENALTY] != 1
            errors["seen"] += (rows.seen != other.seen)[penalised].sum().item()


def main() -> None:
    """Print the errors."""
    allow_loops()
    torch.manual_seed(0)
    for shape in SHAPES:
        elementwise(shape)
        in_block(shape)
        cached(shape)
    narrow()
    drawing()
    print(json.dumps(errors))  # noqa: T201


if __name__ == "__main__":
    main()
