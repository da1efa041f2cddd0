# SPDX-License-Identifier: Apache-2.0
"""How a token is drawn, in plain torch; sampling_kernel.py does the same on a GPU.

1. Logits of tokens that occurred are divided (if positive) or multiplied by the penalty.
2. At temperature 0 the best token is taken, the one with the lowest id among equals.
3. Else logits are divided by the temperature, the top_k best are kept, and of those the
   fewest that together have probability top_p. Tokens as good as the last one are kept too.
4. A number u in (0, 1) is drawn from Philox 4x32-10 with the request's seed as key and the
   number of tokens drawn so far as counter. The first token, by id, at which the summed
   probability exceeds u is taken.

So a request's tokens depend on its logits and its seed, and not on who else is in the batch.
"""

import torch
from torch import Tensor

from bt_megatron.inference.engine.rows import Real, Rows, Whole

PHILOX_ROUNDS = 10
PHILOX_KEYS = (0x9E3779B9, 0xBB67AE85)
PHILOX_FACTORS = (0xD2511F53, 0xCD9E8D57)
LOW = 0xFFFFFFFF


def philox(seed_low: Tensor, seed_high: Tensor, counter: Tensor) -> Tensor:
    """Return the first of the four numbers of Philox 4x32-10 (Salmon et al., SC 2011).

    Args:
        seed_low: int64, of which 32 bits count, as of the others; key word 0.
        seed_high: key word 1.
        counter: counter word 0; the others are 0.

    Returns:
        int64 in [0, 2**32).
    """
    zero = torch.zeros_like(counter)
    words = [counter & LOW, zero, zero, zero]
    keys = [seed_low & LOW, seed_high & LOW]
    for _ in range(PHILOX_ROUNDS):
        (high0, low0), (high1, low1) = (
            _wide_product(words[0], PHILOX_FACTORS[0]),
            _wide_product(words[2], PHILOX_FACTORS[1]),
        )
        words = [high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0]
        keys = [(key + step) & LOW for key, step in zip(keys, PHILOX_KEYS, strict=True)]
    return words[0]


def _wide_product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    # High and low half of a 64-bit product; int64 wraps, which leaves the bits right.
    product = word * torch.tensor(factor, dtype=torch.int64, device=word.device)
    return (product >> 32) & LOW, product & LOW


def uniform(whole: Tensor) -> Tensor:
    """Return the number u of each row [B] in float32: 0 < u < 1, or 1 by rounding."""
    words = [whole[:, column].long() for column in (Whole.SEED_LOW, Whole.SEED_HIGH, Whole.DRAWN)]
    return (philox(*words).float() + 0.5) * 2.0**-32


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Return logits [B, V] with the penalty [B] on tokens seen [B, V]."""
    penalty = penalty[:, None]
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where((seen != 0) & (penalty != 1), changed, logits)


def keep_likely(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return logits [B, V] with -inf where top_k [B] or top_p [B] exclude a token."""
    ordered = logits.sort(dim=-1, descending=True).values
    last = torch.where(top_k > 0, top_k, logits.shape[-1]).clamp(max=logits.shape[-1])
    threshold = ordered.gather(1, last.long()[:, None] - 1)
    ordered = ordered.masked_fill(ordered < threshold, -torch.inf)
    mass = ordered.softmax(-1).cumsum(-1)
    needed = (mass < top_p[:, None]).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    smallest = torch.where(top_p[:, None] < 1, ordered.gather(1, needed), threshold)
    return logits.masked_fill(logits < torch.maximum(smallest, threshold), -torch.inf)


def draw(logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Draw a token for each row.

    Args:
        logits: [B, V] float32.
        rows: settings, seeds and counters.

    Returns:
        Token [B] int64 and its log-probability [B] under the logits as they are.
    """
    temperature, top_p, penalty = (rows.real[:, column] for column in Real)
    changed = penalise(logits, rows.seen, penalty)
    token = changed.argmax(-1)
    sampled = temperature > 0
    if bool(sampled.any()):
        cooled = changed / torch.where(sampled, temperature, 1.0)[:, None]
        kept = keep_likely(cooled, rows.whole[:, Whole.TOP_K], top_p)
        summed = kept.double().softmax(-1).cumsum(-1)
        target = uniform(rows.whole)[:, None].double() * summed[:, -1:]
        drawn = torch.searchsorted(summed, target, right=True)[:, 0].clamp(max=kept.shape[1] - 1)
        token = torch.where(sampled, drawn, token)
    logprob = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    return token, logprob
