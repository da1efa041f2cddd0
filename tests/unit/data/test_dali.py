# SPDX-License-Identifier: Apache-2.0
"""DALI gives the batches that reading them does, from any step on."""

import dataclasses
import sys

import pytest
import torch

from bt_megatron.config.schema import BatchConfig, DataConfig
from bt_megatron.data.batches import MicroBatch, TrainingBatches
from bt_megatron.data.dali import DaliSteps
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.mixture import Mixture, Subset
from bt_megatron.data.prefetch import PrefetchedBatches
from bt_megatron.errors import DataError

CONFIG = DataConfig(path="data/books", seq_length=32, validation_fraction=0.1)


def needs_dali():
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install .[gpu]")


@pytest.fixture(scope="module")
def mixture(numbered_corpus, make_corpus):
    other = make_corpus([range(20_000 + 40 * i, 20_040 + 40 * i) for i in range(100)])
    parts = [
        Subset(
            name=name,
            dataset=PackedDataset(corpus, config=CONFIG, block_length=4),
            weight=weight,
        )
        for name, corpus, weight in (("a", numbered_corpus, 0.7), ("b", other, 0.3))
    ]
    return Mixture(parts, seed=3)


def batches(mixture, *, dp_rank=0, dp_size=1, shift=4):
    config = BatchConfig(global_batch_size=12, micro_batch_size=3)
    return TrainingBatches(
        mixture, batch=config, dp_rank=dp_rank, dp_size=dp_size, target_shift=shift
    )


def assert_equal(one: list[MicroBatch], other: list[MicroBatch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for field in dataclasses.fields(MicroBatch):
            ours, theirs = getattr(left, field.name), getattr(right, field.name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), field.name


@pytest.mark.parametrize("first_step", [0, 7, 10**6])
@pytest.mark.parametrize(("dp_rank", "dp_size"), [(0, 1), (1, 2)])
def test_batches_are_the_same_from_any_step_on(mixture, first_step, dp_rank, dp_size):
    needs_dali()
    reader = batches(mixture, dp_rank=dp_rank, dp_size=dp_size)
    steps = DaliSteps(reader, first_step=first_step)
    read = [
        steps.read(first_step + i).receive() for i in range(5)
    ]  # kept: none may be written over
    for i, got in enumerate(read):
        assert_equal(got, reader.micro_batches(first_step + i))


def test_a_pipeline_that_is_built_anew_goes_on_where_another_stopped(mixture):
    needs_dali()
    reader = batches(mixture, shift=1)
    whole = DaliSteps(reader, first_step=0)
    expected = [whole.read(step).receive() for step in range(8)]
    resumed = DaliSteps(reader, first_step=5)
    for step in range(5, 8):
        assert_equal(resumed.read(step).receive(), expected[step])


def test_reading_ahead_gives_the_same(mixture):
    needs_dali()
    reader = batches(mixture)
    with PrefetchedBatches(DaliSteps(reader, first_step=3).read, first_step=3) as ahead:
        for step in range(3, 9):
            assert_equal(next(ahead).receive(), reader.micro_batches(step))


def test_an_error_comes_up_at_its_step(mixture, monkeypatch):
    needs_dali()
    reader = batches(mixture)
    whole = reader.read

    def torn(step):
        if step == 4:
            raise DataError("shard.bin - cannot be read")
        return whole(step)

    monkeypatch.setattr(reader, "read", torn)
    with PrefetchedBatches(DaliSteps(reader, first_step=2).read, first_step=2) as ahead:
        next(ahead)
        next(ahead)
        with pytest.raises(DataError, match=r"step 4: shard\.bin"):
            next(ahead)


def test_without_dali_the_remedy_is_told(mixture, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(DataError, match=r"data\.loader - is dali.*\[gpu\].*data\.loader=memmap"):
        DaliSteps(batches(mixture), first_step=0)
