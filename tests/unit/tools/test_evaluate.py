# SPDX-License-Identifier: Apache-2.0
"""The whole command on a small export: results, resuming, interruption, mistakes of the user."""

import json
import os
import shutil
import signal

import pytest
import yaml

from bt_megatron.config.load import to_mapping
from bt_megatron.inference.export_folder import write_model
from bt_megatron.inference.tokenizer_files import find_end_token, write_tokenizer
from bt_megatron.observe.run_folder import RunFolder
from tests.golden import load_golden
from tests.tiny_run import tiny_run
from tools import evaluate
from tools.evaluate import main

LENGTH = 256
QUICK = ["--max-tokens", "1500", "--pieces", "2", "--needles", "1", "--context", "64"]
OFFLINE = ["--only", "held-out,positions,needle", *QUICK]


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """Return the folder of a run with an export inside, whose tokenizer is that of the data."""
    import transformers.dynamic_module_utils as modules

    folder = tmp_path_factory.mktemp("run")
    golden = load_golden("lookup_prefix_b4_p2")
    config = tiny_run(tiny_data, folder, model=golden.model)
    run = RunFolder.of(config)
    export = run.path / "export"
    export.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(to_mapping(config)))
    run.metrics.write_text('{"step": 1, "time": 1.0, "train/loss": 2.0}\n')
    options = {"dtype": "fp32", "max_length": LENGTH, "random_left_padding": True}
    write_model(export, golden.weights, golden.model, **options)
    tokenizer = tiny_data / "tokenizer.json"
    end = find_end_token(tokenizer, vocab_size=golden.model.vocab_size)
    write_tokenizer(export, tokenizer, end, max_length=LENGTH)
    (export / "source.json").write_text('{"run": "small", "step": 40}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "HF_MODULES_CACHE", str(folder / "modules"))
        yield run


@pytest.fixture(scope="module")
def evaluated(run):
    """Return the folder of results of one evaluation."""
    uri = f"sqlite:///{run.path.parent / 'other.db'}"
    arguments = [str(run.path / "export"), *OFFLINE, "--tracking-uri", uri]
    benchmark = ["--benchmark", str(run.path / "benchmark.json")]
    assert main([*arguments, *benchmark]) == 0
    return run.path / "export-evaluation"


def test_results(evaluated, run):
    results = json.loads((evaluated / "results.json").read_text())
    assert results["source"] == {"run": "small", "step": 40}
    assert (results["left_padding"], results["dtype"]) == (3, "fp32")
    names = [measurement["name"] for measurement in results["measurements"]]
    assert [name.split("/")[0] for name in names] == ["held-out", "positions", "needle", "needle"]
    for name, value in results["metrics"].items():
        assert value > 0 or name.endswith("accuracy")
    table = (evaluated / "table.md").read_text()
    assert all(name in table for name in names)
    assert (evaluated / "evaluation.png").stat().st_size > 10_000

    rows = json.loads((run.path / "benchmark.json").read_text())["rows"]
    assert len(rows) == len(results["metrics"])
    assert {row["unit"] for row in rows} == {"bits/byte", "nats/token", "1"}


def test_mlflow_has_the_numbers_at_the_step_of_the_weights(evaluated, run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.path.parent / 'other.db'}")
    experiment = client.get_experiment_by_name("bt-megatron")
    (found,) = client.search_runs([experiment.experiment_id])
    metrics = json.loads((evaluated / "results.json").read_text())["metrics"]
    assert len(found.data.metrics) == len(metrics)
    (history,) = client.get_metric_history(found.info.run_id, "positions/loss")
    assert (history.step, history.value) == (40, metrics["positions/loss"])


def test_nothing_is_measured_twice(evaluated, run, monkeypatch, capsys):
    def refuse(*_arguments, **_options):
        raise AssertionError("measured again")

    before = (evaluated / "results.json").read_bytes()
    monkeypatch.setattr(evaluate.ExportedModel, "score", refuse)
    assert main([str(run.path / "export"), *OFFLINE, "--no-tracking"]) == 0
    assert (evaluated / "results.json").read_bytes() == before
    assert capsys.readouterr().err.count("measured before") == 4


def test_what_was_done_before_an_interruption_is_kept(run, tmp_path, monkeypatch, capsys):
    score, calls = evaluate.ExportedModel.score, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(*arguments, **options)

    arguments = [
        str(run.path / "export"),
        *OFFLINE,
        "--no-tracking",
        "--out",
        str(tmp_path / "out"),
    ]
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1)]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(evaluate.ExportedModel, "score", interrupted)
            assert main(arguments) == 75
        assert "the same command goes on" in capsys.readouterr().err
        assert len(list((tmp_path / "out" / "parts").iterdir())) == 1
        assert main(arguments) == 0
        assert capsys.readouterr().err.count("measured before") == 1
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def test_zero_shot_tasks_only_need_their_documents(run, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install '.[evaluate]')")
    document = {"goal": "How?", "sol1": "so", "sol2": "not so", "label": 0}
    (tmp_path / "piqa.jsonl").write_text((json.dumps(document) + "\n") * 4)
    export = shutil.copytree(run.path / "export", tmp_path / "export")
    arguments = [str(export), "--only", "zero-shot", "--tasks", "piqa", "--limit", "2"]
    assert main([*arguments, "--tasks-data", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "export-evaluation" / "results.json").read_text())
    assert results["metrics"]["zero-shot/piqa/acc"] in (0.0, 1.0)
    assert "2 of 4 documents" in capsys.readouterr().out


def test_mistakes_are_one_line(run, tmp_path, capsys):
    export = shutil.copytree(run.path / "export", tmp_path / "export")
    cases = [
        ([str(tmp_path / "nothing")], 6, "Name a folder that tools.export made"),
        ([str(export), *OFFLINE], 2, "Pass --held-out DATA_FOLDER --all-documents"),
        ([str(export), *OFFLINE, "--left-padding", "9"], 6, "Use 0 to 3"),
        ([str(export), *OFFLINE, "--held-out", str(tmp_path), "--all-documents"], 4, "manifest"),
    ]
    for arguments, code, message in cases:
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "zero-shot,nonsense"], "'nonsense' is none of zero-shot, held-out"),
        (["--tasks", "mmlu"], "'mmlu' is none of lambada_openai"),
        (["--limit", "0"], "'0' is not a number from 1 on"),
    ],
    ids=["part", "task", "number"],
)
def test_choices_that_there_are_not(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["folder", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
