# SPDX-License-Identifier: Apache-2.0
"""Exported folders are loaded with torch, safetensors and little else; others are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bt_megatron.errors import BtError, ConfigError, ConversionError
from bt_megatron.inference.engine.engine import Engine, Settings
from bt_megatron.inference.engine.folder import open_folder
from bt_megatron.inference.engine.load import build_model, end_token, load_model
from bt_megatron.inference.engine.requests import Options
from bt_megatron.inference.engine.weights import Numbers
from bt_megatron.inference.export_folder import write_model
from tests.golden import load_golden
from tests.small_models import KINDS, small_model
from tests.small_tokenizer import write_small_tokenizer

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")
FLOAT32 = Numbers(torch.float32)
GENERATED = [
    (name, case)
    for name in ("lookup_prefix_b4_p2", "lookup_prefix_b1_p1", "lookup_summation_b4")
    for case in ("gen_aligned", "gen_p10_n12")
]


def export(name: str, folder: Path, *, end_id: int = 0) -> Path:
    golden = load_golden(name)
    write_model(folder, golden.weights, golden.model, dtype="fp32", end_id=end_id)
    return folder


@pytest.mark.parametrize(("name", "case"), GENERATED)
def test_generation_of_the_reference(tmp_path, name, case):
    given = load_golden(name).case(case)
    expected = given["consistent_new_tokens"]
    model, _ = load_model(export(name, tmp_path), numbers=FLOAT32, device=CPU, max_tokens=64)
    engine = Engine(model, Settings(max_rows=2, max_tokens=64), CPU)
    options = Options(max_new_tokens=expected.shape[1], logprobs=True)
    done = engine.generate(given["prompt"].tolist(), options)
    assert [request.tokens for request in done] == expected.tolist()
    logprobs = given["consistent_step_logits"].log_softmax(-1)
    best = logprobs.gather(-1, expected[..., None])[..., 0]
    torch.testing.assert_close(
        torch.tensor([request.logprobs for request in done]), best, atol=1e-5, rtol=0
    )


def test_vanilla_generation_of_the_reference(tmp_path):
    given = load_golden("vanilla_neox").case("gen_p10_n12")
    length = given["prompt"].shape[1]
    expected = given["reference_output"][:, length:]
    model, _ = load_model(
        export("vanilla_neox", tmp_path), numbers=FLOAT32, device=CPU, max_tokens=64
    )
    engine = Engine(model, Settings(max_rows=2, max_tokens=64), CPU)
    done = engine.generate(given["prompt"].tolist(), Options(max_new_tokens=expected.shape[1]))
    assert [request.tokens for request in done] == expected.tolist()


PROGRAM = """
import sys

ABSENT = ("megatron", "transformers", "transformer_engine", "mlflow", "matplotlib", "rich",
          "psutil", "submitit", "zstandard", "orjson")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from pathlib import Path
import torch
from bt_megatron.inference.engine.engine import Engine, Settings
from bt_megatron.inference.engine.load import load_model
from bt_megatron.inference.engine.requests import Options
from bt_megatron.inference.engine.weights import Numbers
cpu = torch.device("cpu")
model, _ = load_model(
    Path(sys.argv[1]), numbers=Numbers(torch.float32), device=cpu, max_tokens=64
)
(done,) = Engine(model, Settings(max_rows=1, max_tokens=64), cpu).generate([[5, 6, 7]], Options())

print(len(done.tokens))
"""


def test_little_else_is_needed(tmp_path):
    folder = export("lookup_prefix_b4_p2", tmp_path)
    program = PROGRAM.replace("Options()", "Options(max_new_tokens=9)")
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["9"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("roberta", "embedder is of kind roberta"), ("cross attention", "cross-attends")],
)
def test_kinds_without_kernels(make_model, kind, words):
    state = make_model(**KINDS[kind]).state_dict()
    with pytest.raises(ConversionError, match=words):
        build_model(small_model(**KINDS[kind]), state, numbers=FLOAT32, device=CPU, max_tokens=64)


def test_positions_of_the_references_generate_are_refused(tmp_path):
    folder = export("lookup_prefix_b4_p2", tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"official_generate_positions": True}))
    with pytest.raises(ConversionError, match="official_generate_positions"):
        load_model(folder, numbers=FLOAT32, device=CPU, max_tokens=64)


def test_fp8_needs_a_gpu_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match="no FP8"):
        build_model(
            small_model(),
            {},
            numbers=Numbers(torch.bfloat16, fp8=True),
            device=torch.device("cuda"),
            max_tokens=8,
        )


def test_a_missing_tensor_is_named(make_model):
    state = dict(make_model().state_dict())
    del state["token_decoder.embed_out.weight"]
    with pytest.raises(BtError, match="no tensor token_decoder.embed_out.weight"):
        build_model(small_model(), state, numbers=FLOAT32, device=CPU, max_tokens=64)


def test_the_token_that_ends_texts(tmp_path):
    folder = export("lookup_prefix_b4_p2", tmp_path, end_id=7)
    assert end_token(folder, {}) == 7
    (folder / "generation_config.json").unlink()
    assert end_token(folder, {"eos_token_id": [5, 6]}) == 5
    assert end_token(folder, {}) is None


def test_a_folder_with_its_tokenizer(tmp_path):
    folder = export("lookup_prefix_b4_p2", tmp_path)
    settings = Settings(max_rows=1, max_tokens=32)
    with pytest.raises(ConversionError, match="no tokenizer.json"):
        open_folder(folder, settings)
    write_small_tokenizer(folder / "tokenizer.json")
    opened = open_folder(folder, settings)
    prompt = opened.tokenizer.encode("the fox").ids
    (done,) = opened.engine.generate([prompt], Options(max_new_tokens=5))
    assert len(done.tokens) == 5
    assert opened.end_id == 0
    small = open_folder(folder, settings, fp8=True).engine
    assert small.model.cache.dtype == torch.float8_e4m3fn
    (other,) = small.generate([prompt], Options(max_new_tokens=5))
    assert len(other.tokens) == 5
