# SPDX-License-Identifier: Apache-2.0
"""The data of a run: training batches by step, validation batches, bytes per token."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bt_megatron.config.schema import RunConfig
from bt_megatron.data.batches import TrainingBatches, ValidationBatches
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dali import DaliSteps
from bt_megatron.data.device_copy import Sender, SentBatches
from bt_megatron.data.mixture import InterleavedSamples, Mixture, Subset
from bt_megatron.data.sources import open_sources
from bt_megatron.data.token_bytes import token_byte_lengths
from bt_megatron.errors import DataError


@dataclass(frozen=True, slots=True)
class RunData:
    """What one data-parallel rank reads."""

    fingerprint: str
    """Of the training samples."""
    training: TrainingBatches
    validation: ValidationBatches
    byte_lengths: np.ndarray
    """[v] UTF-8 bytes of each token; zeros where no tokenizer is known."""
    notes: tuple[str, ...]
    """What a person should know of the data."""


def open_data(config: RunConfig, *, dp_rank: int, dp_size: int) -> RunData:
    """Open the token shards of a run.

    Raises:
        DataError: shards are missing or damaged, their ids do not fit the model, or the limits of
            a mixture leave less to read than the run takes.
    """
    model, batch = config.model, config.batch
    sources = open_sources(config)
    block_length = model.block_length if model.is_block else 1
    training, validation = (
        [source.subset(block_length=block_length, split=split) for source in sources]
        for split in ("train", "validation")
    )
    mixture = Mixture(training, seed=config.data.seed, order=config.data.order)
    _require_enough(mixture, config)
    return RunData(
        fingerprint=mixture.fingerprint,
        training=TrainingBatches(
            mixture,
            batch=batch,
            dp_rank=dp_rank,
            dp_size=dp_size,
            target_shift=model.target_shift,
        ),
        validation=ValidationBatches(
            InterleavedSamples(validation),
            max_sequences=config.evaluation.max_sequences,
            micro_batch_size=batch.micro_batch_size,
            dp_rank=dp_rank,
            dp_size=dp_size,
            target_shift=model.target_shift,
            group_size=config.layout.pp if config.layout.vpp > 1 else 1,
        ),
        byte_lengths=_byte_lengths(sources[0].corpus, model.vocab_size),
        notes=(*_index_notes([*training, *validation]), *_mixture_notes(mixture, config)),
    )


def step_reader(
    config: RunConfig, batches: TrainingBatches, *, first_step: int
) -> Callable[[int], SentBatches]:
    """Return the function that reads the micro-batches of a step and sends them to the device.

    Args:
        config: of the run.
        batches: what to read.
        first_step: the step that it will be asked for first; then the next ones in order.

    Raises:
        DataError: the loader is not installed.
    """
    if config.data.loader == "dali":
        return DaliSteps(batches, first_step=first_step).read
    sender = Sender()
    return lambda step: sender.send(batches.micro_batches(step))


def _require_enough(mixture: Mixture, config: RunConfig) -> None:
    needed = config.train.steps * config.batch.global_batch_size
    if mixture.capacity is not None and mixture.capacity < needed:
        raise DataError(
            f"data.mixture - max_epochs leave {mixture.capacity} samples to read, train.steps x "
            f"batch.global_batch_size takes {needed} - raise or remove a max_epochs, or set "
            f"train.steps={mixture.capacity // config.batch.global_batch_size}"
        )


def _index_notes(subsets: list[Subset]) -> list[str]:
    """Say that a large index was made in memory, by each process for itself."""
    made = sum(s.dataset.num_documents for s in subsets if not s.dataset.is_mapped)
    if made < _MANY_DOCUMENTS:
        return []
    return [
        f"data: the index of {made:,} documents was made in memory by every process; "
        "`python -m data_prep index` with this run's files makes it once, for all to map"
    ]


_MANY_DOCUMENTS = 1_000_000


def _mixture_notes(mixture: Mixture, config: RunConfig) -> list[str]:
    """Say what each subset of a mixture amounts to over the run."""
    if len(mixture.subsets) == 1:
        return []
    samples_per_step = config.batch.global_batch_size
    total = config.train.steps * samples_per_step
    drawn, reached = mixture.drawn(total), mixture.limits_reached()
    notes = []
    for name, amount in drawn.items():
        note = f"data: {name} {amount.share:.2%} of the run, {amount.tokens:,} tokens, "
        note += f"{amount.epochs:.2f} epochs"
        if name in reached and reached[name] <= total:
            note += f"; at its max_epochs from step {reached[name] // samples_per_step} on"
        notes.append(note)
    return notes


def _byte_lengths(corpus: TokenCorpus, vocab_size: int) -> np.ndarray:
    if corpus.tokenizer_path is None:
        return np.zeros(vocab_size, dtype=np.int32)
    return token_byte_lengths(corpus.tokenizer_path, vocab_size)
