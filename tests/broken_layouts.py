# SPDX-License-Identifier: Apache-2.0
"""Layouts that break one rule each, as changes of the small run of tests/unit/config."""

DECODER = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
VANILLA = {
    "model": {"architecture": "vanilla", "vocab_size": 512, "decoder": DECODER},
    "data.random_left_padding": False,
    "data.pad_to_block_boundary": False,
}
T5 = {
    "model.token_decoder.strategy": "cross_attention",
    "model.token_decoder.residual": "sequential",
    "model.token_decoder.normalization": "rmsnorm",
    "model.token_decoder.activation": "relu",
    "model.token_decoder.bias": False,
}

BROKEN_LAYOUTS = [
    (
        "layout_fills_the_world",
        {"layout.tp": 2, "layout.pp": 2},
        2,
        r"layout.tp \(2\) x layout.cp \(1\) x layout.pp \(2\) = 4 .* world size \(2\)",
    ),
    (
        "layout_fills_the_world",
        {"layout.cp": 4},
        2,
        r"layout.tp \(1\) x layout.cp \(4\) x layout.pp \(1\) = 4 .* world size \(2\)",
    ),
    (
        "batch_divides_over_the_replicas",
        {"batch.micro_batch_size": 3},
        2,
        r"\(16\) is not a multiple of .*\(3\) x data-parallel size \(2\) = 6. .*=12 or 18",
    ),
    (
        "batch_divides_over_the_replicas",
        {"batch.micro_batch_size": 3, "layout.cp": 2},
        4,
        r"\(3\) x data-parallel size \(2\) = 6",
    ),
    (
        "tensor_parallel_divides_the_layers",
        {"layout.tp": 2, "model.block_decoder.ffn_hidden_size": 255},
        2,
        r"layout.tp \(2\) does not divide model.block_decoder.ffn_hidden_size \(255\)",
    ),
    (
        "tensor_parallel_divides_the_layers",
        {"layout.tp": 4, "model.token_decoder.num_query_groups": 2},
        4,
        r"token_decoder.num_query_groups \(2\)",
    ),
    (
        "tensor_parallel_divides_the_layers",
        {"layout.tp": 8, "model.block_decoder.num_attention_heads": 4},
        8,
        r"num_attention_heads \(4\)",
    ),
    (
        "sequence_parallel_has_tensor_parallel",
        {"layout.sequence_parallel": True},
        1,
        "but layout.tp is 1",
    ),
    (
        "sequence_parallel_divides_the_sequence",
        {"layout.sequence_parallel": True, "layout.tp": 2, "data.seq_length": 60},
        2,
        r"the 15 blocks .*layout.tp \(2\).*data.seq_length=56 or 64",
    ),
    (
        "sequence_parallel_divides_the_sequence",
        {"layout.sequence_parallel": True, "layout.tp": 4, "layout.cp": 2, "data.seq_length": 48},
        8,
        r"the 12 blocks .*layout.cp \(2\) x layout.tp \(4\) = 8, .*data.seq_length=32 or 64",
    ),
    (
        "context_parallel_cuts_the_sequence",
        {"layout.cp": 2, "data.seq_length": 72},
        2,
        r"layout.cp \(2\) cuts the 18 blocks .* 2 x 2 = 4 chunks.*data.seq_length=64 or 80, or",
    ),
    (
        "context_parallel_cuts_the_sequence",
        {**VANILLA, "layout.cp": 16, "data.seq_length": 16},
        16,
        r"the 16 tokens .* 2 x 16 = 32 chunks.*data.seq_length=32, or another layout.cp",
    ),
    (
        "virtual_stages_have_a_pipeline",
        {"layout.vpp": 2},
        1,
        r"layout.vpp \(2\) is more than 1 but layout.pp is 1. Use layout.vpp=1 or layout.pp=2",
    ),
    (
        "virtual_stages_take_whole_groups",
        {"layout.vpp": 2, "layout.pp": 3, "layout.tp": 1},
        3,
        r"groups of layout.pp \(3\), .* the 8 micro-batches .*batch.global_batch_size=12 or 18",
    ),
    (
        "virtual_stages_take_whole_groups",
        {"layout.vpp": 2, "layout.pp": 2, "batch.global_batch_size": 2},
        2,
        r"does not divide the 1 micro-batches .*batch.global_batch_size=4\.",
    ),
    (
        "overlapped_gather_has_its_parts",
        {"layout.overlap_param_gather": True, "layout.distributed_optimizer": False},
        1,
        "needs layout.distributed_optimizer=true and layout.overlap_grad_reduce=true",
    ),
    (
        "overlapped_gather_has_its_parts",
        {"layout.overlap_param_gather": True},
        1,
        "is true but needs layout.overlap_grad_reduce=true. Set that, or",
    ),
    (
        "token_slices_are_of_blocks",
        {**VANILLA, "memory.token_slices": 2},
        1,
        r"memory.token_slices \(2\) cuts the blocks .*architecture is vanilla",
    ),
    (
        "token_slices_divide_the_blocks",
        {"memory.token_slices": 6, "layout.cp": 2},
        2,
        r"\(6\) does not divide the 8 blocks .* \(layout.cp 2\). Use memory.token_slices=4 or 8\.",
    ),
    (
        "token_slices_divide_the_blocks",
        {"memory.token_slices": 17},
        1,
        r"\(17\) does not divide the 16 blocks .* Use memory.token_slices=16\.",
    ),
    (
        "token_slices_are_without_sequence_parallel",
        {"memory.token_slices": 2, "layout.sequence_parallel": True, "layout.tp": 2},
        2,
        r"memory.token_slices \(2\) is more than 1 but layout.sequence_parallel is true",
    ),
    (
        "stages_fit_the_model",
        {"layout.pp_cut": "Eb|ttL"},
        1,
        r"layout.pp_cut 'Eb\|ttL': it has 2 stages but layout.pp \(1\) x layout.vpp \(1\) is 1;",
    ),
    ("stages_fit_the_model", {"layout.pp_cut": "x"}, 1, "layout.pp_cut 'x': stage 1 has 'x'"),
    (
        "stages_fit_the_model",
        {"layout.pp": 2, "layout.vpp": 4},
        2,
        r"layout.pp \(2\) x layout.vpp \(4\) = 8 stages are more than .*\(6\)",
    ),
    (
        "stages_fit_the_model",
        {"layout.pp": 2, "layout.vpp": 2, "layout.pp_cut": "Ebb|ttL"},
        2,
        r"it has 2 stages but layout.pp \(2\) x layout.vpp \(2\) is 4",
    ),
    ("stages_fit_the_model", {"layout.pp": 7}, 7, r"= 7 stages are more than .*\(6\)"),
    (
        "stages_fit_the_model",
        {**T5, "layout.pp": 2, "layout.pp_cut": "Ebbt|tL"},
        2,
        "cross_attention needs all 2 token layers and the head in the last stage",
    ),
]
"""Rule, changes, number of processes, and what the message says."""
