# SPDX-License-Identifier: Apache-2.0
"""The kernels of token attention, compiled, against float64: every q, widths, a million heads."""

import pytest
import torch

from bt_megatron.kernels import token_attention_tiling
from bt_megatron.kernels.token_attention_tiling import Tiling
from tests.token_attention_cases import Case, make_inputs, relative_errors, run_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RTOL = {"bfloat16": 8e-3, "float16": 1e-3, "float32": 5e-6}
"""Norm of the error over the norm: two roundings of a half type; float32 products on tensor
cores are sums of three tf32 products, about 22 bits."""

by_type = pytest.mark.parametrize("dtype", ["bfloat16", "float32"])


def require_close(case: Case, *, chunk: int = 4096) -> None:
    inputs = make_inputs(case, "cuda")
    out, grad = relative_errors(case, inputs, *run_kernel(case, inputs), chunk=chunk)
    assert out < RTOL[case.dtype], case
    assert grad < RTOL[case.dtype], case


@by_type
@pytest.mark.parametrize("positions", range(1, 65), ids="q{}".format)
def test_every_number_of_positions(positions: int, dtype: str) -> None:
    require_close(Case(positions, 64, heads=4, groups=4, blocks=37, batch=3, dtype=dtype))


@by_type
@pytest.mark.parametrize("head_dim", [16, 32, 128], ids="d{}".format)
@pytest.mark.parametrize("positions", [1, 2, 4, 5, 8, 9, 17, 33, 64], ids="q{}".format)
def test_every_width(positions: int, head_dim: int, dtype: str) -> None:
    require_close(Case(positions, head_dim, heads=3, groups=3, blocks=41, dtype=dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("positions", [5, 10, 40], ids="q{}".format)
@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 16, "groups": 4},
        {"heads": 12, "groups": 1},
        {"rotary": 1.0},
        {"rotary": 0.0},
        {"mask": False},
        {"causal": False},
        {"causal": False, "mask": False},
        {"blocks": 1},
    ],
    ids=str,
)
def test_every_variant(positions: int, changes: dict, dtype: str) -> None:
    fields = {"heads": 4, "groups": 4, "blocks": 301, "batch": 2, "dtype": dtype} | changes
    require_close(Case(positions, 64, **fields))


@pytest.mark.parametrize("positions", [5, 10], ids="q{}".format)
def test_a_million_heads(positions: int) -> None:
    """The projection has more than 2^31 elements: offsets need 64 bits."""
    columns = 150_000 if positions == 5 else 75_000
    case = Case(positions, 64, heads=16, groups=16, blocks=columns // 2, batch=2, dtype="bfloat16")
    assert case.columns * case.heads > 1_000_000
    assert positions * case.columns * 3 * 16 * 64 > 2**31
    require_close(case, chunk=8192)


@by_type
@pytest.mark.parametrize("positions", [5, 10, 40], ids="q{}".format)
def test_same_input_gives_same_bits(positions: int, dtype: str) -> None:
    case = Case(positions, 64, heads=16, groups=4, blocks=2048, batch=2, dtype=dtype)
    inputs = make_inputs(case, "cuda")
    first = run_kernel(case, inputs)
    for _ in range(3):
        for got, expected in zip(run_kernel(case, inputs), first, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "tiling", [Tiling("unrolled", 8, 2), Tiling("tiled", 16, 1), Tiling("tiled", 128, 8)], ids=str
)
def test_the_tile_only_rounds_differently(tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_FORWARD", "_BACKWARD"):
        monkeypatch.setitem(getattr(token_attention_tiling, table), (5, 64), tiling)
    require_close(Case(5, 64, heads=6, groups=3, blocks=43, dtype="bfloat16"))


def test_other_streams_and_strided_inputs() -> None:
    case = Case(5, 64, blocks=4096, dtype="bfloat16")
    inputs = make_inputs(case, "cuda")
    expected = run_kernel(case, inputs)
    wide = torch.cat((inputs.qkv, inputs.qkv), dim=-1)
    strided = type(inputs)(wide[..., : wide.shape[-1] // 2], *list(vars(inputs).values())[1:])
    assert not strided.qkv.is_contiguous()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = run_kernel(case, strided)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
