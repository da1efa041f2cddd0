# SPDX-License-Identifier: Apache-2.0
"""Six AdamW steps of the training stack against the reference, in float32 on CPU."""

import pytest
from torch import Tensor

from bt_megatron.checkpoint.names import to_official
from bt_megatron.checkpoint.state import unwrap
from bt_megatron.config.schema import (
    BatchConfig,
    DataConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from bt_megatron.config.stages import resolve_stages
from bt_megatron.model.named_weights import load_named_weights
from bt_megatron.parallel.groups import build_groups
from bt_megatron.training.chunk import build_chunks, build_optimizer
from bt_megatron.training.step import StepResult, TrainingStep
from tests.golden import load_facts, load_golden
from tests.ranks import run_ranks

GOLDEN = load_golden("lookup_prefix_b4_p2")
FACTS = load_facts("train_steps_lookup_prefix_b4_p2/train.json")
ATOL = 1e-5


def run_config(*, distributed_optimizer: bool) -> RunConfig:
    return RunConfig(
        name="parity",
        model=GOLDEN.model,
        data=DataConfig(path="none", seq_length=32),
        batch=BatchConfig(global_batch_size=2, micro_batch_size=2),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
        layout=LayoutConfig(distributed_optimizer=distributed_optimizer),
        train=TrainConfig(steps=6, precision="fp32"),
    )


def take_steps(config: RunConfig) -> tuple[list[StepResult], dict, dict]:
    """Return the results, the first step's clipped gradients and the last weights."""
    build_groups(config.layout, seed=0)
    stages = resolve_stages(config)
    (chunk,) = chunks = build_chunks(config, stages)
    load_named_weights(unwrap(chunk), GOLDEN.weights)
    step = TrainingStep(config, stages, chunks, build_optimizer(config, chunks))
    batch = GOLDEN.batch("packed")
    results, gradients = [], {}
    for index in range(config.train.steps):
        results.append(step.train([batch], lr=1e-3))
        if index == 0:
            named = unwrap(chunk).named_parameters()
            gradients = {name: param.main_grad.clone() for name, param in named}
    weights = dict(unwrap(chunk).named_parameters())
    return results, norms(gradients, config.model), norms(weights, config.model)


def norms(weights: dict[str, Tensor], model: ModelConfig) -> dict[str, float]:
    official = to_official({name: tensor.detach() for name, tensor in weights.items()}, model)
    return {name: tensor.double().norm().item() for name, tensor in official.items()}


@pytest.mark.parametrize("distributed_optimizer", [False, True], ids=["plain", "sharded"])
def test_six_steps_equal_the_reference(distributed_optimizer: bool) -> None:
    config = run_config(distributed_optimizer=distributed_optimizer)
    ((results, gradients, weights),) = run_ranks(take_steps, 1, config)
    for result, expected in zip(results, FACTS["steps"], strict=True):
        assert result.totals.loss == pytest.approx(expected["loss"], abs=ATOL)
        assert result.grad_norm == pytest.approx(expected["grad_norm_before_clip"], abs=ATOL)
    clipped = 1.0 / (FACTS["steps"][0]["grad_norm_before_clip"] + 1e-6)
    for name, norm in gradients.items():
        expected_norm = FACTS["grad_norm_by_parameter_at_step_0"][name] * clipped
        assert norm == pytest.approx(expected_norm, abs=ATOL), name
    # The gradient of a key bias is zero but for rounding (softmax ignores it), and Adam turns the
    # sign of rounding into whole steps: the fused biases agree in their queries and values only.
    comparable = {n: v for n, v in weights.items() if not n.endswith("query_key_value.bias")}
    assert len(comparable) == len(weights) - 4
    for name, norm in comparable.items():
        expected_norm = FACTS["parameter_norm_after_all_steps"][name]
        assert norm == pytest.approx(expected_norm, abs=ATOL), name
