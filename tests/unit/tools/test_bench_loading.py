# SPDX-License-Identifier: Apache-2.0
"""The benchmark of loading reads the same batches in every way, and writes its rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.device_copy import SentBatches
from tools import bench_loading


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loading, "SEQ_LENGTH", 32)
    monkeypatch.setattr(bench_loading, "MEAN_TOKENS", 40)
    monkeypatch.setattr(bench_loading, "INDEX_MEAN_TOKENS", 8)
    monkeypatch.setattr(bench_loading, "WORKERS", (0, 1))


def _tokens(steps: list[SentBatches]) -> list[np.ndarray]:
    return [torch.stack([b.tokens for b in sent.receive()]).cpu().numpy() for sent in steps]


def test_every_way_reads_the_same(tmp_path: Path) -> None:
    corpus = bench_loading.make_corpus(tmp_path / "x", documents=300, mean_tokens=40)
    dataset = PackedDataset(corpus, config=bench_loading._data(tmp_path), block_length=4)
    ways = bench_loading.loaders(bench_loading._training(dataset), steps=3)
    read = {name: _tokens(list(way())) for name, way in ways.items()}
    assert {"memmap", "dataloader 0", "dataloader 1"} <= set(read)
    for name, steps in read.items():
        assert len(steps) == 3
        for ours, theirs in zip(steps, read["memmap"], strict=True):
            assert np.array_equal(ours, theirs), name


def test_rows_are_written(tmp_path: Path) -> None:
    out = tmp_path / "loading.json"
    sizes = ["--documents", "300", "--index-documents", "2000", "--steps", "2", "--repeats", "2"]
    assert bench_loading.main([*sizes, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {"data/load/memmap", "data/load/dataloader", "data/index", "data/start"} <= {
        row["case"] for row in rows
    }
    assert all(row["value"] > 0 for row in rows)
    assert all(len(row["detail"]["repeats"]) == 2 for row in rows if "load/" in row["case"])
