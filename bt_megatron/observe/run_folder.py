# SPDX-License-Identifier: Apache-2.0
"""Where everything of a run lies. `docs/run-folder.md` describes it as an interface."""

from dataclasses import dataclass
from pathlib import Path

from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import DataError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths inside `<runs_dir>/<name>`; nothing is created by asking."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        """Return the folder of a run."""
        return cls(Path(config.run_dir))

    @property
    def config(self) -> Path:
        """The configuration as it was resolved, with every default filled in."""
        return self.path / "config.resolved.yaml"

    @property
    def plan(self) -> Path:
        """What follows from the configuration: layout, memory, FLOPs, tokens per step."""
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        """On what the newest attempt runs: machine, packages, variables, job."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step or evaluation; each step once."""
        return self.path / "metrics.jsonl"

    @property
    def discarded_metrics(self) -> Path:
        """Metrics of steps that were taken again after a resume."""
        return self.path / "metrics.discarded.jsonl"

    @property
    def events(self) -> Path:
        """One JSON object per event, never cut."""
        return self.path / "events.jsonl"

    @property
    def loss_plot(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def timeline(self) -> Path:
        """Where the time of all attempts went, drawn."""
        return self.path / "timeline.png"

    @property
    def tracking(self) -> Path:
        """How far MLflow has followed metrics.jsonl."""
        return self.path / "mlflow.json"

    @property
    def baselines(self) -> Path:
        """Losses of the n-gram models on the same validation targets."""
        return self.path / "baselines.json"

    @property
    def checkpoints(self) -> Path:
        """Parent of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def faults(self) -> Path:
        """Parent of what each process wrote when it stopped because of another."""
        return self.path / "faults"


def open_run_folder(path: str | Path) -> RunFolder:
    """Return the folder of a run that has logged something.

    Raises:
        DataError: there is no such folder, or it holds no metrics.jsonl.
    """
    folder = RunFolder(Path(path))
    if not folder.metrics.is_file():
        found = "no such folder" if not folder.path.is_dir() else "it has no metrics.jsonl"
        raise DataError(f"{path}: not the folder of a run ({found}). Pass <runs_dir>/<name>.")
    return folder
