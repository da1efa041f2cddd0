# SPDX-License-Identifier: Apache-2.0
"""Exported folders of small models, as tools.export writes them, with a tokenizer."""

from pathlib import Path

from bt_megatron.inference.export_folder import write_model
from bt_megatron.inference.tokenizer_files import find_end_token, write_tokenizer
from tests.golden import load_golden
from tests.small_tokenizer import write_small_tokenizer

MAX_LENGTH = 32


def write_small_export(
    folder: Path, name: str = "lookup_prefix_b4_p2", *, random_left_padding: bool = True
) -> Path:
    """Write one of the reference's models, float32, trained with 32 tokens a sequence."""
    golden = load_golden(name)
    folder.mkdir(parents=True)
    write_model(
        folder,
        golden.weights,
        golden.model,
        dtype="fp32",
        max_length=MAX_LENGTH,
        random_left_padding=random_left_padding,
    )
    source = write_small_tokenizer(folder.with_name(f"{folder.name}-tokenizer.json"))
    end = find_end_token(source, vocab_size=golden.model.vocab_size)
    write_tokenizer(folder, source, end, max_length=MAX_LENGTH)
    return folder
