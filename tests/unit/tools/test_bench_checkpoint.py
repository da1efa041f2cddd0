# SPDX-License-Identifier: Apache-2.0
"""The benchmark of checkpoints, with a model of a few thousand weights on CPU."""

import json

from tests.ranks import run_ranks
from tools.bench_checkpoint import main

TINY = (
    "block-33m:train.precision=fp32,data.seq_length=32,model.vocab_size=64,"
    "model.embedder.hidden_size=16,model.block_decoder.hidden_size=64,model.block_decoder.num_layers=1,"
    "model.token_decoder.hidden_size=64,model.token_decoder.num_layers=1"
)


def test_every_checkpoint_is_measured(tmp_path):
    file, folder = tmp_path / "checkpoint.json", tmp_path / "saved"
    folder.mkdir()
    options = ["--saves", "2", "--steps", "2", "--folder", str(folder), "--benchmark", str(file)]
    assert run_ranks(main, 1, [TINY, *options]) == [0]

    (row,) = json.loads(file.read_text())["rows"]
    assert (row["case"], row["metric"], row["unit"]) == ("checkpoint/stall", "seconds", "s")
    detail = row["detail"]
    assert len(detail["stalls_s"]) == len(detail["counted_s"]) == 2
    assert all(
        0 < counted < done
        for counted, done in zip(detail["counted_s"], detail["complete_s"], strict=True)
    )
    assert detail["size_gib"] > 0
    assert list(folder.iterdir()) == [], "nothing is left"


def test_an_unknown_model_is_refused(capfd):
    assert run_ranks(main, 1, ["block-33n"]) == [2]
    assert "block-33n: not a model" in capfd.readouterr().err
