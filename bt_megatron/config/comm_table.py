# SPDX-License-Identifier: Apache-2.0
"""What each process sends in a step, as a table for people and as values for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bt_megatron.config.comm import Transfer
from bt_megatron.config.schema import RunConfig

HEADINGS = ("operation", "group", "what for", "when", "calls", "bytes per call", "total")
NUMBERS = ("calls", "bytes per call", "total")
CONTEXT_PARALLEL_NOTE = (
    "Where Transformer Engine computes the layers (kernels.layers), keys and values and their",
    "gradients pass around the cp group from process to process instead of being gathered.",
)
FP8_NOTE = (
    "With kernels.fp8 these are the figures of bf16. Under sequence parallelism inputs of layers",
    "are gathered in one byte per value; beside them go maxima, by which tensors are scaled.",
)
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def communication_lines(processes: Sequence[Sequence[Transfer]], config: RunConfig) -> list[str]:
    """Write one table for each pipeline rank.

    Args:
        processes: from `step_communication`.
        config: the run.
    """
    lines = []
    for rank, transfers in enumerate(processes):
        where = f" of pipeline rank {rank}" if len(processes) > 1 else ""
        lines += ["", f"one optimizer step of each process{where}:"]
        lines += _table(transfers) if transfers else ["nothing is sent"]
    if config.layout.cp > 1 and config.kernels.layers != "torch":
        lines += ["", *CONTEXT_PARALLEL_NOTE]
    if config.kernels.fp8 != "none":
        lines += ["", *FP8_NOTE]
    return lines


def communication_mapping(processes: Sequence[Sequence[Transfer]]) -> list[dict[str, Any]]:
    """Return the transfers of each pipeline rank as values that JSON can hold."""
    return [
        {
            "pipeline_rank": rank,
            "transfers": [
                asdict(transfer) | {"total": transfer.total, "sent": transfer.sent}
                for transfer in transfers
            ],
            "groups": {
                group: {"total": total, "sent": sent}
                for group, (total, sent) in _by_group(transfers).items()
            },
        }
        for rank, transfers in enumerate(processes)
    ]


def _table(transfers: Sequence[Transfer]) -> list[str]:
    rows = [HEADINGS, *(_row(transfer) for transfer in transfers)]
    calls, total = (sum(getattr(t, name) for t in transfers) for name in ("calls", "total"))
    rows.append(("total", "", "", "", f"{calls:,}", "", _short(total)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    groups = [
        f"over {group}: {_short(total)}; around a ring {_short(sent)} leave the process"
        for group, (total, sent) in _by_group(transfers).items()
    ]
    return [*lines, *groups]


def _row(transfer: Transfer) -> tuple[str, ...]:
    sides = {"send": "send to", "recv": "recv from"}
    operation = transfer.operation
    return (
        operation if transfer.peer is None else f"{sides[operation]} {transfer.peer}",
        _group(transfer),
        transfer.why,
        transfer.phase,
        f"{transfer.calls:,}",
        f"{transfer.bytes:,}",
        _short(transfer.total),
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.rjust(width) if heading in NUMBERS else text.ljust(width)
        for heading, text, width in zip(HEADINGS, row, widths, strict=True)
    ]


def _by_group(transfers: Sequence[Transfer]) -> dict[str, tuple[int, int]]:
    """Return bytes and sent bytes of each group."""
    sums: dict[str, tuple[int, int]] = {}
    for transfer in transfers:
        total, sent = sums.get(_group(transfer), (0, 0))
        sums[_group(transfer)] = total + transfer.total, sent + transfer.sent
    return sums


def _group(transfer: Transfer) -> str:
    return f"{transfer.group} {transfer.group_size}"


def _short(size: float) -> str:
    """Write bytes with three digits or so, in units of 1024."""
    for unit in UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} {UNITS[-1]}"
