# SPDX-License-Identifier: Apache-2.0
"""Needles: where they stand, when they count as found, on models that read or do not."""

import re

import pytest
from tokenizers import Tokenizer

from bt_megatron.errors import DataError
from bt_megatron.evaluation.needle import CITIES, DEPTHS, NEW_TOKENS, QUESTIONS, measure_needle
from tests.scripted_model import ScriptedModel
from tests.small_tokenizer import write_small_tokenizer

SAMPLES = 2
FOUND = re.compile(r"\nThe special magic (\w+) number is: (\d{7})\.\n")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return Tokenizer.from_file(str(write_small_tokenizer(path)))


def measure(model, tokenizer, *, form="question", haystacks=None):
    hay = tokenizer.encode("the lazy dog and the other quick foxes jumps over. " * 120).ids
    return measure_needle(
        model,
        tokenizer,
        [hay] if haystacks is None else haystacks,
        form=form,
        samples=SAMPLES,
        on_progress=lambda *at: None,
    )


@pytest.mark.parametrize("form", QUESTIONS)
def test_a_model_that_reads_finds_them_and_one_that_does_not_does_not(tokenizer, form):
    prompts = []

    def read(prompt):
        text = tokenizer.decode(list(prompt))
        prompts.append(text)
        return tokenizer.encode(f" {FOUND.search(text)[2]} or so").ids

    def likelier_if_read(known, token):
        return -1.0 if FOUND.search(tokenizer.decode(known)) else -3.0

    reader = ScriptedModel(max_length=640, write=read, rule=likelier_if_read)
    found = measure(reader, tokenizer, form=form)
    assert found.name == f"needle/{form}"
    assert found.metrics == {"accuracy": 1.0, "answer_loss": 1.0, "answer_loss_without": 3.0}
    assert found.detail["accuracy"] == [1.0] * len(DEPTHS)
    assert found.detail["prompt_tokens"] <= 640 - NEW_TOKENS

    for number, text in enumerate(prompts):
        depth, city = DEPTHS[number // SAMPLES], FOUND.search(text)[1]
        assert city in CITIES
        assert text.startswith("<context>\n")
        assert text.endswith(QUESTIONS[form].format(city=city))
        begin, length = FOUND.search(text).start(), text.index("\n</context>")
        assert abs(begin / length - depth / 100) < 0.2, depth
    assert len({FOUND.search(text)[2] for text in prompts}) == len(prompts)

    blind = ScriptedModel(max_length=640, write=lambda prompt: tokenizer.encode(" 1234567").ids)
    assert measure(blind, tokenizer, form=form).metrics["accuracy"] == 0.0


def test_the_same_needles_every_time(tokenizer):
    runs = []
    for _ in range(2):
        seen = []

        def note(prompt, seen=seen):
            seen.append(list(prompt))
            return []

        measure(ScriptedModel(max_length=640, write=note), tokenizer)
        runs.append(seen)
    assert runs[0] == runs[1]


def test_what_cannot_be_measured(tokenizer):
    with pytest.raises(DataError, match="no document has 640 tokens to hide a needle in"):
        measure(ScriptedModel(max_length=640), tokenizer, haystacks=[[1] * 600])
    with pytest.raises(DataError, match="the model reads 64 tokens, and a needle with its"):
        measure(ScriptedModel(max_length=64), tokenizer)
