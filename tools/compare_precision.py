# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.compare_precision RUN_CONFIG.yaml`: what a way of multiplying costs in loss.

Trains a run several times from the same weights on the same samples: as it is configured in bf16
with Transformer Engine's layers, with torch's (how far rounding alone leads apart), and with each
way of scaling of FP8. Every training is a process of its own, `python -m bt_megatron train`, in a
folder <name>-<variant>; started again, the command goes on where it ended. It prints and writes
the validation loss of each, and its distance from bf16.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bt_megatron.config.arguments import add_run_arguments
from bt_megatron.config.load import load_run
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import BtError, ConfigError, TrainingError
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from tools.benchmark_file import Row, write_benchmark

VARIANTS: dict[str, tuple[str, ...]] = {
    "bf16": ("kernels.layers=transformer_engine", "kernels.fp8=none"),
    "bf16-torch": ("kernels.layers=torch", "kernels.fp8=none"),
    "fp8-current": ("kernels.layers=transformer_engine", "kernels.fp8=current"),
    "fp8-delayed": ("kernels.layers=transformer_engine", "kernels.fp8=delayed"),
    "fp8-block": ("kernels.layers=transformer_engine", "kernels.fp8=block"),
}
"""What each of them sets."""
REFERENCE = "bf16"
"""What the others are compared with."""
LAST_STEPS = 20
"""Logged steps at the end whose training losses are averaged."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one training came to."""

    variant: str
    validation_loss: float
    """At the end, in nats."""
    training_loss: float
    """Mean of the last logged steps, in nats."""
    tokens_per_s: float
    """Average over the run."""


def settings_of(settings: Sequence[str], config: RunConfig, variant: str) -> list[str]:
    """Return `--set` values of a variant of a run: the user's, then its own."""
    own = (f"name={config.name}-{variant}", "train.precision=bf16", *VARIANTS[variant])
    return [*settings, *own]


def train(files: Sequence[str], settings: Sequence[str], variant: str) -> Outcome:
    """Train one variant to its end, or go on with it.

    Raises:
        TrainingError: it failed.
    """
    command = [sys.executable, "-m", "bt_megatron", "train", *files]
    for setting in settings:
        command += ["--set", setting]
    if code := subprocess.run(command, check=False).returncode:
        raise TrainingError(f"{variant}: the training ended with code {code}; see its output above")
    return read_outcome(load_run(files, settings).config, variant)


def read_outcome(config: RunConfig, variant: str) -> Outcome:
    """Return what a finished training came to.

    Raises:
        DataError: its records cannot be read.
        TrainingError: it is not at its end.
    """
    records = read_records(RunFolder.of(config).metrics)
    steps = [record for record in records if record["kind"] == "step"]
    ends = [
        record
        for record in records
        if record["kind"] == "evaluation" and record["step"] == config.train.steps
    ]
    if not ends or not steps:
        raise TrainingError(
            f"{config.run_dir}: has no evaluation after step {config.train.steps}. Start the "
            "command again to finish it."
        )
    last = [record["train/loss"] for record in steps[-LAST_STEPS:]]
    return Outcome(
        variant,
        validation_loss=ends[-1]["validation/loss"],
        training_loss=sum(last) / len(last),
        tokens_per_s=steps[-1]["perf/tokens_per_s_average"],
    )


def benchmark_rows(name: str, steps: int, outcomes: Sequence[Outcome]) -> list[Row]:
    """Return what docs/benchmarks holds of a comparison."""
    (reference,) = (outcome for outcome in outcomes if outcome.variant == REFERENCE)
    rows = []
    for outcome in outcomes:
        case = f"precision/{name}/{outcome.variant}"
        detail = {"steps": steps, "training_loss": outcome.training_loss}
        rows.append(
            Row(
                case=case,
                metric="validation_loss",
                value=outcome.validation_loss,
                unit="nats",
                detail=detail,
            )
        )
        if outcome is not reference:
            difference = outcome.validation_loss - reference.validation_loss
            rows.append(
                Row(case=case, metric="validation_loss_difference", value=difference, unit="nats")
            )
    return rows


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """Return the comparison for people."""
    table = Table("variant", "validation loss", f"- {REFERENCE}", "training loss", "tokens/s")
    (reference,) = (outcome for outcome in outcomes if outcome.variant == REFERENCE)
    for outcome in outcomes:
        table.add_row(
            outcome.variant,
            f"{outcome.validation_loss:.4f}",
            f"{outcome.validation_loss - reference.validation_loss:+.4f}",
            f"{outcome.training_loss:.4f}",
            f"{outcome.tokens_per_s:,.0f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        config = load_run(arguments.files, arguments.settings).config
        variants = _chosen(arguments.variants)
        outcomes = []
        for variant in variants:
            settings = settings_of(arguments.settings, config, variant)
            outcomes.append(train(arguments.files, settings, variant))
        Console().print(table_of(outcomes))
        write_benchmark(arguments.out, benchmark_rows(config.name, config.train.steps, outcomes))
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _chosen(text: str) -> list[str]:
    """Return the variants of a comma-separated list, the reference first.

    Raises:
        ConfigError: one of them is not known.
    """
    chosen = text.split(",")
    if unknown := [variant for variant in chosen if variant not in VARIANTS]:
        raise ConfigError(
            f"--variants: {', '.join(unknown)} is not known. Use some of {', '.join(VARIANTS)}."
        )
    return [REFERENCE, *(variant for variant in dict.fromkeys(chosen) if variant != REFERENCE)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare_precision",
        description="Train a run in bf16 and in FP8 and compare the losses. Needs an H100.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help=f"default: {','.join(VARIANTS)}"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/precision.json"), help="file to write"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
