# SPDX-License-Identifier: Apache-2.0
"""What submitting and supervising leave in <run>/slurm, as values. No torch.

job.sbatch      the script; Slurm gets this file
jobs.jsonl      one line a job that was submitted
attempts.jsonl  one line when an attempt starts, one when it ends
failed_nodes    one line a failure of a node
fruitless       attempts in a row without progress
stop            there while the run is not to go on
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bt_megatron.errors import LaunchError
from bt_megatron.observe.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Job:
    """One submission."""

    job: str
    """Its number at Slurm, or at submitit's local executor."""
    via: str
    """sbatch, chain (by the job before), submitit or local."""
    time: float = 0.0
    """Unix seconds."""
    pid: int | None = None
    """local: the process that controls it."""


@dataclass(frozen=True, slots=True)
class Records:
    """The paths inside <run>/slurm; nothing is created by asking."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.folder.path / "slurm"

    @property
    def script(self) -> Path:
        """The sbatch script."""
        return self.path / "job.sbatch"

    @property
    def fruitless(self) -> Path:
        """Attempts without progress so far; it goes when a person starts the run anew."""
        return self.path / "fruitless"

    @property
    def stop(self) -> Path:
        """Exists while the run is not to go on."""
        return self.path / "stop"

    def jobs(self) -> list[Job]:
        """Return all submissions, oldest first."""
        return [Job(**line) for line in _lines(self.path / "jobs.jsonl")]

    def add_job(self, job: Job) -> None:
        """Note a submission."""
        self.path.mkdir(parents=True, exist_ok=True)
        line = {key: value for key, value in asdict(job).items() if value is not None}
        with (self.path / "jobs.jsonl").open("a") as file:
            file.write(json.dumps(line | {"time": time.time()}) + "\n")

    def attempts(self) -> list[dict[str, Any]]:
        """Return attempts in order, each with what is known of its start and end."""
        attempts: dict[int, dict[str, Any]] = {}
        for line in _lines(self.path / "attempts.jsonl"):
            number = line.pop("attempt")
            event, moment = line.pop("event"), line.pop("time")
            attempt = attempts.setdefault(number, {"attempt": number})
            if event == "ended":
                line["ended_step"] = line.pop("saved_step", None)
            attempt |= {event: moment, **line}
        return list(attempts.values())

    def failed_nodes(self) -> dict[str, int]:
        """Return the failures of each node that has failed."""
        counts: dict[str, int] = {}
        path = self.path / "failed_nodes"
        for line in path.read_text().splitlines() if path.exists() else ():
            node = line.split()[0]
            counts[node] = counts.get(node, 0) + 1
        return counts


def open_records(run_dir: str | Path) -> Records:
    """Return the records of a run that was submitted.

    Raises:
        LaunchError: nothing was submitted from there.
    """
    records = Records(RunFolder(Path(run_dir)))
    if not (records.path / "jobs.jsonl").is_file():
        raise LaunchError(
            f"{run_dir}: no job was submitted for this folder. Pass <runs_dir>/<name> of a run, "
            "or submit it: python -m slurm submit RUN.yaml --cluster CLUSTER.yaml"
        )
    return records


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file whose last line may still be being written."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
