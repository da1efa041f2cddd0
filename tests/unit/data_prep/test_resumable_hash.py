# SPDX-License-Identifier: Apache-2.0
"""A hash that was put down and taken up again is the hash of all bytes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import resumable_hash
from data_prep.resumable_hash import ResumableSha256


@given(pieces=st.lists(st.binary(max_size=200), max_size=6))
def test_hash_is_that_of_hashlib_after_every_piece(pieces):
    hashed, plain = ResumableSha256(), hashlib.sha256()
    for piece in pieces:
        state = hashed.state()
        assert state is not None
        hashed = ResumableSha256.resume(state)
        hashed.update(piece)
        plain.update(piece)
        assert hashed.hexdigest() == plain.hexdigest()


@pytest.mark.parametrize("state", ["", "00", "zz" * 112], ids=["none", "short", "no hex"])
def test_state_that_is_none_is_not_resumed(state):
    assert ResumableSha256.resume(state) is None


def test_without_the_library_it_hashes_and_cannot_go_on(monkeypatch):
    monkeypatch.setattr(resumable_hash, "_libcrypto", lambda: None)
    hashed = ResumableSha256()
    hashed.update(b"abc")
    assert hashed.hexdigest() == hashlib.sha256(b"abc").hexdigest()
    assert hashed.state() is None
    assert ResumableSha256.resume("00" * 112) is None
