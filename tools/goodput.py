# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.goodput RUN_DIR`: where the time of a run went, over all its attempts.

Prints a table, or JSON with --json, and draws the timeline into the run's timeline.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bt_megatron.errors import BtError
from bt_megatron.observe.goodput import KINDS, Goodput, read_goodput
from bt_megatron.observe.run_folder import open_run_folder
from bt_megatron.observe.timeline import draw_timeline

MEANINGS = {
    "start": "starting, up to the first step",
    "training": "steps that were kept",
    "repeated": "steps taken again after a restart",
    "checkpoint": "held up by checkpoints",
    "evaluation": "evaluating",
    "down": "not running, between attempts",
}


def summary(goodput: Goodput) -> dict[str, Any]:
    """Return the figures as values that JSON can hold."""
    stalls = goodput.checkpoint_stalls_s
    return {
        "goodput": goodput.fraction,
        "total_s": goodput.total_s,
        "effective_s": goodput.effective_s,
        "data_wait_s": goodput.data_wait_s,
        "seconds": goodput.seconds,
        "restarts": len(goodput.attempts) - 1,
        "checkpoints": len(stalls),
        "longest_checkpoint_stall_s": max(stalls, default=0.0),
        "attempts": [
            {
                "number": attempt.number,
                "job": attempt.job,
                "first_step": attempt.first_step,
                "last_step": attempt.last_step,
                "ended": attempt.ended,
                "begin": attempt.spans[0].begin,
                "end": attempt.spans[-1].end,
            }
            for attempt in goodput.attempts
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.goodput", description="Say where the time of a run went."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="<runs_dir>/<name>")
    parser.add_argument("--out", type=Path, help="PNG file (default: the run's timeline.png)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(argv)
    try:
        folder = open_run_folder(arguments.run_dir)
        goodput = read_goodput(folder)
        output = arguments.out or folder.timeline
        draw_timeline(goodput, output, title=folder.path.name)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    if arguments.json:
        print(json.dumps(summary(goodput), indent=1))  # noqa: T201
        return 0
    console = Console(soft_wrap=True)
    console.print(_kinds_table(goodput))
    console.print(_attempts_table(goodput))
    console.print(
        f"goodput {goodput.fraction:.1%} of {duration(goodput.total_s)}, "
        f"{len(goodput.attempts) - 1} restarts; drawn in {output}",
        highlight=False,
    )
    return 0


def _kinds_table(goodput: Goodput) -> Table:
    table = Table("time", "", "part", box=None)
    for kind in KINDS:
        seconds = goodput.seconds[kind]
        table.add_row(MEANINGS[kind], duration(seconds), f"{seconds / goodput.total_s:.1%}")
        if kind == "training":
            wait = goodput.data_wait_s
            table.add_row(
                "  of these, waiting for data", duration(wait), f"{wait / goodput.total_s:.1%}"
            )
    stalls = goodput.checkpoint_stalls_s
    if stalls:
        longest = f"longest of {len(stalls)} stalls"
        table.add_row(longest, f"{max(stalls):.2f} s", "")
    return table


def _attempts_table(goodput: Goodput) -> Table:
    table = Table("attempt", "job", "steps", "time", "ended", box=None)
    for attempt in goodput.attempts:
        seconds = attempt.spans[-1].end - attempt.spans[0].begin
        table.add_row(
            str(attempt.number),
            attempt.job or "-",
            f"{attempt.first_step} to {attempt.last_step}",
            duration(seconds),
            attempt.ended,
        )
    return table


def duration(seconds: float) -> str:
    """Write a time for people: 12.3 s, 4m05s, 3h12m."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


if __name__ == "__main__":
    sys.exit(main())
