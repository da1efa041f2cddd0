# SPDX-License-Identifier: Apache-2.0
"""The kernels of two norms, compiled for the GPUs we name."""

from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bt_megatron.kernels import norm_pair_triton as kernels

ROW, WIDE = "*bf16", [["tt.divisibility", 16]]
SIGNATURES = {
    "forward_kernel": {
        "hidden": ROW,
        "first": (ROW, ROW),
        "second": (ROW, ROW),
        "outs": (ROW, ROW),
        "statistics": "*fp32",
        "size": ("i32", "i32"),
        "eps": "fp32",
    },
    "backward_kernel": {
        "rows_of": (ROW,) * 4,
        "statistics": "*fp32",
        "weights": (ROW, ROW),
        "out": ROW,
        "sums": "*fp32",
        "size": ("i32", "i32"),
    },
}


def places(signature: dict) -> dict:
    """Return where arguments are multiples of 16: addresses, and the number of columns."""
    found = {}
    for index, kind in enumerate(signature.values()):
        parts = {(index,): kind} if isinstance(kind, str) else {}
        if not isinstance(kind, str):
            parts = {(index, inner): part for inner, part in enumerate(kind)}
        found |= {place: WIDE for place, part in parts.items() if part.startswith("*")}
    return found | {(list(signature).index("size"), 1): WIDE}


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
@pytest.mark.parametrize("name", SIGNATURES)
def test_kernels_compile_with_wide_accesses(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = SIGNATURES[name]
    block, warps = kernels._tile(1024)
    constants = {"block": block, **({"is_centred": True} if name == "backward_kernel" else {})}
    source = ASTSource(
        getattr(kernels, name),
        {**signature, **dict.fromkeys(constants, "constexpr")},
        constants,
        places(signature),
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    assert len(compiled.asm["cubin"]) > 0
    ptx = compiled.asm["ptx"]
    assert "cp.async.cg.shared.global" in ptx, "the next rows are on their way meanwhile"
    assert "st.global.v4.b32" in ptx, "16 bytes a thread, or bandwidth is lost"
