# SPDX-License-Identifier: Apache-2.0
"""Planted n-grams are found where they were planted, and nothing else is."""

import json
import random

import pytest

from data_prep.__main__ import main
from data_prep.contamination import REPORT_NAME
from tests.small_tokenizer import write_small_tokenizer

WORDS = [f"word{i}" for i in range(5000)]


def sentence(seed, length):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


EXAMPLES = [
    {"question": sentence(1, 20), "choices": [sentence(2, 5), sentence(3, 5)]},
    {"question": sentence(4, 40), "choices": []},
    {"question": sentence(5, 4), "choices": []},
    {"question": sentence(6, 30), "choices": []},
]


def planted():
    """Write one example whole, in other case and punctuation, and 13 words of another."""
    first = EXAMPLES[1]["question"].upper().replace(" ", ",  ")
    words = EXAMPLES[3]["question"].split()
    return [
        sentence(10, 300),
        f"{sentence(11, 50)} {first} {sentence(12, 50)}",
        " ".join(words[5:18]),
        " ".join(words[18:30]),
        " ".join(words[5:18]) + " once more",
    ]


@pytest.fixture
def files(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in planted()))
    sets = tmp_path / "quiz.jsonl"
    sets.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    return corpus, sets


def report(tmp_path, *arguments):
    assert main(["contamination", *map(str, arguments), "--out", str(tmp_path / "report")]) == 0
    return json.loads((tmp_path / "report" / REPORT_NAME).read_text())


def test_planted_examples_are_found(files, tmp_path, capsys):
    corpus, sets = files
    body = report(tmp_path, corpus, "--set", f"quiz={sets}")
    (quiz,) = body["sets"]
    assert body["documents"] == 5
    assert (quiz["examples"], quiz["too_short"], quiz["dirty"]) == (4, 1, 2)
    assert quiz["dirty_examples"] == {"1": 1.0, "3": round(1 / 18, 4)}
    assert quiz["mostly_dirty"] == 1
    assert (quiz["ngrams"], quiz["ngrams_found"]) == (18 + 28 + 18, 28 + 1)
    assert "2 (66.7%)" in capsys.readouterr().out


def test_a_data_folder_is_searched_like_its_text(files, tmp_path):
    corpus, sets = files
    tokenizer = write_small_tokenizer(tmp_path / "tokenizer.json")
    data = tmp_path / "data"
    assert main(["tokenize", str(corpus), "--tokenizer", str(tokenizer), "--out", str(data)]) == 0
    from_text = report(tmp_path, corpus, "--set", f"quiz={sets}")
    from_tokens = report(tmp_path, data, "--set", f"quiz={sets}")
    assert from_tokens["sets"] == from_text["sets"]
    assert from_tokens["documents"] == 5


def test_common_language_does_not_count_if_asked(files, tmp_path):
    corpus, sets = files
    body = report(tmp_path, corpus, "--set", f"quiz={sets}", "--max-documents", 1)
    assert body["sets"][0]["dirty_examples"] == {"1": 1.0}  # the n-gram of 3 is in two documents


def test_named_fields_alone_make_an_example(files, tmp_path):
    corpus, sets = files
    body = report(tmp_path, corpus, "--set", f"quiz={sets}", "--fields", "question")
    assert body["sets"][0]["ngrams"] == 8 + 28 + 18


def test_words_of_an_ngram_follow_the_length_of_the_examples(files, tmp_path):
    corpus, sets = files
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"t": sentence(i, 50)}) + "\n" for i in range(100, 130)))
    arguments = ("--set", f"quiz={sets}", "--set", f"long={long}", "--words", "auto")
    quiz, other = report(tmp_path, corpus, *arguments)["sets"]
    assert (quiz["ngram_words"], other["ngram_words"]) == (8, 13)
    assert other["dirty"] == 0


def test_finished_inputs_are_not_read_again(files, tmp_path, monkeypatch):
    corpus, sets = files
    second = tmp_path / "second.jsonl"
    second.write_text(json.dumps({"text": EXAMPLES[0]["question"]}) + "\n")
    arguments = (corpus, second, "--set", f"quiz={sets}")
    monkeypatch.setattr("data_prep.corpus_inputs.read_documents", _interrupted_at("second"))
    assert main(["contamination", *map(str, arguments), "--out", str(tmp_path / "report")]) == 130
    monkeypatch.setattr("data_prep.corpus_inputs.read_documents", _interrupted_at("corpus"))
    body = report(tmp_path, *arguments)
    assert (body["documents"], body["sets"][0]["dirty"]) == (6, 3)
    monkeypatch.undo()
    assert report(tmp_path / "again", *arguments)["sets"] == body["sets"]


def _interrupted_at(name):
    from data_prep.documents import read_documents

    def read(raw, problems):
        if raw.name.startswith(name):
            raise KeyboardInterrupt
        return read_documents(raw, problems)

    return read


def test_other_sets_are_asked_anew(files, tmp_path):
    corpus, sets = files
    report(tmp_path, corpus, "--set", f"quiz={sets}")
    body = report(tmp_path, corpus, "--set", f"quiz={sets}", "--words", 12)
    assert body["sets"][0]["dirty_examples"]["3"] == round(3 / 19, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no example"),
        ("{", r"s.jsonl:1 - is not JSON"),
        ("[]", "is a list, no object"),
        ('{"a": 1}', "holds no text"),
    ],
    ids=["empty", "no JSON", "no object", "no text"],
)
def test_set_that_is_none_is_named(files, tmp_path, capsys, text, message):
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    assert main(["contamination", str(files[0]), "--set", f"s={path}", "--out", "x"]) == 4
    assert message in capsys.readouterr().err


def test_missing_field_is_named(files, capsys):
    corpus, sets = files
    arguments = ["--set", f"quiz={sets}", "--fields", "answer", "--out", "x"]
    assert main(["contamination", str(corpus), *arguments]) == 4
    assert "quiz.jsonl:1 - has no answer among choices, question" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [["--set", "quiz"], ["--words", "0"], ["--words", "some"]], ids=str)
def test_wrong_arguments_are_refused(files, bad):
    corpus, sets = files
    with pytest.raises(SystemExit):
        main(["contamination", str(corpus), "--set", f"q={sets}", "--out", "x", *bad])
