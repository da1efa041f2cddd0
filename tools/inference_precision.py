# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.inference_precision FOLDER TEXT`: what bf16 and FP8 cost a model.

The engine reads a text in pieces, in float32, in bf16, with weights in FP8, and with keys
and values in FP8 too, and prints for each the loss, its difference to float32, and how often
the next token is the most likely one. Works on a CPU, where FP8 products are computed in
float32 from the same rounded numbers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from bt_megatron.errors import BtError, DataError
from bt_megatron.inference.engine.load import load_model
from bt_megatron.inference.engine.weights import Numbers
from tools.benchmark_file import Row, write_benchmark


class Kind(NamedTuple):
    """A precision."""

    numbers: Numbers
    fp8_cache: bool = False


KINDS = {
    "fp32": Kind(Numbers(torch.float32)),
    "bf16": Kind(Numbers(torch.bfloat16)),
    "fp8-weights": Kind(Numbers(torch.bfloat16, fp8=True)),
    "fp8": Kind(Numbers(torch.bfloat16, fp8=True), fp8_cache=True),
}


class Found(NamedTuple):
    """What a precision gives."""

    loss: float
    """Nats per token."""
    accuracy: float
    """Part of the tokens that were the most likely ones."""


def read_pieces(folder: Path, text: Path, *, length: int, most: int) -> torch.Tensor:
    """Return token ids [pieces, length] of a text file.

    Raises:
        DataError: a file is missing, or the text is shorter than a piece.
    """
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = tokenizer.encode(text.read_text()).ids
    except Exception as error:  # tokenizers raises Exception itself
        raise DataError(f"{folder}, {text}: cannot be read ({error}). Name others.") from error
    count = min(len(ids) // length, most)
    if count == 0:
        raise DataError(f"{text}: {len(ids)} tokens, a piece has {length}. Take a longer text.")
    return torch.tensor(ids[: count * length]).view(count, length)


@torch.inference_mode()
def measure(folder: Path, pieces: torch.Tensor, kind: Kind) -> Found:
    """Return loss and accuracy of a folder in one precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = load_model(folder, numbers=kind.numbers, device=device, max_tokens=pieces.shape[1])
    total, right, count = 0.0, 0, 0
    for piece in pieces.to(device):
        scores = model.score(piece[None], fp8_cache=kind.fp8_cache)
        total -= scores.logprobs.double().sum().item()
        right += int(scores.is_best.sum())
        count += scores.logprobs.numel()
    return Found(total / count, right / count)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.inference_precision", description="What bf16 and FP8 cost a model."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what tools.export made")
    parser.add_argument("text", type=Path, metavar="TEXT", help="plain text, not trained on")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a piece")
    parser.add_argument("--pieces", type=int, default=64, help="pieces at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args(argv)
    rows: list[Row] = []
    try:
        pieces = read_pieces(
            arguments.folder, arguments.text, length=arguments.length, most=arguments.pieces
        )
        for name, kind in KINDS.items():
            found = measure(arguments.folder, pieces, kind)
            case = f"precision/{arguments.folder.name}/{name}"
            rows += [
                Row(case=case, metric="loss", value=found.loss, unit="nats/token"),
                Row(case=case, metric="accuracy", value=found.accuracy, unit="of tokens"),
            ]
            print(  # noqa: T201
                f"{name:12} loss {found.loss:.5f} ({found.loss - rows[0].value:+.5f})  "
                f"best token right {found.accuracy:.2%}",
                flush=True,
            )
        if arguments.json is not None:
            write_benchmark(arguments.json, rows)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
