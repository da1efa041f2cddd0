# SPDX-License-Identifier: Apache-2.0
"""Micro-batches of a training step and of an evaluation, as CPU tensors.

Axes are [b, s] here, the order in which samples are read; the model turns
them into Megatron's [s, b]. Nothing in this file draws random numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bt_megatron.config.schema import BatchConfig
from bt_megatron.data.interleave import Located
from bt_megatron.data.mixture import Drawn, Mixture
from bt_megatron.data.packing import Sample
from bt_megatron.errors import LayoutError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass of one replica reads."""

    tokens: Tensor
    """[b, s] int64 token ids."""
    mask: Tensor
    """[b, s] bool, false on pads."""
    targets: Tensor
    """[b, s] int64, the token that slot i predicts: tokens[:, i + target_shift]."""
    target_mask: Tensor
    """[b, s] bool, true where the prediction counts."""

    @property
    def num_targets(self) -> int:
        """Predictions that count."""
        return int(self.target_mask.sum())

    def each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        """Return the micro-batch with all four tensors changed alike."""
        return MicroBatch(**{f.name: change(getattr(self, f.name)) for f in _AXES})

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the four tensors."""
        return tuple(getattr(self, f.name) for f in _AXES)

    def to(self, device: torch.device | str | int, *, non_blocking: bool = True) -> "MicroBatch":
        """Copy to a device; non-blocking copies need `pin_memory` first."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MicroBatch":
        """Copy to page-locked memory; needs a CUDA device."""
        return self.each(Tensor.pin_memory)


_AXES = fields(MicroBatch)


def build_micro_batch(tokens: Tensor, mask: Tensor, *, target_shift: int) -> MicroBatch:
    """Line up each slot with the token it predicts.

    The last `target_shift` slots predict tokens of the next sample, which no
    slot here can see: they count for nothing, and neither do pads. An EOS does.

    Args:
        tokens: [b, s] int64 ids.
        mask: [b, s] bool, false on pads.
        target_shift: how many tokens ahead a slot predicts: the block length
            of a block model (so the first block is never a target), 1 for a
            vanilla model.

    Returns:
        The micro-batch, [b, s].
    """
    targets, target_mask = torch.empty_like(tokens), torch.empty_like(mask)
    targets[:, :-target_shift] = tokens[:, target_shift:]
    target_mask[:, :-target_shift] = mask[:, target_shift:]
    targets[:, -target_shift:] = 0
    target_mask[:, -target_shift:] = False
    return MicroBatch(tokens, mask, targets, target_mask)


class SampleSource(Protocol):
    """What an evaluation reads: a dataset, or several interleaved."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        ...


class TrainingBatches:
    """The micro-batches that one data-parallel rank reads in a step.

    A pure function of the step. With G = global_batch_size, step t (from 0)
    reads the positions t*G ... t*G + G - 1, whatever the number of ranks.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        batch: BatchConfig,
        dp_rank: int,
        dp_size: int,
        target_shift: int,
    ) -> None:
        """Check that the ranks can share a step evenly.

        Args:
            mixture: the training samples.
            batch: sequences per step and per micro-batch.
            dp_rank: this data-parallel rank.
            dp_size: data-parallel ranks.
            target_shift: see `build_micro_batch`.

        Raises:
            LayoutError: a step is not a whole number of micro-batches on every rank.
        """
        self.mixture = mixture
        self._batch = batch
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self.target_shift = target_shift
        together = batch.micro_batch_size * dp_size
        if batch.global_batch_size % together:
            raise LayoutError(
                f"batch.global_batch_size - {batch.global_batch_size} sequences are not a multiple "
                f"of batch.micro_batch_size ({batch.micro_batch_size}) x data-parallel size "
                f"({dp_size}) = {together} - set batch.global_batch_size to "
                f"{together * (batch.global_batch_size // together + 1)}"
            )

    def positions(self, step: int) -> np.ndarray:
        """Return the positions that this rank reads in a step, [micro-batches, b].

        Micro-batch m of rank r holds t*G + (m*dp_size + r)*b + [0, b).
        """
        size = self._batch.micro_batch_size
        start = step * self._batch.global_batch_size
        positions = start + np.arange(self._batch.global_batch_size, dtype=np.int64)
        return positions.reshape(-1, self._dp_size, size)[:, self._dp_rank]

    def samples(self, step: int) -> Located:
        """Return subset and sample that this rank reads in a step, [micro-batches, b] each."""
        return self.mixture.locate(self.positions(step))

    def read(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Read the tokens and masks of a step, counted from 0: [micro-batches, b, s] each."""
        located = self.samples(step)
        shape = (*located.place.shape, self.mixture.sample_length)
        tokens, mask = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.bool_)
        for place in np.ndindex(located.place.shape):
            dataset = self.mixture.subsets[located.source[place]].dataset
            dataset.read_into(int(located.place[place]), tokens[place], mask[place])
        return tokens, mask

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Read the micro-batches of a step, counted from 0."""
        tokens, mask = self.read(step)
        return [
            build_micro_batch(t, m, target_shift=self.target_shift)
            for t, m in zip(torch.from_numpy(tokens), torch.from_numpy(mask), strict=True)
        ]

    def drawn(self, step: int) -> dict[str, Drawn]:
        """Say what all ranks have read of each subset in the first `step` steps."""
        return self.mixture.drawn(step * self._batch.global_batch_size)


class ValidationBatches:
    """The first samples of the validation split, each read once over all ranks.

    Every rank runs the same number of micro-batches of the same shape. Where
    samples run out, the rest of a micro-batch is filled with copies of sample
    0 none of whose slots counts. (Copies rather than pads: attention over a
    sequence of nothing but pads has no key to attend to.)
    """

    def __init__(
        self,
        dataset: SampleSource,
        *,
        max_sequences: int | None,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        target_shift: int,
        group_size: int = 1,
    ) -> None:
        """Choose the samples.

        Args:
            dataset: the validation samples.
            max_sequences: samples to read; none: all.
            micro_batch_size: b, sequences per forward pass.
            dp_rank: this data-parallel rank.
            dp_size: data-parallel ranks.
            target_shift: see `build_micro_batch`.
            group_size: the number of micro-batches is a multiple of this, which interleaved
                pipelines need.
        """
        self._dataset = dataset
        self._group_size = group_size
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._target_shift = target_shift
        self.num_sequences = len(dataset)
        if max_sequences is not None:
            self.num_sequences = min(max_sequences, len(dataset))

    def __len__(self) -> int:
        """Return the micro-batches per rank, the same on every rank."""
        together = self._micro_batch_size * self._dp_size * self._group_size
        return -(-self.num_sequences // together) * self._group_size

    def __iter__(self) -> Iterator[MicroBatch]:
        """Read this rank's micro-batches in order."""
        for m in range(len(self)):
            start = (m * self._dp_size + self._dp_rank) * self._micro_batch_size
            yield self._micro_batch(np.arange(start, start + self._micro_batch_size))

    def _micro_batch(self, indices: np.ndarray) -> MicroBatch:
        is_real = indices < self.num_sequences  # [b]
        samples = [self._dataset[int(i)] for i in np.where(is_real, indices, 0)]
        tokens = torch.from_numpy(np.stack([sample.tokens for sample in samples]))  # [b, s]
        mask = torch.from_numpy(np.stack([sample.mask for sample in samples]))  # [b, s]
        batch = build_micro_batch(tokens, mask, target_shift=self._target_shift)
        return replace(batch, target_mask=batch.target_mask & torch.from_numpy(is_real)[:, None])
