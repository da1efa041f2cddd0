# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits the memory of a device, and the largest micro-batch that does.

An estimate on top of an estimate: memory.py's, raised by the most that it has been below a
measurement, and beside it what a process takes of a device outside of torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bt_megatron.config.fp8_rules import fp8_rows_fill_tiles
from bt_megatron.config.memory import estimate_memory
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.stages import resolve_stages
from bt_megatron.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of device."""

    name: str
    """As people write it."""
    memory_gib: float
    """What torch reports as the total capacity of one such device (its out-of-memory message)."""
    fp8: bool
    """Whether it multiplies in FP8 (Ada, Hopper and newer do)."""


DEVICES: dict[str, Device] = {
    "a100-40gb": Device("A100 40GB", 39.39, fp8=False),
    "a100-80gb": Device("A100 80GB", 79.15, fp8=False),
    "h100-80gb": Device("H100 80GB", 79.18, fp8=True),
}
"""By the name that `plan --device` takes. The H100's figure was read on one; the A100's are
those of published logs."""
LARGEST_MISS = 0.07
"""The estimate was at most so much below a measurement (docs/benchmarks/memory.json: 6.4 %)."""
OUTSIDE_GIB = 1.5
"""Taken for the CUDA context, libraries and communication buffers of a process; not measured."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What the memory of a device means for a run."""

    device: Device
    needed_gib: float
    """Of the fullest process, with everything above."""
    largest_micro_batch: int | None
    """Sequences; None: not even one fits."""
    largest_gib: float
    """What the largest micro-batch needs, or one sequence if none fits."""

    @property
    def fits(self) -> bool:
        """Whether the run as it is fits."""
        return self.needed_gib <= self.device.memory_gib


def fit(config: RunConfig, *, device: str, dp: int) -> Fit:
    """Return whether a run fits and the largest micro-batch that does.

    Args:
        config: A run that keeps all rules.
        device: Key of DEVICES.
        dp: Data-parallel size.

    Raises:
        ConfigError: the run multiplies in FP8, which the device cannot.
    """
    kind = DEVICES[device]
    if config.kernels.fp8 != "none" and not kind.fp8:
        able = ", ".join(key for key, other in DEVICES.items() if other.fp8)
        raise ConfigError(
            f"kernels.fp8={config.kernels.fp8}: {kind.name} has no products in FP8. Use "
            f"kernels.fp8=none, which trains in {config.train.precision}, or a device that has "
            f"them ({able})."
        )
    needs = {size: needed_gib(changed, dp=dp) for size, changed in _micro_batches(config, dp)}
    fitting = [size for size, needed in needs.items() if needed <= kind.memory_gib]
    largest = max(fitting, default=None)
    return Fit(kind, needed_gib(config, dp=dp), largest, needs[largest or min(needs)])


def needed_gib(config: RunConfig, *, dp: int) -> float:
    """Return what the fullest process needs of a device, in GiB."""
    batch = config.batch
    micro_batches = batch.global_batch_size // (batch.micro_batch_size * dp)
    estimates = estimate_memory(config, resolve_stages(config), dp=dp, micro_batches=micro_batches)
    most = max(estimate.total for estimate in estimates)
    return most * (1 + LARGEST_MISS) / GIB + OUTSIDE_GIB


def _micro_batches(config: RunConfig, dp: int) -> Iterator[tuple[int, RunConfig]]:
    """Yield the micro-batches that a replica's share of the global batch divides into.

    With virtual stages their number stays a multiple of pp (layout_rules.py), and with FP8 the
    rows fill tiles (fp8_rules.py).
    """
    share = config.batch.global_batch_size // dp
    group = config.layout.pp if config.layout.vpp > 1 else 1
    for size in range(1, share + 1):
        if share % (size * group) == 0:
            changed = replace(config, batch=replace(config.batch, micro_batch_size=size))
            if fp8_rows_fill_tiles(changed, dp) is None:
                yield size, changed
