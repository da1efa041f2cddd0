# SPDX-License-Identifier: Apache-2.0
"""The watch of a rank: a thread that ends the process when another rank has died or hangs.

Ranks report to rank 0, over connections of their own, so that a rank which
waits in a collective reports as well. Rank 0 judges (verdict.py) and tells all; what
becomes of rank 0 the others judge themselves.
"""

import json
import os
import re
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch.distributed as dist

from bt_megatron.config.schema import FaultConfig
from bt_megatron.errors import BtError, RankError
from bt_megatron.faults.agreement import shared_store
from bt_megatron.faults.last_words import end_stopped_neighbours, report
from bt_megatron.faults.link import Hub, Spoke
from bt_megatron.faults.progress import Progress
from bt_megatron.faults.verdict import (
    RankState,
    Verdict,
    judge_signs,
    judge_silence,
    judge_stall,
)
from bt_megatron.parallel import collectives

POLL_S = 0.2
BEAT_S = 0.2
"""Time between reports: what is last known of a rank that dies is as old as that."""

REPORTS_PER_S = 512
"""With many ranks each reports less often: rank 0 reads this many reports a second."""

SUSPENDED_S = 5.0
"""A thread that sleeps 0.2 s and wakes after this time was suspended with its process."""

MEET = timedelta(seconds=60)
"""How long rank 0 may take to say where it listens."""

BYE_S = 2.0
LEAVE_S = 8.0
"""How long an error waits until all ranks know of it (SETTLE_S and a few beats)."""

COMMUNICATION_ERROR = re.compile(r"gloo|NCCL|Dist(Backend|Network|Store)Error", re.IGNORECASE)


class Watch:
    """Use it in a `with` statement around everything that communicates.

    It does nothing before `start`, and nothing at all in a run of one process.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._progress: Progress | None = None
        self._leaving: dict[str, Any] | None = None
        self._own_error = ""
        self._is_closing = False

    def start(self, faults: FaultConfig, folder: Path) -> None:
        """Start to watch the other ranks and to be watched.

        Args:
            faults: how long to wait for whom.
            folder: for the fault files.

        Raises:
            RankError: rank 0 cannot be reached.

        Comm: the port of rank 0 through the store; must be called by all ranks.
        """
        world_size = dist.get_world_size()
        if world_size == 1:
            return
        self._faults, self._folder = faults, folder
        self._beat_s = max(BEAT_S, world_size / REPORTS_PER_S)
        self._identity = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }
        self._link = _meet(self._identity)
        os.register_at_fork(after_in_child=self._link.close)  # a child would keep it open
        self._progress = Progress(faults, collectives.install())
        self._resumed_at = 0.0
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def enter(self, phase: str, *, step: int) -> None:
        """Say what this rank is about to do.

        Args:
            phase: a word, e.g. data, step, evaluation, checkpoint.
            step: optimizer step, from 1.
        """
        if self._progress is not None:
            self._progress.enter(phase, step)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Tell the others that this rank has finished, or the error that it ends with.

        An error that the end of another rank caused does not come out: this process ends
        here, with the verdict.
        """
        if self._thread is None:
            return
        if error is not None:
            self._own_error = "".join(traceback.format_exception(error))
            self._leaving = _describe(error)
        self._is_closing = True
        self._thread.join(2 * BYE_S if error is None else LEAVE_S)

    def _run(self) -> None:
        self._link.own.hear({"hello": self._identity}, now=time.monotonic())
        next_beat = 0.0
        for now in self._wake():
            has_news = self._link.verdict is not None or self._leaving is not None
            if now >= next_beat or has_news:
                next_beat = now + self._beat_s
                self._speak(now)
                states = self._states(now)
                if verdict := self._judge(states):
                    self._stop(verdict, states)
                    return

    def _wake(self) -> Iterator[float]:
        """Hear the others; give the time, every POLL_S or so, until the run is over."""
        before = time.monotonic()
        while True:
            self._link.poll(POLL_S)
            now = time.monotonic()
            if now - before > SUSPENDED_S:
                self._resumed_at = now
                for member in self._link.members:
                    member.forgive(now=now)
            before = now
            has_finished = self._is_closing and self._leaving is None
            if has_finished or self._link.members[0].sign == "finished":
                self._link.say_bye(BYE_S)
                self._link.close()
                return
            yield now

    def _speak(self, now: float) -> None:
        """Say where this rank is, and the error it ends with."""
        assert self._progress is not None, "set before the thread starts"
        own = self._link.own
        messages: list[dict[str, Any]] = [
            {"place": asdict(self._progress.place(not_before=self._resumed_at))}
        ]
        if self._leaving is not None and own.sign == "alive":
            messages.append({"left": self._leaving})
        for message in messages:
            own.hear(message, now=now)
            self._link.send(message)

    def _states(self, now: float) -> list[RankState]:
        members = self._link.members
        furthest = max(member.place.step for member in members)
        for member in members:
            member.watch_silence(furthest, now=now)
        return [member.state(furthest, now=now) for member in members]

    def _judge(self, states: list[RankState]) -> Verdict | None:
        dead_rank_s = self._faults.dead_rank_seconds
        if self._link.verdict is not None:
            return Verdict(**self._link.verdict)
        if isinstance(self._link, Hub):
            if any(state.sign in ("gone", "left") for state in states):
                return judge_signs(states)
            silence = judge_silence(states, dead_rank_s=dead_rank_s)
            return silence or judge_stall(states, dead_rank_s=dead_rank_s)
        # What this rank itself ends with is for rank 0 to judge, as long as there is one.
        states = [states[0], replace(states[1], sign="alive")]
        return judge_signs(states) or judge_silence(states, dead_rank_s=dead_rank_s)

    def _stop(self, verdict: Verdict, states: list[RankState]) -> None:
        """End this process, or let the main thread end it with an error of its own."""
        is_hub = isinstance(self._link, Hub)
        if is_hub:
            self._link.send({"verdict": asdict(verdict)})
        leaving = self._leaving
        rank = self._link.own.rank
        if leaving is None or (leaving["is_consequence"] and rank not in verdict.ranks):
            report(verdict, rank, self._folder, own_error=self._own_error)
            end_stopped_neighbours(verdict, states)
            if is_hub:
                self._link.drain(BYE_S)
            os._exit(verdict.exit_code)
        if is_hub:
            self._link.drain(BYE_S)


def _meet(identity: dict[str, Any]) -> Hub | Spoke:
    """Connect all ranks with rank 0.

    Comm: the port of rank 0 through the store; must be called by all ranks.
    """
    store = shared_store("watch")
    if dist.get_rank() == 0:
        secret = secrets.token_hex(16)
        hub = Hub(dist.get_world_size(), identity, secret=secret)
        store.set("listening", json.dumps({"port": hub.port, "secret": secret}))
        return hub
    try:
        store.wait(["listening"], MEET)
    except RuntimeError as error:
        raise RankError(
            f"rank 0 has not said within {MEET.total_seconds():.0f} s where it listens. See what "
            "it says, then start again."
        ) from error
    return Spoke(dist.get_rank(), identity, **json.loads(store.get("listening")))


def _describe(error: BaseException) -> dict[str, Any]:
    """Return what the others are told of an error."""
    told = str(error).splitlines()
    reason = f"{type(error).__name__}: {told[0] if told else ''}"
    code = 1
    if isinstance(error, BtError):
        reason, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        reason, code = "interrupted", 130
    return {"reason": reason, "exit_code": code, "is_consequence": _is_consequence(error)}


def _is_consequence(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, is about communication."""
    chain: BaseException | None = error
    while chain is not None:
        if COMMUNICATION_ERROR.search(f"{type(chain).__name__}: {chain}"):
            return True
        chain = chain.__cause__ or chain.__context__
    return False
