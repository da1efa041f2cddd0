# SPDX-License-Identifier: Apache-2.0
"""Loss by position, on a model whose loss is a known function of the position."""

import numpy as np
import pytest

from bt_megatron.errors import DataError
from bt_megatron.evaluation.positions import measure_positions
from tests.scripted_model import ScriptedModel

LENGTH = 32


def measure(model, documents, **options):
    settings = {"context_length": LENGTH, "max_pieces": 100, "on_progress": lambda *at: None}
    return measure_positions(model, iter(documents), **{**settings, **options})


@pytest.mark.parametrize("left_padding", [0, 3])
def test_each_place_in_the_block_has_its_own_mean(left_padding):
    model = ScriptedModel(
        left_padding=left_padding, rule=lambda known, token: -((left_padding + len(known)) % 4 + 1)
    )
    found = measure(model, [list(range(70)), list(range(40))])

    for place in range(4):
        assert found.metrics[f"in_block_{place}"] == place + 1
    assert found.detail["pieces"] == 3
    assert found.detail["along_context"][0]["begin"] == (1 if left_padding else 4)
    assert found.detail["along_context"][-1]["end"] == LENGTH


def test_the_curve_along_the_context_adds_up():
    model = ScriptedModel(block_length=1, rule=lambda known, token: -float(len(known)))
    found = measure(model, [list(range(LENGTH))])

    curve = found.detail["along_context"]
    assert [part["end"] for part in curve[:-1]] == [part["begin"] for part in curve[1:]]
    weights = [part["end"] - part["begin"] for part in curve]
    mean = np.average([part["loss"] for part in curve], weights=weights)
    assert mean == pytest.approx(found.metrics["loss"])
    assert curve[0]["loss"] == np.mean([1, 2, 3, 4])
    assert found.metrics["first_quarter"] < found.metrics["last_quarter"]
    assert not [name for name in found.metrics if name.startswith("in_block")]


def test_documents_take_turns_and_the_rest_is_left_out():
    seen = []

    def rule(known, token):
        if len(known) == 4:
            seen.append(known[0])
        return -1.0

    documents = [list(range(100, 175)), list(range(31)), list(range(200, 235))]
    found = measure(ScriptedModel(rule=rule), documents, max_pieces=3)
    assert seen == [100, 200, 132]
    assert found.detail["pieces"] == 3
    assert found.detail["standard_error"] == {"loss": 0.0}
    assert measure(ScriptedModel(), documents, max_pieces=1).detail["standard_error"] == {
        "loss": None
    }


def test_what_cannot_be_measured():
    with pytest.raises(DataError, match="no document has 32 tokens. Pass a smaller --context"):
        measure(ScriptedModel(), [list(range(31))])
    with pytest.raises(DataError, match="--context 128: the model was trained with 64"):
        measure(ScriptedModel(), [], context_length=128)
