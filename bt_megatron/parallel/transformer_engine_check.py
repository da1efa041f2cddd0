# SPDX-License-Identifier: Apache-2.0
"""Whether Transformer Engine can be used on this machine.

Megatron-Core guards its imports of Transformer Engine against ImportError only. One that is
installed and broken (another cuDNN, parts of two versions) raises OSError, RuntimeError or
AssertionError, and then Megatron-Core cannot be imported at all. So it is tried out before, and
hidden if it fails.
"""

import functools
import importlib
import importlib.util
import sys

import torch

PACKAGES = ("transformer_engine", "transformer_engine_torch")


@functools.cache
def find_problem() -> str | None:
    """Return why Transformer Engine cannot be used here, or None if it can be imported.

    Without a CUDA device it is not imported.
    """
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    if importlib.util.find_spec("transformer_engine") is None:
        return "transformer-engine is not installed"
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever a broken installation raises
        return f"transformer-engine is installed and cannot be imported ({describe(error)})"
    return None


def find_fault() -> str | None:
    """Return why a product on the current device fails, or None if it works.

    Only after `find_problem` gave None. It starts CUDA on the current device.
    """
    engine = importlib.import_module("transformer_engine.pytorch")
    try:
        # Constant weights: drawing them would move on the random state of the run.
        constant = torch.nn.init.ones_
        layer = engine.LayerNormLinear(64, 64, params_dtype=torch.bfloat16, init_method=constant)
        rows = torch.eye(64, dtype=torch.bfloat16, device="cuda")
        with torch.no_grad():
            is_finite = bool(layer(rows).isfinite().all())
    except Exception as error:  # a missing kernel, library or driver: each has its own class
        return describe(error)
    return None if is_finite else "a product of finite numbers is not finite"


def find_fp8_problem(*, by_block: bool) -> str | None:
    """Return why the current device cannot multiply in FP8, or None if it can.

    Only after `find_problem` gave None.

    Args:
        by_block: whether each block of values has a scale of its own, which wants more.
    """
    engine = importlib.import_module("transformer_engine.pytorch")
    check = engine.is_fp8_block_scaling_available if by_block else engine.is_fp8_available
    is_available, reason = check(return_reason=True)
    return None if is_available else f"{torch.cuda.get_device_name()}: {reason}"


def hide_if_broken() -> None:
    """Make imports of a Transformer Engine that cannot be used raise ImportError.

    Must be called before `megatron.core` is imported.
    """
    if find_problem() is None:
        return
    for name in list(sys.modules):
        if name.partition(".")[0] in PACKAGES:
            del sys.modules[name]
    for name in PACKAGES:
        sys.modules[name] = None  # type: ignore[assignment]  # import raises ImportError


def describe(error: Exception) -> str:
    """Return class and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
