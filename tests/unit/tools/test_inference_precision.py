# SPDX-License-Identifier: Apache-2.0
"""Loss by precision of an exported folder; the first line is that of the golden model."""

import json

import pytest

from bt_megatron.inference.export_folder import write_model
from tests.golden import load_golden
from tests.small_tokenizer import write_small_tokenizer
from tools.inference_precision import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    golden, out = load_golden("lookup_prefix_b4_p2"), tmp_path_factory.mktemp("model")
    write_model(out, golden.weights, golden.model, dtype="fp32")
    write_small_tokenizer(out / "tokenizer.json")
    return out


def test_each_precision_costs_a_little_more(folder, tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    arguments = [str(folder), str(text), "--length", "64", "--pieces", "4", "--json", str(out)]
    assert main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    loss = {row["case"].split("/")[-1]: row["value"] for row in rows if row["metric"] == "loss"}
    assert list(loss) == ["fp32", "bf16", "fp8-weights", "fp8"]
    bf16, fp8 = (abs(loss[name] - loss["fp32"]) for name in ("bf16", "fp8"))
    assert 0 < bf16 < 0.05
    assert bf16 < fp8 < 1.0
    assert len(set(loss.values())) == 4
    assert capsys.readouterr().out.count("best token right") == 4


def test_a_text_that_is_too_short(folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the fox")
    assert main([str(folder), str(text)]) == 4
    assert "a piece has 2048" in capsys.readouterr().err


def test_loss_is_that_of_the_reference(folder):
    from tools.inference_precision import KINDS, measure

    given = load_golden("lookup_prefix_b4_p2").case("plain")
    ids = given["input_ids"].flatten(1)
    found = measure(folder, ids, KINDS["fp32"])
    assert found.loss == pytest.approx(given["loss"].item(), abs=1e-5)
    best = given["logits"].argmax(-1) == given["input_ids"][:, 1:]
    assert found.accuracy == pytest.approx(best.float().mean().item())
