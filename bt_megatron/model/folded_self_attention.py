# SPDX-License-Identifier: Apache-2.0
"""Self-attention inside each block, with one kernel between the projections where there is one.

The kernel turns queries and keys itself and reads the projection as it is; so it wants
the angles of q positions (`kernel_rotary`) where the plain way wants those of every row.
"""

from typing import Any, Literal

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from bt_megatron.config.schema import DecoderConfig
from bt_megatron.errors import ConfigError
from bt_megatron.kernels.token_attention import token_attention
from bt_megatron.kernels.token_attention_tiling import HEAD_DIMS, MAX_POSITIONS
from bt_megatron.model.rotary import position_angles
from bt_megatron.model.transformer_config import StackConfig

TokenAttention = Literal["auto", "torch", "triton"]
"""`kernels.token_attention`."""


def use_kernel(asked: TokenAttention, stack: StackConfig, *, relative_bias: bool) -> bool:
    """Return whether the kernel computes the attention of a folded stack on this machine.

    Args:
        asked: `kernels.token_attention`.
        stack: Megatron config of the stack.
        relative_bias: whether scores have a relative bias (T5), which the kernel does not know.

    Raises:
        ConfigError: the kernel is asked for and does not fit.
    """
    assert stack.fold_positions, "a folded stack knows its positions per block"
    obstacles = {
        "there is no GPU": not torch.cuda.is_available(),
        f"heads are {stack.kv_channels} wide, not {HEAD_DIMS}": stack.kv_channels not in HEAD_DIMS,
        f"a block has {stack.fold_positions} positions, more than {MAX_POSITIONS}": (
            stack.fold_positions > MAX_POSITIONS
        ),
        f"its dropout is {stack.attention_dropout}": stack.attention_dropout > 0,
        "its scores have a relative bias (T5)": relative_bias,
    }
    found = [obstacle for obstacle, is_there in obstacles.items() if is_there]
    if asked == "triton" and found:
        raise ConfigError(
            f"kernels.token_attention=triton: the kernel cannot compute this token decoder: "
            f"{'; '.join(found)}. Use kernels.token_attention=auto."
        )
    return asked != "torch" and not found


def kernel_rotary(decoder: DecoderConfig, positions: int, device: torch.device) -> Tensor | None:
    """Return cosines and sines [2, q, rotated] of the angles of q positions, in float32."""
    angles = position_angles(decoder, torch.arange(positions, device=device))
    return None if angles is None else torch.stack((angles.cos(), angles.sin()))[:, :, 0, 0]


class FoldedSelfAttention(SelfAttention):
    """Megatron's self-attention over rows position * n + block; see FoldedAttention."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *,
        rotary_pos_emb: Tensor | None = None,
        attention_bias: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within blocks.

        Args:
            hidden_states: [q*n/t, b, h] under sequence parallelism, else [q*n, b, h].
            attention_mask: [q, n*b] bool, False where a position is padding (as a key).
            rotary_pos_emb: with the kernel `kernel_rotary`, else the angles [q*n, 1, 1, rotated].
            attention_bias: [a/t, q, q] added to the scores (T5), never with the kernel.
            settings: what Megatron's layers hand over.

        Returns:
            [q*n/t, b, h] or [q*n, b, h], and the bias that is still to be added.

        Comm: the tensor-parallel collectives of the two linear layers.
        """
        if not self.config.token_kernel:
            return super().forward(  # type: ignore[no-any-return]
                hidden_states,
                attention_mask,
                rotary_pos_emb=rotary_pos_emb,
                attention_bias=attention_bias,
                **settings,
            )
        assert attention_bias is None, "a stack with a relative bias does not use the kernel"
        mixed, _ = self.linear_qkv(hidden_states)  # [q*n, b, (a + 2 * groups)/t * d]
        out = token_attention(
            mixed,
            positions=self.config.fold_positions,
            heads=self.num_attention_heads_per_partition,
            groups=self.num_query_groups_per_partition,
            rotary=rotary_pos_emb,
            mask=attention_mask,
            softmax_scale=self.config.softmax_scale,
            causal=not self.config.bidirectional,
        )
        return self.linear_proj(out)  # type: ignore[no-any-return]
