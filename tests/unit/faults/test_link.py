# SPDX-License-Identifier: Apache-2.0
"""Rank 0 hears all, all hear rank 0, strangers are not heard."""

import socket
import time
from dataclasses import asdict

import pytest

from bt_megatron.errors import RankError
from bt_megatron.faults.channel import Connection
from bt_megatron.faults.link import Hub, Spoke
from bt_megatron.faults.verdict import Place

IDENTITY = {"host": "node", "pid": 7, "started": 2.5}
SECRET = "abc"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    made = Hub(3, {**IDENTITY, "pid": 1}, secret=SECRET)
    yield made
    made.close()


def spoke_of(hub, rank=1):
    return Spoke(rank, {**IDENTITY, "pid": 10 + rank}, port=hub.port, secret=SECRET)


def poll_until(condition, *links):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        for link in links:
            link.poll(0.01)


def state(link, index):
    return link.members[index].state(0, now=time.monotonic())


def test_both_sides_introduce_themselves(hub):
    spoke = spoke_of(hub, 2)
    poll_until(lambda: state(spoke, 0).pid, hub, spoke)

    assert state(spoke, 0).pid == 1
    assert (state(hub, 2).pid, state(hub, 2).rank, state(hub, 1).pid) == (12, 2, 0)
    assert (spoke.own.rank, hub.own.rank) == (2, 0)


def test_places_and_verdicts_travel(hub):
    spoke = spoke_of(hub)
    spoke.send({"place": asdict(Place(step=5))})
    poll_until(lambda: state(hub, 1).place.step == 5, hub)
    hub.send({"place": asdict(Place(step=6))})
    hub.send({"verdict": {"kind": "gone"}})
    poll_until(lambda: spoke.verdict, spoke)

    assert spoke.verdict == {"kind": "gone"}
    assert state(spoke, 0).place.step == 6


def test_a_closed_connection_is_noticed_by_rank_0(hub):
    spoke = spoke_of(hub)
    poll_until(lambda: state(hub, 1).pid, hub)
    spoke.close()
    poll_until(lambda: state(hub, 1).sign == "gone", hub)


def test_a_closed_connection_is_noticed_by_the_others(hub):
    spoke = spoke_of(hub)
    poll_until(lambda: state(spoke, 0).pid, hub, spoke)
    hub.close()
    poll_until(lambda: state(spoke, 0).sign == "gone", spoke)


def test_a_rank_that_has_finished_says_so(hub):
    spoke = spoke_of(hub)
    spoke.say_bye(0.0)
    poll_until(lambda: state(hub, 1).sign == "finished", hub)
    spoke.drain(5.0)  # rank 0 hangs up in answer
    assert state(spoke, 0).sign == "gone"


def test_rank_0_says_that_it_has_finished(hub):
    spoke = spoke_of(hub)
    poll_until(lambda: state(spoke, 0).pid, hub, spoke)
    hub.say_bye(0.0)
    poll_until(lambda: state(spoke, 0).sign == "finished", spoke)


def test_who_does_not_know_the_secret_is_not_heard(hub):
    with socket.create_connection(("127.0.0.1", hub.port)) as raw:
        stranger = Connection(raw)
        stranger.send({"hello": {**IDENTITY, "rank": 1, "secret": "guess"}})
        poll_until(lambda: not stranger.receive() and not stranger.is_open, hub)
    assert state(hub, 1).pid == 0


def test_a_rank_0_that_cannot_be_reached_is_told(hub):
    hub.close()
    with pytest.raises(RankError, match="rank 1 cannot reach rank 0"):
        spoke_of(hub)
