# SPDX-License-Identifier: Apache-2.0
"""Transformer Engine layers against plain torch ones: losses, every gradient, checkpoints.

In float32 Transformer Engine multiplies in TF32 unless cuBLAS is told not to, in the environment,
before it starts. So this is set here, when the file is collected, and proved by the first test.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
if torch.cuda.is_available():
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

import tests.ranks  # noqa: E402, F401  prepares Megatron for machines without CUDA
from bt_megatron.config.geometry import layer_letters  # noqa: E402
from bt_megatron.config.schema import (  # noqa: E402
    DecoderConfig,
    EmbedderConfig,
    KernelConfig,
    LayoutConfig,
    ModelConfig,
    RunConfig,
    TokenDecoderConfig,
    TrainConfig,
)
from bt_megatron.parallel import transformer_engine_check  # noqa: E402
from bt_megatron.parallel.layout import parse_stages  # noqa: E402
from tests.small_models import ROBERTA, T5  # noqa: E402
from tests.tiny_run import VOCABULARY, tiny_run  # noqa: E402

FP32_RTOL = 1e-4
"""Distance of a float32 loss or gradient, relative to its norm; measured are rounding errors."""
BF16_BAND = 0.03
"""The same between bf16 and float32, or half more than torch's own bf16 layers have."""

STACK = {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 2}  # heads of 64
WIDE = {"num_layers": 2, "hidden_size": 256, "num_attention_heads": 4}
LLAMA = {
    "residual": "sequential",
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "num_query_groups": 2,
    "ffn_hidden_size": 384,
    "rotary_fraction": 1.0,
    "rotary_base": 5e5,
}


def block(block_decoder: dict, token_decoder: dict, **embedder: object) -> ModelConfig:
    """Return a block model with weights large enough that activations are not linear."""
    return ModelConfig(
        vocab_size=VOCABULARY,
        init_std=0.08,
        embedder=EmbedderConfig(**{"hidden_size": block_decoder["hidden_size"] // 4, **embedder}),
        block_decoder=DecoderConfig(**block_decoder),
        token_decoder=TokenDecoderConfig(**token_decoder),
    )


def vanilla(**changes: object) -> ModelConfig:
    return ModelConfig(
        architecture="vanilla",
        vocab_size=VOCABULARY,
        init_std=0.08,
        decoder=DecoderConfig(**STACK | changes),
    )


MODELS = {
    "block": block(STACK, STACK),
    "llama layers": block(WIDE | LLAMA, WIDE | LLAMA),
    "vanilla": vanilla(),
    "vanilla llama": ModelConfig(
        architecture="vanilla", vocab_size=VOCABULARY, decoder=DecoderConfig(**WIDE | LLAMA)
    ),
    "two widths": block(STACK, WIDE),
    "parallel without biases": vanilla(bias=False, normalization="rmsnorm"),
    "sequential with biases": vanilla(residual="sequential", activation="swiglu"),
    "roberta and t5": block(STACK, STACK | T5, kind="roberta", **ROBERTA | {"dropout": 0.0}),
}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """A group of one in this process; Transformer Engine must work."""
    from bt_megatron.parallel.groups import build_groups, start_processes, stop_processes

    start_processes()
    build_groups(LayoutConfig(), seed=0)
    assert transformer_engine_check.find_problem() is None
    assert transformer_engine_check.find_fault() is None
    yield
    stop_processes()


def chunk_of(model: ModelConfig, layers: str, precision: str = "fp32"):  # noqa: ANN201
    from bt_megatron.checkpoint.state import unwrap
    from bt_megatron.model.initialize import initialize_weights
    from bt_megatron.training.chunk import build_chunks

    config = config_of(model, precision)
    (chunk,) = build_chunks(config, parse_stages(layer_letters(model)), layers=layers)
    initialize_weights(unwrap(chunk), model, seed=1)
    return chunk


def config_of(model: ModelConfig, precision: str) -> RunConfig:
    train = TrainConfig(steps=20, precision=precision)
    return tiny_run(Path("unused"), Path("unused"), model=model, train=train)


def micro_batch(model: ModelConfig, *, seed: int = 0, sequences: int = 2, tokens: int = 256):  # noqa: ANN201
    """Random tokens with some pads in front of blocks; built as training builds it."""
    from bt_megatron.data.batches import MicroBatch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.vocab_size, (sequences, tokens), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if model.is_block:
        mask[:, 8:10] = False
    targets, target_mask = torch.zeros_like(ids), torch.zeros_like(mask)
    shift = model.target_shift
    targets[:, :-shift], target_mask[:, :-shift] = ids[:, shift:], mask[:, shift:]
    return MicroBatch(ids, mask, targets, target_mask).to("cuda")


def loss_of(chunk, batch) -> Tensor:  # noqa: ANN001
    losses = chunk(batch.tokens, batch.mask, batch.targets, batch.target_mask)
    return (losses * batch.target_mask).sum() / batch.target_mask.sum()


@torch.no_grad()
def named(chunk, *, gradients: bool) -> dict[str, Tensor]:  # noqa: ANN001
    """Whole weights or main gradients by canonical name; the weights are lost with gradients."""
    from bt_megatron.checkpoint.state import unwrap
    from bt_megatron.model.named_weights import named_shards

    if gradients:
        chunk.finish_grad_sync()
        for param in chunk.parameters():
            param.data = param.main_grad.clone()
    tensors: dict[str, Tensor] = {}
    for shard in named_shards(unwrap(chunk)):
        whole = tensors.setdefault(shard.name, shard.data.new_zeros(shard.whole_shape))
        whole[shard.place] = shard.data
    return tensors


@cache
def outcome(name: str, layers: str, precision: str) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients by name of one micro batch."""
    model = MODELS[name]
    chunk = chunk_of(model, layers, precision)
    chunk.train()
    chunk.zero_grad_buffer()
    loss = loss_of(chunk, micro_batch(model))
    loss.backward()
    return loss.item(), named(chunk, gradients=True)


def distance(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def test_float32_products_are_not_tf32_here() -> None:
    import transformer_engine.pytorch as te

    torch.manual_seed(0)
    layer = te.Linear(512, 512, bias=False, params_dtype=torch.float32)
    rows = torch.randn(64, 512, device="cuda")
    expected = rows.double() @ layer.weight.double().t()
    assert distance(layer(rows), expected) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_those_of_the_library(name: str) -> None:
    from bt_megatron.checkpoint.state import unwrap

    stage = unwrap(chunk_of(MODELS[name], "transformer_engine"))
    linear = {
        type(module).__name__
        for part, module in stage.named_modules()
        if part.endswith(("linear_qkv", "linear_fc1", "linear_proj", "linear_fc2"))
        and not part.startswith("embedder.")
        and not (stage.model.token_decoder and name == "roberta and t5" and "token_" in part)
    }
    decoder = MODELS[name].block_decoder or MODELS[name].decoder
    column = "Column" if decoder.residual == "parallel" else "LayerNormColumn"
    assert linear == {f"TE{column}ParallelLinear", "TERowParallelLinear"}


@pytest.mark.parametrize("name", MODELS)
def test_float32_losses_and_gradients_are_those_of_torch(name: str) -> None:
    expected_loss, expected = outcome(name, "torch", "fp32")
    loss, gradients = outcome(name, "transformer_engine", "fp32")
    assert loss == pytest.approx(expected_loss, rel=FP32_RTOL)
    assert gradients.keys() == expected.keys()
    far = {key: distance(gradients[key], expected[key]) for key in expected}
    assert {key: value for key, value in far.items() if not value < FP32_RTOL} == {}


@pytest.mark.parametrize("name", MODELS)
def test_bf16_is_as_close_to_float32_as_torch_is(name: str) -> None:
    exact_loss, exact = outcome(name, "torch", "fp32")
    torch_loss, from_torch = outcome(name, "torch", "bf16")
    loss, gradients = outcome(name, "transformer_engine", "bf16")
    assert abs(loss - exact_loss) < max(1.5 * abs(torch_loss - exact_loss), 0.01)
    far = {}
    for key, wanted in exact.items():
        mine, torchs = distance(gradients[key], wanted), distance(from_torch[key], wanted)
        if not mine < max(BF16_BAND, 1.5 * torchs):
            far[key] = (mine, torchs)
    assert far == {}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_add_up_in_any_order_of_backward_passes(precision: str) -> None:
    model = MODELS["block"]
    batches = [micro_batch(model, seed=seed) for seed in (1, 2)]
    alone = []
    for batch in batches:
        chunk = chunk_of(model, "transformer_engine", precision)
        chunk.zero_grad_buffer()
        loss_of(chunk, batch).backward()
        alone.append(named(chunk, gradients=True))
    chunk = chunk_of(model, "transformer_engine", precision)
    chunk.zero_grad_buffer()
    first, second = (loss_of(chunk, batch) for batch in batches)
    second.backward()
    first.backward()
    together = named(chunk, gradients=True)
    for key, gradient in together.items():
        assert distance(gradient, alone[0][key] + alone[1][key]) < FP32_RTOL, key


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="needs a deterministic backward pass of cuDNN's attention (Hopper)",
)
def test_gradients_are_the_same_bit_for_bit_every_time() -> None:
    model = MODELS["vanilla"]
    batch = micro_batch(model, sequences=4, tokens=2048)
    runs = []
    for _ in range(3):
        chunk = chunk_of(model, "transformer_engine", "bf16")
        chunk.zero_grad_buffer()
        loss_of(chunk, batch).backward()
        runs.append(named(chunk, gradients=True))
    for key, gradient in runs[0].items():
        assert torch.equal(gradient, runs[1][key]), key
        assert torch.equal(gradient, runs[2][key]), key


def test_hidden_blocks_are_hidden() -> None:
    model = MODELS["block"]
    batch = micro_batch(model)
    seen = torch.ones(2, 64, dtype=torch.bool, device="cuda")
    seen[:, :5] = False
    losses = {}
    for layers in ("torch", "transformer_engine"):
        chunk = chunk_of(model, layers)
        chunk.eval()
        inputs = (batch.tokens, batch.mask, batch.targets, batch.target_mask)
        with torch.no_grad():
            losses[layers] = chunk(*inputs, block_mask=seen)
            assert distance(chunk(*inputs), losses[layers]) > FP32_RTOL
    assert distance(losses["transformer_engine"], losses["torch"]) < FP32_RTOL


@pytest.mark.parametrize("name", ["block", "llama layers"])
@pytest.mark.parametrize(
    ("before", "after"), [("torch", "transformer_engine"), ("transformer_engine", "torch")]
)
def test_checkpoint_of_one_loads_in_the_other(
    name: str, before: str, after: str, tmp_path: Path
) -> None:
    from megatron.core import dist_checkpointing

    from bt_megatron.checkpoint.restore import load_checkpoint
    from bt_megatron.checkpoint.state import sharded_state
    from bt_megatron.training.chunk import build_optimizer
    from bt_megatron.training.step import TrainingStep

    model, rate = MODELS[name], 1e-3
    config, stages = config_of(model, "fp32"), parse_stages(layer_letters(model))
    config = replace(config, data=replace(config.data, seq_length=256))

    def build(layers: str, steps: int) -> TrainingStep:
        chunk = chunk_of(model, layers)
        training = TrainingStep(config, stages, [chunk], build_optimizer(config, [chunk]))
        for index in range(steps):
            training.train([micro_batch(model, seed=index)], lr=rate)
        return training

    old, new = build(before, 3), build(after, 1)
    state = sharded_state(old.chunks, old.optimizer, is_loading=False)
    dist_checkpointing.save(state, str(tmp_path))
    load_checkpoint(tmp_path, new.chunks, new.optimizer, saved=config, own=config, same_world=True)
    weights = named(old.chunks[0], gradients=False)
    for key, weight in named(new.chunks[0], gradients=False).items():
        assert torch.equal(weight, weights[key]), key
    results = [training.train([micro_batch(model, seed=9)], lr=rate) for training in (old, new)]
    assert results[0].totals.loss == pytest.approx(results[1].totals.loss, rel=FP32_RTOL)
    # Moments of another weight would move this one by up to `rate`.
    weights = named(old.chunks[0], gradients=False)
    for key, weight in named(new.chunks[0], gradients=False).items():
        assert (weight - weights[key]).abs().mean() < 0.01 * rate, key


def test_auto_takes_transformer_engine_in_bf16_only() -> None:
    from bt_megatron.model.layer_library import choose_layers

    assert choose_layers(KernelConfig(), precision="bf16").library == "transformer_engine"
    assert choose_layers(KernelConfig(), precision="fp32").library == "torch"
