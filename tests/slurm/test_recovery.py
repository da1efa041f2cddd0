# SPDX-License-Identifier: Apache-2.0
"""The training itself on a real Slurm: some faults of tools/bench_faults, and the same end."""

import random

from tests.slurm_cluster import slurm_folder
from tools.bench_faults import measure
from tools.fault_cases import FAULTS

KINDS = ("killed rank", "time limit or preemption", "corrupt newest checkpoint", "wrong loss once")


def test_a_run_with_faults_ends_like_the_undisturbed_one():
    faults = [fault for fault in FAULTS if fault.kind in KINDS]
    assert len(faults) == len(KINDS)
    with slurm_folder() as folder:
        rows = measure(folder, faults, random.Random(7))

    kinds = {row.case.removeprefix("fault/") for row in rows}
    assert kinds == {*KINDS, "loss not finite", "loss spike"}
    assert {row.value for row in rows if row.metric == "loss_difference"} == {0.0}
    detail = next(row.detail for row in rows if "tensors_equal" in row.detail)
    assert detail["losses_compared"] > 50
    assert detail["tensors_equal"] > 20
