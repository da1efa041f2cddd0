# SPDX-License-Identifier: Apache-2.0
"""`python -m bt_megatron track RUN_DIR`: send a run that has ended to MLflow.

For what the forwarder could not send in time, for runs trained without
tracking, and to copy a run to another server. It may be interrupted and
repeated: what the server has confirmed is not sent again.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.text import Text

from bt_megatron.config.schema import MlflowConfig
from bt_megatron.errors import BtError
from bt_megatron.observe.console import Console
from bt_megatron.observe.delivery import Delivery
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.mlflow_forwarder import describe, without_password
from bt_megatron.observe.mlflow_run import RunStatus
from bt_megatron.observe.run_folder import RunFolder, open_run_folder
from bt_megatron.observe.tracking_state import continue_state, load_state


class _RateColumn(ProgressColumn):
    """Records per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, once there is one."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} records/s")


def main_track(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bt_megatron track", description="Send a run that has ended to MLflow."
    )
    parser.add_argument("run_dir", help="folder of the run: <runs_dir>/<name>")
    parser.add_argument("--tracking-uri", help="MLflow URI (default: where the run went before)")
    parser.add_argument("--experiment", help="MLflow experiment (default: as before)")
    arguments = parser.parse_args(argv)
    try:
        sent = track(
            open_run_folder(arguments.run_dir),
            tracking_uri=arguments.tracking_uri,
            experiment=arguments.experiment,
        )
    except BtError as error:
        Console(stream=sys.stderr).error(str(error))
        return error.exit_code
    Console().note(f"{sent} records sent; MLflow has all of {arguments.run_dir}")
    return 0


def track(folder: RunFolder, *, tracking_uri: str | None, experiment: str | None) -> int:
    """Send what MLflow does not have of a run, and the run's files.

    Args:
        folder: of a run that has ended.
        tracking_uri: none: where the run went before, or mlflow.db next to the run folder.
        experiment: none: as before, or the default one.

    Returns:
        The number of records sent.

    Raises:
        BtError: MLflow did not take everything; what it took is remembered.
    """
    before = load_state(folder)
    defaults = MlflowConfig()
    state = continue_state(
        folder,
        tracking_uri=tracking_uri or (before.tracking_uri if before else defaults.tracking_uri),
        experiment=experiment or (before.experiment if before else defaults.experiment),
    )
    delivery = Delivery(folder, state)
    unsent = delivery.count_unsent()
    try:
        _send_all(delivery, total=unsent)
        delivery.finish(_final_status(folder))
    except Exception as error:  # whatever MLflow raises becomes one line for the user
        raise BtError(
            f"{without_password(delivery.uri)}: MLflow did not take {delivery.count_unsent()} of "
            f"{unsent} records and the run's files ({describe(error)}). Start the server or pass "
            "--tracking-uri, then run the same command again."
        ) from error
    return unsent


def _send_all(delivery: Delivery, *, total: int) -> None:
    """Send every record, with progress on standard error."""
    columns = (BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=RichConsole(stderr=True)) as progress:
        task = progress.add_task("sending", total=total)
        while sent := delivery.send_some():
            progress.advance(task, sent)


def _final_status(folder: RunFolder) -> RunStatus:
    """Return how a run ended: as its last event says, or killed if it says nothing."""
    events = read_records(folder.events)
    if not events or events[-1]["event"] != "stopped":
        return "KILLED"
    status = events[-1].get("status", "FINISHED")
    return status if status in ("FAILED", "KILLED") else "FINISHED"
