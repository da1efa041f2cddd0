# SPDX-License-Identifier: Apache-2.0
"""A training step on a real GPU: no wait of the host inside, the same step as a CUDA graph, a
step that is not finite, batches that come on a stream of their own."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from bt_megatron.checkpoint.state import unwrap  # noqa: E402
from bt_megatron.config.schema import KernelConfig, RunConfig, TrainConfig  # noqa: E402
from bt_megatron.data.batches import MicroBatch  # noqa: E402
from bt_megatron.data.device_copy import Sender  # noqa: E402
from bt_megatron.parallel.groups import start_processes  # noqa: E402
from bt_megatron.training.step import StepResult, TrainingStep  # noqa: E402
from bt_megatron.training.step_graph import WARM_UP_STEPS  # noqa: E402
from tools.layout_run import own_batches, training_step  # noqa: E402
from tools.training_cases import read_case  # noqa: E402

LR = 1e-3
STEPS = WARM_UP_STEPS + 4
CASES = {
    "block": "block-33m:data.seq_length=256,batch.micro_batch_size=4,batch.global_batch_size=8",
    "vanilla": "vanilla-31m:data.seq_length=256,batch.micro_batch_size=4,batch.global_batch_size=8",
}


@pytest.fixture(scope="module", autouse=True)
def _processes() -> None:
    start_processes()


def config_of(name: str, *, precision: str = "bf16", graphs: bool = False) -> RunConfig:
    config = read_case(CASES[name], world_size=1).config
    return replace(
        config,
        train=TrainConfig(steps=1, precision=precision),
        kernels=KernelConfig(cuda_graphs=graphs),
    )


def weights_of(step: TrainingStep) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in step.chunks[0].named_parameters()}


def take(step: TrainingStep, config: RunConfig, number: int) -> StepResult:
    return step.train(own_batches(config, step=number), lr=LR / (number + 1))


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_waits_for_nothing_inside_a_step(name: str, graphs: bool) -> None:
    config, sender = config_of(name, graphs=graphs), Sender()
    with training_step(config) as step:
        for number in range(WARM_UP_STEPS + 1):
            take(step, config, number)
        sent = sender.send(own_batches(config, step=STEPS))
        torch.cuda.synchronize()
        with waiting_is_an_error():
            outcome = step.launch(sent.receive(), lr=LR)
        assert outcome.isfinite().all()


def test_waiting_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="synchron"), waiting_is_an_error():
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_graph_is_the_same_steps_bit_for_bit(name: str, precision: str) -> None:
    results, weights, validations = {}, {}, {}
    for graphs in (False, True):
        config = config_of(name, precision=precision, graphs=graphs)
        with training_step(config) as step:
            results[graphs] = [take(step, config, number) for number in range(STEPS - 1)]
            # What comes between steps must not disturb what was recorded.
            validations[graphs] = step.evaluate(own_batches(config, step=99))
            results[graphs].append(take(step, config, STEPS - 1))
            weights[graphs] = weights_of(step)
            assert (step.graph is not None) is graphs
    assert results[True] == results[False]
    assert validations[True] == validations[False]
    assert len({result.totals.loss for result in results[True]}) == STEPS
    for key, weight in weights[False].items():
        assert torch.equal(weight, weights[True][key]), key


@pytest.mark.parametrize("graphs", [False, True])
def test_a_step_that_is_left_out_leaves_weights_and_moments(graphs: bool) -> None:
    config = config_of("block", graphs=graphs)
    results, weights = {}, {}
    for disturbed in (False, True):
        with training_step(config) as step:
            taken = [take(step, config, number) for number in range(STEPS)]
            if disturbed:
                _take_a_step_that_is_not_finite(step, config)
                _take_a_step_with_too_large_a_loss(step, config)
            taken.append(take(step, config, STEPS))
            results[disturbed], weights[disturbed] = taken, weights_of(step)
    assert results[True] == results[False]
    for key, weight in weights[False].items():
        assert torch.equal(weight, weights[True][key]), key


def _take_a_step_that_is_not_finite(step: TrainingStep, config: RunConfig) -> None:
    before = weights_of(step)
    with torch.no_grad():  # of the copy in bf16; the main weights are not touched
        unwrap(step.chunks[0]).head.weight[0, 0] = float("nan")
    result = take(step, config, STEPS)
    assert math.isnan(result.totals.loss)
    assert not result.is_applied
    for key, kept in weights_of(step).items():
        assert torch.equal(kept, before[key]), key


def _take_a_step_with_too_large_a_loss(step: TrainingStep, config: RunConfig) -> None:
    before = weights_of(step)
    batches = own_batches(config, step=STEPS)
    limit = 0.99 * step.evaluate(batches).loss
    result = step.train(batches, lr=LR, max_loss=limit)
    assert result.totals.loss > limit
    assert not result.is_applied
    for key, kept in weights_of(step).items():
        assert torch.equal(kept, before[key]), key


def test_batches_arrive_as_they_were_sent() -> None:
    sender = Sender()
    torch.manual_seed(0)
    for _ in range(8):
        batch = MicroBatch(*(torch.randint(1 << 40, (16, 2048)) for _ in range(4)))
        sent = sender.send([batch, batch])
        for received in sent.receive():
            for one, other in zip(received.tensors(), batch.tensors(), strict=True):
                assert one.is_cuda
                assert torch.equal(one.cpu(), other)
