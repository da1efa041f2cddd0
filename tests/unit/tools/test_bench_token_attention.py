# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of token attention counts, and what it compares with."""

import json

import pytest
import torch

import tools.bench_token_attention as bench
from bt_megatron.kernels.token_attention_tiling import choose_tiling
from tests.token_attention_cases import Case, attention_in_float64
from tools.bench_token_attention import Shape, fused_torch, main, make_buffers, plain_torch

SMALL = Shape(5, 32, 2, 6)


@pytest.mark.parametrize(
    ("direction", "tensors"),
    [("forward", 3 + 1), ("backward", 3 + 3 + 1)],
    ids=["reads qkv, writes out", "reads qkv and a gradient, writes one"],
)
def test_bytes_are_those_of_the_tensors(direction: str, tensors: int) -> None:
    assert SMALL.bytes_moved(direction, 2) == tensors * 5 * 6 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("attention", "mask"), [(plain_torch, True), (fused_torch, False)], ids=["torch", "sdpa"]
)
def test_other_implementations_compute_the_same(
    attention: bench.Implementation, mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA

    monkeypatch.setattr(bench, "BUFFER_BYTES", 1)
    buffers = make_buffers(SMALL, torch.float32, "cpu")
    qkv = buffers.qkv[0]
    case = Case(5, 32)
    hidden = buffers.mask if mask else None
    exact = attention_in_float64(case, qkv.view(5, 6, -1), buffers.rotary, hidden)
    got = attention(SMALL, buffers, qkv)
    torch.testing.assert_close(got.double(), exact.view_as(got), rtol=0, atol=1e-6)


class _Counted:
    """A clock that says a call took a second."""

    def seconds(self, calls: list) -> float:
        assert len(calls) >= 1
        return 1.0


def test_rows_have_the_form_of_benchmark_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BUFFER_BYTES", 1)
    monkeypatch.setattr(bench, "OTHERS", {})
    monkeypatch.setattr(
        bench, "make_buffers", lambda shape, dtype: make_buffers(shape, dtype, "cpu")
    )
    rows = list(bench.measure(SMALL, torch.bfloat16, _Counted(), copy=7 * 5 * 6 * 2 * 32 * 2))

    assert [row.value for row in rows] == [4 / 7, 1.0]
    assert {(row.case, row.metric) for row in rows} == {
        ("kernel/token-attention", "bandwidth_fraction")
    }
    assert [row.detail["direction"] for row in rows] == ["forward", "backward"]
    tiling = choose_tiling(5, 32, backward=False)
    assert json.loads(json.dumps(rows[0].detail))["tiling"]["rows"] == tiling.rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "6x64"], "--only 6x64.*5x64"), ([], "no CUDA device")],
    ids=["shape", "device"],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in message.split(".*"))
