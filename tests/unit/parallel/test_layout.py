# SPDX-License-Identifier: Apache-2.0
"""Layout strings: reading and writing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.errors import LayoutError
from bt_megatron.parallel.layout import (
    StageSlice,
    contract,
    format_stages,
    parse_stages,
    sum_by_stage,
    validate_stages,
)


def test_two_stages_are_cut_between_the_decoders():
    first, second = parse_stages("Eb*12|t*12L")

    assert first == StageSlice(
        index=0,
        has_embedder=True,
        first_block_layer=0,
        block_layers=12,
        first_token_layer=0,
        token_layers=0,
        has_last_block_layer=True,
        has_last_token_layer=False,
        has_head=False,
    )
    assert second == StageSlice(
        index=1,
        has_embedder=False,
        first_block_layer=12,
        block_layers=0,
        first_token_layer=0,
        token_layers=12,
        has_last_block_layer=False,
        has_last_token_layer=True,
        has_head=True,
    )
    assert (first.has_first_token_layer, second.has_first_token_layer) == (False, True)


def test_stages_may_hold_any_slice():
    stages = parse_stages("E|bb|bbt|tt|L")

    assert [stage.letters for stage in stages] == ["E", "bb", "bbt", "tt", "L"]
    assert [stage.first_block_layer for stage in stages] == [0, 0, 2, 4, 4]
    assert [stage.first_token_layer for stage in stages] == [0, 0, 0, 1, 3]
    assert [stage.has_first_token_layer for stage in stages] == [0, 0, 1, 0, 0]
    assert [stage.has_last_block_layer for stage in stages] == [0, 0, 1, 0, 0]
    assert [stage.has_last_token_layer for stage in stages] == [0, 0, 0, 1, 0]


def test_spaces_and_repetitions_are_read():
    assert parse_stages(" E b*2 bb | t*3 L ") == parse_stages("Ebbbb|tttL")


def test_a_vanilla_layout_has_no_block_layers():
    (stage,) = parse_stages("Et*24L")

    assert (stage.block_layers, stage.token_layers) == (0, 24)
    assert not stage.has_last_block_layer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stage 1 is empty"),
        ("Eb||tL", "stage 2 is empty"),
        ("Eb|tL|", "stage 3 is empty"),
        ("Ebx|tL", "stage 1 has 'x'"),
        ("Eb*|tL", r"stage 1 has '\*'"),
        ("Eb*0|tL", "repeats 0 times"),
        ("Eb*99999|tL", "repeats 99999 times"),
        ("bb|tL", r"'E' \(embedder\) occurs 0 times"),
        ("E*2b|tL", r"'E' \(embedder\) occurs 2 times"),
        ("Eb|tt", r"'L' \(head and loss\) occurs 0 times"),
        ("Ebb|L", "there is no 't'"),
        ("Ebt|btL", "the order is 'EbtbtL'"),
        ("tL|Eb", "the order is 'tLEb'"),
        ("auto", "stage 1 has 'a'"),
    ],
)
def test_a_malformed_layout_is_refused_with_the_place(text, message):
    with pytest.raises(LayoutError, match=message):
        parse_stages(text)


def test_a_layout_that_does_not_fit_names_every_number():
    with pytest.raises(LayoutError) as caught:
        validate_stages(parse_stages("Ebb|tL"), pp=3, block_layers=4, token_layers=2)

    message = str(caught.value)
    assert "2 stages but layout.pp (3) x layout.vpp (1) is 3" in message
    assert "2 'b' but the model has 4" in message
    assert "1 't' but the model has 2" in message


def test_a_layout_that_fits_passes():
    validate_stages(parse_stages("Ebb|tL"), pp=2, block_layers=2, token_layers=1)
    validate_stages(parse_stages("E|bb|t|L"), pp=2, vpp=2, block_layers=2, token_layers=1)


models = st.tuples(st.integers(0, 8), st.integers(1, 8)).map(
    lambda n: f"E{'b' * n[0]}{'t' * n[1]}L"
)


@st.composite
def layouts(draw):
    model = draw(models)
    cuts = sorted(draw(st.sets(st.integers(1, len(model) - 1))))
    edges = [0, *cuts, len(model)]
    return "|".join(model[a:b] for a, b in zip(edges, edges[1:], strict=False))


@given(layouts())
def test_a_layout_survives_writing_and_reading(text):
    stages = parse_stages(text)

    assert "|".join(stage.letters for stage in stages) == text
    assert parse_stages(format_stages(stages)) == stages


@given(layouts())
def test_each_layer_is_on_exactly_one_stage(text):
    stages = parse_stages(text)

    for letter, first, count in (
        ("b", "first_block_layer", "block_layers"),
        ("t", "first_token_layer", "token_layers"),
    ):
        held = [
            layer
            for stage in stages
            for layer in range(getattr(stage, first), getattr(stage, first) + getattr(stage, count))
        ]
        assert held == list(range(text.count(letter)))
    assert sum(stage.has_first_token_layer for stage in stages) == 1
    assert sum(stage.has_last_token_layer for stage in stages) == 1
    assert sum(stage.has_last_block_layer for stage in stages) == ("b" in text)


@pytest.mark.parametrize(
    ("letters", "text"), [("Ebbbb", "Ebbbb"), ("Ebbbbb", "Eb*5"), ("t" * 12 + "L", "t*12L")]
)
def test_long_runs_are_contracted(letters, text):
    assert contract(letters) == text


def test_values_are_summed_by_stage():
    assert sum_by_stage([1, 2, 3, 4, 5], parse_stages("Eb|t|tL")) == (3, 3, 9)
