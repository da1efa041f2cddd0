# SPDX-License-Identifier: Apache-2.0
"""What the processes of `tools.compare_layouts` do: one run, and how far it is from another."""

import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bt_megatron.config.load import from_mapping
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import TrainingError
from bt_megatron.model.layer_library import choose_layers
from tools.layout_run import LayoutRun, run_layout, whole_gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far a run is from the expected one, at most."""

    loss_nats: float
    """Of the losses of all steps and ranks."""
    loss_relative: float
    """The same, in units of the expected losses."""
    gradient: float
    """Norm of the difference in units of the norm, of each gradient of the first step."""
    gradient_name: str
    """The gradient that differs most."""
    grad_norm_relative: float
    """Of the gradient norms of all steps and ranks, in units of the expected ones."""


def measure_one_process(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run on one process and keep the result for others to be compared with.

    Args:
        arguments: `config` of the run, `steps`, `save` for the file to write, and `against` for
            that of an earlier run, or None.

    Returns:
        `layers`, `losses` and the `difference` to the earlier run, or None.

    Comm: none but within groups of one.
    """
    config = from_mapping(RunConfig, arguments["config"], "job")
    run = _run(config, steps=arguments["steps"])
    gradients = whole_gradients([run])
    Path(arguments["save"]).write_bytes(pickle.dumps((run, gradients)))
    difference = None
    if arguments["against"] is not None:
        difference = asdict(compare([run], gradients, *_load(arguments["against"])))
    return {"layers": _layers(config), "losses": run.losses, "difference": difference}


def measure_layout(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Run in a layout and compare it with the run of one process.

    Args:
        arguments: `config` of the run, `steps`, `expected` for the file of the run of one
            process, and `folder` for what the ranks tell each other.

    Returns:
        On rank 0 `layers` and the `difference`.

    Raises:
        TrainingError: the gradients have other names or shapes.

    Comm: trains; must be called by all ranks.
    """
    config = from_mapping(RunConfig, arguments["config"], "job")
    run = _run(config, steps=arguments["steps"])
    layers = _layers(config)
    files = [Path(arguments["folder"]) / f"{rank}.run" for rank in range(dist.get_world_size())]
    files[dist.get_rank()].write_bytes(pickle.dumps(run))
    dist.barrier()
    if dist.get_rank() != 0:
        return None
    runs = [pickle.loads(file.read_bytes()) for file in files]
    for file in files:
        file.unlink()
    difference = compare(runs, whole_gradients(runs), *_load(arguments["expected"]))
    return {"layers": layers, "difference": asdict(difference)}


def _run(config: RunConfig, *, steps: int) -> LayoutRun:
    torch.backends.cuda.matmul.allow_tf32 = False  # a variable of the environment may allow it
    return run_layout(config, steps=steps)


def compare(
    runs: Sequence[LayoutRun],
    gradients: Mapping[str, Tensor],
    expected: LayoutRun,
    expected_gradients: Mapping[str, Tensor],
) -> Difference:
    """Compare a run with the expected one.

    Args:
        runs: what each rank gave.
        gradients: of the first step, put together.
        expected: what one process gave.
        expected_gradients: its gradients.

    Raises:
        TrainingError: there is not the same to be compared.
    """
    _require_same({n: g.shape for n, g in gradients.items()}, expected_gradients)
    apart = {
        name: _distance(gradients[name].double(), gradient.double())
        for name, gradient in expected_gradients.items()
    }
    worst = max(apart, key=lambda name: _or_infinite(apart[name]))
    losses = [pair for run in runs for pair in zip(run.losses, expected.losses, strict=True)]
    norms = [pair for run in runs for pair in zip(run.grad_norms, expected.grad_norms, strict=True)]
    return Difference(
        loss_nats=_largest(abs(got - wanted) for got, wanted in losses),
        loss_relative=_largest(abs(got - wanted) / wanted for got, wanted in losses),
        gradient=_or_infinite(apart[worst]),
        gradient_name=worst,
        grad_norm_relative=_largest(abs(got - wanted) / wanted for got, wanted in norms),
    )


def _require_same(shapes: Mapping[str, torch.Size], expected: Mapping[str, Tensor]) -> None:
    if missing := sorted(expected.keys() - shapes.keys()):
        raise TrainingError(f"there is no gradient of {', '.join(missing)}")
    if more := sorted(shapes.keys() - expected.keys()):
        raise TrainingError(f"one process has no gradient of {', '.join(more)}")
    for name, gradient in expected.items():
        if shapes[name] != gradient.shape:
            raise TrainingError(f"{name}: {tuple(shapes[name])} is not {tuple(gradient.shape)}")


def _distance(got: Tensor, expected: Tensor) -> float:
    """Return |got - expected| / |expected|; 0 if both are 0, as of an unused weight."""
    difference = torch.linalg.vector_norm(got - expected).item()
    norm = torch.linalg.vector_norm(expected).item()
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / norm


def _largest(values: Iterable[float]) -> float:
    return max(map(_or_infinite, values))


def _or_infinite(value: float) -> float:
    """Let nan, which is neither larger nor smaller than a limit, be over all limits."""
    return math.inf if math.isnan(value) else value


def _layers(config: RunConfig) -> str:
    return choose_layers(config.kernels, precision=config.train.precision).library


def _load(file: str) -> tuple[LayoutRun, dict[str, Tensor]]:
    run, gradients = pickle.loads(Path(file).read_bytes())
    return run, gradients
