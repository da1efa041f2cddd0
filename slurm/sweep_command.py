# SPDX-License-Identifier: Apache-2.0
"""`python -m slurm sweep`: the runs of a sweep as a job array, or here, one after the other.

What is complete is left alone, so the same command continues a sweep. The report is made by
`tools/sweep_report.py`, by a job that waits for the array, or at the end of the last run here.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bt_megatron.config.arguments import positive_int
from bt_megatron.errors import BtError, LaunchError
from bt_megatron.observe.tracking_state import artifact_location, resolve_uri
from slurm import client
from slurm.cluster import ClusterConfig, load_cluster
from slurm.submit import TrainingJob, live_job, submit
from slurm.sweep import Case, Sweep, load_sweep
from slurm.watch import write_out

INTERRUPTED = 130


def add_sweep(commands: Any) -> None:
    """Add the command to those of `python -m slurm`."""
    text = "run every case of a sweep, then report; again: continue it"
    command = commands.add_parser("sweep", help=text, description=text)
    command.add_argument("file", help="YAML file as in configs/sweep")
    command.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value in all cases",
    )
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--cluster", help="submit a job array: YAML file as in configs/cluster")
    where.add_argument("--local", action="store_true", help="run here, one after the other")
    where.add_argument("--status", action="store_true", help="say which cases are complete")
    command.add_argument(
        "--gpus", type=positive_int, metavar="N", help="processes of each run (default: one node)"
    )
    command.add_argument(
        "--at-once", type=positive_int, metavar="N", help="runs at the same time (default: all)"
    )
    command.add_argument("--dry-run", action="store_true", help="print what would be done")


def run_sweep(arguments: argparse.Namespace) -> None:
    """Do what the command is asked for.

    Raises:
        BtError: the sweep cannot be meant, cannot be submitted, or a run has failed.
    """
    sweep = load_sweep(arguments.file, arguments.settings)
    report = report_command(arguments.file, arguments.settings)
    write_out(_overview(sweep))
    if arguments.status:
        return
    if arguments.local:
        _run_here(sweep.missing, report, processes=arguments.gpus or 1, dry=arguments.dry_run)
        return
    cluster = load_cluster(arguments.cluster)
    jobs = [
        TrainingJob.load(case.files, case.settings, cluster=cluster, processes=arguments.gpus)
        for case in sweep.missing
    ]
    waiting = [job for job in jobs if live_job(job.records) is None]
    if arguments.dry_run:
        write_out("".join(f"{shlex.join(job.arguments)}\n" for job in waiting))
        return
    _open_parent(sweep)
    _submit(sweep, waiting, report, at_once=arguments.at_once)


def _open_parent(sweep: Sweep) -> None:
    """Make the MLflow run that the runs will be children of, before many of them look for it.

    If the server does not answer, the first run that reaches it does the same.
    """
    from bt_megatron.observe.mlflow_forwarder import describe  # late: with MLflow it takes seconds
    from bt_megatron.observe.mlflow_run import MlflowRun

    state = sweep.tracking
    try:
        run = MlflowRun(
            tracking_uri=resolve_uri(state, sweep.cases[0].folder),
            experiment=state.experiment,
            artifact_location=artifact_location(state, sweep.cases[0].folder),
        )
        run.open_parent(sweep.name)
    except Exception as error:  # whatever MLflow raises, the runs can be submitted
        write_out(f"MLflow does not answer now ({describe(error)}); the runs will try again\n")


def report_command(file: str, settings: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments of Python that write the report."""
    words = [word for setting in settings for word in ("--set", setting)]
    return ("-m", "tools.sweep_report", file, *words)


def _overview(sweep: Sweep) -> str:
    missing = {case.name for case in sweep.missing}
    lines = [f"sweep {sweep.name}: {len(sweep.cases)} runs, {len(missing)} to do"]
    for case in sweep.cases:
        state = "to do" if case.name in missing else "complete"
        lines.append(f"  {state:<10}{case.config.run_dir}")
    return "\n".join(lines) + "\n"


def _submit(
    sweep: Sweep, jobs: Sequence[TrainingJob], report: Sequence[str], *, at_once: int | None
) -> None:
    """Submit the runs as one job array, and the report to follow it."""
    if not jobs:
        write_out("nothing to submit: every run is complete or has a job\n")
        return
    submitted = submit(jobs, via="submitit", at_once=at_once)
    write_out("".join(f"  job {one.job}  {one.run_dir}\n" for one in submitted))
    sweep.folder.mkdir(parents=True, exist_ok=True)
    script = sweep.folder / "report.sbatch"
    script.write_text(report_script(sweep, jobs[0].cluster, report))
    array = submitted[0].job.partition("_")[0]
    number = client.sbatch(script, f"--dependency=afterany:{array}")
    write_out(f"  job {number}  report, after all runs: {sweep.folder}/report.md\n")


def report_script(sweep: Sweep, cluster: ClusterConfig, report: Sequence[str]) -> str:
    """Return the sbatch script of the report: one process for some minutes, without a GPU."""
    options = [
        f"job-name={sweep.name}-report",
        f"output={sweep.folder}/report-%j.log",
        "ntasks=1",
        "time=00:15:00",
        *([f"partition={cluster.partition}"] if cluster.partition else []),
        *([f"account={cluster.account}"] if cluster.account else []),
        *([f"qos={cluster.qos}"] if cluster.qos else []),
    ]
    directives = "".join(f"#SBATCH --{option}\n" for option in options)
    command = shlex.join([cluster.python, *report])
    return f'#!/bin/bash\n{directives}set -euo pipefail\ncd "$SLURM_SUBMIT_DIR"\nexec {command}\n'


def _run_here(cases: Sequence[Case], report: Sequence[str], *, processes: int, dry: bool) -> None:
    """Run cases one after the other, then the report.

    Raises:
        LaunchError: a run has failed; the ones before it are complete.
    """
    for number, case in enumerate(cases, start=1):
        command = _training(case, processes)
        write_out(f"[{number}/{len(cases)}] {shlex.join(command)}\n")
        if not dry and (code := subprocess.call(command, env=_environment())):
            raise LaunchError(
                f"{case.config.run_dir}: the training ended with exit code {code}. What it says "
                "is above; the same command continues the sweep."
            )
    command = [sys.executable, *report]
    write_out(f"{shlex.join(command)}\n")
    if not dry and (code := subprocess.call(command)):
        raise BtError(f"the report ended with exit code {code}; what it says is above.")


def _training(case: Case, processes: int) -> list[str]:
    settings = [word for setting in case.settings for word in ("--set", setting)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        sys.executable,
        *(launcher if processes > 1 else []),
        *("-m", "bt_megatron", "train", *case.files, *settings),
    ]


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1"} | os.environ
