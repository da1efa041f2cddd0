# SPDX-License-Identifier: Apache-2.0
"""Ids equal to Hugging Face's, one document at a time; nothing cut, nothing added."""

import hashlib
import json
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from bt_megatron.errors import DataError
from data_prep import tokenizer as tokenizer_module
from data_prep.engines import FAST, REFERENCE, ReferenceEngine, has_fast_engine
from data_prep.parity import EngineDiffersError
from data_prep.tokenizer import TextTokenizer, vocabulary_size

ENGINES_HERE = [FAST, REFERENCE] if has_fast_engine() else [REFERENCE]

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
    assert tokenizer.encode(["Hello world"]).encoded.ids.tolist() == [12092, 1533]
    assert tokenizer.record.vocab_size == 50_277
    assert tokenizer.record.eos_id == 0
    assert tokenizer.record.sha256 == hashlib.sha256(neox_file.read_bytes()).hexdigest()


def rows(tokenizer, texts):
    encoded, complaints = tokenizer.encode(texts)
    assert complaints == {}
    return [encoded.row(i).tolist() for i in range(len(texts))]


@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize("which", ["neox", "trained"])
def test_ids_are_those_of_encode(which, engine, neox_file, tokenizer_file, sample_texts):
    path = neox_file if which == "neox" else tokenizer_file
    reference = Tokenizer.from_file(str(path))
    texts = AWKWARD + sample_texts
    for ids, text in zip(rows(TextTokenizer(path, engine=engine), texts), texts, strict=True):
        assert ids == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_truncation_padding_and_template_of_the_file_do_not_apply(tmp_path, tokenizer_file, engine):
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in AWKWARD]
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "t.json"))
    assert rows(TextTokenizer(tmp_path / "t.json", engine=engine), AWKWARD) == expected


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
    encoded, complaints = TextTokenizer(tmp_path / "t.json").encode(["a b", "a c", "b"])
    assert list(complaints) == [1]
    assert "UNK" in complaints[1]
    assert [encoded.row(i).tolist() for i in range(3)] == [[0, 1], [], [1]]


def test_file_that_the_fast_engine_does_not_take_is_said_and_works(tmp_path):
    words = Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}))
    words.save(str(tmp_path / "t.json"))
    said = []
    tokenizer = TextTokenizer(tmp_path / "t.json", warn=said.append)
    assert tokenizer.engine.name.startswith("tokenizers ")
    assert rows(tokenizer, ["a"]) == [[0]]
    assert "Using tokenizers, which is some forty times slower" in said[0]
    with pytest.raises(DataError, match="fastokens.*--engine auto"):
        TextTokenizer(tmp_path / "t.json", engine="fastokens")


def test_without_the_package_tokenizers_is_used(tokenizer_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    monkeypatch.setitem(sys.modules, "fastokens._native", None)
    said = []
    tokenizer = TextTokenizer(tokenizer_file, warn=said.append)
    assert isinstance(tokenizer.engine, ReferenceEngine)
    assert len(said) == 1
    assert tokenizer.parity_check() is None


class WrongEngine:
    """Changes one id of texts that hold a word, and gives up on another."""

    name = "wrong 1"

    def __init__(self, content):
        self.real = ReferenceEngine(Tokenizer.from_str(content.decode()))

    def encode(self, texts):
        if any("unbearable" in text for text in texts):
            raise RuntimeError("too much")
        encoded = self.real.encode(texts)
        if any("Hello" in text for text in texts):
            encoded.ids[0] += 1
        return encoded


def test_engine_that_differs_before_the_run_is_not_used(tokenizer_file, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "FastEngine", WrongEngine)
    said = []
    tokenizer = TextTokenizer(tokenizer_file, warn=said.append)
    assert tokenizer.engine.name.startswith("tokenizers ")
    assert "wrong 1 differs from tokenizers on this file: difficult text 0 (" in said[0]


def test_engine_that_fails_where_tokenizers_does_not_has_differed(tokenizer_file):
    tokenizer = TextTokenizer(tokenizer_file)
    tokenizer.engine = WrongEngine(tokenizer_file.read_bytes())
    with pytest.raises(EngineDiffersError) as caught:
        tokenizer.encode(["an unbearable text"])
    assert caught.value.engine == "wrong 1"
    assert "too much" in caught.value.what
