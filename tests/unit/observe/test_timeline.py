# SPDX-License-Identifier: Apache-2.0
"""The timeline is drawn for short and for long runs."""

import pytest

from bt_megatron.errors import DataError
from bt_megatron.observe.goodput import Attempt, Goodput, Span
from bt_megatron.observe.timeline import MOST_ROWS, draw_timeline

PNG = b"\x89PNG"


def run_of(attempts, *, hour):
    """Return attempts of three hours with an hour between them."""
    made = [
        Attempt(
            number=i + 1,
            job=None,
            first_step=10 * i,
            last_step=10 * i + 10,
            ended="killed",
            spans=(
                Span("start", 4 * hour * i, hour * (4 * i + 1)),
                Span("training", hour * (4 * i + 1), hour * (4 * i + 3)),
            ),
            data_wait_s=0.0,
        )
        for i in range(attempts)
    ]
    down = [Span("down", hour * (4 * i + 3), 4 * hour * (i + 1)) for i in range(attempts - 1)]
    return Goodput(attempts=tuple(made), down=tuple(down), checkpoint_stalls_s=())


@pytest.mark.parametrize("attempts", [1, 3, 2 * MOST_ROWS])
@pytest.mark.parametrize("hour", [1.0, 3600.0])
def test_it_is_a_picture(tmp_path, attempts, hour):
    file = tmp_path / "timeline.png"
    draw_timeline(run_of(attempts, hour=hour), file, title="run")
    assert file.read_bytes().startswith(PNG)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(DataError, match="Pass --out another file"):
        draw_timeline(run_of(1, hour=1.0), tmp_path / "none" / "x.png", title="run")
