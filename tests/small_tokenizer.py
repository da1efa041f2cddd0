# SPDX-License-Identifier: Apache-2.0
"""A byte-level tokenizer.json that is trained on a few words."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def write_small_tokenizer(path: Path, *, vocab_size: int = 300, end: str = END) -> Path:
    """Write a tokenizer with `vocab_size` ids, the first of which is `end`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the quick brown fox jumps over the lazy dog and the other quick foxes"
    tokenizer.train_from_iterator([text] * 3, trainer)
    tokenizer.save(str(path))
    return path
