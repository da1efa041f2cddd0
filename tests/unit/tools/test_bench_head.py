# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the head compares ways that compute the same."""

import pytest
import torch
from torch import Tensor

from tests.ranks import run_ranks
from tools.bench_head import main, make_inputs, step, ways


def all_ways() -> dict[str, list[Tensor]]:
    results = {}
    for name, losses in ways(chunk=5).items():
        hidden, weight, targets = make_inputs(16, 8, 40, "cpu", torch.float32)
        first, second = (step(losses, hidden, weight, targets) for _ in range(2))
        assert torch.equal(first, second)
        results[name] = [first, hidden.grad, weight.main_grad]
    return results


def test_every_way_gives_the_same_losses_and_gradients() -> None:
    (results,) = run_ranks(all_ways, 1)
    assert set(results) == {"plain", "whole", "chunks"}
    for name in ("whole", "chunks"):
        torch.testing.assert_close(results[name], results["plain"], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 3
    assert "needs 1" in capsys.readouterr().err
