# SPDX-License-Identifier: Apache-2.0
"""What may differ between a saved run and the configuration it is resumed with.

    free     changes nothing that is computed: logging, names, intervals
    allowed  reported: the layout; the sequence of batches and the model stay the same
    refused  would silently make another run: model, data, batch, schedule

Every key of the schema has a class; the longest prefix of the key decides.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from bt_megatron.config.load import dotted_values
from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import ConfigError

Kind = Literal["free", "allowed", "refused"]

CLASSES: dict[str, Kind] = {
    "name": "free",
    "runs_dir": "free",
    "log": "free",
    "evaluation": "free",
    "checkpoint": "free",
    "checkpoint.initialize_from": "refused",
    "faults": "free",
    "faults.spike_factor": "allowed",
    "layout": "allowed",
    "memory": "allowed",
    "kernels": "allowed",
    "kernels.fp8": "refused",
    "batch.micro_batch_size": "allowed",
    "batch.global_batch_size": "refused",
    "model": "refused",
    "data": "refused",
    "data.index_dir": "free",
    "data.loader": "allowed",
    "optimizer": "refused",
    "train.seed": "refused",
    "train.precision": "refused",
    "train.steps": "refused",
}
"""Class of each key or section. See `compare_for_resume` for the two schedule keys."""

_SCHEDULE_LENGTH = ("train.steps", "optimizer.decay_steps")


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not what it was."""

    key: str
    """Dotted key."""
    old: Any
    """Value of the saved run."""
    new: Any
    """Value asked for now."""
    kind: Kind
    """free, allowed or refused."""

    def __str__(self) -> str:
        """Write the difference for people."""
        return f"{self.key}: {self.old} -> {self.new} ({self.kind})"


def classify(key: str) -> Kind:
    """Return the class of a dotted key, decided by its longest listed prefix.

    Raises:
        KeyError: if no prefix is listed.
    """
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        kind = CLASSES.get(".".join(parts[:length]))
        if kind is not None:
            return kind
    raise KeyError(key)


def compare_for_resume(old: RunConfig, new: RunConfig) -> list[Difference]:
    """List what differs between a saved run and the configuration to go on with.

    train.steps and optimizer.decay_steps may change as long as the cosine ends at the
    same step (decay_steps, or steps where that is not set): extending a run or stopping
    it early must not change the schedule under it.

    Returns:
        Differences in the order of the schema; sections that exist on one side only
        are listed key by key, with None on the other side.
    """
    before, after = dotted_values(old), dotted_values(new)
    same_schedule = _decay_end(old) == _decay_end(new)
    differences = []
    for key in [*before, *(key for key in after if key not in before)]:
        if before.get(key) == after.get(key):
            continue
        kind = classify(key)
        if key in _SCHEDULE_LENGTH and same_schedule:
            kind = "allowed"
        differences.append(Difference(key, before.get(key), after.get(key), kind))
    return differences


def require_resumable(differences: Collection[Difference], *, allow: Collection[str] = ()) -> None:
    """Refuse to go on if a difference would make another run.

    Args:
        differences: From `compare_for_resume`.
        allow: Dotted keys that the user allows by hand (--resume-allow).

    Raises:
        ConfigError: listing every refused difference that is not allowed.
    """
    refused = [item for item in differences if item.kind == "refused" and item.key not in allow]
    if not refused:
        return
    listed = "\n".join(f"  - {item.key}: saved {item.old}, now {item.new}" for item in refused)
    hint = ""
    if any(item.key == "train.steps" for item in refused):
        saved = next(item.old for item in refused if item.key == "train.steps")
        hint = (
            f"\nTo change train.steps only and keep the schedule, set optimizer.decay_steps to "
            f"the step at which it ended so far ({saved} if it was not set)."
        )
    keys = " ".join(f"--resume-allow {item.key}" for item in refused)
    raise ConfigError(
        "resume: these differences from the saved run would silently change it:\n"
        f"{listed}{hint}\nPut the saved values back, choose another name, or insist with {keys}"
    )


def _decay_end(config: RunConfig) -> int:
    """Return the step at which the cosine ends."""
    return config.optimizer.decay_steps or config.train.steps
