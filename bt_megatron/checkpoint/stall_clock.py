# SPDX-License-Identifier: Apache-2.0
"""How long checkpoints hold training up."""

import contextlib
import time
from collections.abc import Iterator


class StallClock:
    """Adds up the time spent inside; contexts may lie in each other and count once."""

    def __init__(self) -> None:
        """Start at zero."""
        self._total_s = 0.0
        self._depth = 0
        self._since_s = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside."""
        if not self._depth:
            self._since_s = time.monotonic()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._total_s += time.monotonic() - self._since_s

    def take(self) -> float:
        """Return the seconds counted so far, and start at zero again."""
        now = time.monotonic()
        total, self._total_s = self._total_s, 0.0
        if self._depth:
            total, self._since_s = total + now - self._since_s, now
        return total
