# SPDX-License-Identifier: Apache-2.0
"""Layout strings: reading, writing, balancing."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.errors import LayoutError
from bt_megatron.parallel.layout import (
    Piece,
    StageSlice,
    balance_stages,
    bubble_fraction,
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


@given(st.lists(st.integers(0, 50), min_size=3, max_size=9), st.data())
def test_balancing_is_as_good_as_trying_every_layout(costs, data):
    pp = data.draw(st.integers(1, len(costs)))
    letters = f"E{'t' * (len(costs) - 2)}L"

    text = balance_stages([Piece(*pair) for pair in zip(letters, costs, strict=True)], pp=pp)

    def works(edges):
        return [sum(costs[a:b]) for a, b in zip(edges, edges[1:], strict=False)]

    every = [works([0, *cuts, len(costs)]) for cuts in combinations(range(1, len(costs)), pp - 1)]
    best = min((max(w), sum(x * x for x in w)) for w in every)
    found = list(sum_by_stage(costs, parse_stages(text)))
    assert len(found) == pp
    assert (max(found), sum(x * x for x in found)) == best


def test_pieces_that_belong_together_are_not_cut():
    pieces = [Piece("E", 1), Piece("b", 5), Piece("b", 5), Piece("tttL", 20)]

    assert balance_stages(pieces, pp=3) == "Eb|b|tttL"


def test_more_stages_than_pieces_are_refused():
    with pytest.raises(LayoutError, match=r"layout.pp \(2\) x layout.vpp \(2\) = 4 .*\(3\)"):
        balance_stages([Piece("E", 1), Piece("t", 1), Piece("L", 1)], pp=2, vpp=2)


@pytest.mark.parametrize(
    ("pp", "micro_batches", "expected"), [(1, 8, 0.0), (4, 1, 0.75), (4, 13, 3 / 16), (2, 1, 0.5)]
)
def test_the_bubble_is_the_idle_part_of_a_step(pp, micro_batches, expected):
    assert bubble_fraction(pp=pp, micro_batches=micro_batches) == expected
