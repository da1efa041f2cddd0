# SPDX-License-Identifier: Apache-2.0
"""`lm_eval --model hf` on an exported folder, as any user types it, against our own scores."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install '.[evaluate]')")

from bt_megatron.evaluation.exported_model import ExportedModel, read_tokenizer
from bt_megatron.evaluation.likelihood import Request, rolling_requests
from tests.small_export import write_small_export

TEXT = "the quick brown fox jumps over the lazy dog and the other quick foxes. "
QUESTIONS = [
    {"question": "the quick brown", "choices": ["fox", "dog", "foxes jumps over"], "gold": 0},
    {"question": "jumps over the lazy dog and the other", "choices": ["quick", "a"], "gold": 1},
]
TEXTS = [{"text": "the lazy dog"}, {"text": TEXT}, {"text": TEXT * 4}]
CHOICES_TASK = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{gold}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc"}],
}
TEXTS_TASK = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}


def write_task(folder, name, task, documents):
    lines = [json.dumps(document) for document in documents]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    files = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
    place = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**place, **task}))


def samples(folder, name):
    """Return what lm-eval logged of each document, in the order of the documents."""
    (file,) = folder.rglob(f"samples_{name}_*.jsonl")
    logged = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(logged, key=lambda sample: sample["doc_id"])


def test_the_command_gives_our_likelihoods(tmp_path):
    folder = write_small_export(tmp_path / "model")
    write_task(tmp_path, "choices", CHOICES_TASK, QUESTIONS)
    write_task(tmp_path, "texts", TEXTS_TASK, TEXTS)
    model_args = f"pretrained={folder},trust_remote_code=True,dtype=float32"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", model_args, "--device", "cpu", "--batch_size", "2"]
    command += ["--include_path", str(tmp_path), "--tasks", "choices,texts"]
    command += ["--log_samples", "--output_path", str(tmp_path / "out")]
    caches = {"HF_HOME": str(tmp_path / "cache"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        command,
        cwd=tmp_path,  # nothing of this project on the way
        env={**os.environ, **caches, **offline},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    model, tokenizer = ExportedModel(folder), read_tokenizer(folder)
    for document, sample in zip(QUESTIONS, samples(tmp_path / "out", "choices"), strict=True):
        context = tokenizer.encode(document["question"]).ids
        requests = [
            Request(context, tokenizer.encode(f" {choice}").ids) for choice in document["choices"]
        ]
        ours = [score.log_likelihood for score in model.score(requests)]
        theirs = [float(answer[0]) for answer in sample["filtered_resps"]]
        np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)
        assert sample["acc"] == float(np.argmax(ours) == document["gold"])
    for document, sample in zip(TEXTS, samples(tmp_path / "out", "texts"), strict=True):
        tokens = tokenizer.encode(document["text"]).ids
        windows = rolling_requests(tokens, first_context=0, max_length=model.max_length)
        ours = sum(score.log_likelihood for score in model.score(list(windows)))
        assert float(sample["filtered_resps"][0]) == pytest.approx(ours, abs=1e-3)
