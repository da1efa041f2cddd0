# SPDX-License-Identifier: Apache-2.0
"""The run folder: every path is documented, and a wrong folder is named."""

from pathlib import Path

import pytest

from bt_megatron.errors import DataError
from bt_megatron.observe.run_folder import RunFolder, open_run_folder

ROOT = Path(__file__).parents[3]
PATHS = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]


@pytest.mark.parametrize("name", PATHS)
def test_every_path_is_in_the_documentation(name):
    file_name = getattr(RunFolder(Path("run")), name).name
    assert f"`{file_name}" in (ROOT / "docs" / "run-folder.md").read_text()


def test_asking_creates_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert {getattr(folder, name).parent for name in PATHS} == {tmp_path / "run"}
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_a_folder_with_metrics(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_run_folder(tmp_path / "none")
    with pytest.raises(DataError, match=r"it has no metrics\.jsonl"):
        open_run_folder(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    assert open_run_folder(str(tmp_path)) == RunFolder(tmp_path)
