# SPDX-License-Identifier: Apache-2.0
"""Without a GPU batches stay where they are; tests/gpu/test_step_on_gpu.py copies them."""

import torch

from bt_megatron.data.batches import MicroBatch
from bt_megatron.data.device_copy import Sender


def test_batches_without_a_gpu_are_the_same_tensors() -> None:
    batch = MicroBatch(*(torch.arange(4).view(1, 4) for _ in range(4)))
    received = Sender().send([batch, batch]).receive()
    if not torch.cuda.is_available():
        assert received == [batch, batch]
        assert received[0].tokens is batch.tokens
    assert [one.tokens.tolist() for one in received] == [[[0, 1, 2, 3]]] * 2
