# SPDX-License-Identifier: Apache-2.0
"""The memory estimate: its parts by hand. Against measurements: test_bench_training.py."""

import pytest

from bt_megatron.config.memory import estimate_memory
from bt_megatron.config.params import count_parameters
from bt_megatron.config.stages import resolve_stages

LARGE = {
    "model.vocab_size": 50304,
    "model.embedder.hidden_size": 512,
    "model.block_decoder": {"num_layers": 12, "hidden_size": 2048, "num_attention_heads": 16},
    "model.token_decoder": {"num_layers": 12, "hidden_size": 2048, "num_attention_heads": 16},
    "data.seq_length": 2048,
}


def estimate(config, *, dp=1, micro_batches=1):
    return estimate_memory(config, resolve_stages(config), dp=dp, micro_batches=micro_batches)


def test_parts_of_one_process_in_fp32(make_run):
    config = make_run({"train.precision": "fp32", "batch.micro_batch_size": 1})
    count = count_parameters(config.model).total
    (memory,) = estimate(config)

    assert (memory.weights, memory.main_weights) == (4 * count, 0)
    assert (memory.gradients, memory.optimizer) == (4 * count, 8 * count)
    assert memory.logits == 4 * 64 * 512
    layer = (3 + 4 + 8) * 64  # residual stream and norms; qkv and heads; feed-forward
    blocks, positions = 16, 16 * 5
    causal = layer + 2 * 64  # queries and keys turned by rotary
    kept = blocks * (4 * 16 + 64) + 2 * blocks * causal + blocks * 3 * 64 + 2 * positions * layer
    assert memory.activations == 4 * (kept + 64 * 64)
    assert memory.total == 16 * count + memory.logits + memory.activations


def test_bf16_keeps_fp32_main_weights(make_run):
    config = make_run()
    count = count_parameters(config.model).total
    (memory,) = estimate(config)

    assert (memory.weights, memory.main_weights, memory.gradients) == (
        2 * count,
        4 * count,
        4 * count,
    )


@pytest.mark.parametrize(("distributed", "divisor"), [(True, 4), (False, 1)])
def test_the_distributed_optimizer_divides_its_state(make_run, distributed, divisor):
    config = make_run({"layout.distributed_optimizer": distributed, "model.vocab_size": 512})
    (alone,), (shared,) = estimate(config), estimate(config, dp=4)

    assert shared.optimizer == pytest.approx(alone.optimizer / divisor, abs=1)
    assert shared.main_weights == pytest.approx(alone.main_weights / divisor, abs=1)
    assert (shared.weights, shared.gradients) == (alone.weights, alone.gradients)


def test_tensor_parallel_divides_and_sequence_parallel_divides_more(make_run):
    whole, tp, sp = (
        estimate(make_run(LARGE | layout))[0]
        for layout in (
            {},
            {"layout.tp": 4},
            {"layout.tp": 4, "layout.sequence_parallel": True},
        )
    )

    assert tp.weights * 4 == whole.weights
    assert tp.logits * 4 == whole.logits
    assert whole.activations > tp.activations > sp.activations
    assert sp.activations == pytest.approx(whole.activations / 4, rel=0.02)


@pytest.mark.parametrize(("chunk", "rows"), [(None, 64), (24, 24), (64, 64), (1000, 64)], ids=str)
def test_the_head_holds_the_logits_of_one_chunk(make_run, chunk, rows):
    config = make_run({"batch.micro_batch_size": 1, "kernels.head_chunk_tokens": chunk})

    (memory,) = estimate(config)

    assert memory.logits == 2 * rows * 512


def test_earlier_stages_keep_more_micro_batches(make_run):
    config = make_run(LARGE | {"layout.pp": 2, "layout.pp_cut": "Eb*12|t*12L"})
    (one,) = {stage.activations for stage in estimate(config)[:1]}

    first, last = estimate(config, micro_batches=8)

    assert first.activations == 2 * one
    assert last.activations == estimate(config)[1].activations
    assert (first.logits, last.logits > 0) == (0, True)


def test_context_parallel_divides_activations_and_shards_the_optimizer(make_run):
    whole, cut = (estimate(make_run(LARGE | layout))[0] for layout in ({}, {"layout.cp": 2}))

    assert (cut.activations * 2, cut.logits * 2) == (whole.activations, whole.logits)
    assert (cut.optimizer * 2, cut.main_weights * 2) == (whole.optimizer, whole.main_weights)
    assert (cut.weights, cut.gradients) == (whole.weights, whole.gradients)
    replicated = make_run(LARGE | {"layout.cp": 2, "layout.distributed_optimizer": False})
    assert estimate(replicated)[0].optimizer == whole.optimizer


def test_a_process_has_the_weights_of_its_virtual_stages(make_run):
    cut = {"layout.pp_cut": "Eb*6|b*6|t*6|t*6L"}
    stages = estimate(make_run(LARGE | cut | {"layout.pp": 4}), micro_batches=4)
    processes = estimate(make_run(LARGE | cut | {"layout.pp": 2, "layout.vpp": 2}), micro_batches=4)

    assert len(processes) == 2
    for rank, process in enumerate(processes):
        for part in ("weights", "gradients", "optimizer", "main_weights"):
            both = getattr(stages[rank], part) + getattr(stages[rank + 2], part)
            assert getattr(process, part) == both
        assert process.logits == stages[rank + 2].logits


def test_the_interleaved_schedule_keeps_more_micro_batches(make_run):
    cut = {"layout.pp_cut": "Eb*6|b*6|t*6|t*6L"}
    one = estimate(make_run(LARGE | cut | {"layout.pp": 4}), micro_batches=1)
    both = [stage.activations for stage in one]

    first, last = estimate(
        make_run(LARGE | cut | {"layout.pp": 2, "layout.vpp": 2}), micro_batches=8
    )

    assert first.activations == 3 * both[0] + 2 * both[2], "F0 F0 F1 F1 F0, then B1 F0 B1 F1 ..."
    assert last.activations == 2 * both[1] + both[3], "F0 F0 F1, then B1 F1 B1 F0 B0 ..."


def test_a_layer_is_computed_again_when_the_logits_are_gone(make_run):
    whole = {"batch.micro_batch_size": 1, "memory.recompute": "full"}
    (small,) = estimate(make_run(whole | {"model.vocab_size": 512}))
    (large,) = estimate(make_run(whole | {"model.vocab_size": 51200}))
    (largest,) = estimate(make_run(whole | {"model.vocab_size": 102400}))

    assert small.activations > large.activations == largest.activations
    assert largest.logits == 2 * large.logits


@pytest.mark.parametrize(
    ("fp8", "of_heads"), [("current", (2, 2)), ("block", (2, 2)), ("delayed", (3, 1))]
)
def test_fp8_keeps_copies_of_weights_and_inputs_of_products_in_one_byte(make_run, fp8, of_heads):
    config = make_run({"batch.micro_batch_size": 1, "kernels.fp8": fp8})
    (plain,), (memory,) = estimate(make_run({"batch.micro_batch_size": 1})), estimate(config)

    assert memory.fp8_weights == 2 * 4 * (3 + 1 + 4 + 4) * 64 * 64, "four layers"
    causal, token = (
        2 * 64 + 2 * 64 + 2 * 3 * 64 + turned + heads * 64 + (2 + 1) * 256
        for heads, turned in zip(of_heads, (2 * 2 * 64, 0), strict=True)
    )
    blocks, positions, value = 16, 16 * 5, 2
    around = value * (blocks * (4 * 16 + 64) + blocks * 3 * 64 + 64 * 64)
    assert memory.activations == around + 2 * blocks * causal + 2 * positions * token
    for part in ("weights", "main_weights", "gradients", "optimizer", "logits"):
        assert getattr(memory, part) == getattr(plain, part)
    assert plain.fp8_weights == 0
    assert memory.total - plain.total == (
        memory.fp8_weights + memory.activations - plain.activations
    )


def test_fp8_weights_are_those_of_a_process(make_run):
    fp8 = {"kernels.fp8": "current"}
    (whole,) = estimate(make_run(LARGE | fp8))
    cut = {"layout.pp": 2, "layout.tp": 2, "layout.pp_cut": "Eb*12|t*12L"}

    for process in estimate(make_run(LARGE | fp8 | cut)):
        assert process.fp8_weights * 4 == whole.fp8_weights
    vanilla = {"architecture": "vanilla", "vocab_size": 512}
    stack = {"num_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "activation": "swiglu"}
    (memory,) = estimate(make_run(fp8 | {"model": {**vanilla, "decoder": stack}}))
    assert memory.fp8_weights == 2 * 3 * (3 + 1 + 8 + 4) * 64 * 64


@pytest.mark.parametrize(("fp8", "value"), [("none", 2), ("current", 1)])
@pytest.mark.parametrize("slices", [1, 2])
def test_selective_recomputation_keeps_no_activation_but_the_one_at_work(
    make_run, fp8, value, slices
):
    base = {"batch.micro_batch_size": 1, "kernels.fp8": fp8, "memory.token_slices": slices}
    base |= {"model.vocab_size": 16}  # as good as no logits
    (kept,), (again,) = (
        estimate(make_run(base | {"memory.recompute": how})) for how in ("none", "selective")
    )

    blocks, positions, ffn = 16, 16 * 5, 256
    token, working = 2 * positions * ffn * value, 2 * positions * ffn
    if slices == 1:  # else the logits are there at the same time
        working -= kept.logits
    saved = 2 * blocks * ffn * value + (token if slices == 1 else token // slices)
    assert kept.activations - again.activations == saved - working // slices
