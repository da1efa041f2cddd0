# SPDX-License-Identifier: Apache-2.0
"""What a run is told of its data before it starts."""

import pytest

from bt_megatron.config.load import from_mapping
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import DataError
from bt_megatron.training.datasets import open_data, step_reader
from bt_megatron.training.reporter import drawn_metrics
from tests.data_folders import MODEL, make_folder


@pytest.fixture
def run(tmp_path):
    """Return a function that makes a run over two folders, with limits in epochs by name."""
    folders = {
        name: make_folder(tmp_path / name, documents=[[word] * 30] * 40)
        for name, word in (("books", 5), ("code", 6))
    }

    def make(*, steps=10, **limits):
        mixture = {
            name: {"path": str(folder), "weight": 1, "max_epochs": limits.get(name)}
            for name, folder in folders.items()
        }
        data = {"mixture": mixture, "seq_length": 16, "validation_fraction": 0.3}
        body = {
            "name": "x",
            "model": MODEL,
            "data": data,
            "batch": {"global_batch_size": 8},
            "train": {"steps": steps},
        }
        return from_mapping(RunConfig, body, "test")

    return make


def test_limits_that_leave_too_little_are_refused_with_both_numbers(run):
    with pytest.raises(DataError, match=r"leave (\d+) samples to read, .* takes 8000 .*steps=\d+"):
        open_data(run(steps=1000, books=1, code=1), dp_rank=0, dp_size=1)


def test_each_subset_is_told_with_the_step_of_its_limit(run):
    data = open_data(run(steps=60, code=1), dp_rank=0, dp_size=1)
    books, code = data.notes
    size = len(data.training.mixture.subsets[1].dataset)
    assert books.startswith("data: books ")
    assert "max_epochs" not in books
    assert f"{size * 16:,} tokens, 1.00 epochs; at its max_epochs from step " in code
    step = int(code.split("from step ")[1].split()[0])
    assert data.training.drawn(step + 1)["code"].samples == size
    assert data.training.drawn(step - 1)["code"].samples < size


def test_metrics_are_named_by_subset(run):
    data = open_data(run(), dp_rank=0, dp_size=1)
    metrics = drawn_metrics(data.training.drawn(10))
    assert metrics["data/books/tokens"] + metrics["data/code/tokens"] == 10 * 8 * 16
    assert metrics["data/books/share"] == pytest.approx(0.5)
    assert set(metrics) == {
        f"data/{name}/{key}" for name in ("books", "code") for key in ("tokens", "epochs", "share")
    }


def test_a_step_is_read_as_the_configuration_says(run):
    config = run()
    data = open_data(config, dp_rank=0, dp_size=1)
    batches = step_reader(config, data.training, first_step=3)(3).receive()
    assert [b.tokens.tolist() for b in batches] == [
        b.tokens.tolist() for b in data.training.micro_batches(3)
    ]
