# SPDX-License-Identifier: Apache-2.0
"""Results that are kept, found again, and not mistaken for those of something else."""

import pytest

from bt_megatron.errors import DataError
from bt_megatron.evaluation.measurement import (
    Counter,
    Measurement,
    MeasurementFolder,
    fingerprint,
)

FOUND = Measurement(name="held-out/Pile-CC (en)", metrics={"loss": 1.5}, detail={"tokens": 7})
SETTINGS = {"limit": None, "split": [0.1, 3]}


def test_what_was_kept_is_found_by_the_same_model_with_the_same_settings(tmp_path):
    kept = MeasurementFolder(tmp_path, identity={"model": "a"})
    assert kept.load(FOUND.name, SETTINGS) is None
    kept.save(FOUND, SETTINGS)

    assert MeasurementFolder(tmp_path, identity={"model": "a"}).load(FOUND.name, SETTINGS) == FOUND
    assert kept.load(FOUND.name, {**SETTINGS, "limit": 1}) is None
    assert kept.load("held-out/another", SETTINGS) is None
    assert kept.load("held-out/Pile-CC [en]", SETTINGS) is None  # its file is the same
    assert MeasurementFolder(tmp_path, identity={"model": "b"}).load(FOUND.name, SETTINGS) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", ""])
def test_a_damaged_file_is_named(tmp_path, content):
    kept = MeasurementFolder(tmp_path, identity={})
    kept.save(FOUND, SETTINGS)
    (file,) = (tmp_path / "parts").iterdir()
    file.write_text(content)
    with pytest.raises(DataError, match=f"{file.name}: not a measurement.*Delete it"):
        kept.load(FOUND.name, SETTINGS)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written .*Pass --out"):
        MeasurementFolder(tmp_path / "file", identity={}).save(FOUND, SETTINGS)


def test_any_change_of_the_model_is_another_fingerprint(tmp_path):
    files = ("config.json", "model.safetensors", "modeling_block_transformer.py", "tokenizer.json")
    for name in files:
        (tmp_path / name).write_text(name)
    seen = {fingerprint(tmp_path)}
    (tmp_path / "README.md").write_text("no part of the model")
    assert fingerprint(tmp_path) in seen
    for name in files:
        (tmp_path / name).write_text("changed")
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 1 + len(files)


def test_progress_is_counted():
    seen = []
    count = Counter(3, lambda *at: seen.append(at))
    count(1)
    count(2)
    assert seen == [(0, 3), (1, 3), (3, 3)]
