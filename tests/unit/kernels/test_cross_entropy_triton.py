# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels without a GPU: interpreted, and compiled for the GPUs we name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bt_megatron.kernels import cross_entropy_triton as kernels

ROOT = Path(__file__).parents[3]


def test_kernels_give_what_plain_pytorch_gives() -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("interpreted_cross_entropy.py")],
        cwd=ROOT,
        env=dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 8, done.stdout


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
@pytest.mark.parametrize("logits", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["statistics_kernel", "gradient_kernel"])
def test_kernels_compile_with_wide_accesses(
    name: str, logits: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels, name)
    types = (f"*{logits}", "*i64", "*fp32", *("i32", "i32", "constexpr", "constexpr"))
    aligned = [["tt.divisibility", 16]]  # addresses and the number of columns
    source = ASTSource(
        kernel,
        dict(zip(kernel.arg_names, types, strict=True)),
        {"real": 50254, "width": kernels.BLOCK},
        {(0,): aligned, (2,): aligned, (3,): aligned},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": kernels.WARPS}
    )
    assert len(compiled.asm["cubin"]) > 0
    assert "ld.global.v4.b32" in compiled.asm["ptx"], "16 bytes a thread, or bandwidth is lost"
