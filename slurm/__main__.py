# SPDX-License-Identifier: Apache-2.0
"""`python -m slurm COMMAND`: submit runs to a cluster and look after them."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bt_megatron.config.arguments import add_run_arguments, positive_int
from bt_megatron.errors import BtError
from slurm import watch
from slurm.cluster import load_cluster
from slurm.records import open_records
from slurm.submit import TrainingJob, submit
from slurm.sweep_command import add_sweep, run_sweep

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except (KeyboardInterrupt, BrokenPipeError):
        return INTERRUPTED
    return 0


def _render(arguments: argparse.Namespace) -> None:
    watch.write_out(_job(arguments).script)


def _submit(arguments: argparse.Namespace) -> None:
    job = _job(arguments)
    if arguments.dry_run:
        watch.write_out(job.script)
        return
    (done,) = submit([job], via=arguments.via)
    details = asdict(done)
    text = [
        f"job {done.job} of run {job.config.name}, {job.plan.world_size} processes",
        *([f"  {done.starts}"] if done.starts else []),
        f"  script  {done.script}",
        f"  log     {done.log}",
        f"  ranks   {done.run_dir}/logs/latest/",
        f"  look    python -m slurm status {done.run_dir}",
        f"          python -m slurm logs -f {done.run_dir}",
    ]
    _tell(arguments, details, "\n".join(text))


def _status(arguments: argparse.Namespace) -> None:
    found = watch.status(open_records(arguments.run_dir))
    text = [f"{key:<16}{value}" for key, value in found.items() if value is not None]
    _tell(arguments, found, "\n".join(text))


def _logs(arguments: argparse.Namespace) -> None:
    records = open_records(arguments.run_dir)
    for text in watch.follow(records, rank=arguments.rank, wait=arguments.follow):
        if arguments.json:
            text = "".join(json.dumps({"line": line}) + "\n" for line in text.splitlines())
        watch.write_out(text)


def _cancel(arguments: argparse.Namespace) -> None:
    done = watch.cancel(open_records(arguments.run_dir), now=arguments.now)
    how = "saves and stops" if done["saving"] else "is cancelled"
    _tell(arguments, done, f"job {done['job']} {how}")


def _resume(arguments: argparse.Namespace) -> None:
    done = watch.resume(open_records(arguments.run_dir))
    _tell(arguments, done, f"job {done['job']} goes on; log {done['log']}")


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "render": _render,
    "submit": _submit,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "sweep": run_sweep,
}


def _job(arguments: argparse.Namespace) -> TrainingJob:
    return TrainingJob.load(
        arguments.files,
        arguments.settings,
        cluster=load_cluster(arguments.cluster),
        processes=arguments.gpus,
    )


def _tell(arguments: argparse.Namespace, details: Mapping[str, Any], text: str) -> None:
    watch.write_out((json.dumps(details) if arguments.json else text) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_run(commands, "render", "print the sbatch script of a run")
    command = _add_run(commands, "submit", "submit a run; it goes on over time limits and faults")
    command.add_argument("--dry-run", action="store_true", help="print the script instead")
    command.add_argument(
        "--via",
        choices=("sbatch", "submitit", "local"),
        default="sbatch",
        help="the project's own script, submitit, or processes of this machine (no Slurm)",
    )
    _add_json(command)
    add_sweep(commands)
    _add_folder(commands, "status", "say how a submitted run is")
    command = _add_folder(commands, "logs", "print what a run says")
    command.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    command.add_argument(
        "--rank", type=int, metavar="N", help="of a rank instead of the job: attempts and decisions"
    )
    command = _add_folder(commands, "cancel", "save a checkpoint, then stop for good")
    command.add_argument("--now", action="store_true", help="without a checkpoint")
    _add_folder(commands, "resume", "submit the script of a run again")
    return parser


def _add_run(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    add_run_arguments(command)
    command.add_argument("--cluster", required=True, help="YAML file as in configs/cluster")
    command.add_argument(
        "--gpus", type=positive_int, metavar="N", help="processes in all (default: one whole node)"
    )
    return command


def _add_folder(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("run_dir", help="folder of the run, <runs_dir>/<name>")
    _add_json(command)
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


if __name__ == "__main__":
    sys.exit(main())
