# SPDX-License-Identifier: Apache-2.0
"""A registered model loads where nothing of this project is, and writes what the export writes."""

import json
import os
import subprocess
import sys

import orjson
import pytest
import torch

from bt_megatron.checkpoint.names import from_official
from bt_megatron.inference.export_folder import write_model
from bt_megatron.inference.tokenizer_files import EndToken, write_tokenizer
from tests.golden import load_golden
from tests.small_tokenizer import END, write_small_tokenizer
from tests.tracked_run import Run, Tracked
from tools.register_model import EXAMPLE, main

pytestmark = pytest.mark.xdist_group("mlflow")  # one server for all of these

USER_PROGRAM = """
import json, sys

class Absent:  # the project may be installed in this environment; here it must not be needed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("bt_megatron", "data_prep", "slurm", "tools", "megatron"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
prompts = pandas.DataFrame({"prompt": json.loads(sys.argv[3])})
greedy = model.predict(prompts, params={"max_new_tokens": 8})
drawn = [model.predict(prompts, params={"temperature": 1.0, "seed": seed}) for seed in (1, 1, 2)]
print(json.dumps({"greedy": greedy, "drawn": drawn}))
"""


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """A small exported folder with a tokenizer."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    golden = load_golden("lookup_prefix_b4_p2")
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder, from_official(golden.state, golden.model), golden.model, dtype="fp32")
    tokenizer = write_small_tokenizer(tmp_path / "tokenizer.json", vocab_size=512)
    write_tokenizer(folder, tokenizer, EndToken(END, 0))
    return folder


def greedy_texts(folder, prompts, *, tokens):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            output = model.generate(ids, max_new_tokens=tokens, do_sample=False)
        texts.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def test_it_writes_on_in_a_bare_process_and_belongs_to_its_run(
    exported, tmp_path, mlflow_server, capsys
):
    run = Run(tmp_path / "tiny", mlflow_server.uri)
    run.write(range(1, 3))
    assert run.close() == 0
    assert main([str(exported), "--name", "tiny", "--run", str(run.folder.path)]) == 0
    assert "models:/tiny/1 is registered" in capsys.readouterr().out

    there = Tracked(mlflow_server.uri, run)
    assert there.run.info.status == "FINISHED"
    version = there.client.get_model_version("tiny", "1")
    assert version.run_id == there.run_id
    prompts = ["the quick", "fox"]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "others")}
    arguments = [mlflow_server.uri, "models:/tiny/1", json.dumps(prompts)]
    done = subprocess.run(
        [sys.executable, "-c", USER_PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["greedy"] == greedy_texts(exported, prompts, tokens=8)
    assert got["drawn"][0] == got["drawn"][1] != got["drawn"][2]


def test_what_is_registered_has_a_signature_and_an_example(exported, tmp_path, mlflow_server):
    import mlflow

    uri = ["--tracking-uri", mlflow_server.uri]
    assert main([str(exported), "--name", "described", *uri]) == 0
    mlflow.set_tracking_uri(mlflow_server.uri)
    info = mlflow.models.get_model_info("models:/described/1")
    assert info.signature.inputs.input_names() == ["prompt"]
    assert {param.name for param in info.signature.params.params} == {
        "max_new_tokens",
        "temperature",
        "seed",
    }
    assert info.saved_input_example_info is not None
    assert len(EXAMPLE) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no run that was tracked. Pass the URI, or --run RUN_DIR"),
        (["--tracking-uri", "http://127.0.0.1:9"], "MLflow did not take"),
    ],
    ids=["nowhere to go", "nobody answers"],
)
def test_what_cannot_be_done_is_told(exported, options, message, capsys):
    assert main([str(exported), "--name", "x", *options]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_folder_that_is_no_export_is_told(tmp_path, capsys):
    assert main([str(tmp_path), "--name", "x"]) == 6
    assert "Name a folder that tools.export made with a tokenizer" in capsys.readouterr().err


def test_a_run_that_was_not_tracked_is_told(exported, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(orjson.dumps({"step": 1}) + b"\n")
    assert main([str(exported), "--name", "x", "--run", str(folder)]) == 2
    assert "there is no run that was tracked" in capsys.readouterr().err
