# SPDX-License-Identifier: Apache-2.0
"""What commands say on stderr besides the progress bar."""

import sys

from bt_megatron.data.manifest import ProblemRecord
from data_prep.problems import CONSEQUENCES, MAX_EXAMPLES

_UNKNOWN = "a kind that this version does not know"


def say(text: str) -> None:
    """Print a line to stderr, as is: file names and quotes may hold any character."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def describe_problems(by_input: list[dict[str, ProblemRecord]]) -> list[str]:
    """Write the problems of several inputs as lines for people.

    Args:
        by_input: for each input its problems by kind.

    Returns:
        No lines if there were no problems; otherwise for each kind the exact
        count, what was done, and the first examples.
    """
    kinds = sorted({kind for problems in by_input for kind in problems})
    lines = []
    for kind in kinds:
        records = [problems[kind] for problems in by_input if kind in problems]
        count = sum(record.count for record in records)
        examples = [example for record in records for example in record.examples][:MAX_EXAMPLES]
        lines.append(f"{count:,} x {kind}: {CONSEQUENCES.get(kind, _UNKNOWN)}")
        lines += [f"    {example}" for example in examples]
        if count > len(examples):
            lines.append(f"    ... and {count - len(examples):,} more")
    return lines
