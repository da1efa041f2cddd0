# SPDX-License-Identifier: Apache-2.0
"""The kernels of token attention, interpreted on the CPU, against float64."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from bt_megatron.errors import ConfigError
from bt_megatron.kernels import token_attention as token_attention_module
from bt_megatron.kernels.token_attention import LAUNCH_OPTIONS, token_attention
from bt_megatron.kernels.token_attention_tiling import KernelShape, choose_tiling
from bt_megatron.model.attention import FoldedAttention
from bt_megatron.model.rotary import rotary_angles
from tests.token_attention_cases import Case, Inputs, as_json, attention_in_float64, make_inputs

ROOT = Path(__file__).parents[3]
RTOL = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Norm of the error over the norm: two roundings, of 2^-11 in float16 and 2^-8 in bfloat16."""

CASES = [
    *[Case(q, d) for q in (1, 2, 5, 7, 8, 17, 64) for d in (32, 64, 128)],
    *[Case(q, 32, rotary=part) for q in (5, 17) for part in (0.0, 1.0)],
    *[Case(q, 32, heads=4, groups=g, batch=3, blocks=3) for q in (5, 17) for g in (1, 2)],
    *[Case(q, 32, mask=False, blocks=n) for q in (5, 17) for n in (1, 8)],
    *[Case(q, 32, mask=mask, causal=False) for q in (5, 17) for mask in (True, False)],
    *[Case(q, 16, rotary=0.75) for q in (4, 5, 64)],  # 12 of 16: halves that are no power of two
    Case(5, 64, dtype="float16", heads=4, groups=2),
    Case(17, 64, dtype="float16", heads=4, groups=2),
    Case(5, 64, dtype="bfloat16"),  # the interpreter knows no bfloat16 products (tiled kernel)
]


@pytest.fixture(scope="module")
def measured() -> dict[Case, tuple[float, float]]:
    """Return the errors of output and gradient of all cases, from one process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.token_attention_cases"],
        input=as_json(CASES),
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_match_float64(case: Case, measured: dict[Case, tuple[float, float]]) -> None:
    out, grad = measured[case]
    assert out < RTOL[case.dtype]
    assert grad < RTOL[case.dtype]


@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_float64_is_the_attention_of_the_model(groups: int, mask: bool) -> None:
    """What the kernels are held against is Megatron's split, rotary and FoldedAttention."""
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    case = Case(5, 32, heads=4, groups=groups, blocks=3, batch=2, mask=mask, dtype="float64")
    inputs = make_inputs(case)
    angles = rotary_angles(torch.arange(5), head_dim=32, fraction=0.25, base=10000.0)
    rotary = torch.stack((angles.cos(), angles.sin()))[:, :, 0, 0]
    mixed = inputs.qkv.view(15, 2, groups, -1, 32)
    query, key, value = mixed.split((4 // groups, 1, 1), dim=3)
    rows = angles.repeat_interleave(3, dim=0)
    query, key = (
        _apply_rotary_pos_emb_bshd(x.reshape(15, 2, -1, 32), rows.double()) for x in (query, key)
    )
    stack = SimpleNamespace(fold_positions=5, bidirectional=False, attention_dropout=0.0)
    expected = FoldedAttention(stack)(query, key, value.flatten(2, 3), inputs.mask)

    got = attention_in_float64(case, inputs.qkv.view(5, 6, -1), rotary, inputs.mask)

    # The table of the kernels is float32, Megatron's has the type of the queries.
    torch.testing.assert_close(got.reshape(expected.shape), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "head_dim", "message"),
    [(5, 48, "heads are 48 wide.* 16, 32, 64, 128"), (65, 64, "65 positions.*1 to 64")],
    ids=["width", "positions"],
)
def test_shapes_without_a_kernel_are_named(positions: int, head_dim: int, message: str) -> None:
    qkv = torch.zeros(positions, 1, 3 * head_dim)
    with pytest.raises(ConfigError, match=message):
        token_attention(qkv, positions=positions, heads=1, groups=1)


def test_what_does_not_fit_together_is_refused() -> None:
    inputs: Inputs = make_inputs(Case(5, 32, blocks=3))
    arguments = {"positions": 5, "heads": 2, "groups": 2}
    with pytest.raises(AssertionError, match=r"mask is \[5, 2\]"):
        token_attention(inputs.qkv, mask=inputs.mask[:, :2], **arguments)
    with pytest.raises(AssertionError, match=r"rotary is \[2, 4, 8\]"):
        token_attention(inputs.qkv, rotary=inputs.rotary[:, :4], **arguments)


SHARED_BYTES = 163 * 1024
"""Shared memory that a program may have on an A100."""


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
@pytest.mark.parametrize(
    ("positions", "head_dim", "groups", "dtype", "direction"),
    [
        (5, 64, 16, "bf16", "forward"),
        (5, 64, 16, "bf16", "backward"),
        (40, 64, 16, "bf16", "forward"),
        (40, 64, 16, "bf16", "backward"),
        (64, 128, 4, "fp32", "forward"),  # the most shared memory
    ],
)
def test_kernels_compile_ahead_of_time(
    positions: int,
    head_dim: int,
    groups: int,
    dtype: str,
    direction: str,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU; that of five positions must fit into registers, all into shared memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tiling = choose_tiling(positions, head_dim, backward=direction == "backward")
    kernel = getattr(token_attention_module, f"{tiling.kind}_{direction}")
    shape = KernelShape(
        positions=positions if tiling.kind == "unrolled" else 0,
        heads=16,
        groups=groups,
        head_dim=head_dim,
        rotated=head_dim // 4,
        scale=0.125,
        causal=True,
        rows=tiling.rows,
    )
    known = {"rotary": "*fp32", "mask": "*u8", "columns": "i32", "positions": "i32"}
    types = {name: known.get(name, f"*{dtype}") for name in kernel.arg_names}
    types["shape"] = "constexpr"
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind[0] == "*"
    }
    compiled = triton.compile(
        ASTSource(kernel, types, {"shape": shape}, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tiling.warps, **LAUNCH_OPTIONS[tiling.kind]},
    )
    assert compiled.metadata.shared <= SHARED_BYTES
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    registers, stack, _shared = re.findall(r"(?:REG|STACK|SHARED):(\d+)", usage.stdout)
    assert 64 <= int(registers) <= 255, "ptxas gave up: everything is spilled"
    if tiling.kind == "unrolled":
        assert int(stack) == 0, "registers spill"
