# SPDX-License-Identifier: Apache-2.0
"""The report of a sweep, from runs on a real MLflow server."""

import json
from pathlib import Path

import pytest

from bt_megatron.observe.record import EvaluationRecord
from bt_megatron.observe.run_folder import RunFolder
from slurm.sweep import load_sweep
from tests.tracked_run import Run
from tools.sweep_report import main, write_report

pytestmark = pytest.mark.xdist_group("mlflow")  # one server for all of these

SWEEP = """\
name: reported
title: Two spreads of weights
axis: spread
paper: says nothing of it.
run: [configs/run/demo.yaml]
cases:
  narrow: {model: {init_std: 0.01}}
  wide: {model: {init_std: 0.02}}
"""
ROOT = Path(__file__).parents[3]
PLAN = {"parameters": {"total": 1234}, "kv_cache": {"per_sequence": 5678}}


@pytest.fixture
def sweep(tmp_path, mlflow_server, request):
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.replace("reported", request.node.name.replace("_", "-")))
    settings = [f"runs_dir={tmp_path}", f"log.mlflow.tracking_uri={mlflow_server.uri}"]
    return load_sweep(file, [*settings, "log.mlflow.experiment=tests"])


def track(sweep, case, uri, *, loss):
    """Let MLflow have a run of a case as training leaves it."""
    folder = RunFolder(sweep.folder.parent / case.config.name)
    folder.path.mkdir(parents=True)
    folder.plan.write_text(json.dumps(PLAN))
    run = Run(folder.path, uri, parent=sweep.name)
    run.write(range(1, 5), loss=2.0 * loss)
    run.log.write(EvaluationRecord(step=2, loss=1.5 * loss, bits_per_byte=None, targets=9))
    run.log.write(EvaluationRecord(step=4, loss=loss, bits_per_byte=None, targets=9))
    assert run.close() == 0


def test_a_table_figures_and_plots_of_what_is_there(sweep, mlflow_server, tmp_path):
    narrow, wide = sweep.cases
    track(sweep, narrow, mlflow_server.uri, loss=3.0)
    report = write_report(sweep, tmp_path / "report")
    text = report.text.read_text()
    assert report.missing == ("wide",)
    assert "| narrow | 3.0000 | 6.0000 | 10,000 | 5,678 | 1,234 | complete |" in text
    assert "| wide | | | | | | not begun |" in text

    track(sweep, wide, mlflow_server.uri, loss=2.5)
    report = write_report(sweep, tmp_path / "report")
    assert report.missing == ()
    assert "The paper: says nothing of it." in report.text.read_text()
    assert report.picture.read_bytes().startswith(b"\x89PNG")
    rows = {
        (row["case"], row["metric"]): row["value"]
        for row in json.loads(report.figures.read_text())["rows"]
    }
    assert rows[f"sweep/{sweep.name}/wide", "validation_loss"] == 2.5
    assert len(rows) == 2 * 5


def test_the_report_is_kept_with_the_sweep(sweep, mlflow_server, tmp_path):
    from mlflow import MlflowClient

    for case in sweep.cases:
        track(sweep, case, mlflow_server.uri, loss=2.0)
    write_report(sweep, tmp_path / "report")
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("tests").experiment_id
    (parent,) = client.search_runs([experiment], f"attributes.run_name = '{sweep.name}'")
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"report.md", "report.json", "report.png"}
    assert parent.info.status == "FINISHED"


def test_a_sweep_that_has_not_begun_is_told(tmp_path, mlflow_server, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.replace("reported", "not-begun"))
    settings = ["--set", f"log.mlflow.tracking_uri={mlflow_server.uri}"]
    assert main([str(file), *settings]) == 4
    assert "MLflow has no run of this sweep" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    assert main([str(file), "--set", "log.mlflow.tracking_uri=http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "MLflow gave no report" in error
    assert "Traceback" not in error


def test_figures_of_several_sweeps_go_into_one_file(sweep, mlflow_server, tmp_path, capsys):
    for case in sweep.cases:
        track(sweep, case, mlflow_server.uri, loss=2.0)
    file, together = tmp_path / "sweep.yaml", tmp_path / "together.json"
    settings = [f"runs_dir={tmp_path}", f"log.mlflow.tracking_uri={mlflow_server.uri}"]
    options = [word for s in [*settings, "log.mlflow.experiment=tests"] for word in ("--set", s)]
    assert main([str(file), str(file), *options, "--benchmark", str(together)]) == 0
    assert len(json.loads(together.read_text())["rows"]) == 2 * 2 * 5
    assert capsys.readouterr().out.count("# Two spreads of weights") == 2


def test_the_figures_of_the_documentation_are_measured_ones():
    rows = json.loads((ROOT / "docs/benchmarks/ablations.json").read_text())["rows"]
    text = (ROOT / "docs/ablations.md").read_text()
    forms = {"validation_loss": ".4f", "training_loss": ".4f"}
    cells = {}
    for row in rows:
        if row["metric"] != "training_tokens_per_s":
            form = forms.get(row["metric"], ",.0f")
            cells.setdefault(row["case"], []).append(format(row["value"], form))
    lines = [f"| {case.split('/')[2]} | {' | '.join(values)} |" for case, values in cells.items()]
    assert len(lines) == 21
    assert [line for line in lines if line not in text] == []
    assert {row["detail"]["status"] for row in rows} == {"FINISHED"}
