# SPDX-License-Identifier: Apache-2.0
"""The data of a run: training batches by step, validation batches, bytes per token."""

from dataclasses import dataclass

import numpy as np

from bt_megatron.config.schema import RunConfig
from bt_megatron.data.batches import TrainingBatches, ValidationBatches
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dataset import PackedDataset
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


def open_data(config: RunConfig, *, dp_rank: int, dp_size: int) -> RunData:
    """Open the token shards of a run.

    Raises:
        DataError: shards are missing or damaged, or their ids do not fit the model.
    """
    corpus = TokenCorpus.open(config.data.path)
    model, batch = config.model, config.batch
    if corpus.vocab_size > model.vocab_size:
        raise DataError(
            f"{config.data.path}: its tokenizer has {corpus.vocab_size} ids, model.vocab_size is "
            f"{model.vocab_size}. Use --set model.vocab_size={corpus.vocab_size} or more."
        )
    block_length = model.block_length if model.is_block else 1
    training, validation = (
        PackedDataset(corpus, config=config.data, block_length=block_length, split=split)
        for split in ("train", "validation")
    )
    return RunData(
        fingerprint=training.fingerprint,
        training=TrainingBatches(
            training,
            seed=config.data.seed,
            batch=batch,
            dp_rank=dp_rank,
            dp_size=dp_size,
            target_shift=model.target_shift,
        ),
        validation=ValidationBatches(
            validation,
            max_sequences=config.evaluation.max_sequences,
            micro_batch_size=batch.micro_batch_size,
            dp_rank=dp_rank,
            dp_size=dp_size,
            target_shift=model.target_shift,
            group_size=config.layout.pp if config.layout.vpp > 1 else 1,
        ),
        byte_lengths=_byte_lengths(corpus, model.vocab_size),
    )


def _byte_lengths(corpus: TokenCorpus, vocab_size: int) -> np.ndarray:
    if corpus.tokenizer_path is None:
        return np.zeros(vocab_size, dtype=np.int32)
    return token_byte_lengths(corpus.tokenizer_path, vocab_size)
