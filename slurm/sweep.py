# SPDX-License-Identifier: Apache-2.0
"""A sweep: one run with some values changed, case by case. Files as in configs/sweep. No torch.

    name: block-length
    title: Length of a block
    axis: tokens per block
    run: [configs/run/ablation-lookup-prefix.yaml]
    set:                                # of all cases
      train: {steps: 20000}
    cases:                              # of each, on top
      b1: {model: {block_length: 1}}

Each case is a run `<name>-<case>`, and in MLflow a child of the run `<name>`. Whether it is done
is read from its run folder, so a sweep that was interrupted is continued by the same command.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bt_megatron.config.convert import Conversion
from bt_megatron.config.load import load_run
from bt_megatron.config.schema import RunConfig
from bt_megatron.config.source import Section, Value, read_files
from bt_megatron.errors import ConfigError
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.observe.tracking_state import TrackingState

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """What a file says of all cases."""

    name: str
    """Name of the sweep; the runs are <name>-<case>."""
    title: str
    """What is varied, for people."""
    axis: str
    """Label of the cases in plots."""
    paper: str = ""
    """What the paper found, for comparison."""
    run: list  # type: ignore[type-arg]
    """Files of the run, from the folder in which the command is run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run of a sweep."""

    name: str
    """Of the case."""
    files: tuple[str, ...]
    settings: tuple[str, ...]
    """`a.b=c`, on top of the files."""
    config: RunConfig
    """What they come to."""

    @property
    def folder(self) -> RunFolder:
        """Folder of the run."""
        return RunFolder.of(self.config)

    @property
    def is_complete(self) -> bool:
        """Whether the run has taken its last step."""
        events = read_records(self.folder.events)
        steps = [event["step"] for event in events if event["event"] == "stopped"]
        return bool(steps) and steps[-1] >= self.config.train.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Cases that differ in some values."""

    name: str
    title: str
    axis: str
    paper: str
    cases: tuple[Case, ...]

    @property
    def folder(self) -> Path:
        """Where what belongs to no single case is kept."""
        return Path(self.cases[0].config.runs_dir) / self.name

    @property
    def tracking(self) -> TrackingState:
        """Where MLflow has the runs."""
        mlflow = self.cases[0].config.log.mlflow
        assert mlflow is not None, "a sweep without MLflow is refused when it is loaded"
        return TrackingState(
            tracking_uri=mlflow.tracking_uri, experiment=mlflow.experiment, run_key=""
        )

    @property
    def missing(self) -> list[Case]:
        """The cases that are not complete."""
        return [case for case in self.cases if not case.is_complete]


def load_sweep(path: str | Path, settings: Sequence[str] = ()) -> Sweep:
    """Load a sweep and every case of it.

    Args:
        path: a YAML file.
        settings: `a.b=c` for all cases, applied last.

    Raises:
        ConfigError: a key is unknown or missing, a case cannot be meant, or MLflow, which the
            report is made from, is turned off.
    """
    tree = read_files([path])
    common = _section(tree.entries.pop("set", Section({}, "")), f"{path}: set")
    cases = _section(tree.entries.pop("cases", Section({}, "")), f"{path}: cases")
    conversion = Conversion()
    head: _Head | None = conversion.build(_Head, tree)
    problems = [*conversion.problems, *(f"{key} is missing" for key in conversion.missing)]
    if not cases.entries:
        problems.append("cases is missing or empty")
    if head is not None:
        problems += _name_problems([head.name, *cases.entries])
        problems += [f"run: {file!r} is no file" for file in head.run if not isinstance(file, str)]
    if problems or head is None:
        raise ConfigError(f"{path}: " + "; ".join(problems) + ". See configs/sweep for examples.")
    made = []
    for name, values in cases.entries.items():
        section = _section(values, f"{path}: cases.{name}")
        own = [*_settings(common), *_settings(section), *settings]
        own.append(f"name={head.name}-{name}")
        made.append(_case(name, tuple(head.run), own, parent=head.name))
    return Sweep(
        name=head.name, title=head.title, axis=head.axis, paper=head.paper, cases=tuple(made)
    )


def _case(name: str, files: tuple[str, ...], settings: Sequence[str], *, parent: str) -> Case:
    if load_run(files, settings).config.log.mlflow is None:
        raise ConfigError("log.mlflow is null, and the report of a sweep is made from MLflow.")
    own = (*settings, f"log.mlflow.parent={parent}")
    return Case(name=name, files=files, settings=own, config=load_run(files, own).config)


def _section(entry: Section | Value, where: str) -> Section:
    if isinstance(entry, Value):
        raise ConfigError(f"{where}: got {entry.value!r}, expected 'key: value' lines.")
    return entry


def _settings(section: Section, prefix: str = "") -> Iterator[str]:
    """Yield the values of a section as settings of a command line; JSON is YAML."""
    for key, entry in section.entries.items():
        if isinstance(entry, Section):
            yield from _settings(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(entry.value)}"


def _name_problems(names: Sequence[str]) -> list[str]:
    """Names become folders and jobs."""
    return [
        f"{name!r} is no name; use letters, digits, '.', '_' and '-'"
        for name in names
        if not NAME.fullmatch(name)
    ]
