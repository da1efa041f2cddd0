# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of an exported folder: the training run's tokenizer.json and its settings."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bt_megatron.errors import ConversionError

DEFAULT_EOS = "<|endoftext|>"
"""What `python -m data_prep tokenize` ends documents with, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class EndToken:
    """The token that ends documents; training pads with it too."""

    text: str
    """Its text."""
    id: int
    """Its id."""


def find_end_token(
    path: Path, *, vocab_size: int, text: str | None = None, eos_id: int | None = None
) -> EndToken:
    """Return the end-of-document token of a tokenizer.json.

    Args:
        path: a tokenizer.json.
        vocab_size: ids that the model knows.
        text: the token; None: by `eos_id`, else `DEFAULT_EOS`.
        eos_id: the id that training used.

    Raises:
        ConversionError: the file cannot be read, has no such token, or ids that the model
            does not know.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ConversionError(
            f"{path}: not a tokenizer.json ({error}). Pass another one."
        ) from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise ConversionError(
            f"{path}: its largest id is {largest}, the model has {vocab_size} rows. Pass the "
            "tokenizer.json that the data was made with."
        )
    if text is None and eos_id is not None:
        text = tokenizer.id_to_token(eos_id)
        if text is None:
            raise ConversionError(
                f"{path}: has no id {eos_id}, which training ended documents with. Pass the "
                "tokenizer.json that the data was made with."
            )
    text = DEFAULT_EOS if text is None else text
    found = tokenizer.token_to_id(text)
    if found is None:
        raise ConversionError(
            f"{path}: has no token {text!r} to end documents with. Pass --eos-token."
        )
    return EndToken(text, found)


def write_tokenizer(
    folder: Path, source: Path, end: EndToken, *, max_length: int | None = None
) -> None:
    """Copy tokenizer.json and write the settings that AutoTokenizer reads.

    Prompts of a batch are padded on the left, with the end token, as in training.

    Args:
        folder: of the exported model.
        source: a tokenizer.json.
        end: its end-of-document token.
        max_length: tokens per sequence in training, if known.
    """
    shutil.copyfile(source, folder / "tokenizer.json")
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length or 10**30,  # transformers' way to say unlimited
        "padding_side": "left",
        "truncation_side": "left",
        **dict.fromkeys(names, end.text),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    special = dict.fromkeys(names, end.text)
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
