# SPDX-License-Identifier: Apache-2.0
"""Products of the decoders' layers in FP8: recipes, and the state of delayed scaling.

Current and block scaling are functions of the tensor that is scaled and keep nothing. Delayed
scaling scales by the maxima of the last HISTORY passes, which are part of the training's state.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from megatron.core import fp8_utils
from megatron.core.fp8_utils import get_fp8_context, get_fp8_recipe
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

Fp8 = Literal["none", "current", "delayed", "block"]
"""`kernels.fp8`."""
Scales = dict[str, list[Tensor]]
"""Of one module: forward and backward each the scales and the history of maxima."""

HISTORY = 1024
"""Passes whose largest maximum counts in delayed scaling (Transformer Engine's default)."""

_SETTINGS: dict[Fp8, dict[str, Any]] = {
    "none": {},
    "current": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "delayed": {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "fp8_amax_history_len": HISTORY,
        "fp8_amax_compute_algo": "max",
    },
    "block": {"fp8": "e4m3", "fp8_recipe": "blockwise"},
}
"""hybrid: gradients in E5M2, all else in E4M3. Blocks are small enough for E4M3 everywhere."""


def fp8_settings(fp8: Fp8) -> dict[str, Any]:
    """Return what changes in the Megatron config of a stack of Transformer Engine layers."""
    return _SETTINGS[fp8]


def has_history(config: TransformerConfig) -> bool:
    """Return whether a stack's products are scaled by the maxima of past passes."""
    return bool(config.fp8) and config.fp8_recipe == "delayed"


@contextlib.contextmanager
def one_pass(stage: MegatronModule) -> Iterator[None]:
    """Make all that runs inside one pass of delayed scaling; nothing without a history.

    Each decoder by itself would advance the histories of both. What an evaluation sees is
    forgotten: training does not depend on when it was evaluated.

    Comm: with a history, at the end of a training pass and in its backward pass an all-reduce
    of maxima over the tp, cp and dp group.
    """
    if not has_history(stage.config):
        yield
        return
    with get_fp8_context(stage.config):
        yield
    if not stage.training:
        for _, module in scaled_modules(stage):
            module.fp8_meta["scaling_fwd"].amax_history[0].zero_()


def scaled_modules(stage: MegatronModule) -> Iterator[tuple[str, Any]]:
    """Yield the modules with products in FP8 by name, the same in every layout."""
    for stack in ("block_decoder", "token_decoder", "decoder"):
        for layer in getattr(getattr(stage, stack, None), "layers", ()):
            for part, module in layer.named_modules():
                if hasattr(module, "is_first_microbatch"):
                    yield f"{stack}.layers.{layer.layer_number - 1}.{part}", module


def read_scales(module: Any) -> Scales:
    """Return a copy on the CPU of a module's scales; empty before its first pass."""
    scales = module.get_fp8_meta_tensors() or {}
    return {key: [tensor.cpu() for tensor in tensors] for key, tensors in scales.items()}


def put_scales(module: Any, scales: Scales, config: TransformerConfig) -> None:
    """Set a module's scales, before its first pass too."""
    with torch.no_grad(), get_fp8_context(config):
        module.fp8_meta["num_gemms"] = 1
        module.init_fp8_meta_tensors(get_fp8_recipe(config))
        module.reset_fp8_meta_tensors(scales)


def free_copies(stage: MegatronModule) -> None:
    """Give back the memory of the weights' copies in FP8; the next pass makes new ones.

    Comm: none.
    """
    for _, module in scaled_modules(stage):
        module._fp8_workspaces.clear()


def forget_models() -> None:
    """Make room for another model in this process.

    Transformer Engine would go on with the histories of one that is gone, and with its groups.

    Comm: none.
    """
    if fp8_utils.HAVE_TE:
        fp8_utils.FP8GlobalStateManager.reset()
