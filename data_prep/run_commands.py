# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m data_prep` that are about token shards and runs, not text alone."""

import argparse

from bt_megatron.config.arguments import add_run_arguments
from bt_megatron.config.load import load_run
from data_prep.index import index_run
from data_prep.report import say


def add_run_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""
    _add_index(commands)


def _add_index(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "save where a run's documents lie, so that it starts at once; run again, it checks"
    command = commands.add_parser("index", help=text, description=text)
    add_run_arguments(command)
    command.set_defaults(run=_run_index)


def _run_index(options: argparse.Namespace) -> int:
    loaded = load_run(options.files, options.settings)
    for done in index_run(loaded.config, on_stage=say):
        what = f"made in {done.seconds:.1f} s" if done.made else "whole, kept"
        print(  # noqa: T201
            f"{done.folder}: {done.subset} {done.split}, {done.documents:,} documents, "
            f"{done.samples:,} samples, {what}"
        )
    return 0
