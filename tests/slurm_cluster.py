# SPDX-License-Identifier: Apache-2.0
"""A real Slurm of two nodes for tests: munge, slurmctld and two slurmd with fake A100s.

One at a time on a machine: its ports are fixed. Other test modules wait for it.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "tools" / "start_slurm.sh"
LOCK = Path(tempfile.gettempdir()) / "bt-megatron-slurm.lock"


@contextlib.contextmanager
def slurm_folder() -> Iterator[Path]:
    """Give a folder in which a Slurm may be started now; skip where none can be."""
    if os.getuid() != 0:
        pytest.skip("needs root, to start a Slurm")
    if shutil.which("slurmctld") is None:
        pytest.skip("needs Slurm: apt-get install slurmctld slurmd slurm-client munge")
    with LOCK.open("w") as lock, tempfile.TemporaryDirectory(prefix="slurm-") as name:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(name).chmod(0o755)  # munge asks for it
        yield Path(name)


@contextlib.contextmanager
def running_slurm() -> Iterator[Path]:
    """Start a Slurm, name it in SLURM_CONF, and end it; gives the folder it lives in."""
    with slurm_folder() as folder:
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
        try:
            started = subprocess.run(
                [START, "-n", "2", "-d", folder], capture_output=True, text=True, timeout=120
            )
            assert started.returncode == 0, started.stdout + started.stderr
            yield folder
        finally:
            subprocess.run([START, "stop", "-d", folder], capture_output=True, timeout=120)
            os.environ.pop("SLURM_CONF")
            if before is not None:
                os.environ["SLURM_CONF"] = before


def wait_until(condition: Callable[[], Any], *, within_s: float, log: Path | None = None) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + within_s
    while not condition():
        said = log.read_text() if log is not None and log.exists() else ""
        assert time.monotonic() < deadline, f"not within {within_s} s:\n{said}"
        time.sleep(0.1)
