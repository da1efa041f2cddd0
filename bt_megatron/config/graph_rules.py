# SPDX-License-Identifier: Apache-2.0
"""Rules about what can be recorded as a CUDA graph: a step that never asks the host anything."""

from bt_megatron.config.schema import RunConfig


def graphs_are_without_pipelines(config: RunConfig, world_size: int) -> str | None:
    """The host decides when to exchange what between pipeline stages."""
    if not config.kernels.cuda_graphs or config.layout.pp == 1:
        return None
    return (
        f"kernels.cuda_graphs is true but layout.pp is {config.layout.pp}; steps of a pipeline are "
        "not recorded. Use kernels.cuda_graphs=false or layout.pp=1."
    )


def graphs_are_without_overlapped_gather(config: RunConfig, world_size: int) -> str | None:
    """The gather of weights begins in one step and ends in the next, so neither is whole."""
    if not config.kernels.cuda_graphs or not config.layout.overlap_param_gather:
        return None
    return (
        "kernels.cuda_graphs is true but layout.overlap_param_gather reaches from one step into "
        "the next. Use layout.overlap_param_gather=false or kernels.cuda_graphs=false."
    )


def graphs_are_without_dropout(config: RunConfig, world_size: int) -> str | None:
    """Random states are kept by the host, and a recorded step would draw the same numbers."""
    embedder, token_decoder = config.model.embedder, config.model.token_decoder
    rates = {}
    if embedder is not None and embedder.kind != "lookup":
        rates["model.embedder.dropout"] = embedder.dropout
    if token_decoder is not None:
        rates["model.token_decoder.dropout"] = token_decoder.dropout
    found = [f"{key} ({rate:g})" for key, rate in rates.items() if rate > 0]
    if not config.kernels.cuda_graphs or not found:
        return None
    return (
        f"kernels.cuda_graphs is true but {' and '.join(found)} is more than 0; random numbers are "
        "not recorded. Use kernels.cuda_graphs=false, or a dropout of 0."
    )


def graphs_are_without_recomputation(config: RunConfig, world_size: int) -> str | None:
    """Recomputation saves random states through the host; that of activations needs none."""
    found = {"memory.recompute=full": config.memory.recompute == "full"}
    found[f"memory.token_slices={config.memory.token_slices}"] = config.memory.token_slices > 1
    again = [setting for setting, is_so in found.items() if is_so]
    if not config.kernels.cuda_graphs or not again:
        return None
    return (
        f"kernels.cuda_graphs is true but {' and '.join(again)}, and steps that compute layers "
        "again are not recorded; a micro-batch that needs it is bound by the GPU anyway. Use "
        "kernels.cuda_graphs=false."
    )
