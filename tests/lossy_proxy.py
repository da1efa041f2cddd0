# SPDX-License-Identifier: Apache-2.0
"""A proxy before a server that is slow, and that loses answers to requests that were done."""

import contextlib
import random
import socket
import threading
import time


class LossyProxy:
    """Passes TCP connections on; what it does to the answers can be changed while it runs."""

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        """Listen on a free port of loopback.

        Args:
            target_port: of the server on loopback.
            seed: decides which answers are lost.
        """
        self.delay_s = 0.0
        """Before each part of an answer."""
        self.loss = 0.0
        """Part of the answers that are lost, 0 to 1, the first always; the server has done what
        it was asked."""
        self.lost = 0
        """Answers lost so far."""
        self._random = random.Random(seed)
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._ask, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        _end(server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                time.sleep(self.delay_s)
                if self.loss and (not self.lost or self._random.random() < self.loss):
                    self.lost += 1
                    break
                client.sendall(data)
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
