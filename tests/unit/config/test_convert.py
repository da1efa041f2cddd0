# SPDX-License-Identifier: Apache-2.0
"""Typed conversion of single values."""

from typing import Literal

import pytest

from bt_megatron.config.convert import convert_scalar, schema_keys
from bt_megatron.config.schema import RunConfig


@pytest.mark.parametrize(
    ("wanted", "value", "expected"),
    [
        (float, 3, 3.0),
        (float, "1e-3", 1e-3),
        (float, 0.5, 0.5),
        (int, 3, 3),
        (bool, True, True),
        (str, "x", "x"),
        (Literal["a", "b"], "b", "b"),
    ],
)
def test_values_of_the_wanted_type_pass(wanted, value, expected):
    found = convert_scalar(wanted, value)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("wanted", "value", "message"),
    [
        (int, 3.0, r"got 3.0 \(a number\), expected a whole number; write 3"),
        (int, 3.5, "expected a whole number.$"),
        (int, "3", r"got '3' \(text\)"),
        (int, True, "got true, expected a whole number"),
        (int, None, "got null"),
        (float, True, "got true, expected a number"),
        (float, "fast", r"got 'fast' \(text\), expected a number"),
        (float, float("nan"), "expected a finite number"),
        (float, "inf", "expected a finite number"),
        (float, 10**400, "expected a number"),
        (float, [1.0], "expected a number"),
        (bool, 1, "expected true or false"),
        (bool, "yes", "expected true or false; write true"),
        (bool, "off", "expected true or false; write false"),
        (str, 5, 'expected text; write "5" with quotes'),
        (str, {"a": 1}, "got a mapping, expected text"),
        (Literal["prefix", "summation"], "prefx", "expected one of prefix, summation.*'prefix'"),
        (Literal["a"], 1, "expected one of a"),
        (Literal["a"], ["a"], "expected one of a"),
    ],
)
def test_other_values_are_refused_with_both_sides(wanted, value, message):
    with pytest.raises(ValueError, match=message):
        convert_scalar(wanted, value)


def test_every_value_of_the_schema_has_a_dotted_key():
    keys = schema_keys(RunConfig)

    assert len(keys) == len(set(keys))
    assert {"name", "model.embedder.kind", "log.mlflow.experiment", "train.steps"} <= set(keys)
    assert not {"model", "model.embedder", "log.mlflow"} & set(keys)
