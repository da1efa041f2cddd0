# SPDX-License-Identifier: Apache-2.0
"""Who computes norms, linear layers and causal attention: plain torch or Transformer Engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import torch.distributed as dist

from bt_megatron.config.schema import KernelConfig
from bt_megatron.errors import ConfigError
from bt_megatron.parallel import transformer_engine_check

LayerLibrary = Literal["torch", "transformer_engine"]

FP32_PRODUCTS = "train.precision is fp32, and Transformer Engine multiplies float32 in TF32"
"""Its GEMM asks cuBLAS for TF32 whenever both factors are float32; torch's switches do not count.

Source: transformer_engine/common/gemm/cublaslt_gemm.cu, "Use TF32 only for pure FP32 GEMM".
"""


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What `kernels.layers` came to on this machine."""

    library: LayerLibrary
    reason: str
    """Why it is not Transformer Engine, or the version that is used."""

    def __str__(self) -> str:
        """Write the choice for people."""
        return f"{self.library} ({self.reason})"


def choose_layers(kernels: KernelConfig, *, precision: str) -> LayerChoice:
    """Return who computes the layers of this run; the same on all ranks.

    Args:
        kernels: what the user asks for.
        precision: `train.precision`.

    Raises:
        ConfigError: Transformer Engine or FP8 is asked for and cannot be used, Transformer Engine
            works on some of the ranks only, or can be imported and fails on the GPU.

    Comm: an object gather over all ranks; must be called by all.
    """
    if kernels.layers == "torch":
        return LayerChoice("torch", "kernels.layers is torch")
    problem = transformer_engine_check.find_problem()
    fault = transformer_engine_check.find_fault() if problem is None else None
    fp8_problem = problem
    if kernels.fp8 != "none" and problem is None:
        by_block = kernels.fp8 == "block"
        fp8_problem = transformer_engine_check.find_fp8_problem(by_block=by_block)
    gathered: list[tuple[str | None, ...]] = [()] * dist.get_world_size()
    dist.all_gather_object(gathered, (problem, fault, fp8_problem))
    problems, faults, fp8_problems = zip(*gathered, strict=True)
    _require_products(faults)
    require_fp8(kernels, problems=fp8_problems)
    return decide(kernels, precision=precision, problems=problems)


def decide(kernels: KernelConfig, *, precision: str, problems: Sequence[str | None]) -> LayerChoice:
    """Return who computes the layers, from what each rank found out.

    Args:
        kernels: what the user asks for.
        precision: `train.precision`.
        problems: by rank, why Transformer Engine cannot be used there; None: it can.

    Raises:
        ConfigError: see `choose_layers`.
    """
    if kernels.layers == "torch":
        return LayerChoice("torch", "kernels.layers is torch")
    failing = [rank for rank, problem in enumerate(problems) if problem is not None]
    if failing and len(failing) < len(problems):
        raise ConfigError(
            f"kernels.layers={kernels.layers}: {len(failing)} of {len(problems)} processes cannot "
            f"use Transformer Engine, the first is rank {failing[0]}: {problems[failing[0]]}. "
            "Repair its machine, or set kernels.layers=torch."
        )
    problem = problems[0]
    if problem is None and precision == "fp32":
        problem = FP32_PRODUCTS
    if problem is None:
        return LayerChoice("transformer_engine", metadata.version("transformer-engine"))
    if kernels.layers == "transformer_engine":
        raise ConfigError(f"kernels.layers=transformer_engine: {problem}. {_remedy(problem)}")
    return LayerChoice("torch", problem)


def require_fp8(kernels: KernelConfig, *, problems: Sequence[str | None]) -> None:
    """Refuse FP8 where it cannot be had; A100s, for one, have no such products.

    Args:
        kernels: what the user asks for.
        problems: by rank, why the device there cannot multiply in FP8; None: it can.

    Raises:
        ConfigError: FP8 is asked for, and one of the ranks cannot.

    Comm: none.
    """
    if kernels.fp8 == "none":
        return
    for rank, problem in enumerate(problems):
        if problem is not None:
            raise ConfigError(
                f"kernels.fp8={kernels.fp8}: rank {rank} cannot multiply in FP8 ({problem}). Use "
                "kernels.fp8=none, which trains in bf16, or an H100 or newer with Transformer "
                "Engine."
            )


def _remedy(problem: str) -> str:
    if problem == FP32_PRODUCTS:
        return "Use train.precision=bf16, or kernels.layers=torch."
    return (
        "Use a machine with a GPU and install it there (pip install --no-build-isolation '.[gpu]' "
        "in the checkout), or set kernels.layers=torch."
    )


def _require_products(faults: Sequence[str | None]) -> None:
    for rank, fault in enumerate(faults):
        if fault is not None:
            # Not "auto: torch": Megatron-Core would still take its optimizer and norms.
            raise ConfigError(
                f"kernels.layers: Transformer Engine can be imported and fails on the GPU of rank "
                f"{rank}: {fault}. Install a build for this GPU, or uninstall transformer-engine."
            )
