# SPDX-License-Identifier: Apache-2.0
"""The command streams what transformers generates."""

import pytest

from bt_megatron.checkpoint.names import from_official
from bt_megatron.inference.export_folder import write_model
from bt_megatron.inference.tokenizer_files import EndToken, write_tokenizer
from tests.golden import load_golden
from tests.small_tokenizer import END, write_small_tokenizer
from tools.generate import generate, main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    golden = load_golden("lookup_prefix_b4_p2")
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder, from_official(golden.state, golden.model), golden.model, dtype="fp32")
    tokenizer = write_small_tokenizer(tmp_path / "tokenizer.json", vocab_size=512)
    write_tokenizer(folder, tokenizer, EndToken(END, 0))
    return folder


def test_streams_the_text(folder, capsys):
    arguments = ["--prompt", "the quick", "--max-new-tokens", "9", "--temperature", "0"]
    assert main([str(folder), *arguments]) == 0
    first = capsys.readouterr().out
    assert first.startswith("the quick")
    assert main([str(folder), *arguments]) == 0
    assert capsys.readouterr().out == first


def test_seed(folder, capsys):
    arguments = ["--prompt", "fox", "--max-new-tokens", "12", "--top-k", "50", "--top-p", "0.9"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([str(folder), *arguments, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_ids(folder):
    output = generate(folder, "the lazy dog", max_new_tokens=5, do_sample=False)
    assert output.shape[0] == 1
    assert output.shape[1] > 5


@pytest.mark.parametrize(("prompt", "message"), [("", "it has no tokens"), ("x", "no config.json")])
def test_errors_are_one_line(folder, tmp_path, capsys, prompt, message):
    place = folder if prompt == "" else tmp_path
    assert main([str(place), "--prompt", prompt]) == 6
    assert message in capsys.readouterr().err


def test_the_engine_writes_the_same_greedy_text(folder, capsys):
    arguments = ["--prompt", "the quick", "--max-new-tokens", "9", "--temperature", "0"]
    texts = []
    for more in ([], ["--engine"]):
        assert main([str(folder), *arguments, *more]) == 0
        texts.append(capsys.readouterr().out.rstrip("\n"))
    assert texts[1] == texts[0].removesuffix(END)
    assert main([str(folder), "--prompt", "", "--engine"]) == 9
    assert "no tokens" in capsys.readouterr().err
