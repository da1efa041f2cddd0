# SPDX-License-Identifier: Apache-2.0
"""Peak dense bf16 FLOP/s of the devices that we know, for model FLOPs utilisation.

The vendor's tables often print the figure with 2:4 sparsity, which is twice the
dense one; the numbers here are dense. Utilisation counts against this peak with products
in FP8 too: only those of the decoders' layers are, and runs in both can be compared. A
device that is not in the table has no peak, and its utilisation is not reported.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DevicePeak:
    """One kind of device, recognised by the name that the driver reports."""

    words: tuple[str, ...]
    """All of these are words of the name, in any case."""
    bf16_flops_per_s: float
    """Dense, with fp32 accumulation."""
    source: str


# The first row that fits counts: the narrower names come first.
PEAKS: tuple[DevicePeak, ...] = (
    DevicePeak(("A100",), 312e12, "A100 datasheet, SXM and PCIe: 312 (624 sparse)"),
    DevicePeak(("H100", "PCIE"), 756e12, "H100 architecture whitepaper, PCIe: 756 (1,513 sparse)"),
    DevicePeak(("H100", "NVL"), 835.5e12, "H100 datasheet, NVL: 1,671 sparse, half of it dense"),
    DevicePeak(("H100", "HBM3"), 989.4e12, "H100 architecture whitepaper, SXM5: 989.4"),
    DevicePeak(("H200", "NVL"), 835.5e12, "H200 datasheet, NVL: 1,671 sparse, half of it dense"),
    DevicePeak(("H200",), 989.4e12, "H200 datasheet, SXM: 1,979 sparse, the figure of H100 SXM5"),
)


def peak_bf16_flops_per_s(device_name: str) -> float | None:
    """Return the peak dense bf16 FLOP/s of a device, or None if it is not known.

    Args:
        device_name: as `torch.cuda.get_device_name()` gives it, e.g. "NVIDIA H100 80GB HBM3".
    """
    words = set(device_name.upper().replace("-", " ").split())
    if "MIG" in words:  # a slice of a device has a fraction of its peak
        return None
    for peak in PEAKS:
        if words.issuperset(peak.words):
            return peak.bf16_flops_per_s
    return None
