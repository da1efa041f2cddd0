# SPDX-License-Identifier: Apache-2.0
"""Ids equal to Hugging Face's, one document at a time; nothing cut, nothing added."""

import hashlib
import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from bt_megatron.errors import DataError
from data_prep.tokenizer import TextTokenizer, vocabulary_size

AWKWARD = [
    "Hello world",
    "e\u0301 becomes \u00e9, \ufb01 stays",
    "a" * 5000,
    "  spaces    of  many lengths" + " " * 30,
    "<|endoftext|> inside <|padding|>",
    "\u2028\u2029\x00\U0001f9ea 漢字 \u202e",
    "def f():\n\treturn 1\r\n",
]


@pytest.fixture(scope="module")
def neox_file(repository):
    return repository / "tests/fixtures/tokenizers/gpt-neox-20b.json"


def test_gpt_neox_file_is_taken(neox_file):
    tokenizer = TextTokenizer(neox_file)
    assert tokenizer.encode(["Hello world"])[0].tolist() == [12092, 1533]
    assert tokenizer.record.vocab_size == 50_277
    assert tokenizer.record.eos_id == 0
    assert tokenizer.record.sha256 == hashlib.sha256(neox_file.read_bytes()).hexdigest()


@pytest.mark.parametrize("which", ["neox", "trained"])
def test_ids_are_those_of_encode(which, neox_file, tokenizer_file, sample_texts):
    path = neox_file if which == "neox" else tokenizer_file
    reference = Tokenizer.from_file(str(path))
    texts = AWKWARD + sample_texts
    for ids, text in zip(TextTokenizer(path).encode(texts), texts, strict=True):
        assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids


def test_truncation_padding_and_template_of_the_file_do_not_apply(tmp_path, tokenizer_file):
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in AWKWARD]
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "t.json"))
    ids = TextTokenizer(tmp_path / "t.json").encode(AWKWARD)
    assert [row.tolist() for row in ids] == expected


def test_vocabulary_size_counts_gaps():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 7}))
    assert vocabulary_size(tokenizer) == 8


def test_other_eos_token(tokenizer_file):
    assert TextTokenizer(tokenizer_file, eos_token="<|padding|>").record.eos_id == 1


def test_unknown_eos_token_names_those_that_exist(tokenizer_file):
    with pytest.raises(DataError, match=r"no token '</s>'.*--eos-token.*<\|endoftext\|>"):
        TextTokenizer(tokenizer_file, eos_token="</s>")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", json.dumps({"version": "1.0"}).encode()], ids=repr
)
def test_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.json - is no tokenizer"):
        TextTokenizer(tmp_path / "t.json")


def test_missing_and_empty_tokenizers_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read: No such file.*train-tokenizer"):
        TextTokenizer(tmp_path / "t.json")
    Tokenizer(models.BPE()).save(str(tmp_path / "empty.json"))
    with pytest.raises(DataError, match=r"empty\.json - has no tokens"):
        TextTokenizer(tmp_path / "empty.json")


def test_text_that_cannot_be_encoded_does_not_take_its_batch_along(tmp_path):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<|endoftext|>": 2}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "t.json"))
    first, complaint, last = TextTokenizer(tmp_path / "t.json").encode(["a b", "a c", "b"])
    assert first.tolist() == [0, 1]
    assert isinstance(complaint, str)
    assert "UNK" in complaint
    assert last.tolist() == [1]
