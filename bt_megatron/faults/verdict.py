# SPDX-License-Identifier: Apache-2.0
"""Which rank is at fault: a pure function of what all ranks last said about themselves.

    gone    its process has ended without a word
    left    it ended by an error that it told
    silent  nothing is heard of it: stopped, or its machine is lost
    hung    nobody makes progress, and the others have entered collectives that it has not
    stuck   nobody makes progress, and no rank can be named for it

Who waits for whom follows from counting. All members of a group enter its collectives in
the same order, so whoever has entered fewer than another keeps that one waiting. The rank
at fault keeps others waiting and waits for nobody. This also holds on GPUs, where a rank
that waits is not inside of the collective any more but in a later synchronisation.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bt_megatron.errors import RankError
from bt_megatron.parallel.collectives import ranks_label, ranks_of

SETTLE_S = 2.0
"""How long further signs are collected after the first: one failure causes others at once."""

SILENT_S = 4.0
"""Time without a sign of life, several beats, from which a rank counts as silent."""

TOGETHER_S = 1.0
"""Processes that end within this time of each other ended together, e.g. with their machine."""

STEPS_TO_BE_ALIVE = 2
"""Steps of the others that prove a silent rank alive: every step needs all ranks, so without
it they finish at most the one in which it fell silent."""

MAX_NAMED = 8
"""Ranks that are named one by one."""

Sign = Literal["alive", "finished", "gone", "left"]
Kind = Literal["gone", "left", "silent", "hung", "stuck"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is, as it says itself. Times are seconds until it said so."""

    phase: str = "start"
    """What it does, e.g. data, step, evaluation, checkpoint."""
    step: int = 0
    """Optimizer step, from 1; 0 before the first."""
    phase_s: float = 0.0
    """Time in this phase."""
    stalled_s: float = 0.0
    """Time since it entered the phase or a collective."""
    limit_s: float = float("inf")
    """Time after which it takes this phase to be stalled."""
    collective: str | None = None
    """Newest collective that it has entered, e.g. all_reduce."""
    ranks: str = ""
    """Label of the ranks of that collective."""
    collective_s: float = 0.0
    """Time since it was entered."""
    inside: bool = False
    """Whether the call has not returned."""
    counts: dict[str, int] = field(default_factory=dict)
    """Collectives entered, by label of their ranks."""


@dataclass(frozen=True, slots=True)
class RankState:
    """What is known of one rank now."""

    rank: int
    place: Place
    host: str = "?"
    pid: int = 0
    started: float = 0.0
    """When its process started (Unix seconds); tells it from a later one with the same pid."""
    silent_s: float = 0.0
    """Time since it was last heard of."""
    others_steps: int = 0
    """Steps that others have taken since it fell silent."""
    sign: Sign = "alive"
    sign_s: float = 0.0
    """Time since that sign came."""
    reason: str = ""
    """left: the error."""
    exit_code: int = RankError.exit_code
    """left: its exit code."""
    is_consequence: bool = False
    """left: by an error of communication, such as the end of another rank causes."""

    @property
    def name(self) -> str:
        """Name the rank for people."""
        if not self.pid:
            return f"rank {self.rank} (never heard of)"
        return f"rank {self.rank} (pid {self.pid} on {self.host})"

    @property
    def stalled_s(self) -> float:
        """Seconds without progress until now."""
        return self.place.stalled_s + self.silent_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why all ranks stop."""

    kind: Kind
    ranks: list[int]
    """Ranks at fault; empty if none can be named."""
    exit_code: int
    """With which all ranks end that have no error of their own."""
    headline: str
    """One line: rank, step, collective."""
    details: list[str]
    """Where each rank is."""
    speaker: int
    """The rank that prints the details."""
    hosts: list[str] = field(default_factory=list)
    """Machines of the ranks at fault, unless what they ended with is an error."""


def judge_signs(states: Sequence[RankState]) -> Verdict | None:
    """Return a verdict if a rank has gone or left and all signs of it are in."""
    signs = [state for state in states if state.sign in ("gone", "left")]
    waiting = [state for state in states if state.sign == "alive"]
    if not signs or (waiting and max(state.sign_s for state in signs) < SETTLE_S):
        return None
    causes = [state for state in signs if not (state.sign == "left" and state.is_consequence)]
    first = max(causes or signs, key=lambda state: state.sign_s)
    if first.sign == "left":
        headline = f"{first.name} has left in {_where(first)}: {first.reason}"
        return _verdict("left", [first], headline, states, exit_code=first.exit_code)
    together = [
        state
        for state in causes
        if state.sign == "gone" and first.sign_s - state.sign_s <= TOGETHER_S
    ]
    headline = f"{_names(together)} {_is_or_are(together)} gone (the process has ended)"
    return _verdict("gone", together, f"{headline}: {_last_seen(first)}", states)


def judge_silence(states: Sequence[RankState], *, dead_rank_s: float) -> Verdict | None:
    """Return a verdict if nothing has been heard of a rank for too long.

    A rank that is not heard of, but without which the others could not have taken the
    steps that they took, is alive: the connection is at fault.
    """
    silent = [
        state
        for state in states
        if state.sign == "alive"
        and state.silent_s > dead_rank_s
        and state.others_steps < STEPS_TO_BE_ALIVE
    ]
    if not silent:
        return None
    longest = max(silent, key=lambda state: state.silent_s)
    headline = (
        f"{_names(silent)} {'does' if len(silent) == 1 else 'do'} not answer since "
        f"{longest.silent_s:.0f} s (faults.dead_rank_seconds: {dead_rank_s:g})"
    )
    return _verdict("silent", silent, f"{headline}: {_last_seen(longest)}", states)


def judge_stall(states: Sequence[RankState], *, dead_rank_s: float) -> Verdict | None:
    """Return a verdict if no rank has made progress for longer than its phase may take.

    While a rank is silent this waits for `judge_silence`, which knows more.
    """
    alive = [state for state in states if state.sign == "alive"]
    if len(alive) < 2 or any(SILENT_S < state.silent_s <= dead_rank_s for state in alive):
        return None
    limit = max(state.place.limit_s for state in alive)
    if min(state.stalled_s for state in alive) <= limit:
        return None
    behind, waiting = _who_waits(alive)
    culprits = [state for state in alive if behind[state.rank] and not waiting[state.rank]]
    if not culprits:
        return _verdict("stuck", [], _describe_stuck(alive, any(waiting.values())), states)
    others = [state for state in alive if state not in culprits]
    first = culprits[0]
    headline = (
        f"{_names(culprits)} {'hangs' if len(culprits) == 1 else 'hang'}: in {_where(first)} since "
        f"{first.stalled_s:.0f} s, {_collective(first)}; {_waiters(others)}"
    )
    return _verdict("hung", culprits, headline, states)


def _who_waits(alive: Sequence[RankState]) -> tuple[dict[int, bool], dict[int, bool]]:
    """Return, by rank, whether others wait for it and whether it waits for others."""
    counts = {state.rank: state.place.counts for state in alive}
    behind, waiting = dict.fromkeys(counts, False), dict.fromkeys(counts, False)
    for label in {label for entered in counts.values() for label in entered}:
        entered = {rank: counts[rank].get(label, 0) for rank in ranks_of(label) if rank in counts}
        most = max(entered.values(), default=0)
        least = min(entered.values(), default=0)
        for rank, count in entered.items():
            behind[rank] |= count < most
            waiting[rank] |= count > least
    return behind, waiting


def _describe_stuck(alive: Sequence[RankState], some_wait: bool) -> str:
    """Say what a stall without a culprit looks like."""
    seconds = min(state.stalled_s for state in alive)
    by_ranks = defaultdict(list)
    for state in alive:
        by_ranks[state.place.ranks].append(state)
    for members in by_ranks.values():
        names = Counter(state.place.collective for state in members)
        if len(names) > 1:
            return (
                f"ranks have entered different collectives and wait for each other since "
                f"{seconds:.0f} s: {_waiters(members)}"
            )
    if some_wait:
        return f"ranks wait for each other since {seconds:.0f} s: {_waiters(alive)}"
    where = ", ".join(sorted({_where(state) for state in alive}))
    return (
        f"no rank makes progress since {seconds:.0f} s, and all have entered the same "
        f"collectives: in {where}; {_waiters(alive)}. Look at the network, the storage and "
        "the stacks of the fault files"
    )


def _verdict(
    kind: Kind,
    culprits: Sequence[RankState],
    headline: str,
    states: Sequence[RankState],
    *,
    exit_code: int = RankError.exit_code,
) -> Verdict:
    lost = {state.rank for state in states if state.sign in ("gone", "left")}
    lost -= {state.rank for state in states if _waits_for_verdict(state)}
    if kind in ("gone", "silent"):
        lost |= {state.rank for state in culprits}
        if others := [s for s in states if s not in culprits and _waits_for_verdict(s)]:
            headline += f"; {_waiters(others)}"
    speaker = next(rank for rank in itertools.count() if rank not in lost)
    details = [f"{state.name}: {_status(state)}" for state in states]
    ranks = [state.rank for state in culprits]
    hosts = [] if kind == "left" else sorted({state.host for state in culprits} - {"?"})
    return Verdict(kind, ranks, exit_code, headline, details, speaker, hosts)


def _waits_for_verdict(state: RankState) -> bool:
    """Return whether a rank is still there and is not at fault itself."""
    return state.sign == "alive" or (state.sign == "left" and state.is_consequence)


def _status(state: RankState) -> str:
    text = f"in {_where(state)} for {state.place.phase_s:.0f} s, {_collective(state)}"
    if state.sign != "alive":
        return f"{state.sign} {state.sign_s:.0f} s ago, {text}"
    if state.silent_s > SETTLE_S:
        text += f", last heard of {state.silent_s:.0f} s ago"
    return text


def _last_seen(state: RankState) -> str:
    return f"last seen in {_where(state)}, {_collective(state)}"


def _where(state: RankState) -> str:
    place = state.place
    return f"step {place.step} ('{place.phase}')" if place.step else f"'{place.phase}'"


def _collective(state: RankState) -> str:
    place = state.place
    if place.collective is None:
        return "no collective entered"
    manner = "inside of" if place.inside else "newest collective"
    seconds = place.collective_s + state.silent_s
    return f"{manner} {_call(place.collective, place.ranks)}, entered {seconds:.0f} s ago"


def _call(collective: str, ranks: str) -> str:
    if ">" in ranks:
        sender, receiver = ranks_of(ranks)
        return f"{collective} from rank {sender} to rank {receiver}"
    return f"{collective} over {_ranks(ranks_of(ranks))}"


def _waiters(states: Sequence[RankState]) -> str:
    """Group ranks by step and by the collective that they entered last."""
    groups: dict[str, list[RankState]] = defaultdict(list)
    for state in states:
        place = state.place
        call = _call(place.collective, place.ranks) if place.collective else "no collective"
        groups[f"{call} of {_where(state)}"].append(state)
    parts = []
    for where, members in groups.items():
        seconds = min(state.place.collective_s + state.silent_s for state in members)
        verb = "is" if len(members) == 1 else "are"
        parts.append(f"{_ranks([s.rank for s in members])} {verb} in {where} since {seconds:.0f} s")
    return ", ".join(parts[:MAX_NAMED]) + (", ..." if len(parts) > MAX_NAMED else "")


def _names(states: Sequence[RankState]) -> str:
    named = ", ".join(state.name for state in states[:MAX_NAMED])
    if len(states) <= MAX_NAMED:
        return named
    return f"{named} and {len(states) - MAX_NAMED} more ({_ranks([s.rank for s in states])})"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks_label(ranks)}"


def _is_or_are(states: Sequence[RankState]) -> str:
    return "is" if len(states) == 1 else "are"
