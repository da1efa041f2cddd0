# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits a device: margins, divisors, and what is said."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.config.banner import device_line
from bt_megatron.config.devices import DEVICES, LARGEST_MISS, OUTSIDE_GIB, fit, needed_gib
from bt_megatron.config.memory import estimate_memory
from bt_megatron.config.plan_command import main_plan
from bt_megatron.config.schema import KernelConfig, MemoryConfig
from bt_megatron.config.stages import resolve_stages

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("device", DEVICES)
def test_the_largest_fits_and_the_next_one_does_not(load_published, device):
    config = load_published("block-420m", micro_batch_size=4)
    found = fit(config, device=device, dp=1)
    sizes = [size for size in range(1, 257) if config.batch.global_batch_size % size == 0]
    next_size = min(size for size in sizes if size > found.largest_micro_batch)

    largest, more = (
        needed_gib(load_published("block-420m", micro_batch_size=size), dp=1)
        for size in (found.largest_micro_batch, next_size)
    )
    assert largest == found.largest_gib <= DEVICES[device].memory_gib < more


def test_the_fullest_process_counts(make_run):
    config = make_run({"layout.pp": 2, "layout.pp_cut": "Ebb|ttL"})
    count = config.batch.global_batch_size // config.batch.micro_batch_size
    estimates = estimate_memory(config, resolve_stages(config), dp=1, micro_batches=count)
    first, last = (estimate.total for estimate in estimates)

    assert first != last
    needed = max(first, last) / 2**30 * (1 + LARGEST_MISS) + OUTSIDE_GIB
    assert needed_gib(config, dp=1) == pytest.approx(needed, rel=1e-9)


def test_virtual_stages_keep_whole_groups(make_run):
    changes = {"layout.pp": 2, "layout.vpp": 2, "batch.micro_batch_size": 1}
    config = make_run(changes | {"batch.global_batch_size": 12})

    assert fit(config, device="h100-80gb", dp=1).largest_micro_batch == 6, "12 would be one group"


@pytest.mark.parametrize(
    ("micro_batch", "device", "said"),
    [
        (4, "h100-80gb", "H100 80GB: fits, about .* largest that does: batch.micro_batch_size=32 "),
        (128, "a100-40gb", "A100 40GB: does not fit, about .* largest that does: "),
        (32, "h100-80gb", "a larger micro-batch does not"),
    ],
)
def test_what_is_said(load_published, micro_batch, device, said):
    config = load_published("block-420m", micro_batch_size=micro_batch)
    line = device_line(fit(config, device=device, dp=1), config)

    assert re.search(said, line), line


def test_where_nothing_fits_it_is_said_what_to_use(load_published):
    config = load_published("block-1.2b", micro_batch_size=1)
    config = replace(config, data=replace(config.data, seq_length=131_072))
    found = fit(config, device="a100-40gb", dp=1)

    assert (found.fits, found.largest_micro_batch) == (False, None)
    line = device_line(found, config)
    assert re.search(r"does not fit, .* not even one sequence does .*=selective or full", line)


def test_plan_says_it(capsys):
    files = [str(ROOT / "configs/run/block-420m.yaml"), "--device", "h100-80gb"]
    assert main_plan(files) == 0
    assert "H100 80GB: fits" in capsys.readouterr().out
    assert main_plan([*files, "--json"]) == 0
    device = json.loads(capsys.readouterr().out)["device"]
    assert device["fits"]
    assert device["largest_micro_batch"] >= 1


@pytest.mark.parametrize("recipe", ["current", "delayed", "block"])
@pytest.mark.parametrize("device", ["a100-40gb", "a100-80gb"])
def test_fp8_on_an_a100_is_refused_with_what_to_use(device, recipe, capsys):
    files = [str(ROOT / "configs/run/block-420m.yaml"), "--set", f"kernels.fp8={recipe}"]
    assert main_plan([*files, "--device", device]) == 2
    error = capsys.readouterr().err
    assert re.search(f"kernels.fp8={recipe}: A100 .* Use kernels.fp8=none, .*h100-80gb", error)
    assert main_plan([*files, "--device", "h100-80gb"]) == 0
    assert f"in FP8, {recipe} scaling" in capsys.readouterr().out


def test_micro_batches_whose_rows_do_not_fill_tiles_are_not_suggested(make_run):
    sizes = {"data.seq_length": 96, "batch.micro_batch_size": 2, "batch.global_batch_size": 6}
    config = make_run(sizes)  # 24 and 120 rows of each sequence: a multiple of 16 for two of them

    assert fit(config, device="h100-80gb", dp=2).largest_micro_batch == 3
    config = replace(config, kernels=KernelConfig(fp8="current"))
    config = replace(config, batch=replace(config.batch, global_batch_size=12))
    assert fit(config, device="h100-80gb", dp=2).largest_micro_batch == 6
    assert fit(config, device="h100-80gb", dp=1).largest_micro_batch == 12
    config = replace(config, batch=replace(config.batch, global_batch_size=18))
    assert fit(config, device="h100-80gb", dp=1).largest_micro_batch == 18
    assert fit(config, device="h100-80gb", dp=9).largest_micro_batch == 2


def test_selective_recomputation_lets_a_larger_micro_batch_fit(load_published):
    sizes = {}
    for recompute in ("none", "selective", "full"):
        config = load_published("block-1.2b", micro_batch_size=1)
        batch = replace(config.batch, global_batch_size=120)
        config = replace(config, batch=batch, memory=MemoryConfig(recompute=recompute))
        sizes[recompute] = fit(config, device="h100-80gb", dp=1).largest_micro_batch
    assert sizes["none"] < sizes["selective"] < sizes["full"]
