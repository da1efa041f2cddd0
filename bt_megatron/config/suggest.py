# SPDX-License-Identifier: Apache-2.0
"""The nearest layouts that work, for a run whose layout does not.

What may change: tp, cp, pp, vpp and the micro-batch, and where these need it sequence
parallelism and pp_cut (to off and auto), token slices and the overlap switches. Model,
sequence, global batch and number of processes stay. Only if nothing works with these,
another number of processes and another batch are named.

Nearest: the fewest keys changed; among those, the smallest sum of |log2(new / old)|
over the changed sizes, where a changed switch or pp_cut counts 1; among those, the
smallest bubble. A layout that changes all the keys of a nearer one, and more, is left
out. Whether a layout fits the memory of a device is not judged.

The search is arithmetic, not trial: a rule that reads few keys is tried on these keys
alone, and only combinations of what that leaves are put in order. What is returned
passes every layout rule as it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from bt_megatron.config import layout_rules, memory_rules
from bt_megatron.config.geometry import layer_letters, sequence_rows
from bt_megatron.config.pipeline_schedule import bubble_fraction
from bt_megatron.config.schema import RunConfig

MAX_SUGGESTIONS = 3
"""Layouts of one report."""
MAX_WORLD_DISTANCE = 64
"""Processes more or less that are looked at if none work with what there are."""

Rule = Callable[[RunConfig, int], str | None]
"""See rules.py."""
Changes = Mapping[str, Any]
"""Dotted keys and their new values."""
Choices = Mapping[str, Sequence[Any]]
"""Dotted keys and the other values that they may have."""

_SIZES = ("layout.tp", "layout.cp", "layout.pp", "layout.vpp", "batch.micro_batch_size")
_BATCH = "batch.global_batch_size"
_SEQUENCE_RULES = (
    layout_rules.sequence_parallel_has_tensor_parallel,
    layout_rules.sequence_parallel_divides_the_sequence,
    memory_rules.token_slices_are_of_blocks,
    memory_rules.token_slices_divide_the_blocks,
    memory_rules.token_slices_are_without_sequence_parallel,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A layout that works."""

    changes: Changes
    """What to type."""
    dp: int
    """Data-parallel size."""
    micro_batches: int
    """Micro-batches of each replica per optimizer step."""
    bubble: float
    """Part of a step that a process waits, with stages of equal work."""

    @property
    def typed(self) -> str:
        """The changes as arguments of the command line."""
        arguments = [f"--set {key}={str(new).lower()}" for key, new in self.changes.items()]
        return " ".join(arguments) or "without a change"

    @property
    def facts(self) -> str:
        """What follows from the layout."""
        unit = "micro-batch" if self.micro_batches == 1 else "micro-batches"
        return f"(dp {self.dp}, {self.micro_batches} {unit}, bubble {self.bubble:.0%})"


class Part(NamedTuple):
    """Changes of some keys, and how far away they are."""

    keys: int
    """How many keys change."""
    ratio: float
    """Their distance; see the module."""
    bubble: float
    """The bubble that comes of it; 0 if that is not decided here."""
    changes: dict[str, Any]
    """What changes."""


def suggestion_lines(config: RunConfig, world_size: int, rules: Sequence[Rule]) -> list[str]:
    """Write the nearest layouts that work, to be put below what is broken.

    Args:
        config: A run that breaks some of the rules.
        world_size: Number of processes.
        rules: All rules about the layout.

    Returns:
        A heading and one line for each suggestion.
    """
    if found := nearest_layouts(config, world_size, rules):
        return [f"nearest layouts that work with {_processes(world_size)}:", *_aligned(found)]
    lines = [f"no layout works with {_processes(world_size)} and this batch. What works:"]
    for size in _other_worlds(world_size):
        if found := nearest_layouts(config, size, rules):
            lines += [f"with {_processes(size)}:", *_aligned(found[:1])]
            break
    if batches := _other_batches(config, world_size, rules):
        lines += ["with another global batch, which is another training:", *_aligned(batches)]
    return lines if len(lines) > 1 else []


def nearest_layouts(config: RunConfig, world_size: int, rules: Sequence[Rule]) -> list[Suggestion]:
    """Return at most three layouts that work with the same processes and batch.

    Args:
        config: The run.
        world_size: Number of processes.
        rules: All rules about the layout.

    Returns:
        Suggestions, the nearest first.
    """
    parts = sorted(_candidates(config, world_size), key=lambda part: part[:3])
    found: list[Suggestion] = []
    for part in parts:
        if any(nearer.changes.keys() < part.changes.keys() for nearer in found):
            continue
        changed = change(config, part.changes)
        if any(rule(changed, world_size) for rule in rules):
            continue
        found.append(_suggestion(changed, world_size, part))
        if len(found) == MAX_SUGGESTIONS:
            break
    return found


def change(config: RunConfig, changes: Changes) -> RunConfig:
    """Return a configuration with other values, e.g. {"layout.tp": 2}."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    new = {section: replace(getattr(config, section), **v) for section, v in sections.items()}
    return replace(config, **new)


def _candidates(config: RunConfig, world_size: int) -> Iterator[Part]:
    """Yield every change of sizes with the nearest changes that these need elsewhere."""

    @cache
    def sequence(tp: int, cp: int) -> list[Part]:
        sized = change(config, {"layout.tp": tp, "layout.cp": cp})
        slices = _divisors(sequence_rows(config)[0]) if config.memory.token_slices > 1 else []
        choices: Choices = {"layout.sequence_parallel": [False], "memory.token_slices": slices}
        return _repairs(sized, world_size, choices, _SEQUENCE_RULES)

    @cache
    def cut(pp: int, vpp: int) -> list[Part]:
        sized = change(config, {"layout.pp": pp, "layout.vpp": vpp})
        return _repairs(
            sized, world_size, {"layout.pp_cut": ["auto"]}, [layout_rules.stages_fit_the_model]
        )

    switches: Choices = {
        "layout.overlap_param_gather": [False],
        "layout.overlap_grad_reduce": [True],
        "layout.distributed_optimizer": [True],
    }
    overlap = _repairs(config, world_size, switches, [layout_rules.overlapped_gather_has_its_parts])
    current = tuple(_value(config, key) for key in _SIZES)
    for tp, cp, pp, vpp, micro in _sizes(config, world_size):
        micro_batches = config.batch.global_batch_size * tp * cp * pp // (micro * world_size)
        bubble = bubble_fraction(pp=pp, micro_batches=micro_batches, vpp=vpp)
        base = _part(_SIZES, current, (tp, cp, pp, vpp, micro), bubble=bubble)
        for others in product(sequence(tp, cp), cut(pp, vpp), overlap):
            yield _joined(base, *others)


def _sizes(config: RunConfig, world_size: int) -> Iterator[tuple[int, ...]]:
    """Yield sizes, in the order of _SIZES, that fill the world and divide model and batch."""

    def passing(key: str, rule: Rule) -> list[int]:
        sizes = _divisors(world_size)
        return [size for size in sizes if not rule(change(config, {key: size}), world_size)]

    tps = passing("layout.tp", layout_rules.tensor_parallel_divides_the_layers)
    cps = passing("layout.cp", layout_rules.context_parallel_cuts_the_sequence)
    pieces = len(layer_letters(config.model))
    pps = [size for size in _divisors(world_size) if size <= pieces]
    for tp, cp, pp in product(tps, cps, pps):
        if world_size % (tp * cp * pp) == 0:
            dp = world_size // (tp * cp * pp)
            yield from ((tp, cp, pp, *rest) for rest in _batches(config, pp=pp, dp=dp))


def _batches(config: RunConfig, *, pp: int, dp: int) -> Iterator[tuple[int, int]]:
    """Yield vpp and the micro-batch that cut the batch; another micro-batch only if needed."""
    batch, rest = divmod(config.batch.global_batch_size, dp)
    most = 1 if pp == 1 else min(2 * config.layout.vpp, len(layer_letters(config.model)) // pp)
    for vpp in range(1, most + 1) if rest == 0 else ():
        groups, rest = divmod(batch, pp if vpp > 1 else 1)
        sizes = _divisors(groups) if rest == 0 else []
        current = config.batch.micro_batch_size
        yield from ((vpp, size) for size in ([current] if current in sizes else sizes))


def _repairs(
    config: RunConfig, world_size: int, choices: Choices, rules: Sequence[Rule]
) -> list[Part]:
    """Return the nearest changes, none if none is needed, with which these rules hold.

    Args:
        config: The run.
        world_size: Number of processes.
        choices: Other values of the keys that may change.
        rules: Rules that read no other key that may change.

    Returns:
        At most one part for each set of changed keys, none of them with needless ones.
    """
    current = tuple(_value(config, key) for key in choices)
    options = product(*([old, *new] for old, new in zip(current, choices.values(), strict=True)))
    parts = [_part(tuple(choices), current, option) for option in options]
    found: list[Part] = []
    for part in sorted(parts, key=lambda part: part[:2]):
        needless = any(nearer.changes.keys() <= part.changes.keys() for nearer in found)
        changed = change(config, part.changes)
        if not needless and not any(rule(changed, world_size) for rule in rules):
            found.append(part)
    return found


def _part(
    keys: Sequence[str], current: Sequence[Any], values: Sequence[Any], *, bubble: float = 0.0
) -> Part:
    """Return which values are not what they were, and how far away that is."""
    changed = [each for each in zip(keys, current, values, strict=True) if each[1] != each[2]]
    ratio = sum(_ratio(old, new) for _, old, new in changed)
    return Part(len(changed), round(ratio, 9), bubble, {key: new for key, _, new in changed})


def _joined(*parts: Part) -> Part:
    """Return the changes of several parts together."""
    changes = {key: new for part in parts for key, new in part.changes.items()}
    ratio, bubble = sum(part.ratio for part in parts), sum(part.bubble for part in parts)
    return Part(len(changes), round(ratio, 9), bubble, changes)


def _ratio(old: Any, new: Any) -> float:
    """Return |log2(new / old)| of a size, 1 for anything else."""
    return 1.0 if isinstance(new, bool | str) else abs(math.log2(new / old))


def _value(config: RunConfig, key: str) -> Any:
    """Return the value of a dotted key."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _suggestion(config: RunConfig, world_size: int, part: Part) -> Suggestion:
    """Describe a layout that works."""
    dp = world_size // config.layout.replica_size
    return Suggestion(
        changes=part.changes,
        dp=dp,
        micro_batches=config.batch.global_batch_size // (config.batch.micro_batch_size * dp),
        bubble=part.bubble,
    )


def _other_worlds(world_size: int) -> Iterator[int]:
    """Yield numbers of processes around the given one, the nearest first."""
    for distance in range(1, MAX_WORLD_DISTANCE + 1):
        yield from (size for size in (world_size - distance, world_size + distance) if size > 0)


def _other_batches(config: RunConfig, world_size: int, rules: Sequence[Rule]) -> list[Suggestion]:
    """Return at most two global batches near the given one, each with a layout.

    They are multiples of what the replicas of this layout take at once, or if these do
    not work, of the number of processes: with tp, cp and pp of 1 these always do.
    """
    size, units = config.batch.global_batch_size, [world_size]
    if world_size % config.layout.replica_size == 0:
        units.insert(0, world_size // config.layout.replica_size * config.batch.micro_batch_size)
    around = (size - size % unit + more for unit in units for more in (0, unit))
    found: list[Suggestion] = []
    for batch in dict.fromkeys(number for number in around if number > 0):
        if len(found) < 2:
            resized = change(config, {_BATCH: batch})
            nearest = nearest_layouts(resized, world_size, rules)[:1]
            found += [replace(n, changes={_BATCH: batch, **n.changes}) for n in nearest]
    return found


def _aligned(found: Sequence[Suggestion]) -> list[str]:
    """Write suggestions with their facts in a column."""
    width = max(len(suggestion.typed) for suggestion in found)
    return [f"  {each.typed:<{width}}  {each.facts}" for each in found]


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number, ascending."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})
