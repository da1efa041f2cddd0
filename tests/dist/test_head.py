# SPDX-License-Identifier: Apache-2.0
"""Training with a head that computes its logits in chunks, in several layouts."""

from dataclasses import replace
from pathlib import Path

import pytest

from bt_megatron.config.schema import KernelConfig, LayoutConfig, RunConfig
from tests.dist.test_layouts import LOSS_RTOL, OTHER_MODELS, config_of, losses
from tests.ranks import run_ranks

MODELS = {"block": None, "tied": OTHER_MODELS["roberta-t5"]}
LAYOUTS = {"one": (1, {}), "tp2": (2, {"tp": 2}), "tp2-sp": (2, {"tp": 2, "sequence_parallel": True})}


def changed(config: RunConfig, model: str, chunk: int | None) -> RunConfig:
    kernels = KernelConfig(head_chunk_tokens=chunk)
    return replace(config, kernels=kernels, model=MODELS[model] or config.model)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_chunks_of_the_head_give_the_losses_of_the_whole(
    model: str, layout: str, tiny_data: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, LayoutConfig(), 1)
    (whole,) = run_ranks(losses, 1, changed(config, model, None))
    world_size, changes = LAYOUTS[layout]
    config = replace(config, layout=replace(LayoutConfig(), **changes))
    rows = config.batch.micro_batch_size * config.data.seq_length
    chunk = rows // 3  # leaves a rest
    assert rows % chunk
    for results in run_ranks(losses, world_size, changed(config, model, chunk)):
        for (loss, norm), (whole_loss, whole_norm) in zip(results, whole, strict=True):
            assert loss == pytest.approx(whole_loss, rel=LOSS_RTOL)
            assert norm == pytest.approx(whole_norm, rel=10 * LOSS_RTOL)
