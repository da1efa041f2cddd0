# SPDX-License-Identifier: Apache-2.0
"""What others are told of an error; the rest is in tests/e2e/test_faulty_ranks.py."""

import pytest
import torch.distributed as dist

from bt_megatron.errors import CheckpointError, DataError
from bt_megatron.faults.watch import Watch, _describe

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "code", "is_consequence"),
    [
        (DataError("shard 3 is damaged"), "shard 3 is damaged", 4, False),
        (KeyboardInterrupt(), "interrupted", 130, False),
        (ValueError("no\nmore"), "ValueError: no", 1, False),
        (GLOO, f"RuntimeError: {GLOO}", 1, True),
        (dist.DistBackendError("NCCL error"), "DistBackendError: NCCL error", 1, True),
        (dist.DistNetworkError("lost"), "DistNetworkError: lost", 1, True),
        (chained(CheckpointError("could not be written"), GLOO), "could not be written", 5, True),
    ],
    ids=["ours", "Ctrl-C", "bug", "gloo", "NCCL", "network", "ours, after gloo's"],
)
def test_an_error_is_described_for_the_others(error, reason, code, is_consequence):
    assert _describe(error) == {
        "reason": reason,
        "exit_code": code,
        "is_consequence": is_consequence,
    }


def test_a_watch_that_was_not_started_does_nothing():
    def spoil():
        with Watch() as watch:
            watch.enter("step", step=1)
            raise DataError("no data")

    with pytest.raises(DataError):
        spoil()
