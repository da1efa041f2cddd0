# SPDX-License-Identifier: Apache-2.0
"""Output layer and cross entropy over a vocabulary that is split over tensor-parallel ranks."""

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from bt_megatron.model.embedder import NO_INIT
from bt_megatron.model.transformer_config import StackConfig, without_sequence_parallel


def padded_vocab(vocab_size: int, tp: int) -> int:
    """Return v, the vocabulary rounded up so that every tensor-parallel rank has equal rows."""
    return -(-vocab_size // tp) * tp


def build_head(config: StackConfig, *, vocab: int, tied: bool) -> ColumnParallelLinear:
    """Return the linear layer from hidden states to this rank's logits.

    Args:
        config: Megatron config of the stack below.
        vocab: v, padded.
        tied: whether the weight is the token embedding's and is given at each call.
    """
    return ColumnParallelLinear(
        config.hidden_size,
        vocab,
        config=without_sequence_parallel(config),
        init_method=NO_INIT,
        bias=False,
        gather_output=False,
        skip_bias_add=False,
        skip_weight_param_allocation=tied,
        disable_grad_reduce=config.sequence_parallel,
    )


def gather_rows(hidden: Tensor, config: StackConfig) -> Tensor:
    """Return all rows of the hidden states on every rank.

    The head needs them whole, to drop rows that predict nothing before the
    largest product of the model.

    Args:
        hidden: [s/t, b, h] under sequence parallelism, else [s, b, h].
        config: Megatron config of the stack.

    Returns:
        [s, b, h].

    Comm: all-gather over the tp group (reduce-scatter backward) under sequence parallelism.
    """
    if not config.sequence_parallel:
        return hidden
    return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)


def hide_padding(logits: Tensor, *, vocab_size: int) -> Tensor:
    """Give the rows that pad the vocabulary no probability.

    Args:
        logits: [s, b, v/t] of this rank.
        vocab_size: true size of the vocabulary.

    Returns:
        [s, b, v/t], padding columns at -inf.

    Comm: none.
    """
    local = logits.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * local
    real = max(0, min(local, vocab_size - first))
    if real == local:
        return logits
    padding = logits.new_full((*logits.shape[:-1], local - real), float("-inf"))
    return torch.cat((logits[..., :real], padding), dim=-1)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each target in nats, in float32.

    Args:
        logits: [s, b, v/t].
        targets: [s, b] ids.

    Returns:
        [s, b].

    Comm: all-reduces of maximum, target logit and normaliser over the tp group.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return tensor_parallel.vocab_parallel_cross_entropy(logits, targets)
