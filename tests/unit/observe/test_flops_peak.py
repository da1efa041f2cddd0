# SPDX-License-Identifier: Apache-2.0
"""Peak FLOP/s: the names drivers report, and no guess for others."""

import pytest

from bt_megatron.observe.flops_peak import PEAKS, peak_bf16_flops_per_s


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100", None),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_peak_by_name(name, peak):
    assert peak_bf16_flops_per_s(name) == peak


def test_every_row_has_its_source():
    assert all(len(peak.source) > 20 for peak in PEAKS)
