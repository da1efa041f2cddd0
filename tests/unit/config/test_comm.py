# SPDX-License-Identifier: Apache-2.0
"""Transfers by hand; tests/dist/test_comm.py compares all of them with what is really called."""

import pytest

from bt_megatron.config.comm import Transfer, step_communication

BATCH, MICRO_BATCHES = 2, 8  # sequences of 64 tokens, 16 blocks; 16 in all on one replica
BLOCK = 16 * BATCH * 64 * 2  # bytes of [n, b, g] in bf16
TOKEN = 5 * BLOCK  # of [q*n, b, h]


def transfers(config, world_size, rank=0):
    """Return calls and bytes of the transfers by what they are for, group and operation."""
    return {
        (t.why, t.operation, t.group): (t.calls, t.bytes)
        for t in step_communication(config, world_size)[rank]
    }


def test_one_process_sends_nothing(make_run):
    assert step_communication(make_run(), 1) == ((),)


def test_replicas_exchange_gradients_weights_and_numbers(make_run):
    sent = transfers(make_run(), 2)
    assert {key: calls for key, (calls, _) in sent.items()} == {
        ("gradients", "reduce_scatter", "dp_cp"): 1,
        ("updated weights", "all_gather", "dp_cp"): 1,
        ("loss, targets, stop requests", "all_reduce", "world"): 1,
        ("gradient norm", "all_reduce", "world"): 1,
    }
    gradients = sent["gradients", "reduce_scatter", "dp_cp"][1]
    assert sent["updated weights", "all_gather", "dp_cp"][1] * 2 == gradients  # bf16, fp32


def test_tensor_parallel_layers_sum_twice_forward_and_backward(make_run):
    sent = transfers(make_run({"layout.tp": 2}), 2)
    outputs = ("all_reduce", "tp")
    assert sent["block decoder, outputs", *outputs] == (2 * 2 * MICRO_BATCHES, BLOCK)
    assert sent["token decoder, gradient of inputs", *outputs] == (2 * 2 * MICRO_BATCHES, TOKEN)
    assert sent["token embedding", *outputs] == (MICRO_BATCHES, 3 * BLOCK)
    assert sent["head, gradient of inputs", *outputs] == (MICRO_BATCHES, 4 * BLOCK)
    targets = 64 * BATCH
    loss = "loss, three numbers per target"
    assert sent[loss, "all_gather", "tp"] == (MICRO_BATCHES, 2 * 3 * 4 * targets)


def test_sequence_parallel_gathers_all_rows_of_the_token_decoder(make_run):
    sent = transfers(make_run({"layout.tp": 2, "layout.sequence_parallel": True}), 2)
    layers = 2 * 2 * MICRO_BATCHES
    for why, operation in (
        ("inputs", "all_gather"),
        ("inputs for weight gradients", "all_gather"),
        ("gradient of inputs", "reduce_scatter"),
        ("outputs", "reduce_scatter"),
        ("gradient of outputs", "all_gather"),
    ):
        assert sent[f"token decoder, {why}", operation, "tp"] == (layers, TOKEN)
    assert sent["head, input", "all_gather", "tp"] == (MICRO_BATCHES, TOKEN)
    assert sent["gradients of norms and biases", "all_reduce", "tp"][0] == 1


def test_context_parallel_gathers_keys_and_values_of_blocks_only(make_run):
    sent = transfers(make_run({"layout.cp": 2}), 2)
    over_cp = {key: value for key, value in sent.items() if key[2] == "cp"}
    assert over_cp == {
        ("block decoder, keys and values", "all_gather", "cp"): (2 * 2 * MICRO_BATCHES, BLOCK),
        ("block decoder, gradients of keys and values", "reduce_scatter", "cp"): (
            2 * 2 * MICRO_BATCHES,
            BLOCK,
        ),
    }


@pytest.mark.parametrize(("cut", "size"), [("Ebb|ttL", BLOCK), ("Ebbt|tL", TOKEN)])
def test_what_crosses_a_cut_depends_on_where_it_is(make_run, cut, size):
    config = make_run({"layout.pp": 2, "layout.pp_cut": cut})
    first, last = transfers(config, 2, rank=0), transfers(config, 2, rank=1)
    assert first["hidden states", "send", "pp"] == (MICRO_BATCHES, size)
    assert last["hidden states", "recv", "pp"] == (MICRO_BATCHES, size)
    assert last["gradient of hidden states", "send", "pp"] == (MICRO_BATCHES, size)


def test_messages_of_virtual_stages_come_with_their_shape(make_run):
    config = make_run({"layout.pp": 2, "layout.vpp": 2, "layout.pp_cut": "Eb|b|t|tL"})
    sent = [t for t in step_communication(config, 2)[0] if t.operation == "send"]
    forward = [t for t in sent if t.phase == "forward"]
    assert sum(t.calls for t in forward if t.bytes == 24) == 2 * MICRO_BATCHES
    assert {t.peer for t in sent} == {1}


def test_layers_that_are_computed_again_send_again(make_run):
    config = make_run({"layout.tp": 2, "memory.recompute": "full"})
    sent = transfers(config, 2)
    once = sent["block decoder, outputs", "all_reduce", "tp"]
    assert sent["block decoder, outputs, computed again", "all_reduce", "tp"] == once
    assert ("token embedding, computed again", "all_reduce", "tp") not in sent


def test_slices_send_smaller_tensors_more_often_and_twice(make_run):
    sent = transfers(make_run({"layout.tp": 2, "memory.token_slices": 4}), 2)
    again = "token embedding, computed again"
    assert sent["token embedding", "all_reduce", "tp"] == (4 * MICRO_BATCHES, 3 * BLOCK // 4)
    assert sent[again, "all_reduce", "tp"] == (4 * MICRO_BATCHES, 3 * BLOCK // 4)
    assert sent["block decoder, outputs", "all_reduce", "tp"] == (2 * 2 * MICRO_BATCHES, BLOCK)


@pytest.mark.parametrize(
    ("operation", "sent"),
    [
        ("all_reduce", 2 * 2 * 750),
        ("all_gather", 2 * 750),
        ("reduce_scatter", 2 * 750),
        ("send", 2 * 1000),
        ("recv", 0),
    ],
)
def test_what_leaves_a_process_of_four(operation, sent):
    transfer = Transfer(
        operation=operation, group="tp", group_size=4, peer=None, why="", phase="forward",
        calls=2, bytes=1000,
    )  # fmt: skip
    assert transfer.sent == sent
    assert transfer.total == 2000
