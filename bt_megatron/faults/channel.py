# SPDX-License-Identifier: Apache-2.0
"""Messages between ranks that do not pass through torch: lines of JSON over TCP.

The kernel closes a connection when a process ends, so the other side learns of a killed
rank at once. No call here waits, whatever state the other side is in.
"""

import json
import os
import socket
from typing import Any

READ_BYTES = 1 << 16

MAX_UNREAD_BYTES = 1 << 24
"""No message is that long: who sends more without a line end is not one of us."""


class Connection:
    """One side of a connection.

    Attributes:
        is_open: False once the other side has closed it or its process has ended.
    """

    def __init__(self, connected: socket.socket) -> None:
        """Take over a connected socket."""
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._received, self._unsent = b"", b""
        self.is_open = True

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, or as much as fits now; the rest goes with the next."""
        self._unsent += json.dumps(message).encode() + b"\n"
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # the reader notices that it is closed

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have come."""
        try:
            while chunk := self._socket.recv(READ_BYTES):
                self._received += chunk
            self.is_open = False
        except BlockingIOError:
            pass
        except OSError:
            self.is_open = False
        *lines, self._received = self._received.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:  # a stranger, e.g. a port scanner
            self.is_open = False
            return []
        self.is_open &= len(self._received) < MAX_UNREAD_BYTES
        return [message for message in messages if isinstance(message, dict)]

    def close(self) -> None:
        """Close this side."""
        self.is_open = False
        self._socket.close()


def listen() -> socket.socket:
    """Return a socket that listens on a free port of all addresses."""
    if socket.has_dualstack_ipv6():
        server = socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
        )
    else:
        server = socket.create_server(("", 0), backlog=4096)
    server.setblocking(False)
    return server


def connect(port: int, *, timeout_s: float) -> Connection:
    """Connect to rank 0, where the launcher says it is (MASTER_ADDR).

    Raises:
        OSError: it cannot be reached.
    """
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    return Connection(socket.create_connection((address, port), timeout=timeout_s))
