# SPDX-License-Identifier: Apache-2.0
"""Every layout gives the run of one process, in float32: losses, and each gradient by name.

Sequences have pads of different number, so ranks and micro-batches count different numbers
of targets; no vocabulary is a multiple of tp.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bt_megatron.config.geometry import is_t5
from bt_megatron.config.plan import make_plan
from bt_megatron.config.schema import (
    BatchConfig,
    DecoderConfig,
    EmbedderConfig,
    KernelConfig,
    LayoutConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TokenDecoderConfig,
    TrainConfig,
)
from bt_megatron.model.feed_forward import FeedForward
from tests.ranks import run_ranks
from tests.tiny_run import tiny_model, tiny_run
from tools.layout_run import LayoutRun, run_layout, take_steps, training_step, whole_gradients

LOSS_RTOL = 1e-6
GRADIENT_RTOL = 1e-5
"""Of the norm of each gradient."""
STEPS = 4
T5_LR = 1e-4
"""T5's table has deviation 1, which turns the rounding of a step of 1e-3 into 3e-4 of the
gradient norm two steps later."""
UNUSED = ("token_embedding.weight",)
"""With blocks of one token no token is fed to a decoder with prefixes."""
SEQUENCE = {"sequence_parallel": True}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS = {
    "dp2": (2, {}),
    "dp3": (3, {}),
    "dp2-plain-optimizer": (2, {"distributed_optimizer": False}),
    "dp2-plain-overlap": (2, {"distributed_optimizer": False, "overlap_grad_reduce": True}),
    "dp2-overlap": (2, OVERLAP),
    "tp2": (2, {"tp": 2}),
    "tp2-sp": (2, {"tp": 2, **SEQUENCE}),
    "tp4-sp": (4, {"tp": 4, **SEQUENCE}),
    "cp2": (2, {"cp": 2}),
    "cp2-overlap": (2, {"cp": 2, **OVERLAP}),
    "cp4": (4, {"cp": 4}),
    "pp2": (2, {"pp": 2, "pp_cut": "Ebb|ttL"}),
    "pp2-cut-in-block-decoder": (2, {"pp": 2, "pp_cut": "Eb|bttL"}),
    "pp2-cut-in-token-decoder": (2, {"pp": 2, "pp_cut": "Ebbt|tL"}),
    "pp2-head-alone": (2, {"pp": 2, "pp_cut": "Ebbtt|L"}),
    "pp3-embedder-alone": (3, {"pp": 3, "pp_cut": "E|bbt|tL"}),
    "pp4": (4, {"pp": 4, "pp_cut": "Eb|b|t|tL"}),
    "pp2-vpp2": (2, {"pp": 2, "vpp": 2}),
    "pp2-vpp2-cut-in-token-decoder": (2, {"pp": 2, "vpp": 2, "pp_cut": "Eb|bt|t|L"}),
    "pp2-vpp3": (2, {"pp": 2, "vpp": 3, "pp_cut": "E|b|b|t|t|L"}),
    "tp2-dp2": (4, {"tp": 2}),
    "tp2-sp-dp2-overlap": (4, {"tp": 2, **SEQUENCE, **OVERLAP}),
    "tp2-sp-pp2": (4, {"tp": 2, "pp": 2, **SEQUENCE}),
    "tp2-sp-cp2": (4, {"tp": 2, "cp": 2, **SEQUENCE}),
    "tp2-sp-pp2-vpp2": (4, {"tp": 2, "pp": 2, "vpp": 2, **SEQUENCE}),
    "cp2-dp2": (4, {"cp": 2}),
    "cp2-dp2-plain-optimizer": (4, {"cp": 2, "distributed_optimizer": False}),
    "cp2-pp2": (4, {"cp": 2, "pp": 2}),
    "cp2-pp2-vpp2": (4, {"cp": 2, "pp": 2, "vpp": 2}),
    "pp2-dp2": (4, {"pp": 2}),
    "pp2-vpp2-dp2-overlap": (4, {"pp": 2, "vpp": 2, **OVERLAP}),
}
STACK = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
ROBERTA = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "ffn_hidden_size": 64,
    "dropout": 0.0,  # drawn per rank otherwise
}
T5 = {
    "strategy": "cross_attention",
    "residual": "sequential",
    "normalization": "rmsnorm",
    "activation": "relu",
    "bias": False,
}
LLAMA = {
    "residual": "sequential",
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "num_query_groups": 2,
}


def block_model(length: int, prefix: int, **changes: object) -> ModelConfig:
    sections = {
        "embedder": EmbedderConfig(hidden_size=20, projection=True),
        "token_decoder": TokenDecoderConfig(**STACK, prefix_length=prefix),
    }
    return tiny_model(vocab_size=513, block_length=length, **{**sections, **changes})


MODELS = {
    "main": tiny_model(vocab_size=513),
    "vanilla": ModelConfig(
        architecture="vanilla", vocab_size=513, decoder=DecoderConfig(**STACK | {"num_layers": 4})
    ),
    "vanilla-llama": ModelConfig(
        architecture="vanilla",
        vocab_size=513,
        decoder=DecoderConfig(**STACK | {"num_layers": 4}, **LLAMA),
    ),
    "roberta-cls-t5": block_model(
        4,
        1,
        embedder=EmbedderConfig(kind="roberta_cls", num_cls_tokens=3, **ROBERTA),
        token_decoder=TokenDecoderConfig(**STACK, **T5),
    ),
    "roberta-prefix-b8-p1": block_model(8, 1, embedder=EmbedderConfig(kind="roberta", **ROBERTA)),
    "projection-summation-widths": block_model(
        4, 1, token_decoder=TokenDecoderConfig(**STACK | {"hidden_size": 32}, strategy="summation")
    ),
    "llama-layers": tiny_model(
        vocab_size=513,
        block_decoder=DecoderConfig(**STACK, **LLAMA),
        token_decoder=TokenDecoderConfig(**STACK, **LLAMA),
    ),
    "b1-p1": block_model(1, 1),
    "b1-p2": block_model(1, 2),
    "b3-p2": block_model(3, 2),
    "b3-p6": block_model(3, 6),
    "b8-p2-wide-blocks": block_model(
        8, 2, block_decoder=DecoderConfig(num_layers=2, hidden_size=96, num_attention_heads=4)
    ),
    "b4-p6": block_model(4, 6),
}
OTHER_MODELS = [
    ("vanilla", ("dp2", "tp2-sp", "pp2-vpp2", "cp2", "tp2-sp-cp2", "pp2-dp2")),
    ("vanilla-llama", ("tp2-sp", "cp2")),
    ("roberta-cls-t5", ("dp2", "tp2-sp", "pp2", "cp2")),
    ("roberta-prefix-b8-p1", ("dp2", "tp2-sp", "pp2-vpp2", "cp2")),
    ("projection-summation-widths", ("dp2", "tp2-sp", "pp2-vpp2", "cp2")),
    ("llama-layers", ("dp2", "tp2-sp", "pp2", "cp2")),
    ("b1-p1", ("tp2-sp", "pp2-vpp2")),
    ("b1-p2", ("cp2",)),
    ("b3-p2", ("tp2-sp", "pp2-vpp2", "cp2")),
    ("b3-p6", ("tp2-sp-pp2",)),
    ("b8-p2-wide-blocks", ("tp2-sp", "pp2", "cp2")),
    ("b4-p6", ("tp2-sp", "pp2-vpp2", "cp2-pp2")),
]
MEMORY = {
    "recompute": ("dp2-overlap", {"recompute": "full"}),
    "slices": ("dp2-overlap", {"token_slices": 4}),
    "slices-recompute": ("tp2", {"token_slices": 2, "recompute": "full"}),
    "slices-in-pipeline": ("pp3-embedder-alone", {"token_slices": 2, "recompute": "full"}),
    "slices-cp": ("cp2", {"token_slices": 2}),
    "selective": ("tp2-sp", {"recompute": "selective"}),
    "selective-slices": ("pp2-vpp2", {"recompute": "selective", "token_slices": 2}),
    "recompute-interleaved": ("tp2-sp-pp2-vpp2", {"recompute": "full"}),
}


def config_of(model: ModelConfig, **changes: object) -> RunConfig:
    config = tiny_run(
        Path("no-data"),
        Path("no-runs"),
        model=model,
        batch=BatchConfig(global_batch_size=12, micro_batch_size=1),
        optimizer=OptimizerConfig(lr=T5_LR if is_t5(model) else 1e-3, warmup_steps=0),
        train=TrainConfig(steps=STEPS, precision="fp32"),
    )
    unpadded = {} if model.is_block else {"random_left_padding": False}
    length = 96 if model.is_block and model.block_length % 3 == 0 else 64
    data = replace(config.data, seq_length=length, **unpadded)
    if not model.is_block:
        data = replace(data, pad_to_block_boundary=False)
    return replace(config, data=data, **changes)


@cache
def one_process(model: str) -> tuple[LayoutRun, dict[str, Tensor]]:
    (run,) = run_ranks(run_layout, 1, config_of(MODELS[model]), steps=STEPS)
    return run, whole_gradients([run])


def assert_same_run(model: str, config: RunConfig, world_size: int) -> None:
    make_plan(config, world_size)
    expected, gradients = one_process(model)
    runs = run_ranks(run_layout, world_size, config, steps=STEPS)
    for run in runs:
        assert run.losses == pytest.approx(expected.losses, rel=LOSS_RTOL)
        assert run.grad_norms == pytest.approx(expected.grad_norms, rel=GRADIENT_RTOL)
    assert_same_gradients(whole_gradients(runs), gradients)


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert got[name].shape == gradient.shape, name
        difference = torch.linalg.vector_norm(got[name].double() - gradient.double())
        norm = torch.linalg.vector_norm(gradient.double())
        assert norm > 0 or name in UNUSED, f"{name} has no gradient, nothing would be compared"
        assert difference <= GRADIENT_RTOL * norm, f"{name}: {difference / norm:.2e}"


def other_layout(name: str) -> tuple[int, LayoutConfig]:
    """Return a layout for a model whose layers are others than the main one's."""
    world_size, changes = LAYOUTS[name]
    return world_size, LayoutConfig(**{k: v for k, v in changes.items() if k != "pp_cut"})


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_gives_the_run_of_one_process(name: str) -> None:
    world_size, changes = LAYOUTS[name]
    config = config_of(MODELS["main"], layout=LayoutConfig(**changes))
    assert_same_run("main", config, world_size)


@pytest.mark.parametrize(
    ("model", "layout"), [(model, name) for model, names in OTHER_MODELS for name in names]
)
def test_other_models_give_the_run_of_one_process(model: str, layout: str) -> None:
    world_size, cut = other_layout(layout)
    assert_same_run(model, config_of(MODELS[model], layout=cut), world_size)


@pytest.mark.parametrize("case", MEMORY)
def test_what_is_computed_again_is_the_same(case: str) -> None:
    layout, memory = MEMORY[case]
    world_size, changes = LAYOUTS[layout]
    config = config_of(
        MODELS["main"], layout=LayoutConfig(**changes), memory=MemoryConfig(**memory)
    )
    assert_same_run("main", config, world_size)


@pytest.mark.parametrize("model", ["main", "llama-layers", "roberta-cls-t5", "vanilla"])
def test_an_activation_that_is_computed_again_has_the_same_bits(model: str) -> None:
    expected, gradients = one_process(model)
    memory = MemoryConfig(recompute="selective")
    (run,) = run_ranks(run_layout, 1, config_of(MODELS[model], memory=memory), steps=STEPS)
    assert (run.losses, run.grad_norms) == (expected.losses, expected.grad_norms)
    for name, gradient in whole_gradients([run]).items():
        assert torch.equal(gradient, gradients[name]), name


def activations(config: RunConfig) -> int:
    """Return how often feed-forward layers compute their activation in one step."""
    calls = []

    def counted(layer: FeedForward, product: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(1)
        return activate(layer, product, bias)

    activate, FeedForward._activate = FeedForward._activate, counted
    with training_step(config) as step:
        take_steps(step, config, [0])
    return len(calls)


def test_every_activation_is_computed_again_once() -> None:
    config = config_of(MODELS["main"], memory=MemoryConfig(recompute="selective"))
    layers, micro_batches = 4, 12
    assert run_ranks(activations, 1, config) == [2 * layers * micro_batches]


def test_slices_compute_a_relative_bias_again() -> None:
    memory = MemoryConfig(token_slices=2)
    config = config_of(MODELS["roberta-cls-t5"], memory=memory)
    assert_same_run("roberta-cls-t5", config, 1)


@pytest.mark.parametrize("layout", ["one", "tp2", "tp2-sp"])
@pytest.mark.parametrize("model", ["main", "roberta-cls-t5"])
def test_chunks_of_the_head_give_the_run_of_the_whole(model: str, layout: str) -> None:
    world_size, changes = {"one": (1, {}), **LAYOUTS}[layout]
    chunks = KernelConfig(head_chunk_tokens=25)  # of 64 rows: the last is smaller
    config = config_of(MODELS[model], layout=LayoutConfig(**changes), kernels=chunks)
    assert_same_run(model, config, world_size)


BF16_ATOL = 1e-3
"""Band of bf16 around the float32 losses, in nats, in four steps of a model of 0.3 M parameters:
ten times what was seen."""


@pytest.mark.parametrize("name", ["one", "dp2", "tp2-sp", "pp2-vpp2", "cp2"])
def test_bf16_stays_in_a_band_around_float32(name: str) -> None:
    world_size, changes = {"one": (1, {}), **LAYOUTS}[name]
    config = config_of(MODELS["main"], layout=LayoutConfig(**changes))
    config = replace(config, train=replace(config.train, precision="bf16"))
    (run, *_) = run_ranks(run_layout, world_size, config, steps=STEPS)
    expected, _ = one_process("main")
    assert run.losses != expected.losses
    assert run.losses == pytest.approx(expected.losses, abs=BF16_ATOL)
