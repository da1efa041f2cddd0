# SPDX-License-Identifier: Apache-2.0
"""N-grams agree with a plain way to split words, within each text alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.ngrams import hash_ngrams, normalise, split_words

TEXT = st.text(alphabet=st.sampled_from("aB1 .,_'\n\té\u2028ß\x1c漢-"), max_size=30) | st.text(
    max_size=20
)


def plain_words(text):
    """Keep letters and digits, split at whitespace."""
    kept = "".join(c for c in text.lower() if c.isspace() or re.match(r"[^\W_]", c))
    return kept.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's hat, 3.5!", ["the", "cats", "hat", "35"]),
        ("a_b\tc\n\n d", ["ab", "c", "d"]),
        ("„Übung“ — naïve\u00a0x", ["übung", "naïve", "x"]),
        ("\x1cA\x1fB", ["a", "b"]),
        ("...", []),
        ("", []),
    ],
)
def test_words_are_lowercased_without_punctuation(text, words):
    assert normalise(text).decode().split() == words == plain_words(text)


@given(text=TEXT)
def test_words_are_those_of_the_plain_way(text):
    assert normalise(text).decode("utf-8", "surrogatepass").split(" ") != [" "]
    found = [word for word in normalise(text).decode("utf-8", "surrogatepass").split(" ") if word]
    assert found == plain_words(text)


@given(texts=st.lists(TEXT, max_size=5), size=st.integers(1, 3))
def test_equal_ngrams_have_equal_hashes_and_others_do_not(texts, size):
    hashes, owners = hash_ngrams(split_words(texts), size=size)
    expected = [
        (owner, tuple(words[i : i + size]))
        for owner, words in enumerate(map(plain_words, texts))
        for i in range(len(words) - size + 1)
    ]
    assert owners.tolist() == [owner for owner, _ in expected]
    of_ngram = {}
    for (_, ngram), value in zip(expected, hashes.tolist(), strict=True):
        assert of_ngram.setdefault(ngram, value) == value
    assert len(set(of_ngram.values())) == len(of_ngram)


def test_hashes_do_not_depend_on_what_stands_around():
    alone, _ = hash_ngrams(split_words(["one two three"]), size=3)
    among, owners = hash_ngrams(split_words(["x " * 5000, "zero One, two: three!"]), size=3)
    assert alone[0] in among[owners == 1]
    assert among[owners == 1].tolist().index(alone[0]) == 1


def test_no_texts_have_no_ngrams():
    hashes, owners = hash_ngrams(split_words([]), size=13)
    assert (len(hashes), len(owners)) == (0, 0)
