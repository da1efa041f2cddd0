# SPDX-License-Identifier: Apache-2.0
"""DALI hands over on the GPU what reading and copying does."""

import dataclasses

import numpy as np
import pytest
import torch

from bt_megatron.config.schema import BatchConfig, DataConfig
from bt_megatron.data.batches import MicroBatch, TrainingBatches
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dali import DaliSteps
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.device_copy import Sender
from bt_megatron.data.index import TokenShardWriter
from bt_megatron.data.mixture import Mixture
from bt_megatron.data.prefetch import PrefetchedBatches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def batches(tmp_path):
    with TokenShardWriter(tmp_path / "x", "uint16") as writer:
        for i in range(200):
            writer.add_document(np.random.default_rng(i).integers(1, 50_000, size=300 + i))
    corpus = TokenCorpus.from_shards([tmp_path / "x"], eos_id=0, vocab_size=50_304)
    dataset = PackedDataset(corpus, config=DataConfig(path="x", seq_length=256), block_length=4)
    return TrainingBatches(
        Mixture.of(dataset, seed=1),
        batch=BatchConfig(global_batch_size=32, micro_batch_size=8),
        dp_rank=0,
        dp_size=1,
        target_shift=4,
    )


@pytest.mark.parametrize("first_step", [0, 11])
def test_batches_on_the_gpu_are_the_same(batches, first_step):
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install .[gpu]")
    sender = Sender()
    with (
        PrefetchedBatches(
            DaliSteps(batches, first_step=first_step).read, first_step=first_step
        ) as ours,
        PrefetchedBatches(
            lambda step: sender.send(batches.micro_batches(step)), first_step=first_step
        ) as plain,
    ):
        for _ in range(20):
            for one, other in zip(next(ours).receive(), next(plain).receive(), strict=True):
                for field in dataclasses.fields(MicroBatch):
                    tensor = getattr(one, field.name)
                    assert tensor.is_cuda
                    assert torch.equal(tensor, getattr(other, field.name)), field.name
