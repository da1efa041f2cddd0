# SPDX-License-Identifier: Apache-2.0
"""Process groups: one call that brings up torch.distributed and Megatron's groups."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from bt_megatron.config.schema import LayoutConfig
from bt_megatron.parallel import cpu_backend, fused_adam, report_queue

TIMEOUT = timedelta(minutes=30)


def start_processes(store: dist.Store | None = None) -> None:
    """Join the process group named by torchrun's variables, or start a group of one.

    gloo on CPU, NCCL where CUDA exists; one process per GPU (LOCAL_RANK).

    Args:
        store: where the ranks meet; none: where torchrun says. A group that was destroyed can
            only be followed by another if that has a store of its own.

    Comm: a rendezvous of all ranks; must be called by all.
    """
    cpu_backend.install()
    fused_adam.install()
    report_queue.start()
    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if store is not None:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    elif "RANK" in os.environ:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def build_groups(layout: LayoutConfig, *, seed: int) -> None:
    """Create Megatron's process groups and seed its random-state tracker.

    Comm: creates groups; must be called by all ranks.
    """
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        context_parallel_size=layout.cp,
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def stop_processes() -> None:
    """Destroy all groups.

    Comm: none; each rank tears down its own side.
    """
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
