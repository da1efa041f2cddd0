# SPDX-License-Identifier: Apache-2.0
"""Read the batches of the next steps in the background.

One thread: what it does is mostly page faults and copies, which release the
interpreter lock. It reads steps in order and draws no random numbers, so the
batches are those that reading in the foreground gives.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from bt_megatron.errors import BtError, DataError


class PrefetchedBatches[T]:
    """An endless iterator over read(first_step), read(first_step + 1), ...

    At most `depth` steps are read ahead. Use it in a `with` statement, or call
    `close`; both end the thread. An error of `read` is raised where its step
    would have been handed out, and names the step.

    Attributes:
        step: the step that `next` hands out.
    """

    def __init__(self, read: Callable[[int], T], *, first_step: int, depth: int = 2) -> None:
        """Start to read.

        Args:
            read: a function of the step, e.g. TrainingBatches.micro_batches.
            first_step: the step to start with.
            depth: steps held ready.
        """
        self.step = first_step
        self._read = read
        self._ready: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()
        self._free = threading.Semaphore(depth)
        self._closed = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(
            target=self._work, args=(first_step,), name="prefetch", daemon=True
        )
        self._thread.start()

    def _work(self, step: int) -> None:
        while True:
            self._free.acquire()
            if self._closed.is_set():
                return
            try:
                self._ready.put(self._read(step))
            except Exception as error:  # the thread's outermost frame: `next` raises it
                self._ready.put(_at_step(error, step))
                return
            step += 1

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Return what was read for `step`, waiting for it if need be.

        Raises:
            BtError: reading the step failed.
        """
        assert not self._closed.is_set(), "asked for a batch after close()"
        if self._failure is None:
            result = self._ready.get()
            if not isinstance(result, Exception):
                self.step += 1
                self._free.release()
                return result
            self._failure = result
        raise self._failure

    def close(self) -> None:
        """End the thread, after the step that it is reading. May be called again."""
        self._closed.set()
        self._free.release()
        self._thread.join()

    def __enter__(self) -> "PrefetchedBatches[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _at_step(error: Exception, step: int) -> Exception:
    """Say in an error at which step it came up; mistakes of our own keep their type."""
    if isinstance(error, BtError):
        named: Exception = type(error)(f"step {step}: {error}")
    elif isinstance(error, OSError):
        named = DataError(
            f"step {step}: the data could not be read: {error} - check that the data folder is "
            "still there, then start the run again to resume it"
        )
    else:
        error.add_note(f"while reading the batches of step {step}")
        return error
    named.__cause__ = error
    return named
