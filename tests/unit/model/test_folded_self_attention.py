# SPDX-License-Identifier: Apache-2.0
"""The token decoder with its kernel is the plain one; where the kernel is not used, and why."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tests.ranks  # noqa: F401  imports Megatron for machines without CUDA
from bt_megatron.config.schema import DecoderConfig, LayoutConfig
from bt_megatron.errors import ConfigError
from bt_megatron.model.folded_self_attention import kernel_rotary, use_kernel
from bt_megatron.model.rotary import position_angles
from bt_megatron.model.transformer_config import Computation, StackConfig, decoder_stack

ROOT = Path(__file__).resolve().parents[3]
RTOL = 1e-5
"""Of losses and of each gradient, float32; sums are taken in another order."""
DECODER = DecoderConfig(num_layers=1, hidden_size=128, num_attention_heads=2)


@pytest.fixture(scope="module")
def differences() -> dict[str, tuple[float, float]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.interpreted_kernel"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["prefix", "long prefix", "summation", "llama", "no rotation"])
def test_the_kernel_gives_losses_and_gradients_of_the_plain_way(
    name: str, differences: dict[str, tuple[float, float]]
) -> None:
    losses, gradients = differences[name]
    assert losses < RTOL
    assert gradients < RTOL


def stack(**changes: object) -> StackConfig:
    return decoder_stack(DECODER, LayoutConfig(), Computation(), fold_positions=5, **changes)


def test_auto_uses_the_kernel_on_a_gpu_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not use_kernel("auto", stack(), relative_bias=False), "there is no GPU here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert use_kernel("auto", stack(), relative_bias=False)
    assert use_kernel("triton", stack(), relative_bias=False)
    assert not use_kernel("torch", stack(), relative_bias=False)
    assert not use_kernel("auto", stack(), relative_bias=True)


@pytest.mark.parametrize(
    ("change", "bias", "reason"),
    [
        ({"fold_positions": 65}, False, "a block has 65 positions, more than 64"),
        ({"kv_channels": 24}, False, "heads are 24 wide, not"),
        ({"attention_dropout": 0.1}, False, "its dropout is 0.1"),
        ({}, True, "relative bias"),
    ],
)
def test_what_does_not_fit_is_said(
    change: dict, bias: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    changed = stack()
    for name, value in change.items():
        setattr(changed, name, value)
    assert not use_kernel("auto", changed, relative_bias=bias)
    with pytest.raises(ConfigError, match=f"{reason}.*Use kernels.token_attention=auto"):
        use_kernel("triton", changed, relative_bias=bias)


def test_the_kernel_gets_cosines_and_sines_of_positions() -> None:
    rotary = kernel_rotary(DECODER, 5, torch.device("cpu"))
    angles = position_angles(DECODER, torch.arange(5))
    assert rotary.shape == (2, 5, 16)
    torch.testing.assert_close(rotary[0], angles[:, 0, 0].cos())
    torch.testing.assert_close(rotary[1], angles[:, 0, 0].sin())
    assert kernel_rotary(replace(DECODER, rotary_fraction=0.0), 5, torch.device("cpu")) is None
