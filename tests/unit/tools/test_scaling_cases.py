# SPDX-License-Identifier: Apache-2.0
import pytest

from tools.scaling_cases import scaling_cases
from tools.scaling_table import GIB

ONE = ["one/block-420m", "one/block-1.2b"]
TWO = [
    *("dp2/block-420m", "dp2/block-1.2b", "tp2-sp/block-1.2b", "pp2/block-1.2b"),
    *("tp2-sp/block-420m", "pp2/block-420m"),
]
EIGHT = [
    *("dp8/block-420m", "dp8/block-1.2b", "tp2-sp-pp2-dp2/block-1.2b", "pp4-vpp2-dp2/block-1.2b"),
    *("tp8-sp/block-1.2b", "pp8/block-1.2b", "cp8-131072-tokens/block-1.2b"),
]
GPU_GIB = 80 - 6  # what memory.py leaves out


def names(processes, *, is_tiny=False):
    return [case.name for case in scaling_cases(processes, is_tiny=is_tiny)]


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (1, ONE),
        (2, ONE + TWO),
        (4, [*ONE, "dp4/block-420m", "dp4/block-1.2b", *TWO]),
        (8, [*ONE, *EIGHT, "dp4/block-420m", "dp4/block-1.2b", *TWO]),
    ],
    ids=str,
)
def test_cases_of_the_gpus_that_there_are(processes, expected):
    assert names(processes) == expected


def test_tiny_cases_are_the_same_layouts():
    def layouts(is_tiny):
        return [case.config.layout for case in scaling_cases(8, is_tiny=is_tiny)]

    assert layouts(is_tiny=True) == layouts(is_tiny=False)
    assert names(8, is_tiny=True) == [name.replace("131072", "128") for name in names(8)]


@pytest.mark.parametrize("is_tiny", [False, True], ids=["paper", "tiny"])
def test_every_case_of_a_model_has_the_same_tokens_per_step(is_tiny):
    tokens = {}
    for case in scaling_cases(8, is_tiny=is_tiny):
        tokens.setdefault(case.model, set()).add(case.plan.tokens_per_step)
    small, large = (1024, 1024) if is_tiny else (256 * 2048, 512 * 2048)
    assert tokens == {"block-420m": {small}, "block-1.2b": {large}}


@pytest.mark.parametrize("is_tiny", [False, True], ids=["paper", "tiny"])
def test_the_trial_is_one_batch_for_all_layouts(is_tiny):
    batches = {}
    for case in scaling_cases(8, is_tiny=is_tiny):
        layout, micro = case.config.layout, case.config.batch.micro_batch_size
        replicas = case.plan.world_size // layout.replica_size
        micro_batches, rest = divmod(case.trial_batch, micro * replicas)
        assert rest == 0
        assert micro_batches % (layout.pp if layout.vpp > 1 else 1) == 0
        if case.baseline is not None:
            batches.setdefault(case.baseline, set()).add((case.trial_batch, case.trial_steps))
    assert set(batches) == set(ONE)
    assert all(
        len(found) == 1 and {10} == {steps for _, steps in found} for found in batches.values()
    )


def test_memory_is_that_of_gpus_with_80_gb():
    for case in scaling_cases(8, is_tiny=False):
        assert max(process.memory.total for process in case.plan.processes) < GPU_GIB * GIB


def test_what_is_shared_is_overlapped():
    for case in scaling_cases(8, is_tiny=False):
        layout = case.config.layout
        is_shared = case.plan.dp * layout.cp > 1
        assert layout.distributed_optimizer
        assert layout.overlap_grad_reduce == layout.overlap_param_gather == is_shared


def test_only_long_sequences_and_one_process_have_nothing_to_compare_with():
    alone = [case.name for case in scaling_cases(8, is_tiny=False) if case.baseline is None]
    assert alone == [*ONE, "cp8-131072-tokens/block-1.2b"]
