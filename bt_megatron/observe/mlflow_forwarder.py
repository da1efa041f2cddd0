# SPDX-License-Identifier: Apache-2.0
"""Forwarding a run to MLflow in the background, without ever making training wait.

Training writes metrics.jsonl and knows nothing of the network. A thread
follows the file. A server that is down, slow or hung holds up only that
thread; one warning says so, one note says that it is back, and everything
written in between is then sent. Only the process that reports has a forwarder.
"""

import random
import re
import threading

from bt_megatron.config.schema import MlflowConfig
from bt_megatron.observe.console import Console
from bt_megatron.observe.delivery import Delivery
from bt_megatron.observe.mlflow_run import RunStatus
from bt_megatron.observe.run_folder import RunFolder
from bt_megatron.observe.tracking_state import continue_state

POLL_S = 1.0
LONGEST_WAIT_S = 60.0
LONGEST_WAIT_CLOSING_S = 1.0


class MlflowForwarder:
    """A thread that sends what appears in metrics.jsonl."""

    def __init__(self, folder: RunFolder, *, config: MlflowConfig, console: Console) -> None:
        """Read mlflow.json; call it after `jsonl.rewind` and before the first record.

        Args:
            folder: of the run; its config.resolved.yaml gives the parameters.
            config: where to send to.
            console: for the warning when the server is lost.

        Raises:
            DataError: mlflow.json is damaged.
        """
        state = continue_state(
            folder,
            tracking_uri=config.tracking_uri,
            experiment=config.experiment,
            parent=config.parent,
        )
        self._folder = folder
        self._delivery = Delivery(folder, state)
        self._console = console
        self._status: RunStatus = "FINISHED"
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._failures = 0
        # A daemon: a server that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._follow, name="mlflow-forwarder", daemon=True)

    def start(self) -> None:
        """Start to forward; returns at once."""
        self._thread.start()

    def close(self, *, status: RunStatus, timeout_s: float) -> int:
        """Send what is left, upload the run's files and end the MLflow run.

        Args:
            status: what the MLflow run ends as.
            timeout_s: wait no longer than this.

        Returns:
            Records that were not sent; then a warning says how to send them.
        """
        self._status = status
        self._closing.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return 0
        self._abandoned.set()
        unsent = self._delivery.count_unsent()
        self._console.warn(
            f"MLflow did not take {unsent} records and the run's files within {timeout_s:.0f} s. "
            f"Send them later: python -m bt_megatron track {self._folder.path}"
        )
        return unsent

    def _follow(self) -> None:
        """Send until closed and nothing is left, or abandoned."""
        while not self._abandoned.is_set():
            closing = self._closing.is_set()  # before sending: what is written later is no matter
            try:
                sent = self._delivery.send_some()
                finished = closing and not sent
                if finished:
                    self._delivery.finish(self._status)
            except Exception as error:  # the outermost frame of a thread that must not end training
                self._note_failure(error)
                self._rest()
                continue
            self._note_success()
            if finished:
                return
            if not sent:
                self._closing.wait(POLL_S)

    def _rest(self) -> None:
        """Wait before the next attempt: longer each time, never the same for two runs."""
        wait_s = min(LONGEST_WAIT_S, 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        if not self._closing.wait(wait_s):
            return
        self._abandoned.wait(min(wait_s, LONGEST_WAIT_CLOSING_S))

    def _note_failure(self, error: Exception) -> None:
        """Warn the first time."""
        self._failures += 1
        if self._failures > 1 or self._abandoned.is_set():
            return
        self._console.warn(
            f"MLflow at {without_password(self._delivery.uri)} takes no metrics "
            f"({describe(error)}). Training goes on; they wait in {self._folder.metrics}."
        )

    def _note_success(self) -> None:
        """Say that the server is back, if it was lost."""
        if self._failures:
            uri = without_password(self._delivery.uri)
            self._console.note(f"MLflow at {uri} is back; {self._folder.metrics} is being sent.")
        self._failures = 0


def describe(error: Exception) -> str:
    """Return the kind of an error and the beginning of its message, on one line."""
    text = " ".join(without_password(str(error)).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"


def without_password(text: str) -> str:
    """Return a text whose URIs hold no user and password."""
    return re.sub(r"//[^/@\s]+@", "//", text)
