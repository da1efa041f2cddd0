# SPDX-License-Identifier: Apache-2.0
"""Letters of shapes in this package, and the numbers of a stack that kernels are told.

B rows of the running batch (one request each)    M rows of a matrix product
k tokens of a block (vanilla: tokens of a step)   r expanded vectors    q = positions of a block
h width    f feed-forward width    a heads    g query groups    d width of a head
V vocabulary    P positions of a page of the cache
"""

from dataclasses import dataclass

from bt_megatron.config.schema import DecoderConfig


@dataclass(frozen=True, slots=True)
class StackShape:
    """Sizes and kinds of a stack of layers."""

    layers: int
    width: int
    heads: int
    groups: int
    head_dim: int
    rotary_width: int
    """Rotary fraction of a head, rounded down; the frequencies are in units of it."""
    rotary_base: float
    ffn: int
    parallel: bool
    layernorm: bool
    activation: str
    epsilon: float

    @property
    def rotated(self) -> int:
        """Leading dimensions of a head that are rotated, an even number."""
        return -(-self.rotary_width // 2) * 2

    @property
    def attended(self) -> int:
        """Width of the attention's output, a * d."""
        return self.heads * self.head_dim

    @property
    def mixed(self) -> int:
        """Width of queries, keys and values together, (a + 2 g) * d."""
        return (self.heads + 2 * self.groups) * self.head_dim

    @property
    def ffn_inputs(self) -> int:
        """Width of what the activation reads."""
        return 2 * self.ffn if self.activation == "swiglu" else self.ffn


def stack_shape(section: DecoderConfig) -> StackShape:
    """Return the numbers of a section."""
    return StackShape(
        layers=section.num_layers,
        width=section.hidden_size,
        heads=section.num_attention_heads,
        groups=section.query_groups,
        head_dim=section.head_dim,
        rotary_width=int(section.head_dim * section.rotary_fraction),
        rotary_base=section.rotary_base,
        ffn=section.ffn_size,
        parallel=section.residual == "parallel",
        layernorm=section.normalization == "layernorm",
        activation=section.activation,
        epsilon=section.norm_epsilon,
    )
