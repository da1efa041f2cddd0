# SPDX-License-Identifier: Apache-2.0
"""The kernels of GELU, compiled for the GPUs we name."""

from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bt_megatron.kernels import gelu_triton as kernels

ROW, WIDE = "*bf16", [["tt.divisibility", 16]]
SIGNATURES = {
    "forward_kernel": {"x": ROW, "bias": ROW, "out": ROW, "size": ("i32", "i32")},
    "backward_kernel": {
        "gradient": ROW,
        "x": ROW,
        "bias": ROW,
        "out": ROW,
        "sums": "*fp32",
        "size": ("i32", "i32"),
    },
}


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
@pytest.mark.parametrize("name", SIGNATURES)
def test_kernels_compile_with_wide_accesses(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = SIGNATURES[name]
    constants = {"height": kernels.ROWS, "block": kernels.MAX_BLOCK}
    addresses = len(signature) - 1
    source = ASTSource(
        getattr(kernels, name),
        {**signature, **dict.fromkeys(constants, "constexpr")},
        constants,
        {**{(index,): WIDE for index in range(addresses)}, (addresses, 1): WIDE},
    )
    warps = kernels.MAX_BLOCK // kernels.VALUES_PER_WARP
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    assert len(compiled.asm["cubin"]) > 0
    assert "ld.global.v4.b32" in compiled.asm["ptx"], "16 bytes a thread, or bandwidth is lost"
    assert "st.global.v4.b32" in compiled.asm["ptx"]
