# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for what lies between products: norms and activations."""

# ruff: noqa: ANN001, ANN201  (the compiler types the kernels' arguments)
import triton
import triton.language as tl


@triton.jit
def to_type(x, pointer):
    """Convert to the type that a pointer points to; FP8 is clamped, it has no infinity."""
    kind: tl.constexpr = pointer.dtype.element_ty
    if kind == tl.float8e4nv:
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    return x.to(kind)


@triton.jit
def norm_kernel(
    x, shift, out, stride, width, epsilon, layernorm: tl.constexpr, block: tl.constexpr
):
    """Normalise one row of x + shift without weights."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    states = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    states += tl.load(shift + column, mask=inside, other=0.0)
    if layernorm:
        mean = tl.sum(states, axis=0) / width
        states = tl.where(inside, states - mean, 0.0)
    variance = tl.sum(states * states, axis=0) / width
    states = states * (1.0 / tl.sqrt(variance + epsilon))
    tl.store(out + row * width + column, to_type(states, out), mask=inside)


@triton.jit
def activated(x, up, kind: tl.constexpr):
    """Apply an activation to float32 values; `up` counts for swiglu only."""
    if kind == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif kind == "relu":
        y = tl.maximum(x, 0.0)
    else:
        y = x / (1.0 + tl.exp(-x)) * up
    return y


@triton.jit
def activation_kernel(
    inputs, out, in_stride, out_stride, width, kind: tl.constexpr, block: tl.constexpr
):
    """Apply the activation to part of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    place = inputs + row * in_stride + column
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = x
    if kind == "swiglu":
        up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    y = activated(x, up, kind)
    tl.store(out + row * out_stride + column, to_type(y, out), mask=inside)
