# SPDX-License-Identifier: Apache-2.0
"""What a user meets at the command line: wrong input, locks, divergence, given weights, moves."""

import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from bt_megatron.checkpoint.folder import complete_checkpoints
from bt_megatron.checkpoint.manifest import find_damage, read_manifest
from bt_megatron.checkpoint.weights import read_weights, write_weights
from bt_megatron.config.load import to_mapping
from bt_megatron.config.schema import (
    CheckpointConfig,
    DataConfig,
    LayoutConfig,
    OptimizerConfig,
    SubsetConfig,
    TrainConfig,
)
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.drop_list import DropList, save_drop_list
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.training.stop import EXIT_STOPPED
from data_prep.__main__ import main as data_prep
from tests.tiny_run import tiny_model, tiny_run
from tests.training_process import Training, last_step


def values(folder: RunFolder, name: str) -> dict[int, float]:
    return {r["step"]: r[name] for r in read_records(folder.metrics) if name in r}


def test_wrong_configuration_is_told_at_once_without_a_traceback(tmp_path: Path) -> None:
    mapping = to_mapping(tiny_run(tmp_path, tmp_path))
    mapping["layout"]["tpp"] = 2
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(mapping))
    command = [sys.executable, "-m", "bt_megatron", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "layout.tpp" in done.stderr
    assert "Did you mean 'tp'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "tiny").exists()


def test_missing_data_names_the_command_that_makes_it(tmp_path: Path) -> None:
    training = Training(tiny_run(tmp_path / "absent", tmp_path / "runs"), tmp_path)
    assert training.wait() == [4]
    assert "data_prep tokenize" in training.output
    assert "Traceback" not in training.output


def test_data_of_a_larger_vocabulary_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_data, tmp_path / "runs", model=tiny_model(vocab_size=500))
    training = Training(config, tmp_path)
    assert training.wait() == [4]
    assert "model.vocab_size=512" in training.output


def test_a_second_training_in_the_same_folder_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_data, tmp_path / "runs")
    first = Training(config, tmp_path / "first")
    first.wait_until(lambda: last_step(first.folder) >= 2)
    second = Training(config, tmp_path / "second")
    assert second.wait() == [10]
    assert "another process is training in this folder" in second.output
    assert first.wait() == [0], first.output


def test_divergence_ends_the_run_and_leaves_the_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(
        tiny_data,
        tmp_path / "runs",
        optimizer=OptimizerConfig(lr=1e30, warmup_steps=9),
        checkpoint=CheckpointConfig(interval_steps=1, async_save=False),
    )
    training = Training(config, tmp_path)
    assert training.wait() == [9], training.output
    assert "error: step" in training.output
    assert "optimizer.lr" in training.output
    assert "Traceback" not in training.output
    assert list(complete_checkpoints(training.folder.checkpoints))


@pytest.mark.parametrize("async_save", [True, False], ids=["async", "sync"])
def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(
    async_save: bool, tiny_data: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        tiny_data,
        tmp_path / "runs",
        checkpoint=CheckpointConfig(interval_steps=5, async_save=async_save),
        train=TrainConfig(steps=200, precision="fp32"),
    )
    training = Training(config, tmp_path)
    checkpoints = training.folder.checkpoints
    training.wait_until(lambda: next(complete_checkpoints(checkpoints), None))
    limit = (100_000, 100_000)  # bytes of a file: what a full disk looks like to a writer
    resource.prlimit(training.pids[0], resource.RLIMIT_FSIZE, limit)
    assert training.wait() == [5], training.output
    assert "could not be written" in training.output
    assert "Traceback" not in training.output.split("error:")[-1]
    newest = next(complete_checkpoints(checkpoints))
    manifest = read_manifest(newest)
    assert find_damage(newest, manifest, manifest.files) == []


def test_given_weights_are_where_the_run_starts(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_data, tmp_path / "runs")
    first = Training(config, tmp_path)
    assert first.wait() == [0], first.output
    weights, model, info = read_weights(first.folder.path)
    assert info["step"] == 20
    write_weights(tmp_path / "weights", weights, model, info=info)

    start = CheckpointConfig(initialize_from=str(tmp_path / "weights"))
    one_step = replace(  # the first step of a warm-up has rate 0
        config, name="second", checkpoint=start, train=replace(config.train, steps=5)
    )
    one_step = replace(one_step, evaluation=replace(config.evaluation, interval_steps=1))
    second = Training(one_step, tmp_path)
    assert second.wait() == [0], second.output
    expected = values(first.folder, "validation/loss")[20]
    assert values(second.folder, "validation/loss")[1] == expected


def test_weights_of_another_model_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_data, tmp_path / "runs", train=TrainConfig(steps=5, precision="fp32"))
    first = Training(config, tmp_path)
    assert first.wait() == [0], first.output
    decoder = replace(config.model.block_decoder, num_attention_heads=8)
    start = CheckpointConfig(initialize_from=str(first.folder.path))
    other = replace(config, name="other", checkpoint=start, model=tiny_model(block_decoder=decoder))
    second = Training(other, tmp_path)
    assert second.wait() == [6]
    assert "block_decoder.num_attention_heads 4 -> 8" in second.output


MOVES = {
    "tp2-sp-to-pp2": ((2, LayoutConfig(tp=2, sequence_parallel=True)), (2, LayoutConfig(pp=2))),
    "dp2-to-one": ((2, LayoutConfig()), (1, LayoutConfig(distributed_optimizer=True))),
    "pp2-to-dp2": ((2, LayoutConfig(pp=2)), (2, LayoutConfig())),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_run_goes_on_in_another_layout(name: str, tiny_data: Path, tmp_path: Path) -> None:
    (world_before, before), (world_after, after) = MOVES[name]
    # A vocabulary that tp = 2 pads: the padding must not travel.
    config = tiny_run(tiny_data, tmp_path / "runs", model=tiny_model(vocab_size=513))
    undisturbed = Training(replace(config, runs_dir=str(tmp_path / "one")), tmp_path)
    assert undisturbed.wait() == [0], undisturbed.output

    first = Training(replace(config, layout=before), tmp_path / "a", world_size=world_before)
    first.wait_until(lambda: last_step(first.folder) >= 7)
    first.signal(signal.SIGTERM)
    assert first.wait() == [EXIT_STOPPED] * world_before, first.output

    second = Training(replace(config, layout=after), tmp_path / "b", world_size=world_after)
    assert second.wait() == [0] * world_after, second.output
    for metric in ("train/loss", "validation/loss"):
        expected = values(undisturbed.folder, metric)
        assert values(second.folder, metric) == pytest.approx(expected, rel=1e-5)


def mixture_of_halves(data: Path, folder: Path) -> DataConfig:
    """Mix the even documents of a folder with the odd ones, and save the index of one half."""
    corpus = TokenCorpus.open(data)
    subsets = {}
    for remainder, name in enumerate(("even", "odd")):
        path = folder / f"{name}.npz"
        others = np.arange(1 - remainder, corpus.num_documents, 2)
        save_drop_list(DropList(others, corpus.fingerprint), path)
        limit = 1.5 if name == "odd" else None
        subsets[name] = SubsetConfig(
            path=str(data), weight=3 - remainder, drop=str(path), max_epochs=limit
        )
    return DataConfig(
        mixture=subsets,
        seq_length=64,
        validation_fraction=0.2,
        index_dir=str(folder / "indices"),
    )


def test_a_mixture_goes_on_anywhere_and_counts_what_it_read(
    tiny_data: Path, tmp_path: Path
) -> None:
    data = mixture_of_halves(tiny_data, tmp_path)
    config = replace(tiny_run(tiny_data, tmp_path / "runs"), data=data)
    undisturbed = Training(replace(config, runs_dir=str(tmp_path / "one")), tmp_path)
    assert undisturbed.wait() == [0], undisturbed.output
    assert "data: odd" in undisturbed.output

    first = Training(config, tmp_path / "a", world_size=2)
    first.wait_until(lambda: last_step(first.folder) >= 7)
    first.signal(signal.SIGTERM)
    assert first.wait() == [EXIT_STOPPED] * 2, first.output
    assert data_prep(["index", str(tmp_path / "a" / "tiny.yaml")]) == 0  # from now on mapped

    second = Training(config, tmp_path / "b")
    assert second.wait() == [0], second.output
    expected = values(undisturbed.folder, "train/loss")
    assert values(second.folder, "train/loss") == pytest.approx(expected, rel=1e-5)
    shares = {name: values(second.folder, f"data/{name}/share") for name in ("even", "odd")}
    tokens = {name: values(second.folder, f"data/{name}/tokens") for name in ("even", "odd")}
    for step in range(1, 21):
        assert tokens["even"][step] + tokens["odd"][step] == 4 * 64 * step
        assert shares["even"][step] == pytest.approx(0.6, abs=2 / (4 * step))
    assert values(second.folder, "data/odd/epochs")[20] > 0


def test_dali_trains_like_the_memory_map(tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install .[gpu]")
    config = tiny_run(tiny_data, tmp_path / "memmap")
    plain = Training(config, tmp_path)
    assert plain.wait() == [0], plain.output

    data = replace(config.data, loader="dali")
    other = replace(config, runs_dir=str(tmp_path / "dali"), data=data)
    first = Training(other, tmp_path / "a")
    first.wait_until(lambda: last_step(first.folder) >= 7)
    first.signal(signal.SIGTERM)
    assert first.wait() == [EXIT_STOPPED], first.output
    second = Training(other, tmp_path / "b")
    assert second.wait() == [0], second.output
    for metric in ("train/loss", "validation/loss"):
        assert values(second.folder, metric) == values(plain.folder, metric)
