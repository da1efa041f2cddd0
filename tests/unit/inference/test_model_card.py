# SPDX-License-Identifier: Apache-2.0
"""The card tells source, model, use and check, and leaves out what is not known."""

import pytest

from bt_megatron.inference.comparison import Comparison
from bt_megatron.inference.model_card import model_card
from tests.golden import load_golden

COMPARISON = Comparison(
    difference=1.5e-6,
    allowed=1e-4,
    rounding=0.25,
    agreement=0.975,
    largest=9.0,
    predictions=120,
)
INFO = {
    "path": "runs/x/checkpoints/step_00001200",
    "run": "x",
    "step": 1200,
    "tokens": 629145600,
    "data": "data/pile",
    "versions": {"bt_megatron": "abc123", "torch": "2"},
}


def card(name="lookup_prefix_b4_p2", info=INFO, **options):
    settings = {"dtype": "bf16", "has_tokenizer": True, **options}
    return model_card(load_golden(name).model, info, COMPARISON, **settings)


def test_all_facts():
    text = card()
    for fact in (
        "# x\n",
        "| step | 1,200 |",
        "| tokens seen in training | 629,145,600 |",
        "| data | data/pile |",
        "| commit of the trainer | abc123 |",
        "| weights stored in | bf16 |",
        "| parameters | 282,240 |",
        "| block decoder | 2 layers, width 64, 4 heads |",
        "| token decoding | prefix of 2 |",
        "same weights | 1.5e-06 |",
        "before rounding | 0.25 |",
        "| 97.50% |",
        "trust_remote_code=True",
        "`left_padding=3`",
    ):
        assert fact in text, fact


def test_unknown_facts_are_left_out():
    text = card(info={"path": "weights"}, has_tokenizer=False)
    assert "None" not in text
    assert "| step" not in text
    assert "No tokenizer is in this folder" in text


def test_vanilla_model():
    text = card("vanilla_neox")
    assert "trust_remote_code" not in text
    assert "| decoder | 4 layers, width 64, 4 heads |" in text
    assert "block" not in text


@pytest.mark.parametrize("name", ["lookup_prefix_b4_p2", "vanilla_neox"])
def test_the_code_of_the_card_is_python(name):
    code = card(name).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
