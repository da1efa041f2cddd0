# SPDX-License-Identifier: Apache-2.0
"""One measurement of each kind, as an evaluation makes them."""

from bt_megatron.evaluation.measurement import Measurement

SHOT = {"samples": 1_000, "of": 2_000, "split": "validation", "standard_error": {"acc": 0.01}}
CURVE = [{"begin": 4, "end": 8, "loss": 3.0}, {"begin": 8, "end": 16, "loss": 2.5}]
NEEDLE = {
    "samples_per_depth": 2,
    "prompt_tokens": 100,
    "depths": [0, 100],
    "accuracy": [0.0, 0.5],
    "answer_loss": [2.0, 1.0],
    "answer_loss_without": [2.5, 2.5],
}
EVERYTHING = [
    Measurement(name="zero-shot/piqa", metrics={"acc": 0.25, "acc_norm": 0.3}, detail=SHOT),
    Measurement(
        name="held-out/A+B",
        metrics={"bits_per_byte": 1.25, "loss": 3.0},
        detail={"documents": 3, "tokens": 1_000, "text_bytes": 4_000},
    ),
    Measurement(
        name="positions",
        metrics={"loss": 2.75, "in_block_0": 3.0, "in_block_1": 2.5},
        detail={
            "pieces": 2,
            "context_length": 16,
            "along_context": CURVE,
            "standard_error": {"loss": 0.1},
        },
    ),
    Measurement(name="needle/question", metrics={"accuracy": 0.25}, detail=NEEDLE),
]
