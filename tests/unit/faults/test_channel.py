# SPDX-License-Identifier: Apache-2.0
"""Messages arrive whole, and the end of the other side is noticed."""

import socket

import pytest

from bt_megatron.faults.channel import Connection


@pytest.fixture
def pair():
    left, right = _tcp_pair()
    yield Connection(left), right
    left.close()
    right.close()


def _tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return server.accept()[0], client


def test_messages_arrive_in_order(pair):
    connection, raw = pair
    other = Connection(raw)
    other.send({"place": {"limit_s": float("inf")}})
    other.send({"bye": True})

    assert connection.receive() == [{"place": {"limit_s": float("inf")}}, {"bye": True}]
    assert connection.receive() == []
    assert connection.is_open


def test_a_message_in_pieces_is_put_together(pair):
    connection, raw = pair
    raw.sendall(b'{"by')
    assert connection.receive() == []
    raw.sendall(b'e": true}\n')
    assert connection.receive() == [{"bye": True}]


def test_what_was_sent_before_the_end_is_heard(pair):
    connection, raw = pair
    raw.sendall(b'{"bye": true}\n')
    raw.close()

    assert connection.receive() == [{"bye": True}]
    assert not connection.is_open
    connection.send({"place": {}})  # to nobody: no error


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\r\n", b"\xff\xfe\n"], ids=["http", "bytes"])
def test_a_stranger_is_hung_up_on(pair, text):
    connection, raw = pair
    raw.sendall(text)

    assert connection.receive() == []
    assert not connection.is_open


def test_a_line_without_end_is_hung_up_on(pair, monkeypatch):
    monkeypatch.setattr("bt_megatron.faults.channel.MAX_UNREAD_BYTES", 10)
    connection, raw = pair
    raw.sendall(b"x" * 11)

    assert connection.receive() == []
    assert not connection.is_open


def test_a_reader_that_does_not_read_never_blocks_the_sender(pair):
    connection, _ = pair
    for _ in range(50):
        connection.send({"place": "x" * 100_000})

    assert connection.is_open
