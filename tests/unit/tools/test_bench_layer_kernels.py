# SPDX-License-Identifier: Apache-2.0
"""The benchmark of norms and GELU compares implementations that compute the same."""

import pytest
import torch
from torch import Tensor

from tools import bench_layer_kernels as bench
from tools.bench_layer_kernels import implementations, main, make_inputs


@pytest.mark.parametrize("operation", ["norm-pair", "gelu"])
def test_every_implementation_gives_the_same_values_and_gradients(operation: str) -> None:
    x, parameters = make_inputs(operation, 6, 8, torch.float64, "cpu")
    results: dict[str, list[Tensor]] = {}
    for name, implementation in implementations(operation, parameters).items():
        outs = implementation(x)
        upstream = [torch.ones_like(out) * (3 + index) for index, out in enumerate(outs)]
        results[name] = [*outs, *torch.autograd.grad(outs, (x, *parameters), upstream)]
    assert {"kernel", "torch"} <= results.keys()
    for got in results.values():
        torch.testing.assert_close(got, results["torch"], rtol=1e-12, atol=1e-12)


class _Second:
    """A clock that says every call took a second."""

    def seconds(self, calls: list) -> float:
        for call in calls:
            call()
        return 1.0


@pytest.mark.parametrize(("operation", "values"), [("norm-pair", 1), ("gelu", 4)])
def test_fractions_count_what_must_be_moved(
    operation: str, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench,
        "make_inputs",
        lambda operation, rows, width, dtype, _: make_inputs(operation, rows, width, dtype, "cpu"),
    )
    rows = list(bench.measure(operation, 16, 5, _Second(), copy=5 * 16 * 2))  # type: ignore[arg-type]
    moved = bench.MOVED[operation]
    assert {row.case for row in rows} == {f"kernel/{operation}"}
    for row in rows:
        assert row.value == moved[row.detail["direction"]] * values
        assert row.detail["milliseconds"] == 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 3
    assert "needs 1" in capsys.readouterr().err
