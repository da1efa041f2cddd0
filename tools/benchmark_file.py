# SPDX-License-Identifier: Apache-2.0
"""The form in which measured numbers are kept: docs/benchmarks/<name>.json.

    {"commit", "date", "machine", "versions", "command",
     "rows": [{"case", "metric", "value", "unit", "detail"}, ...]}

Every number in the documentation comes from such a file.
"""

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bt_megatron.errors import DataError
from bt_megatron.observe.atomic_file import write_atomically
from bt_megatron.versions import read_versions


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured number."""

    case: str
    """What was measured, e.g. train/block-1.2b/bf16."""
    metric: str
    """Which property of it, e.g. tokens_per_s."""
    value: float
    unit: str
    detail: dict[str, Any] = field(default_factory=dict)
    """What else is needed to judge the number."""


def write_benchmark(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the commit, machine, versions and command that gave them.

    Raises:
        DataError: the file cannot be written.
    """
    versions = read_versions()
    content = {
        "commit": versions.pop("bt_megatron"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "versions": versions,
        "command": shlex.join(["python", "-m", *sys.orig_argv[2:]]),
        "rows": [asdict(row) for row in rows],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}). Name another.") from error


def describe_machine() -> str:
    """Return GPUs, or processor cores and memory."""
    import torch  # late: the form itself needs none

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    return f"{cores} cores {_processor()}, {memory:.0f} GiB"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
