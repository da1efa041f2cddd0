# SPDX-License-Identifier: Apache-2.0
"""The parts of a run, built in the order in which they need each other."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from bt_megatron.checkpoint.manifest import Manifest
from bt_megatron.checkpoint.state import sharded_state
from bt_megatron.checkpoint.writer import CheckpointWriter, Saved
from bt_megatron.config.load import LoadedConfig, dotted_values
from bt_megatron.config.plan import Plan, plan_mapping
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.show import resolved_yaml
from bt_megatron.config.stages import resolve_stages
from bt_megatron.data.device_copy import SentBatches
from bt_megatron.data.prefetch import PrefetchedBatches
from bt_megatron.faults.agreement import require_same
from bt_megatron.faults.watch import Watch
from bt_megatron.model.kv_cache import kv_cache
from bt_megatron.model.layer_library import LayerChoice, choose_layers
from bt_megatron.model.transformer_config import has_fused_accumulation
from bt_megatron.observe.atomic_file import write_atomically
from bt_megatron.observe.console import Console
from bt_megatron.observe.environment import describe_environment
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.parallel.groups import build_groups, start_processes
from bt_megatron.training.chunk import build_chunks, build_optimizer, gathered_weights
from bt_megatron.training.datasets import RunData, open_data, step_reader
from bt_megatron.training.evaluate import Evaluation
from bt_megatron.training.guard import BatchGuard
from bt_megatron.training.meter import Meter
from bt_megatron.training.reporter import Reporter
from bt_megatron.training.start import (
    find_start,
    guard_state,
    owes_evaluation,
    resume,
    set_initial_weights,
)
from bt_megatron.training.step import TrainingStep
from bt_megatron.training.step_graph import work_on_own_stream
from bt_megatron.training.stop import StopRequest
from bt_megatron.versions import read_versions


@dataclass
class Run:
    """Everything that the loop uses."""

    config: RunConfig
    plan: Plan
    folder: RunFolder
    step: int
    """Optimizer steps taken; with seed and data it is the whole position."""
    data: RunData
    batches: PrefetchedBatches[SentBatches]
    training: TrainingStep
    evaluation: Evaluation
    checkpoints: CheckpointWriter
    meter: Meter
    guard: BatchGuard
    stop: StopRequest
    watch: Watch
    reporter: Reporter | None
    """Only on rank 0."""
    owes_evaluation: bool = False
    """Whether the evaluation that belongs to the steps taken is still to be done."""

    def save(self) -> None:
        """Start to write a checkpoint of the steps taken so far.

        Comm: see CheckpointWriter.save; must be called by all ranks.
        """
        training = self.training
        with self.checkpoints.stalls.running(), gathered_weights(training.chunks):
            self.report_saved(self.checkpoints.finish())
            state = sharded_state(training.chunks, training.optimizer, is_loading=False)
            self.checkpoints.save(state, self._manifest())

    def settle(self) -> None:
        """Do what later steps would wait for; call it after the first step, when all is there.

        Checkpoints get their host memory. The garbage collector puts aside what stays for ever:
        looking through it takes a few tenths of a second, at moments of its own choice.

        Comm: none.
        """
        if self.reporter is not None:
            self.reporter.first_step(step=self.step)
        training = self.training
        state = sharded_state(training.chunks, training.optimizer, is_loading=False)
        self.checkpoints.reserve(state)
        gc.collect()
        gc.freeze()

    def report_saved(self, saved: Saved | None) -> None:
        """Report a checkpoint that has become complete, if one has."""
        if saved is not None and self.reporter is not None:
            self.reporter.saved(saved)

    def _manifest(self) -> Manifest:
        return Manifest(
            step=self.step,
            tokens=self.step * self.plan.tokens_per_step,
            config=asdict(self.config),
            world_size=self.plan.world_size,
            data_fingerprint=self.data.fingerprint,
            versions=read_versions(),
            guard=asdict(self.guard.state),
            files={},
        )


def build_run(
    loaded: LoadedConfig,
    plan: Plan,
    console: Console,
    *,
    stop: StopRequest,
    watch: Watch,
    resume_allow: Sequence[str] = (),
) -> Run:
    """Build all parts and load the newest whole checkpoint of the run.

    Args:
        loaded: the configuration.
        plan: what follows from it.
        console: for people.
        stop: listening already.
        watch: started here, as soon as there are other ranks to watch.
        resume_allow: keys that may differ from the saved run.

    Raises:
        ConfigError: the ranks are about to run different things.

    Comm: must be called by all ranks.
    """
    config = loaded.config
    start_processes()
    folder = RunFolder.of(config)
    watch.start(config.faults, folder.faults)
    versions = {f"version of {name}": version for name, version in read_versions().items()}
    require_same({**dotted_values(config), **versions})
    layers = choose_layers(config.kernels, precision=config.train.precision)
    console.note(f"{'layers':<11}{layers}")
    if config.kernels.cuda_graphs:
        work_on_own_stream()
    build_groups(config.layout, seed=config.train.seed)
    data = open_data(
        config,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
    )
    for note in data.notes:
        console.note(note)
    found = find_start(folder.checkpoints, config, console, allow=resume_allow)
    stages = resolve_stages(config)
    chunks = build_chunks(config, stages, layers=layers.library)
    if found.folder is None:
        set_initial_weights(config, chunks)
    optimizer = build_optimizer(config, chunks)
    guard = BatchGuard(config.faults, guard_state(found))
    step = resume(found, config, plan, chunks, optimizer, data_fingerprint=data.fingerprint)
    training = TrainingStep(config, stages, chunks, optimizer)
    reporter = None
    if dist.get_rank() == 0:
        _describe(folder, loaded, plan, layers)
        reporter = Reporter(folder, config, plan, console, step=step)
    return Run(
        config=config,
        plan=plan,
        folder=folder,
        step=step,
        data=data,
        batches=PrefetchedBatches(
            step_reader(config, data.training, first_step=step), first_step=step
        ),
        training=training,
        evaluation=Evaluation(data.validation, training, data.byte_lengths),
        checkpoints=CheckpointWriter(
            folder.checkpoints, config.checkpoint, may_update=training.may_update
        ),
        meter=Meter(plan),
        guard=guard,
        stop=stop,
        watch=watch,
        reporter=reporter,
        owes_evaluation=owes_evaluation(folder.metrics, config, step=step),
    )


def _describe(folder: RunFolder, loaded: LoadedConfig, plan: Plan, layers: LayerChoice) -> None:
    """Write config.resolved.yaml, plan.json and environment.json."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.config, resolved_yaml(loaded).encode())
    kernels = {**asdict(layers), "fused_gradient_accumulation": has_fused_accumulation()}
    content = {
        **plan_mapping(plan),
        "kv_cache": _kv_bytes(loaded.config),
        "versions": read_versions(),
        "device": _device_name(),
        "kernels": kernels,
    }
    write_atomically(folder.plan, json.dumps(content, indent=1).encode())
    environment = describe_environment(read_versions())
    write_atomically(folder.environment, json.dumps(environment, indent=1).encode())


def _kv_bytes(config: RunConfig) -> dict[str, float]:
    """Return the bytes of keys and values that generating will keep, of a sequence of training."""
    cache = kv_cache(config.model)
    return {**asdict(cache), "per_sequence": cache.per_sequence(config.data.seq_length)}


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
