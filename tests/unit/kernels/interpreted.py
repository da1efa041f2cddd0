# SPDX-License-Identifier: Apache-2.0
"""Starts interpreted_layer_kernels.py, where Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_interpreted(kernels: str) -> int:
    """Compare the kernels of one kind with float64 and return how many comparisons held."""
    script = Path(__file__).with_name("interpreted_layer_kernels.py")
    done = subprocess.run(
        [sys.executable, script, kernels],
        cwd=ROOT,
        env=dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.count("equal")
