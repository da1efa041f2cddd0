# SPDX-License-Identifier: Apache-2.0
"""What is known of a rank follows from what it said and when."""

from dataclasses import asdict

import pytest

from bt_megatron.faults.member import Member
from bt_megatron.faults.verdict import SILENT_S, Place

IDENTITY = {"host": "node", "pid": 7, "started": 2.5}
LEFT = {"reason": "no data", "exit_code": 4, "is_consequence": False}


@pytest.fixture
def member():
    return Member(3, now=100.0)


def test_a_rank_that_has_said_nothing_is_silent_since_it_was_expected(member):
    state = member.state(0, now=130.0)

    assert (state.rank, state.sign, state.silent_s, state.pid) == (3, "alive", 30.0, 0)


def test_what_it_says_is_known(member):
    member.hear({"hello": IDENTITY}, now=101.0)
    member.hear({"place": asdict(Place(phase="data", step=4))}, now=102.0)
    state = member.state(4, now=103.5)

    assert (state.host, state.pid, state.started) == ("node", 7, 2.5)
    assert (state.place.phase, state.place.step, state.silent_s) == ("data", 4, 1.5)


def test_an_error_is_known(member):
    member.hear({"left": LEFT}, now=101.0)
    state = member.state(0, now=102.0)

    assert (state.sign, state.sign_s, state.reason, state.exit_code) == ("left", 1.0, "no data", 4)


@pytest.mark.parametrize(
    ("message", "sign"),
    [({"bye": True}, "finished"), ({"left": LEFT}, "left"), (None, "gone")],
    ids=["goodbye", "error", "no word"],
)
def test_the_end_of_a_connection_is_taken_for_what_was_said_before(member, message, sign):
    if message is not None:
        member.hear(message, now=101.0)
    member.end(now=101.5)

    assert member.state(0, now=102.0).sign == sign


def test_steps_of_the_others_count_from_the_silence_on(member):
    member.watch_silence(10, now=100.0 + SILENT_S)  # not silent yet
    assert member.state(10, now=104.0).others_steps == 0
    member.watch_silence(12, now=100.1 + SILENT_S)
    member.watch_silence(13, now=110.0)
    assert member.state(15, now=110.0).others_steps == 3

    member.hear({"place": asdict(Place())}, now=111.0)
    assert member.state(15, now=111.0).others_steps == 0


def test_silence_is_forgiven_to_who_could_not_be_heard(member):
    member.forgive(now=5000.0)

    assert member.state(0, now=5001.0).silent_s == 1.0
