# SPDX-License-Identifier: Apache-2.0
"""What one rank has heard of another, and when."""

from typing import Any

from bt_megatron.faults.verdict import SILENT_S, Place, RankState, Sign


class Member:
    """A rank as seen from this process. All times are this process's `time.monotonic`."""

    def __init__(self, rank: int, *, now: float) -> None:
        """Expect to hear of a rank from now on."""
        self.rank = rank
        self.place = Place()
        self.sign: Sign = "alive"
        self._identity: dict[str, Any] = {}
        self._left: dict[str, Any] = {}
        self._heard, self._signed = now, now
        self._steps_when_silent: int | None = None

    def hear(self, message: dict[str, Any], *, now: float) -> None:
        """Take in what the rank says about itself."""
        self._heard, self._steps_when_silent = now, None
        if "hello" in message:
            self._identity = message["hello"]
        elif "place" in message:
            self.place = Place(**message["place"])
        elif "left" in message:
            self._left = message["left"]
            self._sign("left", now)
        elif "bye" in message:
            self._sign("finished", now)

    def end(self, *, now: float) -> None:
        """Note that its connection is closed."""
        self._sign("gone", now)

    def forgive(self, *, now: float) -> None:
        """Start to wait for it anew: this process was suspended itself and heard nothing."""
        self._heard = now

    def watch_silence(self, others_step: int, *, now: float) -> None:
        """Note how far the others are when this rank falls silent."""
        if self._steps_when_silent is None and now - self._heard > SILENT_S:
            self._steps_when_silent = others_step

    def state(self, others_step: int, *, now: float) -> RankState:
        """Return what is known now.

        Args:
            others_step: the furthest step of the other ranks.
            now: the time.
        """
        start = self._steps_when_silent
        return RankState(
            rank=self.rank,
            place=self.place,
            silent_s=now - self._heard,
            others_steps=0 if start is None else others_step - start,
            sign=self.sign,
            sign_s=now - self._signed,
            **self._identity,
            **self._left,
        )

    def _sign(self, sign: Sign, now: float) -> None:
        if self.sign == "alive":  # the first one counts: who said goodbye may hang up
            self.sign, self._signed = sign, now
