# SPDX-License-Identifier: Apache-2.0
"""An engine that is wrong somewhere is found out, with the place."""

import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep import parity
from data_prep.engines import Encoded, ReferenceEngine
from data_prep.parity import EngineDiffersError, ParityCheck, check_before


class WrongEngine:
    """Right but for texts with one word."""

    name = "wrong 1"

    def __init__(self, reference, *, word, spoil):
        self.real = ReferenceEngine(reference)
        self.word, self.spoil = word, spoil

    def encode(self, texts):
        rows = [self.real.encode([text]).ids for text in texts]
        rows = [
            self.spoil(row) if self.word in text else row
            for row, text in zip(rows, texts, strict=True)
        ]
        return Encoded(np.concatenate(rows), np.array([len(row) for row in rows]))


def changed(row):
    return np.where(np.arange(len(row)) == 1, row + 1, row)


SPOILERS = {"changed": changed, "shorter": lambda row: row[:-1], "longer": lambda row: [*row, 7]}


@pytest.fixture
def reference(tokenizer_file):
    return Tokenizer.from_file(str(tokenizer_file))


def test_sound_engine_passes(reference):
    check_before(ReferenceEngine(reference), reference)


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS.keys())
@pytest.mark.parametrize("word", ["\U00033092's", "<|padding|>", "return"])
def test_wrong_engine_is_found_before_the_run(reference, word, spoil):
    with pytest.raises(EngineDiffersError) as caught:
        check_before(WrongEngine(reference, word=word, spoil=spoil), reference)
    assert "difficult text" in caught.value.what
    assert "tokenizers gives" in caught.value.what


def test_texts_are_compared_at_the_start_and_then_now_and_then(reference, monkeypatch):
    monkeypatch.setattr(parity, "EVERY_CHARACTERS", 1000)
    engine = ReferenceEngine(reference)
    check = ParityCheck(engine, reference)
    texts = ["word " * 20] * 2
    for _ in range(50):
        check.look(texts, engine.encode(texts), lines=[1, 2])
    assert check.documents == 10


@pytest.mark.parametrize("length", [10, 50_000], ids=["whole text", "part of a long text"])
def test_wrong_ids_are_found_with_their_line(reference, length):
    engine = WrongEngine(reference, word="word", spoil=changed)
    texts = ["word " * length]
    with pytest.raises(EngineDiffersError, match="line 41 .*id 1 is") as caught:
        ParityCheck(engine, reference).look(texts, engine.encode(texts), lines=[41])
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
