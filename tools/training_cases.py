# SPDX-License-Identifier: Apache-2.0
"""What the training benchmark measures: models, their settings, and their vanilla twins."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bt_megatron.config.devices import fit
from bt_megatron.config.load import from_mapping, load_model, to_mapping
from bt_megatron.config.plan import Plan, make_plan
from bt_megatron.config.schema import (
    BatchConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from bt_megatron.config.source import Section, Value, parse_setting
from bt_megatron.errors import ConfigError

MODELS = Path(__file__).resolve().parents[1] / "configs" / "model"
TWINS = {"170m": "vanilla-160m", "420m": "vanilla-410m", "1.2b": "vanilla-1.4b"}
"""The vanilla model with as many parameters as a Block Transformer (paper, table 1)."""
LARGEST_TRIED = 64
"""Sequences of a micro-batch from which on no model gains."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    name: str
    config: RunConfig
    plan: Plan

    @property
    def precision(self) -> str:
        """As case names have it."""
        kernels = self.config.kernels
        return self.config.train.precision if kernels.fp8 == "none" else "fp8"


def read_case(text: str, *, world_size: int) -> Case:
    """Read `MODEL[:KEY=VALUE,...]`, e.g. `block-420m:batch.micro_batch_size=16`.

    Batches have one micro batch per replica unless batch.global_batch_size is given.

    Raises:
        ConfigError: the model or a key is not known, or the layout does not fit.
    """
    model, _, settings = text.partition(":")
    path = MODELS / f"{model}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in MODELS.glob("*.yaml")))
        raise ConfigError(f"{model}: not a model of configs/model. Use one of {known}.")
    config = RunConfig(
        name="bench",
        model=load_model(path),
        data=DataConfig(path="none", random_left_padding=False, pad_to_block_boundary=False),
        batch=BatchConfig(global_batch_size=0),
        optimizer=OptimizerConfig(warmup_steps=0),
        train=TrainConfig(steps=1, precision="bf16"),
    )
    mapping = to_mapping(config)
    for setting in filter(None, settings.split(",")):
        _put(mapping, setting)
    config = from_mapping(RunConfig, mapping, text)
    if config.batch.global_batch_size == 0:
        replicas = world_size // config.layout.replica_size
        once = replicas * config.batch.micro_batch_size
        config = replace(config, batch=replace(config.batch, global_batch_size=once))
    case = Case("", config, make_plan(config, world_size))
    name = f"train/{model}/{case.precision}"
    return replace(case, name=f"{name}/{settings}" if settings else name)


def _put(mapping: dict[str, Any], setting: str) -> None:
    """Set one value of a nested mapping; `from_mapping` checks the result."""
    node: Section | Value = parse_setting(setting)
    while isinstance(node, Section):
        ((key, entry),) = node.entries.items()
        if isinstance(entry, Value):
            mapping[key] = entry.value
        else:
            mapping = mapping.setdefault(key, {})
        node = entry


def tuned_cases(model: str, settings: str, *, device: str) -> list[Case]:
    """Return cases of a model of which the fastest counts: its largest micro-batch and half of it.

    The micro-batch is what `plan --device` suggests.

    Args:
        model: a name of configs/model.
        settings: further `KEY=VALUE,...`, or nothing.
        device: key of config/devices.py.

    Raises:
        ConfigError: not even one sequence fits.
    """
    text = f"{model}:batch.global_batch_size={LARGEST_TRIED},kernels.cuda_graphs=true"
    text = f"{text},{settings}" if settings else text
    largest = fit(read_case(text, world_size=1).config, device=device, dp=1).largest_micro_batch
    if largest is None:
        raise ConfigError(f"{model}: no micro-batch fits {device}. Leave it out of --models.")
    sizes = [largest, largest // 2] if largest > 1 else [largest]
    given = "kernels.cuda_graphs=true" + (f",{settings}" if settings else "")
    return [
        read_case(f"{model}:batch.micro_batch_size={size},{given}", world_size=1) for size in sizes
    ]
