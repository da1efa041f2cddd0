# SPDX-License-Identifier: Apache-2.0
"""Loss by place in the block and along the context, on documents longer than the context.

As the paper does with PG19 (SPEC of the reference, evaluation): documents are cut into pieces of
the context length, the rest of each is left out, and the loss of each place is averaged over
pieces. The first tokens, which no block predicts, have none.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bt_megatron.errors import DataError
from bt_megatron.evaluation.likelihood import LanguageModel, Request
from bt_megatron.evaluation.measurement import Counter, Measurement, OnProgress

BINS = 16
"""Parts that the context is cut into for the curve; the first is of single tokens."""


def measure_positions(
    model: LanguageModel,
    documents: Iterator[Sequence[int]],
    *,
    context_length: int,
    max_pieces: int,
    on_progress: OnProgress,
) -> Measurement:
    """Average the loss over pieces of long documents, place by place.

    Args:
        model: the model.
        documents: tokens of documents; the short ones are passed over.
        context_length: tokens of a piece.
        max_pieces: how many pieces are scored at most.
        on_progress: is told of progress.

    Raises:
        DataError: no document is as long as the context, or the model reads fewer tokens.
    """
    if context_length > model.max_length:
        raise DataError(
            f"--context {context_length}: the model was trained with {model.max_length} tokens. "
            f"Use at most {model.max_length}."
        )
    unpredicted = max(1, model.block_length - model.left_padding)
    pieces = list(_pieces(documents, context_length, max_pieces))
    if not pieces:
        raise DataError(
            f"no document has {context_length} tokens. Pass a smaller --context, or --held-out "
            "with longer documents."
        )
    requests = [Request(piece[:unpredicted], piece[unpredicted:]) for piece in pieces]
    scores = model.score(requests, Counter(len(requests), on_progress))
    losses = -np.stack([score.log_probabilities for score in scores]).astype(np.float64)
    by_place = losses.mean(0)  # [context_length - unpredicted]
    place = model.left_padding + unpredicted + np.arange(by_place.size)
    in_block = [by_place[place % model.block_length == i].mean() for i in range(model.block_length)]
    quarter = by_place.size // 4
    metrics = {
        "loss": by_place.mean(),
        "first_quarter": by_place[:quarter].mean(),
        "last_quarter": by_place[-quarter:].mean(),
    }
    if model.block_length > 1:
        metrics |= {f"in_block_{i}": loss for i, loss in enumerate(in_block)}
    return Measurement(
        name="positions",
        metrics={key: float(value) for key, value in metrics.items()},
        detail={
            "pieces": len(pieces),
            "context_length": context_length,
            "along_context": _curve(by_place, first=unpredicted),
            "standard_error": {"loss": _standard_error(losses.mean(1))},
        },
    )


def _standard_error(values: NDArray[np.float64]) -> float | None:
    """Return the standard error of a mean; None for a single value."""
    return float(values.std(ddof=1) / values.size**0.5) if values.size > 1 else None


def _pieces(documents: Iterator[Sequence[int]], length: int, limit: int) -> Iterator[Sequence[int]]:
    """Yield pieces of `length` tokens, one of each document in turn before the second of any."""
    long = [document for document in documents if len(document) >= length]
    count = 0
    for number in range(max((len(document) // length for document in long), default=0)):
        for document in long:
            begin = number * length
            if begin + length <= len(document) and count < limit:
                count += 1
                yield document[begin : begin + length]


def _curve(by_place: NDArray[np.float64], *, first: int) -> list[dict[str, float]]:
    """Return loss by part of the context, parts twice as wide each: [first, last) and mean."""
    edges = [0]
    while edges[-1] < by_place.size and len(edges) <= BINS:
        edges.append(min(by_place.size, max(4, 2 * edges[-1])))
    return [
        {"begin": begin + first, "end": end + first, "loss": float(by_place[begin:end].mean())}
        for begin, end in zip(edges[:-1], edges[1:], strict=True)
        if end > begin
    ]
