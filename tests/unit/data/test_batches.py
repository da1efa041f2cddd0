# SPDX-License-Identifier: Apache-2.0
"""Batches: targets, the same samples for any number of ranks, and resuming."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bt_megatron.config.schema import BatchConfig, DataConfig
from bt_megatron.data.batches import (
    MicroBatch,
    TrainingBatches,
    ValidationBatches,
    build_micro_batch,
)
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.mixture import Mixture
from bt_megatron.data.order import sample_of_position
from bt_megatron.errors import LayoutError

CONFIG = DataConfig(path="data/books", seq_length=32, validation_fraction=0.1)


@pytest.fixture(scope="module")
def dataset(numbered_corpus):
    return PackedDataset(numbered_corpus, config=CONFIG, block_length=4)


@pytest.fixture(scope="module")
def validation(numbered_corpus):
    return PackedDataset(numbered_corpus, config=CONFIG, block_length=4, split="validation")


def _training(dataset, *, dp_rank=0, dp_size=1, global_size=8, micro_size=2, seed=42):
    return TrainingBatches(
        Mixture.of(dataset, seed=seed),
        batch=BatchConfig(global_batch_size=global_size, micro_batch_size=micro_size),
        dp_rank=dp_rank,
        dp_size=dp_size,
        target_shift=4,
    )


def _equal(one: MicroBatch, other: MicroBatch) -> bool:
    return all(
        torch.equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(MicroBatch)
    )


@pytest.mark.parametrize(
    ("shift", "targets", "counted"),
    [
        pytest.param(1, [5, 6, 0, 0, 7, 8, 0, 0], [1, 1, 1, 0, 1, 1, 1, 0], id="vanilla"),
        pytest.param(4, [0, 7, 8, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0], id="block"),
    ],
)
def test_targets_are_the_tokens_ahead(shift, targets, counted):
    """Token 0 is EOS at slots 3 and 7 and a pad at slot 4; an EOS counts, a pad does not."""
    tokens = np.array([4, 5, 6, 0, 0, 7, 8, 0])
    batch = build_micro_batch(
        torch.from_numpy(tokens[None]), torch.arange(8)[None] != 4, target_shift=shift
    )
    assert batch.tokens.tolist() == [tokens.tolist()]
    assert batch.targets.tolist() == [targets]
    expected = [bool(c) for c in counted]
    if shift == 1:
        expected[3] = False  # its target is the pad
    assert batch.target_mask.tolist() == [expected]
    assert batch.num_targets == sum(expected)


def test_tensors_have_the_promised_types(dataset):
    (batch,) = _training(dataset, global_size=3, micro_size=3).micro_batches(0)
    kinds = {f.name: getattr(batch, f.name).dtype for f in dataclasses.fields(MicroBatch)}
    assert kinds == {
        "tokens": torch.int64,
        "mask": torch.bool,
        "targets": torch.int64,
        "target_mask": torch.bool,
    }
    assert {getattr(batch, name).shape for name in kinds} == {torch.Size([3, 32])}


def test_a_step_reads_its_positions_in_order(dataset):
    batches = _training(dataset, seed=5)
    expected = sample_of_position(
        np.arange(24, 32), num_samples=len(dataset), seed=5, fingerprint=dataset.fingerprint
    )
    rows = [row for batch in batches.micro_batches(3) for row in batch.tokens]
    assert len(rows) == 8
    for row, index in zip(rows, expected, strict=True):
        assert row.tolist() == dataset[int(index)].tokens.tolist()


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_ranks_together_read_the_same_micro_batches(dataset, dp_size):
    """Micro-batch m of rank r is micro-batch m * dp_size + r of one rank."""
    alone = _training(dataset)
    ranks = [_training(dataset, dp_rank=r, dp_size=dp_size) for r in range(dp_size)]
    for step in (0, 1, 7, 1_000):
        shared = [rank.micro_batches(step) for rank in ranks]
        together = [batch for row in zip(*shared, strict=True) for batch in row]
        expected = alone.micro_batches(step)
        assert len(together) == len(expected) == 4
        assert all(map(_equal, together, expected))


@given(
    dp_size=st.sampled_from([1, 2, 3, 4]),
    micro_size=st.integers(1, 3),
    num_micro=st.integers(1, 4),
    step=st.integers(0, 10**9),
)
def test_ranks_together_cover_the_positions_of_a_step(
    dataset, dp_size, micro_size, num_micro, step
):
    size = dp_size * micro_size * num_micro
    positions = [
        _training(
            dataset, dp_rank=r, dp_size=dp_size, global_size=size, micro_size=micro_size
        ).positions(step)
        for r in range(dp_size)
    ]
    assert {p.shape for p in positions} == {(num_micro, micro_size)}
    assert sorted(np.concatenate(positions).ravel()) == [*range(step * size, (step + 1) * size)]


def test_an_epoch_reads_every_sample_once(dataset):
    size = 4
    num_steps = -(-len(dataset) // size)
    batches = _training(dataset, global_size=size, micro_size=size)
    read = np.concatenate([batches.samples(step).place.ravel() for step in range(num_steps)])
    assert sorted(read[: len(dataset)]) == [*range(len(dataset))]


def test_resuming_equals_the_uninterrupted_stream(dataset):
    stream = [batch for step in range(12) for batch in _training(dataset).micro_batches(step)]
    resumed = [batch for step in range(7, 12) for batch in _training(dataset).micro_batches(step)]
    assert all(map(_equal, stream[7 * 4 :], resumed))


def test_reading_draws_no_random_numbers(dataset):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    _training(dataset).micro_batches(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]


def test_batch_that_ranks_cannot_share_is_refused_with_a_remedy(dataset):
    with pytest.raises(LayoutError, match=r"8 sequences.*\(2\).*\(3\) = 6 .* to 12"):
        _training(dataset, dp_size=3)


def _validation(dataset, *, dp_rank=0, dp_size=1, size=3, max_sequences=None):
    return ValidationBatches(
        dataset,
        max_sequences=max_sequences,
        micro_batch_size=size,
        dp_rank=dp_rank,
        dp_size=dp_size,
        target_shift=4,
    )


@pytest.mark.parametrize("max_sequences", [1, 7, 12, None, 10**6])
@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_each_validation_sample_counts_once_over_all_ranks(validation, dp_size, max_sequences):
    ranks = [
        _validation(validation, dp_rank=r, dp_size=dp_size, max_sequences=max_sequences)
        for r in range(dp_size)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(rank) for rank in ranks} == {len(rows) for rows in batches}
    assert len({len(rows) for rows in batches}) == 1
    assert {tuple(batch.tokens.shape) for rows in batches for batch in rows} == {(3, 32)}

    counted = [
        tuple(tokens.tolist())
        for row in zip(*batches, strict=True)
        for batch in row
        for tokens, mask in zip(batch.tokens, batch.target_mask, strict=True)
        if mask.any()
    ]
    num_samples = min(max_sequences or len(validation), len(validation))
    assert counted == [tuple(validation[i].tokens.tolist()) for i in range(num_samples)]


def test_fill_of_the_last_validation_batch_has_something_to_attend_to(validation):
    """Sequences of pads alone would leave attention without a key."""
    (last,) = list(_validation(validation, max_sequences=2))
    assert last.mask.view(3, -1, 4).any(dim=2).all()
    assert not last.target_mask[2].any()
    assert last.num_targets == int(last.target_mask[:2].sum()) > 0


def test_moving_keeps_every_tensor(dataset):
    (batch,) = _training(dataset, global_size=2).micro_batches(0)
    assert _equal(batch.to("cpu"), batch)
    assert batch.to("meta").targets.device.type == "meta"
