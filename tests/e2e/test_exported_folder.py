# SPDX-License-Identifier: Apache-2.0
"""An exported folder stands alone: compared with the trainer's model when it is made,
then loaded where nothing of this project can be imported."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bt_megatron.checkpoint.names import from_official
from bt_megatron.checkpoint.weights import write_weights
from bt_megatron.config.schema import LayoutConfig, TrainConfig
from tests.golden import load_golden
from tests.small_tokenizer import write_small_tokenizer
from tests.tiny_run import tiny_model, tiny_run
from tests.training_process import Training

ROOT = Path(__file__).resolve().parents[2]

USER_PROGRAM = """
import json, sys

class Absent:  # the project may be installed in this environment; here it must not be needed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("bt_megatron", "data_prep", "slurm", "tools"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, given = sys.argv[1], torch.load(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert not [name for name in sys.modules if name.startswith(("megatron", "bt_megatron"))]
logits = model.eval()(given["ids"]).logits
prompts = ["the quick brown", "fox", "the lazy dog jumps over"]
batch = tokenizer(prompts, padding=True, return_tensors="pt")
output = model.generate(**batch, max_new_tokens=10, do_sample=False)
torch.save({"logits": logits.detach(), "output": output, **batch}, sys.argv[3])
print(json.dumps(tokenizer.batch_decode(output)))
"""


def run(arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
        **options,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


def export(workspace, name, dtype):
    golden = load_golden(name)
    source, out = workspace / f"weights-{name}", workspace / f"model-{name}-{dtype}"
    tokenizer = write_small_tokenizer(workspace / "tokenizer.json")
    if not source.exists():
        weights = from_official(golden.state, golden.model)
        write_weights(source, weights, golden.model, tokenizer=tokenizer)
    modules = {"HF_MODULES_CACHE": str(workspace / "modules")}
    arguments = ["-m", "tools.export", str(source), str(out), "--dtype", dtype]
    return golden, out, run(arguments, cwd=ROOT, env=modules)


@pytest.mark.parametrize(
    "name", ["lookup_prefix_b4_p2", "roberta_cls_cross_attention_b4", "vanilla_neox"]
)
def test_export_agrees_with_the_trainer_and_stands_alone(workspace, tmp_path, name):
    golden, folder, exported = export(workspace, name, "fp32")
    assert exported.returncode == 0, exported.stderr
    assert "logits differ from the trainer's by" in exported.stdout
    given = golden.case("plain")
    torch.save({"ids": given["input_ids"].flatten(1)}, tmp_path / "given.pt")
    (tmp_path / "program.py").write_text(USER_PROGRAM)
    arguments = ["program.py", str(folder), "given.pt", "result.pt"]
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = run(["-I", *arguments], cwd=tmp_path, env=modules)
    assert done.returncode == 0, done.stderr
    result = torch.load(tmp_path / "result.pt")
    assert_logits(golden, given, result["logits"])
    assert result["output"].shape == (3, result["input_ids"].shape[1] + 10)
    assert len(json.loads(done.stdout.splitlines()[-1])) == 3


LLAMA_LIKE = {
    "residual": "sequential",
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "num_query_groups": 2,
}
LAYOUTS = {
    "tp2-padded-vocabulary": (LayoutConfig(tp=2, sequence_parallel=True), {}),
    "pp2-llama-layers": (LayoutConfig(pp=2), LLAMA_LIKE),
}


@pytest.mark.parametrize(("layout", "changes"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_training_run_is_exported(tiny_data, tmp_path, layout, changes):
    """515 rows are no multiple of tp 2: the row that pads them must not be exported."""
    model = tiny_model(vocab_size=515)
    sections = ("block_decoder", "token_decoder")
    model = replace(model, **{name: replace(getattr(model, name), **changes) for name in sections})
    run_config = tiny_run(
        tiny_data, tmp_path / "runs", model=model, layout=layout, train=TrainConfig(steps=5)
    )
    training = Training(run_config, tmp_path, world_size=2)
    assert training.wait() == [0, 0], training.output
    out = tmp_path / "exported"
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = ["-m", "tools.export", run_config.run_dir, str(out)]
    exported = run(arguments, cwd=ROOT, env=modules)
    assert exported.returncode == 0, exported.stderr
    card = (out / "README.md").read_text()
    assert "| step | 5 |" in card
    assert "| vocabulary | 515 |" in card
    prompt = ["--prompt", "The", "--max-new-tokens", "8", "--seed", "0"]
    written = run(["-m", "tools.generate", str(out), *prompt], cwd=ROOT, env=modules)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("The")


def assert_logits(golden, given, logits):
    expected = given["logits"]
    if golden.model.is_block:
        expected = expected.flatten(1, 2)
        logits = logits[:, golden.model.block_length - 1 : -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_bf16_export_tells_what_rounding_costs(workspace):
    _, folder, exported = export(workspace, "lookup_prefix_b4_p2", "bf16")
    assert exported.returncode == 0, exported.stderr
    assert "before rounding to bf16" in exported.stdout
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
