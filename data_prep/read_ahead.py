# SPDX-License-Identifier: Apache-2.0
"""Let an iterator run ahead of its reader, in a thread."""

import queue
import threading
from collections.abc import Iterator


def read_ahead[T](items: Iterator[T], *, depth: int) -> Iterator[T]:
    """Yield what an iterator yields, while it already makes the next ones.

    Worth it where making them releases the interpreter lock: reading, hashing,
    decompressing. What the iterator raises is raised here, in its turn. The thread
    ends with the generator.

    Args:
        items: run in the thread only.
        depth: items held ready.
    """
    ready: queue.SimpleQueue[tuple[str, T | BaseException | None]] = queue.SimpleQueue()
    free = threading.Semaphore(depth)
    closed = threading.Event()

    def work() -> None:
        try:
            for item in items:
                ready.put(("item", item))
                free.acquire()
                if closed.is_set():
                    return
        except BaseException as error:  # the thread's outermost frame: the reader raises it
            ready.put(("error", error))
        else:
            ready.put(("end", None))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            free.release()
            yield value  # type: ignore[misc]
    finally:
        closed.set()
        free.release()
        thread.join()
