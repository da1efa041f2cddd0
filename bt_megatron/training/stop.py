# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop: a signal sets a flag, all ranks agree on the step by adding flags up."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""The end of a job, Ctrl-C, and Slurm's warning before the time limit."""

EXIT_STOPPED = 75
"""Exit code of a run that was stopped, has saved, and can be resumed (sysexits: EX_TEMPFAIL)."""


class StopRequest:
    """Whether this process was asked to stop after the current step."""

    def __init__(self) -> None:
        """Start to listen; a second Ctrl-C interrupts at once."""
        self.signal_name: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._receive)

    @property
    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.signal_name is not None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
