# SPDX-License-Identifier: Apache-2.0
"""Who hears whom: rank 0 hears all ranks, the others hear rank 0.

Messages are mappings with one key: `hello` (who I am), `place` (where I am), `left` (the
error that I end with), `bye` (I have finished), `verdict` (why all stop).
"""

import contextlib
import functools
import selectors
import socket
import time
from typing import Any

from bt_megatron.errors import RankError
from bt_megatron.faults.channel import Connection, connect, listen
from bt_megatron.faults.member import Member

CONNECT_S = 30.0


class Hub:
    """Rank 0's side.

    Attributes:
        members: every rank, by number.
        own: rank 0 itself, which is the caller's to fill.
        port: where other ranks connect.
    """

    verdict: dict[str, Any] | None = None
    """Rank 0 makes verdicts and gets none."""

    def __init__(self, world_size: int, identity: dict[str, Any], *, secret: str) -> None:
        """Start to listen; who does not know the secret is not heard."""
        now = time.monotonic()
        self.members = [Member(rank, now=now) for rank in range(world_size)]
        self.own = self.members[0]
        self._hello = {"hello": identity}
        self._secret = secret
        self._server = listen()
        self.port: int = self._server.getsockname()[1]
        self._connections: dict[int, Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)

    def poll(self, timeout_s: float) -> None:
        """Wait for messages and take in what comes."""
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def send(self, message: dict[str, Any]) -> None:
        """Tell all ranks."""
        for connection in self._connections.values():
            connection.send(message)

    def say_bye(self, timeout_s: float) -> None:
        """Tell all ranks that this one has finished, and hear the rest of what they say."""
        self.send({"bye": True})
        self.drain(timeout_s)

    def drain(self, timeout_s: float) -> None:
        """Hear the others until they have hung up, or for some time.

        A connection that is closed with something unread is cut, and what was sent last
        may not arrive.
        """
        deadline = time.monotonic() + timeout_s
        while self._connections and time.monotonic() < deadline:
            self.poll(0.05)

    def close(self) -> None:
        """Close all sockets."""
        for key in list((self._selector.get_map() or {}).values()):
            assert isinstance(key.fileobj, Connection | socket.socket), "nothing else is in there"
            key.fileobj.close()
        self._selector.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it has hung up again
            connection = Connection(self._server.accept()[0])
            introduce = functools.partial(self._introduce, connection)
            self._selector.register(connection, selectors.EVENT_READ, introduce)

    def _introduce(self, connection: Connection) -> None:
        """Hear who it is that has connected."""
        messages = connection.receive()
        if not messages:
            if not connection.is_open:
                self._drop(connection)
            return
        hello = messages[0].get("hello")
        if not isinstance(hello, dict) or hello.pop("secret", None) != self._secret:
            self._drop(connection)
            return
        rank = hello.pop("rank")
        self._connections[rank] = connection
        hear = functools.partial(self._hear, rank)
        self._selector.modify(connection, selectors.EVENT_READ, hear)
        connection.send(self._hello)
        for message in ({"hello": hello}, *messages[1:]):
            self.members[rank].hear(message, now=time.monotonic())
        hear()  # it may have said goodbye or hung up already

    def _hear(self, rank: int) -> None:
        """Hear a rank; it counts as gone when the connection is, unless it said goodbye."""
        connection, member, now = self._connections[rank], self.members[rank], time.monotonic()
        for message in connection.receive():
            member.hear(message, now=now)
        if member.sign == "finished" or not connection.is_open:
            member.end(now=now)
            del self._connections[rank]
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection)
        connection.close()


class Spoke:
    """The side of every other rank.

    Attributes:
        members: rank 0 and this rank.
        own: this rank, which is the caller's to fill.
        verdict: why all stop, once rank 0 has said so.
    """

    def __init__(self, rank: int, identity: dict[str, Any], *, port: int, secret: str) -> None:
        """Connect to rank 0.

        Raises:
            RankError: it cannot be reached.
        """
        now = time.monotonic()
        self.members = [Member(0, now=now), Member(rank, now=now)]
        self.own = self.members[1]
        self.verdict: dict[str, Any] | None = None
        try:
            self._connection = connect(port, timeout_s=CONNECT_S)
        except OSError as error:
            raise RankError(
                f"rank {rank} cannot reach rank 0 at port {port} of MASTER_ADDR ({error}). Allow "
                "TCP connections between the nodes of the job."
            ) from error
        self._connection.send({"hello": {**identity, "rank": rank, "secret": secret}})
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._connection, selectors.EVENT_READ)

    def poll(self, timeout_s: float) -> None:
        """Wait for messages and take in what comes."""
        if not self._connection.is_open:
            time.sleep(timeout_s)
            return
        self._selector.select(timeout_s)
        now = time.monotonic()
        for message in self._connection.receive():
            self.verdict = message.get("verdict", self.verdict)
            self.members[0].hear(message, now=now)
        if not self._connection.is_open:
            self.members[0].end(now=now)

    def send(self, message: dict[str, Any]) -> None:
        """Tell rank 0."""
        self._connection.send(message)

    def say_bye(self, timeout_s: float) -> None:
        """Tell rank 0 that this rank has finished, and wait until it has heard."""
        self.send({"bye": True})
        self.drain(timeout_s)

    def drain(self, timeout_s: float) -> None:
        """Hear rank 0 until it has hung up."""
        deadline = time.monotonic() + timeout_s
        while self._connection.is_open and time.monotonic() < deadline:
            self.poll(0.05)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()
        self._selector.close()
