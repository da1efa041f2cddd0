# SPDX-License-Identifier: Apache-2.0
"""Bytes per token: they add up to the text."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from bt_megatron.data.token_bytes import token_byte_lengths
from bt_megatron.errors import DataError

NEOX = Path(__file__).parents[2] / "fixtures" / "tokenizers" / "gpt-neox-20b.json"
TEXTS = [
    "",
    "Four score and seven years ago our fathers brought forth, upon this continent",
    "def f(x):\n        return  x\n\t\t    # nine spaces:         end\r\n" + " " * 61 + "x",
    unicodedata.normalize("NFC", "naïve café, Ελληνικά, עברית, 日本語のテキスト"),
    "emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 and a joiner \u200d",
    "\x00\x01\x7f control \ufeff and \U0010ffff",
    "|||EMAIL||| <|padding> <not special>",
]


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    """Train a byte-level BPE of 300 pieces; add a special token and two plain ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    plain = [AddedToken(text, special=False, normalized=False) for text in ("    ", "日本")]
    tokenizer.add_tokens(plain)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_lengths_of_a_text_add_up_for_a_trained_tokenizer(small_tokenizer, text):
    lengths = token_byte_lengths(small_tokenizer, 400)
    ids = Tokenizer.from_file(str(small_tokenizer)).encode(text).ids
    assert lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_lengths_of_a_text_add_up_for_gpt_neox(text):
    lengths = token_byte_lengths(NEOX, 50_304)
    ids = Tokenizer.from_file(str(NEOX)).encode(text).ids
    assert lengths[ids].sum() == len(text.encode())


def test_gpt_neox_counts_spaces_but_not_special_tokens_or_padding_rows():
    lengths = token_byte_lengths(NEOX, 50_304)
    assert lengths.dtype == np.int32
    assert lengths.shape == (50_304,)
    assert lengths[:2].tolist() == [0, 0]
    assert lengths[50_254:50_277].tolist() == [*range(24, 1, -1)]
    assert lengths[50_277:].tolist() == [0] * 27
    assert (lengths[2:50_277] > 0).all()


def test_special_token_inside_text_counts_nothing(small_tokenizer):
    ids = Tokenizer.from_file(str(small_tokenizer)).encode("ab<eos>cd").ids
    assert token_byte_lengths(small_tokenizer, 302)[ids].sum() == 4


@pytest.mark.parametrize("vocab_size", [50_000, 50_276])
def test_too_small_a_vocabulary_says_both_numbers(vocab_size):
    with pytest.raises(DataError, match=f"id 50276 does not fit .* {vocab_size} .* to 50277"):
        token_byte_lengths(NEOX, vocab_size)
    assert len(token_byte_lengths(NEOX, 50_277)) == 50_277


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param("{", id="not-json"),
        pytest.param("[]", id="not-an-object"),
        pytest.param(
            json.dumps({"model": {"vocab": [["a", -1.0]]}, "decoder": {"type": "Metaspace"}}),
            id="unigram",
        ),
        pytest.param(json.dumps({"model": {"vocab": {"a": 0}}, "decoder": None}), id="no-decoder"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json - "):
        token_byte_lengths(path, 100)
