# SPDX-License-Identifier: Apache-2.0
"""The figure is drawn of whatever there is."""

import pytest

from bt_megatron.errors import DataError
from bt_megatron.evaluation.plot import plot_evaluation
from tests.measured import EVERYTHING

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "chosen", [EVERYTHING, *([m] for m in EVERYTHING)], ids=["all", *(m.name for m in EVERYTHING)]
)
def test_a_panel_for_each_kind(tmp_path, chosen):
    plot_evaluation(chosen, tmp_path / "plot.png", title="x")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="Pass --out"):
        plot_evaluation(EVERYTHING, tmp_path / "no" / "plot.png", title="x")
