# SPDX-License-Identifier: Apache-2.0
"""A mixture reads its datasets in their shares, resumes anywhere, and counts what it reads."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from bt_megatron.config.schema import BatchConfig, DataConfig
from bt_megatron.data.batches import TrainingBatches
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.mixture import InterleavedSamples, Mixture, Subset
from bt_megatron.errors import DataError

CONFIG = DataConfig(path="x", seq_length=16, validation_fraction=0.2, random_left_padding=False)
SIZES = {"books": (1, 700), "code": (1000, 200), "web": (2000, 900)}
"""First token and number of tokens: no token is in two subsets."""
WEIGHTS = {"books": 0.2, "code": 0.5, "web": 0.3}


@pytest.fixture(scope="module")
def subsets(make_corpus):
    made = {}
    for split in ("train", "validation"):
        made[split] = []
        for name, (first, size) in SIZES.items():
            corpus = make_corpus(np.split(np.arange(first, first + size), range(20, size, 20)))
            dataset = PackedDataset(corpus, config=CONFIG, block_length=4, split=split)
            made[split].append(Subset(name=name, dataset=dataset, weight=WEIGHTS[name]))
    return made


def changed(subsets, subset, **changes):
    return [dataclasses.replace(s, **changes) if s.name == subset else s for s in subsets]


def batches(mixture, *, dp_rank=0, dp_size=1):
    config = BatchConfig(global_batch_size=12, micro_batch_size=2)
    return TrainingBatches(mixture, batch=config, dp_rank=dp_rank, dp_size=dp_size, target_shift=4)


def owner(token):
    (name,) = [name for name, (first, size) in SIZES.items() if first <= token < first + size]
    return name


def read_owners(rank, step):
    """Name the subset of each sample that is really read."""
    rows = [row for batch in rank.micro_batches(step) for row in batch.tokens.tolist()]
    return [owner(next(token for token in row if token)) for row in rows]


@pytest.mark.parametrize("limits", [{}, {"code": 1.0}], ids=["free", "limited"])
def test_what_is_said_to_be_drawn_is_what_is_read(subsets, limits):
    parts = subsets["train"]
    for name, epochs in limits.items():
        parts = changed(parts, name, max_epochs=epochs)
    reader = batches(Mixture(parts, seed=3))
    read = Counter()
    for step in range(20):
        drawn = reader.drawn(step)
        assert {name: d.samples for name, d in drawn.items()} == {n: read[n] for n in WEIGHTS}
        read.update(read_owners(reader, step))
    sizes = {s.name: len(s.dataset) for s in parts}
    for name, amount in reader.drawn(20).items():
        assert amount.tokens == 16 * amount.samples
        assert amount.epochs == pytest.approx(read[name] / sizes[name])
        assert amount.share == pytest.approx(read[name] / 240)
    if limits:
        assert read["code"] == sizes["code"]


@pytest.mark.parametrize("dp_size", [2, 3])
def test_ranks_together_read_what_one_reads(subsets, dp_size):
    mixture = Mixture(subsets["train"], seed=3)
    ranks = [batches(mixture, dp_rank=r, dp_size=dp_size) for r in range(dp_size)]
    for step in (0, 5, 10**7):
        shared = [rank.micro_batches(step) for rank in ranks]
        together = [b.tokens.tolist() for row in zip(*shared, strict=True) for b in row]
        assert together == [b.tokens.tolist() for b in batches(mixture).micro_batches(step)]


def test_every_step_holds_the_shares(subsets):
    reader = batches(Mixture(subsets["train"], seed=3))
    for step in range(10):
        counts = Counter(read_owners(reader, step))
        assert all(abs(counts[name] - 12 * weight) <= 2 for name, weight in WEIGHTS.items())


def test_an_epoch_of_a_subset_is_every_sample_of_it_once(subsets):
    mixture = Mixture(subsets["train"], seed=3)
    located = mixture.locate(np.arange(2000))
    for i, subset in enumerate(mixture.subsets):
        samples = located.place[located.source == i]
        size = len(subset.dataset)
        for start in range(0, len(samples) - size, size):
            assert sorted(samples[start : start + size]) == list(range(size))


def test_the_order_of_names_does_not_matter(subsets):
    one, other = (Mixture(s, seed=3) for s in (subsets["train"], subsets["train"][::-1]))
    assert one.fingerprint == other.fingerprint
    assert one.locate(np.arange(50)).place.tolist() == other.locate(np.arange(50)).place.tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: changed(parts, "code", weight=0.4),
        lambda parts: changed(parts, "code", max_epochs=2),
        lambda parts: parts[:2],
    ],
    ids=["weight", "limit", "subset"],
)
def test_fingerprint_depends_on(subsets, change):
    parts = subsets["train"]
    assert Mixture(parts, seed=3).fingerprint != Mixture(change(parts), seed=3).fingerprint


def test_a_single_dataset_keeps_its_own_fingerprint(subsets):
    dataset = subsets["train"][0].dataset
    assert Mixture.of(dataset, seed=3).fingerprint == dataset.fingerprint
    assert Mixture.of(dataset, seed=3, order="stored").fingerprint != dataset.fingerprint


def test_stored_order_reads_samples_as_they_lie(subsets):
    dataset = subsets["train"][0].dataset
    located = Mixture.of(dataset, seed=3, order="stored").locate(np.arange(len(dataset) + 2))
    assert located.place.tolist() == [*range(len(dataset)), 0, 1]


def test_validation_reads_every_sample_once_and_the_shares_first(subsets):
    samples = InterleavedSamples(subsets["validation"])
    rows = [tuple(samples[i].tokens.tolist()) for i in range(len(samples))]
    each = [s.dataset[i] for s in subsets["validation"] for i in range(len(s.dataset))]
    assert sorted(rows) == sorted(tuple(sample.tokens.tolist()) for sample in each)
    first = Counter(owner(next(t for t in row if t)) for row in rows[:6])
    assert set(first) == set(WEIGHTS)
    with pytest.raises(IndexError):
        samples[len(samples)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1e-8}, r"data.mixture.code.weight - 1e-08 of .* less than 1e-06"),
        ({"max_epochs": 1e-6}, r"code.max_epochs - 1e-06 x \d+ samples are not one sample"),
        ({"name": "again"}, r"data.mixture.code.path - holds the same documents as .*again"),
    ],
    ids=["share", "limit", "twice"],
)
def test_what_cannot_be_meant_is_refused(subsets, change, message):
    parts = changed(subsets["train"], "code", **change)
    if "name" in change:
        parts = [*parts, *[s for s in subsets["train"] if s.name == "code"]]
    with pytest.raises(DataError, match=message):
        Mixture(parts, seed=3)
