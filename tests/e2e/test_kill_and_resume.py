# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and started again is bit for bit the run that was not."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bt_megatron.checkpoint.folder import complete_checkpoints, step_folder
from bt_megatron.config.schema import EmbedderConfig, LayoutConfig, RunConfig
from bt_megatron.observe.goodput import read_goodput
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.training.stop import EXIT_STOPPED
from tests.tiny_run import tiny_model, tiny_run
from tests.training_process import Training, last_step

DROPOUT = EmbedderConfig(
    kind="roberta",
    hidden_size=32,
    num_layers=1,
    num_attention_heads=2,
    ffn_hidden_size=64,
    dropout=0.1,
)
RUNS = {
    "one-process": (1, {}),
    "dropout": (1, {"model": tiny_model(embedder=DROPOUT)}),
    "dp2-sharded-optimizer": (2, {}),
    "tp2-sp": (2, {"layout": LayoutConfig(tp=2, sequence_parallel=True)}),
}


def tensors_of(folder: RunFolder, step: int) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint: weights and optimizer state."""
    reader = FileSystemReader(step_folder(folder.checkpoints, step))
    entries = reader.read_metadata().state_dict_metadata.items()
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def losses_of(folder: RunFolder) -> dict[tuple[str, int], float]:
    records = read_records(folder.metrics)
    names = {"step": "train/loss", "evaluation": "validation/loss"}
    return {(r["kind"], r["step"]): r[names[r["kind"]]] for r in records}


def assert_same_end(one: RunFolder, other: RunFolder, *, step: int) -> None:
    expected, got = tensors_of(one, step), tensors_of(other, step)
    assert expected.keys() == got.keys()
    assert any(key.startswith("optimizer.") for key in expected)
    for key, tensor in expected.items():
        assert torch.equal(tensor, got[key]), key
    assert losses_of(one) == losses_of(other)


def run_to_the_end(config: RunConfig, folder: Path, *, world_size: int) -> RunFolder:
    training = Training(config, folder, world_size=world_size)
    assert training.wait() == [0] * world_size, training.output
    return training.folder


@pytest.mark.parametrize("name", RUNS)
def test_killed_run_ends_like_the_undisturbed_one(
    name: str, tiny_data: Path, tmp_path: Path
) -> None:
    world_size, changes = RUNS[name]
    config = tiny_run(tiny_data, tmp_path / "killed", **changes)
    undisturbed = replace(config, runs_dir=str(tmp_path / "undisturbed"))
    expected = run_to_the_end(undisturbed, tmp_path, world_size=world_size)

    training = Training(config, tmp_path / "logs", world_size=world_size)
    training.wait_until(lambda: last_step(training.folder) >= 12)
    training.signal(signal.SIGKILL)
    assert training.wait() == [-signal.SIGKILL] * world_size
    assert list(complete_checkpoints(training.folder.checkpoints))
    assert not step_folder(training.folder.checkpoints, 20).exists()

    resumed = Training(config, tmp_path / "logs", world_size=world_size)
    assert resumed.wait() == [0] * world_size, resumed.output
    assert "resumed at step" in resumed.output
    assert_same_end(expected, resumed.folder, step=20)
    assert_time_is_accounted_for(resumed.folder)


def assert_time_is_accounted_for(folder: RunFolder) -> None:
    """Check goodput where it must hold for every run that was killed and resumed once."""
    goodput = read_goodput(folder)
    assert [attempt.ended for attempt in goodput.attempts] == ["killed", "complete"]
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.total_s)
    assert all(seconds >= 0 for seconds in goodput.seconds.values())
    assert goodput.seconds["repeated"] > 0, "the kill came after a step that no checkpoint holds"
    assert 0 < goodput.fraction < 1
    assert len(goodput.checkpoint_stalls_s) >= 4


def test_stopped_run_saves_and_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_data, tmp_path / "stopped")
    expected = run_to_the_end(
        replace(config, runs_dir=str(tmp_path / "undisturbed")), tmp_path, world_size=2
    )
    training = Training(config, tmp_path / "logs", world_size=2)
    training.wait_until(lambda: last_step(training.folder) >= 7)
    os.kill(training.pids[1], signal.SIGTERM)  # one rank is asked, all stop at the same step
    assert training.wait() == [EXIT_STOPPED] * 2, training.output
    stopped_at = last_step(training.folder)
    assert 7 <= stopped_at < 20
    assert step_folder(training.folder.checkpoints, stopped_at).exists()

    resumed = Training(config, tmp_path / "logs", world_size=2)
    assert resumed.wait() == [0, 0], resumed.output
    assert f"resumed at step {stopped_at} of 20" in resumed.output
    assert_same_end(expected, resumed.folder, step=20)


@pytest.mark.parametrize("fault", ["truncated", "altered", "missing", "manifest"])
def test_damaged_checkpoint_is_named_and_the_one_before_used(
    fault: str, tiny_data: Path, tmp_path: Path
) -> None:
    config = tiny_run(tiny_data, tmp_path / "runs")
    folder = run_to_the_end(config, tmp_path, world_size=1)
    newest = step_folder(folder.checkpoints, 20)
    victim = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    if fault == "manifest":
        victim = newest / "manifest.json"
    content = bytearray(victim.read_bytes())
    if fault == "missing":
        victim.unlink()
    elif fault == "altered":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[: len(content) // 2])

    expected = losses_of(folder)
    resumed = Training(config, tmp_path / "logs")
    assert resumed.wait() == [0], resumed.output
    assert f"damaged checkpoint passed over: {victim}" in resumed.output
    assert "resumed at step 15 of 20" in resumed.output
    assert losses_of(resumed.folder) == expected


def test_finished_run_is_left_alone(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_data, tmp_path / "runs")
    folder = run_to_the_end(config, tmp_path, world_size=1)
    before = losses_of(folder)
    again = Training(config, tmp_path / "logs")
    assert again.wait() == [0], again.output
    assert "complete at step 20 of 20" in again.output
    assert losses_of(folder) == before


def test_another_model_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_data, tmp_path / "runs")
    run_to_the_end(config, tmp_path, world_size=1)
    changed = replace(config, optimizer=replace(config.optimizer, lr=1e-3))
    refused = Training(changed, tmp_path / "logs")
    assert refused.wait() == [2]
    assert "optimizer.lr: saved 0.003, now 0.001" in refused.output
    assert "Traceback" not in refused.output
