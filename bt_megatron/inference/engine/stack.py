# SPDX-License-Identifier: Apache-2.0
"""A stack of layers over rows, whatever their attention looks at."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from bt_megatron.inference.engine.linear import Linear
from bt_megatron.inference.engine.weights import LayerWeights, StackWeights

Attention = Callable[[int, Tensor, Tensor], None]
"""Called with the layer's index, queries, keys and values [M, (a + 2 g) d] and the output
[M, a * d] to write."""


def operations(device: torch.device) -> ModuleType:
    """Return the operations between products for a device."""
    if device.type == "cuda":
        from bt_megatron.inference.engine import triton_ops

        return triton_ops
    from bt_megatron.inference.engine import torch_ops

    return torch_ops


class Stack:
    """Layers without their final norm, which lives in the product that follows."""

    def __init__(self, weights: StackWeights, device: torch.device) -> None:
        """Take the weights."""
        self.weights, self.shape = weights, weights.shape
        self.ops = operations(device)

    def run(self, x: Tensor, attend: Attention) -> None:
        """Run all layers over the residual stream x [M, h], in place."""
        for index in range(self.shape.layers):
            self.run_layer(index, x, attend)

    def run_layer(self, index: int, x: Tensor, attend: Attention) -> None:
        """Run one layer over the residual stream x [M, h], in place."""
        layer, shape, ops = self.weights.layers[index], self.shape, self.ops
        if ops.is_narrow(x, shape):
            joined = x.new_empty(x.shape[0], layer.out.weight.shape[1])
            mixed = ops.narrow_first(x, layer.shift, layer.mixed, shape, joined)
            attend(index, mixed, joined[:, : shape.attended])
            ops.narrow_last(x, joined, layer.out)
            return
        states = ops.norm(x, layer.shift, shape, layer.mixed.input_type)
        mixed = layer.mixed(states, x.dtype)  # [M, (a + 2 g) d (+ feed-forward inputs)]
        joined = x.new_empty(x.shape[0], layer.out.weight.shape[1], dtype=layer.out.input_type)
        attend(index, mixed[:, : shape.mixed], joined[:, : shape.attended])
        if shape.parallel:
            ops.activate(mixed[:, shape.mixed :], joined[:, shape.attended :], shape)
        layer.out.add_to(x, joined)
        if not shape.parallel:
            self._feed_forward(layer, x)

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> None:
        assert layer.up is not None
        assert layer.down is not None
        states = self.ops.norm(x, layer.middle_shift, self.shape, layer.up.input_type)
        inputs = layer.up(states, x.dtype)
        inner = x.new_empty(x.shape[0], self.shape.ffn, dtype=layer.down.input_type)
        self.ops.activate(inputs, inner, self.shape)
        layer.down.add_to(x, inner)

    def keys_values(self, index: int, x: Tensor) -> Tensor:
        """Return queries (left undefined), keys and values [M, (a + 2 g) d] of a layer.

        Of a prompt's last layer nothing else is needed.
        """
        layer, shape = self.weights.layers[index], self.shape
        states = self.ops.norm(x, layer.shift, shape, layer.mixed.input_type)
        mixed = x.new_empty(x.shape[0], shape.mixed)
        needed = layer.mixed.rows(shape.attended, shape.mixed)
        mixed[:, shape.attended :] = needed(states, x.dtype)
        return mixed

    def finish(self, x: Tensor, product: Linear, out_type: torch.dtype) -> Tensor:
        """Apply the final norm and the product that holds its weights: [M, h] -> [M, n]."""
        if self.ops.is_narrow(x, self.shape):
            return self.ops.narrow_first(x, self.weights.final_shift, product, self.shape, None)
        states = self.ops.norm(x, self.weights.final_shift, self.shape, product.input_type)
        return product(states, out_type)
