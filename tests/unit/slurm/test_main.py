# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.__main__ import main

ROOT = Path(__file__).parents[3]
RUN = str(ROOT / "configs/run/block-420m.yaml")
CLUSTER = str(ROOT / "configs/cluster/a100-8x.yaml")


def test_a_script_is_printed(capsys):
    assert main(["render", RUN, "--cluster", CLUSTER, "--set", "layout.tp=2"]) == 0

    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/bash\n")
    assert "--set layout.tp=2" in printed
    assert "#SBATCH --ntasks-per-node=8\n" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--gpus", "12"], 2, "batch.global_batch_size"),
        (["--set", "layout.tpp=2"], 2, "Did you mean 'tp'"),
    ],
    ids=["a batch that does not divide", "an unknown key"],
)
def test_errors_are_told_without_a_traceback(capsys, arguments, code, message):
    assert main(["render", RUN, "--cluster", CLUSTER, *arguments]) == code

    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert told.out == ""


def test_a_login_node_needs_no_torch():
    program = (
        "import sys; from slurm.__main__ import main; "
        f"main(['render', {RUN!r}, '--cluster', {CLUSTER!r}]); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
