# SPDX-License-Identifier: Apache-2.0
"""The feed-forward part of a layer, where Megatron-Core's does not fit."""

from typing import Any

from megatron.core.transformer.mlp import MLP
from torch import Tensor

from bt_megatron.kernels.gelu import bias_gelu


class GeluMlp(MLP):
    """fc2(GELU(fc1 x + b)) with the exact GELU, which also adds b and sums its gradient.

    Megatron-Core's own fusion of bias and GELU is the tanh approximation.
    """

    def forward(self, hidden_states: Tensor, **_unused: Any) -> tuple[Tensor, Tensor | None]:
        """Run the feed-forward part.

        Args:
            hidden_states: [s/t, b, h] under sequence parallelism, else [s, b, h].

        Returns:
            The same shape, and the bias [h] that is still to be added.

        Comm: the tensor-parallel collectives of the linear layers.
        """
        product, bias = self.linear_fc1(hidden_states)  # [s, b, f/t], [f/t]
        return self.linear_fc2(bias_gelu(product, bias))
