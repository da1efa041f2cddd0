# SPDX-License-Identifier: Apache-2.0
"""The kernels, interpreted on the CPU, compute what plain torch computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bt_megatron.inference.engine import cached_attention_kernel, sampling_kernel
from bt_megatron.inference.engine.cached_attention_kernel import CacheShape
from bt_megatron.inference.engine.sampling_kernel import SamplingShape

ROOT = Path(__file__).parents[4]
OPERATIONS = {
    *("norm", "activate", "attend_in_block", "attend_in_block, memory", "attend_cached"),
    *("attend_cached, memory", "store_prompts", "store_prompts, memory", "narrow_first"),
    *("narrow_first, activated", "narrow_first, whole", "narrow_last", "logprobs"),
}


@pytest.fixture(scope="module")
def errors():
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine_kernels"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_errors_are_those_of_the_order_of_sums(errors):
    assert errors.keys() == {*OPERATIONS, "tokens", "counts", "seen"}
    assert all(errors[name] < 1e-6 for name in OPERATIONS), errors


def test_the_same_tokens_are_drawn(errors):
    assert (errors["tokens"], errors["counts"], errors["seen"]) == (0, 0, 0)


CACHE = CacheShape(
    heads=16, groups=16, width=128, scale=128**-0.5, positions=32, mixed_stride=14_336,
    out_stride=10_240, table_width=17, angle_positions=545, splits=1, tile=32, stages=1,
)  # fmt: skip
POINTERS = {
    "mixed": "*bf16", "cache": "*bf16", "table": "*i32", "whole": "*i32", "angles": "*fp32",
    "out": "*bf16", "part": "*fp32", "logits": "*bf16", "tokens": "*i32", "place": "i32",
}  # fmt: skip
COMPILED = {
    "attention": (cached_attention_kernel.cached_attention_kernel, CACHE),
    "greedy": (sampling_kernel.greedy_kernel, SamplingShape(50_304, 50_304, 4, 4096)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_hot_kernels_compile_for_hopper(name):
    kernel, shape = COMPILED[name]
    signature = {n: POINTERS.get(n, "constexpr") for n in kernel.arg_names}
    constants = {(len(kernel.arg_names) - 1,): shape}
    source = ASTSource(kernel, signature, constants, {})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "ld.global" in compiled.asm["ptx"]
    assert compiled.metadata.shared < 48 * 1024
