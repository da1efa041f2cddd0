# SPDX-License-Identifier: Apache-2.0
"""What else runs in a process with the CPU backend is as it was without it."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch
from bt_megatron.parallel import cpu_backend
cpu_backend.install()
with torch.device("meta"):
    made = [torch.empty(3), torch.arange(3), torch.zeros(3), torch.tensor([1.0])]
assert [tensor.device.type for tensor in made] == ["meta"] * 4, made
assert torch.arange(3).device.type == "cpu"
"""


def test_device_contexts_still_work():
    root = Path(__file__).resolve().parents[3]
    arguments = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
