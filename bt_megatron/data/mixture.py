# SPDX-License-Identifier: Apache-2.0
"""The samples of one or several datasets, by position of training.

Which dataset a position reads is an `Interleaving`; the samples of each dataset
come in an order of their own (`order.py`), a new permutation each epoch. Both
are pure functions, so a mixture resumes in O(1) and does not depend on the
number of processes. Weights are shares of tokens: every sample has the same
length.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.interleave import SMALLEST_SHARE, Interleaving, Located
from bt_megatron.data.order import sample_of_position
from bt_megatron.data.packing import Sample
from bt_megatron.errors import DataError

Order = Literal["shuffled", "stored"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """A dataset and its part in a mixture."""

    name: str
    dataset: PackedDataset
    weight: float = 1.0
    """Its share of the tokens, relative to the other weights."""
    max_epochs: float | None = None
    """How often its samples are read at most."""

    @property
    def limit(self) -> int | None:
        """Samples that may be read."""
        if self.max_epochs is None:
            return None
        return int(self.max_epochs * len(self.dataset))


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What has been read of a subset up to a position."""

    samples: int
    tokens: int
    """Slots of these samples, EOS and pads included."""
    epochs: float
    """Times that all its samples have been read."""
    share: float
    """Of all samples read."""


class Mixture:
    """The samples that a run reads, by position.

    Attributes:
        subsets: the datasets, ordered by name.
        fingerprint: names the samples and their order, but for the seed; of a
            single dataset, the dataset's own.
    """

    def __init__(self, subsets: Sequence[Subset], *, seed: int, order: Order = "shuffled") -> None:
        """Set shares and limits.

        Args:
            subsets: at least one.
            seed: seed of the order (data.seed).
            order: shuffled, or as the samples lie on disk.

        Raises:
            DataError: two subsets are the same data, a share is too small, or a limit leaves
                nothing to read.
        """
        self.subsets = tuple(sorted(subsets, key=lambda subset: subset.name))
        self._seed = seed
        self._order = order
        _check(self.subsets)
        self._interleaving = Interleaving(
            [subset.weight for subset in self.subsets], [subset.limit for subset in self.subsets]
        )
        self.fingerprint = self._fingerprint()

    @classmethod
    def of(cls, dataset: PackedDataset, *, seed: int, order: Order = "shuffled") -> "Mixture":
        """Make a mixture of one dataset."""
        return cls([Subset(name="all", dataset=dataset)], seed=seed, order=order)

    @property
    def sample_length(self) -> int:
        """s, tokens of a sample."""
        return self.subsets[0].dataset.sample_length

    @property
    def capacity(self) -> int | None:
        """Samples that can be read before all subsets have reached their limits; None: any."""
        return self._interleaving.capacity

    def locate(self, positions: NDArray[np.int64]) -> Located:
        """Find which sample of which subset positions read.

        Args:
            positions: [...] from 0, below `capacity`.

        Returns:
            The subset and the sample in it, [...].
        """
        located = self._interleaving.locate(positions)
        samples = np.empty_like(located.place)
        for i, subset in enumerate(self.subsets):
            chosen = located.source == i
            if chosen.any():
                samples[chosen] = self._samples_of(subset.dataset, located.place[chosen])
        return Located(located.source, samples)

    def _samples_of(self, dataset: PackedDataset, places: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._order == "stored":
            return places % len(dataset)
        return sample_of_position(
            places,
            num_samples=len(dataset),
            seed=self._seed,
            fingerprint=dataset.fingerprint,
        )

    def drawn(self, position: int) -> dict[str, Drawn]:
        """Say what positions [0, position) have read of each subset, in O(1)."""
        counts = self._interleaving.counts(position)
        return {
            subset.name: Drawn(
                samples=int(count),
                tokens=int(count) * subset.dataset.sample_length,
                epochs=int(count) / len(subset.dataset),
                share=int(count) / max(1, position),
            )
            for subset, count in zip(self.subsets, counts, strict=True)
        }

    def limits_reached(self) -> dict[str, int]:
        """Return for each subset with a limit the position at which it is reached."""
        reached = {
            subset.name: self._interleaving.exhausted_at(i) for i, subset in enumerate(self.subsets)
        }
        return {name: position for name, position in reached.items() if position is not None}

    def _fingerprint(self) -> str:
        (first, *others) = self.subsets
        if not others and first.limit is None and self._order == "shuffled":
            return first.dataset.fingerprint
        parts = {
            "format": 1,
            "order": self._order,
            "subsets": [
                [subset.dataset.fingerprint, int(rate), int(limit)]
                for subset, rate, limit in zip(
                    self.subsets,
                    self._interleaving.rates,
                    self._interleaving.limits,
                    strict=True,
                )
            ],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class InterleavedSamples:
    """Every sample of several datasets once, in the shares of a mixture.

    The first samples are what a bounded evaluation reads: they hold each
    dataset's share. Where one runs out, the others go on.
    """

    def __init__(self, subsets: Sequence[Subset]) -> None:
        """Line up the samples of datasets; their `max_epochs` do not count here."""
        once = [
            Subset(name=s.name, dataset=s.dataset, weight=s.weight, max_epochs=1) for s in subsets
        ]
        self._mixture = Mixture(once, seed=0, order="stored")
        self._first, self._located = -1, self._mixture.locate(np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        """Return the samples of all datasets."""
        capacity = self._mixture.capacity
        assert capacity is not None, "each has a limit of one epoch"
        return capacity

    def __getitem__(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        first = index - index % _LOCATED_AT_ONCE
        if first != self._first:
            positions = np.arange(first, min(first + _LOCATED_AT_ONCE, len(self)))
            self._first, self._located = first, self._mixture.locate(positions)
        source = int(self._located.source[index - first])
        return self._mixture.subsets[source].dataset[int(self._located.place[index - first])]


_LOCATED_AT_ONCE = 1024


def _check(subsets: Sequence[Subset]) -> None:
    total = sum(subset.weight for subset in subsets)
    seen: dict[str, str] = {}
    for subset in subsets:
        key = f"data.mixture.{subset.name}"
        if subset.weight < SMALLEST_SHARE * total:
            raise DataError(
                f"{key}.weight - {subset.weight} of {total} is less than {SMALLEST_SHARE:g} of the "
                f"tokens - raise it to {SMALLEST_SHARE * total:g}, or leave {subset.name} out"
            )
        if subset.limit is not None and subset.limit < 1:
            raise DataError(
                f"{key}.max_epochs - {subset.max_epochs} x {len(subset.dataset)} samples are not "
                f"one sample - raise it, or leave {subset.name} out"
            )
        same = seen.setdefault(subset.dataset.fingerprint, subset.name)
        if same != subset.name:
            raise DataError(
                f"{key}.path - holds the same documents as data.mixture.{same}, so that both would "
                "be read in step - name it once, with both weights added up"
            )
