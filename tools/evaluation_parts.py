# SPDX-License-Identifier: Apache-2.0
"""What `tools.evaluate` measures, as a list: each part with its settings and what to call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.manifest import load_manifest, sha256_of
from bt_megatron.data.token_bytes import token_byte_lengths
from bt_megatron.errors import DataError
from bt_megatron.evaluation.held_out import (
    Ids,
    documents_by_subset,
    held_out_documents,
    measure_bits_per_byte,
    spread,
)
from bt_megatron.evaluation.likelihood import LanguageModel
from bt_megatron.evaluation.measurement import Measurement, OnProgress
from bt_megatron.evaluation.needle import QUESTIONS, measure_needle
from bt_megatron.evaluation.positions import measure_positions
from bt_megatron.evaluation.zero_shot import measure_zero_shot, require_lm_eval, task_file
from data_prep.documents import read_documents
from data_prep.problems import ProblemLog
from data_prep.streams import RawInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One measurement that can be made."""

    name: str
    """Of the measurement."""
    settings: Mapping[str, Any]
    """What it depends on besides the model."""
    measure: Callable[..., Measurement]
    """Makes it; takes `on_progress`."""


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """Documents that the model was not trained on."""

    corpus: TokenCorpus
    by_subset: Mapping[str, Ids]
    settings: Mapping[str, Any]
    """Which they are."""

    def documents(self) -> Iterator[list[int]]:
        """Yield the tokens of all of them, in the corpus's order."""
        every = np.concatenate(list(self.by_subset.values()))
        for index in np.sort(every).tolist():
            yield self.corpus.document(index).tolist()


def open_held_out(
    folder: Path, config: DataConfig | None, *, sources: Sequence[Path], tokenizer: Path
) -> HeldOutText:
    """Open a data folder.

    Args:
        folder: a data folder.
        config: says which documents a run held out; None: all of the folder.
        sources: texts that shards were made of, for the subset of each document.
        tokenizer: of the model.

    Raises:
        DataError: the folder cannot be read, or was made with another tokenizer.
    """
    manifest = load_manifest(folder)
    if sha256_of(tokenizer) != manifest.tokenizer.sha256:
        raise DataError(
            f"{folder}: made with another tokenizer than {tokenizer}, so its ids mean something "
            "else to this model. Tokenize the text with the model's tokenizer.json."
        )
    corpus = TokenCorpus.open(folder)
    documents = held_out_documents(corpus, config)
    if len(documents) == 0:
        raise DataError(
            f"{folder}: the run held out none of its documents. Pass --held-out with others and "
            "--all-documents."
        )
    labels = _read_labels(folder, sources)
    split = None if config is None else [config.validation_fraction, config.seed]
    settings = {"corpus": corpus.fingerprint, "split": split, "labelled": sorted(labels)}
    return HeldOutText(corpus, documents_by_subset(folder, documents, labels=labels), settings)


def _read_labels(folder: Path, sources: Sequence[Path]) -> dict[str, list[str]]:
    """Return the subset of each document of the shards that were made of these files.

    Raises:
        DataError: no shard was made of a file.
    """
    shards = {shard.source.sha256: shard.name for shard in load_manifest(folder).shards}
    labels = {}
    for source in sources:
        with RawInput(source) as raw:
            documents = read_documents(raw, ProblemLog(source.name))
            found = [document.subset for document in documents if not document.more]
            name = shards.get(raw.sha256)
        if name is None:
            raise DataError(
                f"{source}: no shard of {folder} was made of this file. Pass --source with the "
                "text that was tokenized, unchanged."
            )
        labels[name] = found
    return labels


def zero_shot_parts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    data: Path,
    tasks: Sequence[str],
    limit: int | None,
) -> list[Part]:
    """Return a part for each task.

    Raises:
        BtError: lm-eval or the documents are not there.
    """
    harness = require_lm_eval()
    return [
        Part(
            name=f"zero-shot/{task}",
            settings={
                "lm_eval": harness,
                "documents": sha256_of(task_file(data, task)),
                "limit": limit,
            },
            measure=partial(measure_zero_shot, model, tokenizer, data=data, task=task, limit=limit),
        )
        for task in tasks
    ]


def held_out_parts(model: LanguageModel, text: HeldOutText, *, max_tokens: int) -> list[Part]:
    """Return a part for each subset, of about `max_tokens` tokens each.

    Raises:
        DataError: the tokens of the corpus have no fixed number of bytes.
    """
    corpus = text.corpus
    assert corpus.tokenizer_path is not None, "a data folder has a tokenizer"
    byte_lengths = token_byte_lengths(corpus.tokenizer_path, model.vocab_size)
    return [
        Part(
            name=f"held-out/{subset}",
            settings={**text.settings, "max_tokens": max_tokens},
            measure=partial(
                measure_bits_per_byte,
                model,
                corpus,
                spread(documents, corpus.lengths, max_tokens=max_tokens),
                name=f"held-out/{subset}",
                byte_lengths=byte_lengths,
            ),
        )
        for subset, documents in text.by_subset.items()
    ]


def position_part(
    model: LanguageModel, text: HeldOutText, *, context_length: int, pieces: int
) -> Part:
    """Return the part that measures loss by position."""

    def measure(on_progress: OnProgress) -> Measurement:
        return measure_positions(
            model,
            text.documents(),
            context_length=context_length,
            max_pieces=pieces,
            on_progress=on_progress,
        )

    settings = {**text.settings, "context_length": context_length, "pieces": pieces}
    return Part(name="positions", settings=settings, measure=measure)


def needle_parts(
    model: LanguageModel, tokenizer: Tokenizer, text: HeldOutText, *, samples: int
) -> list[Part]:
    """Return a part for each form of the question."""

    def measure(form: str, on_progress: OnProgress) -> Measurement:
        haystacks = [tokens for tokens in text.documents() if len(tokens) >= model.max_length]
        return measure_needle(
            model, tokenizer, haystacks, form=form, samples=samples, on_progress=on_progress
        )

    return [
        Part(
            name=f"needle/{form}",
            settings={**text.settings, "samples": samples},
            measure=partial(measure, form),
        )
        for form in QUESTIONS
    ]
