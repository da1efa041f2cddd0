# SPDX-License-Identifier: Apache-2.0
"""Output layer and cross entropy over a vocabulary that is split over tensor-parallel ranks."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from bt_megatron.kernels.linear_cross_entropy import linear_cross_entropy
from bt_megatron.model.embedder import NO_INIT
from bt_megatron.model.transformer_config import StackConfig, without_sequence_parallel


def padded_vocab(vocab_size: int, tp: int) -> int:
    """Return v, the vocabulary rounded up so that every tensor-parallel rank has equal rows."""
    return -(-vocab_size // tp) * tp


class OutputHead(ColumnParallelLinear):
    """The linear layer from hidden states to the vocabulary, and the loss.

    Losses are computed inside of this module's call, although logits would do for a function
    of its own: Megatron's hooks, which wait for gathered weights, run when a module is called.
    """

    def __init__(self, *args: Any, vocab_size: int, **kwargs: Any) -> None:
        """Take what ColumnParallelLinear takes, and the true size of the vocabulary."""
        super().__init__(*args, **kwargs)
        self.vocab_size = vocab_size

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        chunk_rows: int | None = None,
    ) -> Tensor:
        """Return losses, or logits if there are no targets.

        Args:
            hidden: [s, b, h], all rows on every rank.
            weight: [v/t, h], the token embedding's if the head is tied to it.
            targets: [s, b] ids.
            chunk_rows: rows of logits computed at a time for the loss; none: all at once.

        Returns:
            Cross entropies [s, b] in nats, in float32; or logits [s, b, v/t], padding at -inf.

        Comm: over the tp group, for losses an all-gather of [s * b, 3]; backward, an all-reduce
        of the gradient of `hidden` unless sequence parallelism reduces it (`gather_rows`).
        """
        if targets is None:
            logits, _ = super().forward(hidden, weight=weight)
            return hide_padding(logits, vocab_size=self.vocab_size)
        if self.allreduce_dgrad:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)
        losses = linear_cross_entropy(
            hidden.flatten(0, 1),
            self.weight if weight is None else weight,
            targets.flatten(),
            vocab_size=self.vocab_size,
            group=self.tp_group,
            chunk_rows=chunk_rows,
            into_main_grad=weight is None,  # a tied weight's gradient is a sum of two
        )
        return losses.view(targets.shape)


def build_head(config: StackConfig, *, vocab: int, vocab_size: int, tied: bool) -> OutputHead:
    """Return the linear layer from hidden states to this rank's part of the vocabulary.

    Args:
        config: Megatron config of the stack below.
        vocab: v, padded.
        vocab_size: true size of the vocabulary.
        tied: whether the weight is the token embedding's and is given at each call.
    """
    return OutputHead(
        config.hidden_size,
        vocab,
        vocab_size=vocab_size,
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
