# SPDX-License-Identifier: Apache-2.0
"""Which code made something: the commit of this project and versions of what it stands on."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    *("torch", "megatron-core", "transformer-engine", "transformers", "tokenizers", "numpy"),
    "nvidia-dali-cuda130",
)


def read_versions() -> dict[str, str]:
    """Return versions by name; packages that are not installed are left out."""
    versions = {"bt_megatron": read_commit(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_commit() -> str:
    """Return the checkout's commit, with `-dirty` if files differ; `unknown` outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
