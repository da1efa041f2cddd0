# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of documents that the model was not trained on, by subset of the corpus.

    bits per byte = -log2 P(documents) / bytes of their text      (The Pile, arXiv 2101.00027, 3.1)

Each document is scored from its first token on, after the end-of-text token that stands before
it in training, in the windows of lm-eval's `loglikelihood_rolling`. The end-of-text token after
it is not scored, as there: it is no text.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.manifest import Manifest, load_manifest
from bt_megatron.data.split import documents_of_split
from bt_megatron.errors import DataError
from bt_megatron.evaluation.likelihood import LanguageModel, rolling_requests
from bt_megatron.evaluation.measurement import Counter, Measurement, OnProgress

Ids = NDArray[np.int64]


def held_out_documents(corpus: TokenCorpus, config: DataConfig | None) -> Ids:
    """Return the documents that a run held out for validation.

    Args:
        corpus: all documents.
        config: the data section of the run; None: all documents of the corpus are held out.
    """
    if config is None:
        return np.arange(corpus.num_documents)
    return documents_of_split(
        corpus.num_documents,
        split="validation",
        fraction=config.validation_fraction,
        seed=config.seed,
    )


def documents_by_subset(
    folder: Path, documents: Ids, *, labels: Mapping[str, Sequence[str]]
) -> dict[str, Ids]:
    """Sort documents by the subset that they are of.

    Args:
        folder: a data folder.
        documents: indices in its corpus, ascending.
        labels: of a shard, the subset of each of its documents. A shard without labels whose
            documents are of several subsets counts as one, named after all of them.

    Returns:
        Documents by subset, by name.

    Raises:
        DataError: the labels of a shard are not as many as its documents.
    """
    names = _label_all(load_manifest(folder), labels)
    known = sorted({names[index] for index in documents.tolist()})
    return {
        name: np.array([i for i in documents.tolist() if names[i] == name], dtype=np.int64)
        for name in known
    }


def _label_all(manifest: Manifest, labels: Mapping[str, Sequence[str]]) -> list[str]:
    names: list[str] = []
    for shard in manifest.shards:
        given = labels.get(shard.name, ["+".join(shard.subsets)] * shard.documents)
        if len(given) != shard.documents:
            raise DataError(
                f"{shard.name}: {len(given)} labels for {shard.documents} documents. Pass --source "
                f"{shard.source.name} as it was when the shard was made."
            )
        names += given
    return names


def spread(documents: Ids, lengths: NDArray[np.int32], *, max_tokens: int) -> Ids:
    """Return documents spread evenly over all, of about `max_tokens` together; at least one."""
    tokens = int(lengths[documents].sum(dtype=np.int64))
    return documents[:: max(1, math.ceil(tokens / max_tokens))]


def measure_bits_per_byte(
    model: LanguageModel,
    corpus: TokenCorpus,
    documents: Ids,
    *,
    name: str,
    byte_lengths: NDArray[np.int32],
    on_progress: OnProgress,
) -> Measurement:
    """Score documents whole.

    Args:
        model: the model.
        corpus: where the documents are.
        documents: which ones.
        name: of the measurement.
        byte_lengths: [v] bytes that each token stands for.
        on_progress: is told of progress.
    """
    texts = [corpus.document(index).tolist() for index in documents.tolist()]
    requests = [
        request
        for text in texts
        for request in rolling_requests(
            text, first_context=model.eos_id, max_length=model.max_length
        )
    ]
    scores = model.score(requests, Counter(len(requests), on_progress))
    nats = -sum(score.log_likelihood for score in scores)
    tokens = sum(map(len, texts))
    text_bytes = sum(int(byte_lengths[text].sum(dtype=np.int64)) for text in texts)
    metrics = {"loss": nats / tokens}
    if text_bytes:
        metrics = {"bits_per_byte": nats / math.log(2) / text_bytes, **metrics}
    detail = {"documents": len(texts), "tokens": tokens, "text_bytes": text_bytes}
    return Measurement(name=name, metrics=metrics, detail=detail)
