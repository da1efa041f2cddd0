# SPDX-License-Identifier: Apache-2.0
"""All ranks must run the same: compared through the store, before anything is allocated."""

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from bt_megatron.errors import ConfigError, RankError
from bt_megatron.parallel.collectives import ranks_label

WAIT = timedelta(seconds=120)
"""For ranks that have all just joined the process group."""

MAX_KEYS = 20
"""Differing keys that are listed; more are counted."""

UNKNOWN = "unknown"
"""A value that could not be found out, e.g. the commit where git did not answer: no difference."""

_rounds = itertools.count()

Facts = Mapping[str, Any]


def shared_store(name: str) -> dist.Store:
    """Return a part of the store through which the ranks found each other.

    It works without collectives, and it outlives no rank 0.

    Comm: none; all ranks that ask in the same order get the same part.
    """
    store = distributed_c10d._get_default_store()
    return dist.PrefixStore(f"bt_megatron/{name}/{next(_rounds)}", store)


def require_same(facts: Facts) -> None:
    """Compare what all ranks are about to run.

    Args:
        facts: plain values by name, e.g. dotted keys of the configuration.

    Raises:
        ConfigError: on every rank, naming the ranks that differ from rank 0, the keys and
            both values.
        RankError: a rank has not said what it runs.

    Comm: a few kilobytes a rank through the store; must be called by all ranks.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return
    store = shared_store("agreement")
    mine = json.dumps(facts, sort_keys=True)
    store.set(f"facts/{rank}", mine)
    store.set(f"digest/{rank}", hashlib.sha256(mine.encode()).hexdigest())
    if rank == 0:
        store.set("difference", _compare(store, world_size))
    try:
        store.wait(["difference"], 2 * WAIT)
    except RuntimeError as error:
        raise RankError(
            f"rank {rank}: rank 0 has not compared the configurations within "
            f"{2 * WAIT.total_seconds():.0f} s. See what rank 0 says, then start again."
        ) from error
    if difference := store.get("difference").decode():
        raise ConfigError(difference)


def describe_differences(facts: Mapping[int, Facts]) -> str:
    """Return what differs from rank 0, key by key, or "" if nothing does.

    Args:
        facts: by rank; those of rank 0, and of the ranks that may differ.
    """
    lines = []
    different: set[int] = set()
    for key in sorted({key for of_rank in facts.values() for key in of_rank}):
        ranks_by_value = defaultdict(list)
        for rank, of_rank in facts.items():
            ranks_by_value[json.dumps(of_rank.get(key))].append(rank)
        expected = json.dumps(facts[0].get(key))
        if expected == json.dumps(UNKNOWN):
            continue
        same = (expected, json.dumps(UNKNOWN))
        others = {value: ranks for value, ranks in ranks_by_value.items() if value not in same}
        if others:
            different.update(*others.values())
            values = ", ".join(f"{_plain(v)} ({_named(ranks)})" for v, ranks in others.items())
            lines.append(f"{key} {_plain(expected)} (rank 0) vs {values}")
    if not lines:
        return ""
    shown = lines[:MAX_KEYS]
    if len(lines) > MAX_KEYS:
        shown.append(f"and {len(lines) - MAX_KEYS} more")
    verb = "runs" if len(different) == 1 else "run"
    listed = f" {shown[0]}" if len(shown) == 1 else "".join(f"\n  - {line}" for line in shown)
    return (
        f"{_named(sorted(different))} {verb} another configuration than rank 0:{listed}\n"
        "Start all ranks with the same files, --set and installation."
    )


def _compare(store: dist.Store, world_size: int) -> str:
    digests = [f"digest/{rank}" for rank in range(world_size)]
    try:
        store.wait(digests, WAIT)
    except RuntimeError as error:
        missing = [rank for rank, key in enumerate(digests) if not store.check([key])]
        raise RankError(
            f"{_named(missing)} joined the process group and then said nothing for "
            f"{WAIT.total_seconds():.0f} s. See what they say, then start again."
        ) from error
    expected = store.get(digests[0])
    different = [rank for rank, key in enumerate(digests) if store.get(key) != expected]
    return describe_differences({r: json.loads(store.get(f"facts/{r}")) for r in (0, *different)})


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks_label(ranks)}"


def _plain(value: str) -> str:
    """Write a value as a user does: text without its quotes."""
    loaded = json.loads(value)
    return loaded if isinstance(loaded, str) else value
