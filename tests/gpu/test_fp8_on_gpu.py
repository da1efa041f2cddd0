# SPDX-License-Identifier: Apache-2.0
"""Products in FP8 on a real GPU: close to bf16, never on old weights, resumed bit for bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tests.ranks  # noqa: F401  prepares Megatron for machines without CUDA
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
from tests.gpu.test_training_on_gpu import run_to_the_end, run_with_a_kill
from tests.tiny_run import VOCABULARY, tiny_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
        reason="needs a CUDA device with products in FP8 (Hopper)",
    ),
]

RECIPES = ("current", "delayed", "block")
LOSS_BAND = 0.05
"""Of FP8 around bf16 in nats, in 20 steps of a model of 0.3 M parameters."""
GRADIENT_BAND = 0.2
"""Of the whole gradient of one step, relative to its norm: E4M3 has three bits of mantissa and
E5M2 two, so each factor of a product is off by up to 6 % and 12 %."""

STACK = {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 2}
MODELS = {
    "block": ModelConfig(
        vocab_size=VOCABULARY,
        embedder=EmbedderConfig(hidden_size=32),
        block_decoder=DecoderConfig(**STACK),
        token_decoder=TokenDecoderConfig(**STACK),
    ),
    "vanilla": ModelConfig(
        architecture="vanilla", vocab_size=VOCABULARY, decoder=DecoderConfig(**STACK)
    ),
}


def run_of(
    data: Path,
    runs: Path,
    fp8: str,
    *,
    model: str = "block",
    micro_batch_size: int = 1,
    **memory: object,
) -> RunConfig:
    config = tiny_run(
        data,
        runs,
        model=MODELS[model],
        batch=BatchConfig(global_batch_size=4, micro_batch_size=micro_batch_size),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
        kernels=KernelConfig(layers="transformer_engine", fp8=fp8),
        memory=MemoryConfig(**memory),
        train=TrainConfig(steps=20, precision="bf16"),
    )
    if MODELS[model].is_block:
        return config
    unpadded = {"random_left_padding": False, "pad_to_block_boundary": False}
    return replace(config, data=replace(config.data, **unpadded))


NOWHERE = Path("unused")


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """A process group of one; each test builds Megatron's groups itself."""
    from bt_megatron.parallel.groups import start_processes, stop_processes

    start_processes()
    yield
    stop_processes()


@pytest.fixture(scope="module")
def in_bf16(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run_to_the_end(run_of(tiny_data, tmp_path_factory.mktemp("bf16"), "none"))


@pytest.mark.parametrize("fp8", RECIPES)
def test_killed_run_is_bitwise_the_undisturbed_one_and_close_to_bf16(
    fp8: str, tiny_data: Path, tmp_path: Path, in_bf16: dict
) -> None:
    config = run_of(tiny_data, tmp_path, fp8)
    undisturbed = run_to_the_end(replace(config, name="undisturbed"))
    assert undisturbed.keys() == in_bf16.keys()
    assert undisturbed != in_bf16, "nothing was multiplied in FP8"
    for key, loss in in_bf16.items():
        assert undisturbed[key] == pytest.approx(loss, abs=LOSS_BAND), key
    assert run_with_a_kill(config) == undisturbed


def loss_of(step, batches) -> float:  # noqa: ANN001
    """Return the mean loss of micro-batches, and leave their gradients behind."""
    loss_sum, targets, _ = step.accumulate(batches).tolist()
    return loss_sum / targets


def gradients(config: RunConfig, *, weights: dict[str, Tensor] | None = None):  # noqa: ANN201
    """Return loss and gradients of the batch of step 0, from random or given weights."""
    from bt_megatron.checkpoint.state import unwrap
    from bt_megatron.model.named_weights import load_named_weights
    from tools.layout_run import own_batches, own_gradients, training_step

    with training_step(config) as step:
        (chunk,) = step.chunks
        if weights is not None:
            load_named_weights(unwrap(chunk), weights)
        loss = loss_of(step, own_batches(config, step=0))
        parts = own_gradients(step.chunks, vocab_size=config.model.vocab_size)
    return loss, {name: gradient for name, [(_, gradient)] in parts.items()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fp8", RECIPES)
def test_gradients_are_near_those_of_bf16(fp8: str, model: str, one_process: None) -> None:
    loss, exact = gradients(run_of(NOWHERE, NOWHERE, "none", model=model))
    got_loss, got = gradients(run_of(NOWHERE, NOWHERE, fp8, model=model))
    assert got_loss == pytest.approx(loss, abs=LOSS_BAND)
    assert got.keys() == exact.keys()
    whole = torch.cat([gradient.flatten() for gradient in exact.values()])
    off = torch.cat([(got[name] - exact[name]).flatten() for name in exact])
    assert 0 < off.norm() < GRADIENT_BAND * whole.norm()


def test_head_embeddings_and_expansion_stay_in_bf16(one_process: None) -> None:
    from bt_megatron.checkpoint.state import unwrap
    from tools.layout_run import own_batches, training_step

    config = run_of(NOWHERE, NOWHERE, "current")

    def copies(stage) -> set[str]:  # noqa: ANN001
        parts = stage.named_modules()
        return {name for name, part in parts if getattr(part, "_fp8_workspaces", None)}

    with training_step(config) as step:
        step.accumulate(own_batches(config, step=0))
        stage = unwrap(step.chunks[0])
        found = copies(stage)
    assert copies(stage) == set(), "their memory is given back"
    linear = ("self_attention.linear_qkv", "self_attention.linear_proj")
    linear += ("mlp.linear_fc1", "mlp.linear_fc2")
    assert found == {
        f"{stack}.layers.{layer}.{part}"
        for stack in ("block_decoder", "token_decoder")
        for layer in range(2)
        for part in linear
    }


@pytest.mark.parametrize("fp8", ["current", "block"])
def test_no_step_uses_old_weights(
    fp8: str, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.distributed import DistributedDataParallel

    config = run_of(NOWHERE, NOWHERE, fp8)
    trained, fresh = losses_and_weights(config)
    assert trained == fresh
    monkeypatch.setattr(DistributedDataParallel, "set_is_first_microbatch", lambda chunk: None)
    trained, fresh = losses_and_weights(config)
    assert trained != fresh, "this test would not notice old weights"


def losses_and_weights(config: RunConfig) -> tuple[float, float]:
    """Return the loss of a batch after three steps, and that of a new model with those weights."""
    from bt_megatron.checkpoint.state import unwrap
    from bt_megatron.model.named_weights import named_shards
    from tools.layout_run import own_batches, take_steps, training_step

    with training_step(config) as step:
        take_steps(step, config, range(1, 4))
        weights = {
            shard.name: shard.data.detach().float().cpu().clone()
            for shard in named_shards(unwrap(step.chunks[0]))
        }
        trained = loss_of(step, own_batches(config, step=0))
    fresh, _ = gradients(config, weights=weights)
    return trained, fresh


@pytest.mark.parametrize("fp8", RECIPES)
def test_gradients_add_up_in_any_order_of_backward_passes(fp8: str, one_process: None) -> None:
    from tools.layout_run import own_batches, training_step

    config = run_of(NOWHERE, NOWHERE, fp8)
    sums = []
    for order in ((0, 1), (1, 0)):
        with training_step(config) as step:
            (chunk,) = step.chunks
            chunk.train()
            batches = [batch.to("cuda") for batch in own_batches(config, step=0)[:2]]
            chunk.set_is_first_microbatch()
            losses = [chunk(b.tokens, b.mask, b.targets, b.target_mask).sum() for b in batches]
            for number in order:
                losses[number].backward()
            sums.append([buffer.grad_data.clone() for buffer in chunk.buffers])
    for one, other in zip(*sums, strict=True):
        assert one.abs().sum() > 0
        if fp8 == "delayed":  # the second backward pass is scaled by what the first one saw
            assert (one - other).norm() < GRADIENT_BAND * one.norm()
        else:
            assert (one - other).norm() < 1e-5 * one.norm()


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fp8", ["none", "current", "block"])
def test_what_is_computed_again_has_the_same_bits(
    fp8: str, model: str, recompute: str, one_process: None
) -> None:
    loss, expected = gradients(run_of(NOWHERE, NOWHERE, fp8, model=model))
    got_loss, got = gradients(run_of(NOWHERE, NOWHERE, fp8, model=model, recompute=recompute))
    assert got_loss == loss
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_slices_in_fp8_are_near_those_in_bf16(recompute: str, one_process: None) -> None:
    memory = {"token_slices": 4, "recompute": recompute}
    batch = {"micro_batch_size": 4}  # 20 rows of each sequence in a slice
    loss, exact = gradients(run_of(NOWHERE, NOWHERE, "none", **memory, **batch))
    got_loss, got = gradients(run_of(NOWHERE, NOWHERE, "current", **memory, **batch))
    assert got_loss == pytest.approx(loss, abs=LOSS_BAND)
    whole = torch.cat([gradient.flatten() for gradient in exact.values()])
    off = torch.cat([(got[name] - exact[name]).flatten() for name in exact])
    assert 0 < off.norm() < GRADIENT_BAND * whole.norm()


@pytest.mark.parametrize("fp8", ["none", "current", "block"])
def test_selective_recomputation_needs_less_memory(fp8: str, one_process: None) -> None:
    from tools.layout_run import own_batches, training_step
    from tools.training_speed import forget_memory, peak_memory

    peaks = {}
    for recompute in ("none", "selective"):
        config = run_of(NOWHERE, NOWHERE, fp8, micro_batch_size=32, recompute=recompute)
        batch = replace(config.batch, global_batch_size=32)
        data, model = replace(config.data, seq_length=1024), MODELS["block"]
        stacks = {
            name: replace(getattr(model, name), num_layers=6)
            for name in ("block_decoder", "token_decoder")
        }
        config = replace(config, batch=batch, data=data, model=replace(model, **stacks))
        with training_step(config) as step:
            batches = own_batches(config, step=0)
            step.accumulate(batches)
            forget_memory()
            step.accumulate(batches)
            peaks[recompute] = peak_memory().allocated
    ffn, rows = 4 * 128, 32 * 256 * (1 + 5)
    activations = 6 * rows * ffn * (2 if fp8 == "none" else 1)
    assert peaks["none"] - peaks["selective"] > 0.5 * activations


@pytest.mark.parametrize("fp8", RECIPES)
def test_the_host_waits_for_nothing_inside_a_step(fp8: str, one_process: None) -> None:
    from tools.layout_run import own_batches, take_steps, training_step

    config = run_of(NOWHERE, NOWHERE, fp8)
    with training_step(config) as step:
        take_steps(step, config, range(2))
        batches = [batch.to("cuda") for batch in own_batches(config, step=2)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            outcome = step.launch(batches, lr=1e-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert outcome.isfinite().all()


@pytest.mark.parametrize(
    ("fp8", "recompute"),
    [("current", "none"), ("block", "none"), ("delayed", "none"), ("current", "selective")],
)
def test_a_recorded_step_is_the_step(fp8: str, recompute: str, one_process: None) -> None:
    from tools.layout_run import own_batches, take_steps, training_step

    runs = []
    for recorded in (False, True):
        config = run_of(NOWHERE, NOWHERE, fp8, recompute=recompute)
        config = replace(config, kernels=replace(config.kernels, cuda_graphs=recorded))
        with training_step(config) as step:
            losses = [result.totals.loss for result in take_steps(step, config, range(6))]
            losses.append(step.evaluate(own_batches(config, step=9)).loss)
            losses += [result.totals.loss for result in take_steps(step, config, range(6, 8))]
        runs.append(losses)
    assert runs[0] == runs[1]


def test_evaluations_leave_no_trace_in_a_history(one_process: None) -> None:
    from tools.layout_run import own_batches, take_steps, training_step

    config = run_of(NOWHERE, NOWHERE, "delayed")
    runs = []
    for evaluates in (False, True):
        with training_step(config) as step:
            take_steps(step, config, range(2))
            if evaluates:
                step.evaluate(own_batches(config, step=7))
            runs.append([result.totals.loss for result in take_steps(step, config, range(2, 5))])
    assert runs[0] == runs[1]


def test_scales_of_a_checkpoint_are_those_of_the_run(tmp_path: Path, one_process: None) -> None:
    from megatron.core import dist_checkpointing

    from bt_megatron.checkpoint.restore import load_checkpoint
    from bt_megatron.checkpoint.state import sharded_state, unwrap
    from bt_megatron.model.fp8 import read_scales, scaled_modules
    from tools.layout_run import take_steps, training_step

    config = run_of(NOWHERE, NOWHERE, "delayed")
    with training_step(config) as step:
        take_steps(step, config, range(3))
        saved = {name: read_scales(part) for name, part in scaled_modules(unwrap(step.chunks[0]))}
        state = sharded_state(step.chunks, step.optimizer, is_loading=False)
        dist_checkpointing.save(state, str(tmp_path))
    assert len(saved) == 4 * 4
    with training_step(config) as step:
        load_checkpoint(
            tmp_path, step.chunks, step.optimizer, saved=config, own=config, same_world=True
        )
        for name, part in scaled_modules(unwrap(step.chunks[0])):
            loaded = read_scales(part)
            assert saved[name].keys() == loaded.keys() == {"scaling_fwd", "scaling_bwd"}
            for key, tensors in saved[name].items():
                assert tensors[1].abs().sum() > 0, "no maximum was seen"
                assert all(map(torch.equal, tensors, loaded[key])), name
    without = replace(config, kernels=replace(config.kernels, fp8="current"))
    with training_step(without) as step:  # by --resume-allow kernels.fp8
        load_checkpoint(
            tmp_path, step.chunks, step.optimizer, saved=config, own=without, same_world=True
        )
        take_steps(step, without, [3])


@pytest.mark.parametrize("fp8", RECIPES)
def test_rows_and_widths_of_sixteen_are_enough(fp8: str, one_process: None) -> None:
    narrow = {"num_layers": 1, "hidden_size": 48, "num_attention_heads": 3}
    model = ModelConfig(
        vocab_size=VOCABULARY,
        embedder=EmbedderConfig(hidden_size=12),
        block_decoder=DecoderConfig(**narrow, rotary_fraction=0.5),
        token_decoder=TokenDecoderConfig(**narrow, rotary_fraction=0.5),
    )
    config = replace(run_of(NOWHERE, NOWHERE, fp8), model=model, layout=LayoutConfig())
    _, got = gradients(config)  # 16 and 80 rows
    assert all(gradient.isfinite().all() for gradient in got.values())
