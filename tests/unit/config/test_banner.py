# SPDX-License-Identifier: Apache-2.0
"""The printed plan."""

from bt_megatron.config.banner import plan_lines
from bt_megatron.config.plan import make_plan


def lines_of(config, world_size):
    lines = plan_lines(make_plan(config, world_size), config)
    return {line[:11].strip(): line[11:] for line in lines}


def test_the_plan_is_short_and_says_what_matters(make_run):
    lines = lines_of(make_run({"layout.tp": 2, "layout.pp": 2, "layout.pp_cut": "Ebb|ttL"}), 8)

    assert len(lines) <= 15
    assert lines["run"] == "small in runs/small"
    assert lines["model"].startswith("block, block length 4, lookup embedder, prefix length 2")
    assert lines["parameters"].startswith("282,240: embedder 8.19k, block decoder 100k")
    assert lines["layout"] == "8 processes = tp 2 x pp 2 x dp 2, optimizer sharded"
    assert lines["stages"] == (
        "Ebb|ttL, FLOPs 14% | 86%, busiest 1.72 x the mean, bubble 20.0% if all were equal, "
        "44.2% idle as they are"
    )
    assert lines["batch"].endswith("dp 2 x 4 accumulated; 1,024 tokens per step")
    assert lines["steps"] == "100, 102k tokens in all"
    assert lines["schedule"].endswith("10 steps of linear warm-up, cosine to 3e-05 at step 100")
    assert "bt-matmul-v1" in lines["flops"]
    assert lines["memory"].startswith("about 0.00 GiB per process on pipeline rank 1")


def test_virtual_stages_are_grouped_by_process(make_run):
    config = make_run(
        {
            "layout.tp": 2,
            "layout.sequence_parallel": True,
            "layout.cp": 2,
            "layout.pp": 2,
            "layout.vpp": 2,
            "layout.pp_cut": "Ebb|t|t|L",
        }
    )
    lines = lines_of(config, 8)

    assert lines["layout"] == (
        "8 processes = tp 2 with sequence parallel x cp 2 x pp 2 with vpp 2 x dp 1, "
        "optimizer sharded"
    )
    assert lines["stages"].startswith("Ebb|t|t|L, FLOPs by process 14%+34% | 35%+18%, busiest 1.05")


def test_saving_memory_is_said(make_run):
    plain, saving = (
        lines_of(make_run(changes), 1)["memory"]
        for changes in ({}, {"memory.recompute": "full", "memory.token_slices": 4})
    )

    assert "backward" not in plain
    assert saving.endswith("; layers computed again in backward; token decoder in 4 slices")


def test_selective_recomputation_and_fp8_are_said(make_run):
    lines = lines_of(make_run({"memory.recompute": "selective", "kernels.fp8": "block"}), 1)

    assert lines["memory"].endswith(
        "; activations of feed-forward layers computed again in backward"
    )
    assert lines["precision"] == (
        "bf16; products of the decoders' layers in FP8, block scaling; MFU counts against the bf16 "
        "peak"
    )


def test_a_vanilla_model_has_no_block_words(make_run):
    config = make_run(
        {
            "model": {
                "architecture": "vanilla",
                "vocab_size": 512,
                "decoder": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4},
            },
            "data.random_left_padding": False,
            "data.pad_to_block_boundary": False,
        }
    )
    lines = lines_of(config, 1)

    assert lines["model"] == "vanilla, vocabulary 512"
    assert lines["stages"] == "EttL"
    assert "embedder" not in lines["parameters"]
