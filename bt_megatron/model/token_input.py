# SPDX-License-Identifier: Apache-2.0
"""What the token decoder reads: context embeddings, expanded, and the tokens of the next block.

    strategy         rows per block (q)                       rows that predict t_0 .. t_{k-1}
    prefix           e_0 .. e_{p-1}, E(t_0) .. E(t_{k-2})     the last k of p + k - 1
    summation        E(start) + e_0, E(t_0) + e_1, ...        all k
    cross_attention  E(start), E(t_0), ...; sees e_0 .. e_{k-1}   all k

The last token of a block is never fed. Positions restart at 0 in every block.
Source: paper 2.4 and appendix F; reference: model/token_decoder. Shapes: shapes.py.
"""

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from bt_megatron.config.geometry import token_positions
from bt_megatron.config.schema import ModelConfig

START_TOKEN = {"summation": 0, "cross_attention": 1}
"""Placeholder in front of a block (reference: GPT-NeoX's EOS, and T5's EOS)."""


def expand(context: Tensor, expansion: ColumnParallelLinear, *, vectors: int) -> Tensor:
    """Turn each context embedding into r vectors.

    Args:
        context: [n/t, b, g] under sequence parallelism, else [n, b, g].
        expansion: linear g -> r*h whose output is gathered.
        vectors: r.

    Returns:
        [r, n, b, h]; vector i is outputs [i*h, (i+1)*h) (reference: expansion_layer).

    Comm: all-gather of the input under sequence parallelism and of the output, tp group.
    """
    expanded, _ = expansion(context)  # [n, b, r*h]
    blocks, batch, _ = expanded.shape
    return expanded.view(blocks, batch, vectors, -1).permute(2, 0, 1, 3)


def fed_tokens(targets: Tensor, model: ModelConfig) -> Tensor:
    """Return the ids that the token decoder is fed (teacher forcing).

    Args:
        targets: [b, n, k] the next block of each block.
        model: the model.

    Returns:
        [b, n, k-1] for prefix, [b, n, k] with the start token in front otherwise.
    """
    assert model.token_decoder is not None, "a block model has a token decoder"
    strategy = model.token_decoder.strategy
    if strategy == "prefix":
        return targets[..., :-1]
    start = torch.full_like(targets[..., :1], START_TOKEN[strategy])
    return torch.cat((start, targets[..., :-1]), dim=-1)


def join(expanded: Tensor, embedded: Tensor, strategy: str) -> Tensor:
    """Return the rows of the token decoder.

    Args:
        expanded: [r, n, b, h] from `expand`.
        embedded: [k-1 or k, n, b, h] embeddings of `fed_tokens`.
        strategy: of the token decoder.

    Returns:
        [q*n, b, h] with row = position * n + block.
    """
    if strategy == "prefix":
        rows = torch.cat((expanded, embedded))
    elif strategy == "summation":
        rows = expanded + embedded
    else:
        rows = embedded
    return rows.reshape(-1, *rows.shape[2:])


def seen_positions(target_mask: Tensor, model: ModelConfig) -> Tensor:
    """Return which positions may be attended to as keys.

    Prefix vectors and the start token always; a token if it is not a pad.

    Args:
        target_mask: [b, n, k] bool, True where the token is real.
        model: the model.

    Returns:
        [q, n*b] bool.
    """
    batch, blocks, _ = target_mask.shape
    fed = target_mask[..., :-1].permute(2, 1, 0).reshape(-1, blocks * batch)
    always = fed.new_ones(token_positions(model) - fed.shape[0], blocks * batch)
    return torch.cat((always, fed))
