# SPDX-License-Identifier: Apache-2.0
"""AutoTokenizer reads what is written and gives the ids of tokenizer.json."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from bt_megatron.errors import ConversionError
from bt_megatron.inference.tokenizer_files import EndToken, find_end_token, write_tokenizer
from tests.small_tokenizer import END, write_small_tokenizer

TEXTS = ("the quick fox", "  spaces\n\tand new lines ", "Grüße, 世界 🙂", "a <|endoftext|> b")


@pytest.fixture
def source(tmp_path):
    return write_small_tokenizer(tmp_path / "source.json")


def test_auto_tokenizer(tmp_path, source):
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer(folder, source, EndToken(END, 0), max_length=2048)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    raw = Tokenizer.from_file(str(source))
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == raw.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.bos_token_id == 0
    assert tokenizer.model_max_length == 2048
    batch = tokenizer(["the fox", "the quick brown fox jumps"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["attention_mask"][0][-1] == 1
    assert (folder / "tokenizer.json").read_bytes() == source.read_bytes()


def test_saved_again_by_transformers(tmp_path, source):
    write_tokenizer(tmp_path, source, EndToken(END, 0))
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    raw = Tokenizer.from_file(str(source))
    assert [again(text)["input_ids"] for text in TEXTS] == [raw.encode(t).ids for t in TEXTS]


def test_end_token(tmp_path, source):
    assert find_end_token(source, vocab_size=300) == EndToken(END, 0)
    assert find_end_token(source, vocab_size=300, eos_id=0) == EndToken(END, 0)
    other = write_small_tokenizer(tmp_path / "other.json", end="</s>")
    assert find_end_token(other, vocab_size=300, text="</s>") == EndToken("</s>", 0)
    with pytest.raises(ConversionError, match="has no token .* Pass --eos-token"):
        find_end_token(other, vocab_size=300)
    with pytest.raises(ConversionError, match="has no id 99999"):
        find_end_token(source, vocab_size=300, eos_id=99999)


def test_ids_that_the_model_does_not_know(source):
    largest = max(Tokenizer.from_file(str(source)).get_vocab().values())
    find_end_token(source, vocab_size=largest + 1)
    with pytest.raises(ConversionError, match=f"largest id is {largest}, the model has {largest}"):
        find_end_token(source, vocab_size=largest)


def test_damaged_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": None}))
    with pytest.raises(ConversionError, match="not a tokenizer.json"):
        find_end_token(path, vocab_size=10)
