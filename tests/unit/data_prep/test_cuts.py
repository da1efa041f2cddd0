# SPDX-License-Identifier: Apache-2.0
"""Parts of a text have the ids of the whole, for any text and any size of parts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.cuts import NoPlaceToCutError, can_cut, cut


@pytest.fixture(scope="module", params=["neox", "trained"])
def tokenizer(request, repository, tokenizer_file):
    neox = repository / "tests/fixtures/tokenizers/gpt-neox-20b.json"
    return Tokenizer.from_file(str(neox if request.param == "neox" else tokenizer_file))


PIECES = st.one_of(
    st.text(st.sampled_from("aZ9 \n\t.'-"), max_size=12),
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(["'s ", "a1", " \u0301", "<|endoftext|>", " " * 24, "\u1100 \u1161", "x\r\n"]),
)


@settings(max_examples=400, deadline=None)
@given(text=st.lists(PIECES, max_size=60).map("".join), size=st.integers(1, 30))
def test_ids_of_the_parts_are_those_of_the_whole(tokenizer, text, size):
    try:
        parts = list(cut(iter([text]), size=size))
    except NoPlaceToCutError:
        return
    assert "".join(parts) == text
    ids = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_pieces_in_which_a_text_comes_do_not_matter(sample_texts):
    text = "\n".join(sample_texts)
    pieces = [text[i : i + 777] for i in range(0, len(text), 777)]
    parts = list(cut(iter(pieces), size=5000))
    assert "".join(parts) == text
    assert max(map(len, parts)) < 5100
    assert len(parts) > len(text) // 5100


def test_text_without_a_place_is_refused_and_not_collected():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "x" * 100

    with pytest.raises(NoPlaceToCutError):
        list(cut(endless(), size=100))
    assert len(taken) == 5


def test_base64_is_cut_between_a_letter_and_a_digit():
    assert len(list(cut(iter(["aB3dE6" * 100]), size=50))) == 13


CHANGES = {
    "add_prefix_space": lambda body: body["pre_tokenizer"].update(add_prefix_space=True),
    "other splitting": lambda body: body["pre_tokenizer"].update(use_regex=False),
    "another splitter": lambda body: body.update(pre_tokenizer={"type": "Whitespace"}),
    "NFKC": lambda body: body.update(normalizer={"type": "NFKC"}),
    "dropout": lambda body: body["model"].update(dropout=0.1),
    "not BPE": lambda body: body["model"].update(type="Unigram"),
    "token that takes spaces": lambda body: body["added_tokens"][0].update(rstrip=True),
    "token with a space": lambda body: body["added_tokens"][0].update(content="<a b>"),
    "token with a digit": lambda body: body["added_tokens"][0].update(content="<a1>"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_tokenizers_of_other_kinds_get_their_texts_whole(tokenizer_file, change):
    body = json.loads(tokenizer_file.read_bytes())
    assert can_cut(json.dumps(body).encode())
    change(body)
    assert not can_cut(json.dumps(body).encode())
