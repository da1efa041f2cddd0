# SPDX-License-Identifier: Apache-2.0
"""`data_prep index` saves what the trainer then maps, and repairs what is damaged."""

import json

import pytest

from bt_megatron.config.load import load_run
from bt_megatron.data.packed_index import index_folder
from bt_megatron.data.sources import open_sources
from data_prep.__main__ import main
from tests.data_folders import MODEL, make_folder


@pytest.fixture
def run_file(tmp_path):
    folder = make_folder(tmp_path / "data", documents=[[5] * 30] * 40)
    data = {"path": str(folder), "seq_length": 16, "validation_fraction": 0.3}
    body = {"name": "x", "model": MODEL, "data": data, "train": {"steps": 2}}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(body))
    return path


def subsets(run_file):
    (source,) = open_sources(load_run([run_file]).config)
    return [source.subset(block_length=4, split=split) for split in ("train", "validation")]


def test_both_sides_are_saved_for_the_trainer(run_file, capsys):
    assert [s.dataset.is_mapped for s in subsets(run_file)] == [False, False]
    assert main(["index", str(run_file)]) == 0
    assert [s.dataset.is_mapped for s in subsets(run_file)] == [True, True]
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in out] == ["all train", "all validation"]
    assert all("made in" in line for line in out)


def test_run_again_it_keeps_what_is_whole(run_file, capsys):
    main(["index", str(run_file)])
    capsys.readouterr()
    assert main(["index", str(run_file)]) == 0
    assert capsys.readouterr().out.count("whole, kept") == 2


def test_damaged_index_is_made_again(run_file, capsys):
    main(["index", str(run_file)])
    fingerprint = subsets(run_file)[0].dataset.fingerprint
    path = index_folder(run_file.parent / "data" / "packed", fingerprint) / "starts.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + b"\xff" + whole[-8:])
    capsys.readouterr()
    assert main(["index", str(run_file)]) == 0
    said = capsys.readouterr()
    assert "the index is damaged and made again" in said.err
    assert (said.out.count("made in"), said.out.count("whole, kept")) == (1, 1)
    assert path.read_bytes() == whole


def test_setting_names_another_place(run_file, tmp_path):
    assert main(["index", str(run_file), "--set", f"data.index_dir={tmp_path / 'there'}"]) == 0
    assert len(list((tmp_path / "there").iterdir())) == 2


def test_missing_data_are_an_error_without_a_traceback(run_file, capsys):
    assert main(["index", str(run_file), "--set", "data.path=nowhere"]) == 4
    assert "nowhere/manifest.json - not found" in capsys.readouterr().err
