# SPDX-License-Identifier: Apache-2.0
"""Weights as the engine multiplies with them, made from the official names of a checkpoint.

What differs from the checkpoint, all of it exact in exact arithmetic:

- A norm's weight and bias are multiplied into the product that follows it, so that a
  norm has none. Both norms of a parallel layer are then one, and its first two products
  are one: queries, keys, values and feed-forward inputs. Its last two are one as well.
- Biases of the products that write to the residual stream are left out of it. They are
  the same for all rows, so their sum over the layers before (`shift`) is added where the
  stream is read.
- The two dimensions of a head that are rotated together lie side by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bt_megatron.checkpoint.names import entries
from bt_megatron.config.schema import ModelConfig
from bt_megatron.errors import ConversionError
from bt_megatron.inference.engine.linear import Linear, make_linear
from bt_megatron.inference.engine.shapes import StackShape


@dataclass(frozen=True, slots=True)
class Numbers:
    """In what precision weights are kept."""

    dtype: torch.dtype
    fp8: bool = False
    """Products of the layers in e4m3; tables and head are kept in `dtype`."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer; a parallel one has everything in `mixed` and `out`."""

    shift: Tensor
    """[h] float32, to be added to the residual stream before the first norm"""
    mixed: Linear
    """[(a + 2 g) d (+ feed-forward inputs), h]"""
    out: Linear
    """[h, a d (+ f)]"""
    middle_shift: Tensor | None = None
    """[h] float32, before the second norm of a sequential layer"""
    up: Linear | None = None
    down: Linear | None = None


@dataclass(frozen=True, slots=True)
class StackWeights:
    """Layers, and what the final norm leaves to the product that follows it."""

    shape: StackShape
    layers: list[LayerWeights]
    final_shift: Tensor
    """[h] float32"""
    final_scale: Tensor
    """[h] float32, to be multiplied into the product that follows"""
    final_bias: Tensor | None


class Source:
    """Tensors by official name, in float32 on the device of the engine."""

    def __init__(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Read from a state dict."""
        self.state, self.device = state, device

    def need(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            ConversionError: it is not there.
        """
        if name not in self.state:
            raise ConversionError(f"the checkpoint has no tensor {name}. Export the model again.")
        return self.state[name].to(self.device, torch.float32)

    def find(self, name: str) -> Tensor | None:
        """Return a tensor, or None."""
        return self.need(name) if name in self.state else None


def absorb_norm(
    weight: Tensor, bias: Tensor | None, scale: Tensor, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Multiply a norm's scale [k] and bias [k] into the product W [n, k], b [n] after it."""
    if norm_bias is not None:
        moved = weight @ norm_bias
        bias = moved if bias is None else bias + moved
    return weight * scale, bias


def pair_order(shape: StackShape) -> Tensor:
    """Return the order [d] that puts dimensions that are rotated together side by side."""
    half = shape.rotated // 2
    pairs = torch.arange(shape.rotated).view(2, half).T.flatten()
    return torch.cat([pairs, torch.arange(shape.rotated, shape.head_dim)])


def split_fused(fused: Tensor, shape: StackShape) -> Tensor:
    """Reorder rows of a fused projection [(a + 2 g) d, ...] to all queries, keys, values."""
    per_group = fused.unflatten(0, (shape.groups, -1, shape.head_dim))
    order = pair_order(shape).to(fused.device)
    queries, keys = per_group[:, :-2][:, :, order], per_group[:, -2][:, order]
    return torch.cat([queries.flatten(0, 2), keys.flatten(0, 1), per_group[:, -1].flatten(0, 1)])


def read_stack(
    source: Source,
    prefix: str,
    shape: StackShape,
    numbers: Numbers,
    done: Callable[[], None] = lambda: None,
) -> StackWeights:
    """Read the layers below a prefix such as `block_decoder.gpt_neox`; `done` follows each."""
    total = torch.zeros(shape.width, device=source.device)
    layers = []
    for index in range(shape.layers):
        layer, total = _read_layer(source, f"{prefix}.layers.{index}", shape, numbers, total)
        layers.append(layer)
        done()
    norm = f"{prefix}.final_layer_norm"
    scale, bias = source.need(f"{norm}.weight"), source.find(f"{norm}.bias")
    return StackWeights(shape, layers, total, scale, bias)


def _read_layer(
    source: Source, name: str, shape: StackShape, numbers: Numbers, total: Tensor
) -> tuple[LayerWeights, Tensor]:
    def read(product: str, norm: str | None) -> tuple[Tensor, Tensor | None]:
        weight = source.need(f"{name}.{product}.weight")
        bias = source.find(f"{name}.{product}.bias")
        if norm is None:
            return weight, bias
        scale, norm_bias = source.need(f"{name}.{norm}.weight"), source.find(f"{name}.{norm}.bias")
        return absorb_norm(weight, bias, scale, norm_bias)

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        return make_linear(weight, bias, numbers.dtype, fp8=numbers.fp8)

    fused, fused_bias = read("attention.query_key_value", "input_layernorm")
    fused = split_fused(fused, shape)
    fused_bias = None if fused_bias is None else split_fused(fused_bias, shape)
    up, up_bias = read("mlp.dense_h_to_4h", "post_attention_layernorm")
    dense, dense_bias = read("attention.dense", None)
    down, down_bias = read("mlp.dense_4h_to_h", None)
    none = torch.zeros_like(total)
    middle = total + (none if dense_bias is None else dense_bias)
    end = middle + (none if down_bias is None else down_bias)
    if not shape.parallel:
        layer = LayerWeights(
            total, make(fused, fused_bias), make(dense, None), middle, make(up, up_bias),
            make(down, None),
        )  # fmt: skip
        return layer, end
    bias = None
    if fused_bias is not None and up_bias is not None:
        bias = torch.cat([fused_bias, up_bias])
    mixed = make(torch.cat([fused, up]), bias)
    return LayerWeights(total, mixed, make(torch.cat([dense, down], dim=1), None)), end


def official_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor of a checkpoint in official form."""
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries(model):
        shapes = entry.transform.shapes(entry.shape) * (len(entry.official) if entry.is_tied else 1)
        found.update(zip(entry.official, shapes, strict=True))
    return found


def random_state(model: ModelConfig, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Return weights as at the start of training: Normal(0, init_std), norms at one.

    The tensors are bf16 on the device, so that a benchmark needs no checkpoint.
    """
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for name, shape in official_shapes(model).items():
        tensor = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
        elif not name.endswith("bias"):
            tensor.normal_(0.0, model.init_std, generator=generator)
        state[name] = tensor
    return state
