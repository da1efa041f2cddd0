# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of generation runs, counts and writes, with a small model on the CPU."""

import pytest
import torch

import tools.bench_inference as bench
import tools.inference_speed as speed
from bt_megatron.config.schema import ModelConfig
from bt_megatron.inference.engine.load import random_model
from bt_megatron.inference.engine.weights import Numbers
from tests.small_models import small_model
from tools.bench_inference import Case, Effort, all_cases, main, measure
from tools.inference_roofline import Ceilings
from tools.inference_speed import Load

CPU = torch.device("cpu")
VANILLA = ModelConfig(architecture="vanilla", vocab_size=64, decoder=small_model().block_decoder)
LOADS = {"prefill-heavy": Load(60, 8), "decode-heavy": Load(12, 24), "batch-1": Load(8, 12)}


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(bench, "LOADS", LOADS)
    monkeypatch.setattr(bench, "FIRST_TOKEN", Load(30, 8))
    monkeypatch.setattr(bench, "row_counts", lambda model, load, kind, tries: [4, 2])
    monkeypatch.setattr(speed.make_engine, "__defaults__", (CPU,))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)


@pytest.mark.parametrize("section", [small_model(), VANILLA], ids=["block", "vanilla"])
@pytest.mark.parametrize("load", LOADS)
def test_a_case_is_measured(on_cpu, load, section):
    model = random_model(section, numbers=Numbers(torch.float32), device=CPU, max_tokens=100)
    effort = Effort(2, longest=1e9, tune=False, profile=False)
    rows = measure(Case("small", load, "bf16"), model, Ceilings(1e10, 1e12, 1e12), effort)
    values = {row.metric: row.value for row in rows}
    assert {row.case for row in rows} == {f"generate/small/{load}/bf16"}
    assert {"tokens_per_s", "roofline_tokens_per_s", "kv_bytes_per_sequence"} <= values.keys()
    assert ({"ms_per_token", "first_token_ms"} <= values.keys()) == (load == "batch-1")
    assert 0 < values["tokens_per_s"] < values["roofline_tokens_per_s"]
    detail = rows[0].detail
    assert detail["batch"] in ((1,) if load == "batch-1" else (4, 2))
    run = LOADS[load].new * detail["batch"] / detail["seconds"]
    assert values["tokens_per_s"] == pytest.approx(run)


def test_cases_have_the_names_of_the_table():
    names = [case.name for case in all_cases(["bf16"], [4])]
    assert names[0] == "generate/block-1.2b/prefill-heavy/bf16"
    assert "generate/vanilla-160m-gqa4/batch-1/bf16" in names
    assert len(set(names)) == len(names) == 3 * (5 + 2)


def test_a_word_that_names_no_case(capsys):
    assert main(["--only", "block-9b"]) == 2
    assert "no case" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert main(["--quick"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
