# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of a sharded optimizer read by a whole one, and the other way round.

Moments and fp32 weights have the same names in both. What differs is where Megatron keeps
the parameter groups, and that a whole optimizer in fp32 has no copy of the weights. Groups
hold nothing but configuration and the number of steps, so this run's own are taken.
"""

from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase

SHARDED_FORM = "optimizer.state.param."
"""Prefix of the names of fp32 weights in the state of a sharded optimizer."""
WHOLE_FORM = "optimizer.state.fp32_param."
"""The same of a whole optimizer in bf16; in fp32 it has none but the weights themselves."""

SECOND_READER = 1_000_000
"""Added to a replica number; larger than any number of replicas."""


def read_main_weights(state: dict[str, Any], *, was_sharded: bool, precision: str) -> None:
    """Name the fp32 weights of an optimizer as a checkpoint of the other form has them.

    Args:
        state: sharded state dict of the optimizer, changed in place.
        was_sharded: whether the checkpoint is of a sharded optimizer.
        precision: of the run.
    """
    own, saved = SHARDED_FORM, WHOLE_FORM if precision == "bf16" else ""
    if was_sharded:
        own, saved = WHOLE_FORM, SHARDED_FORM
    for entry in nested_values(state):
        if isinstance(entry, ShardedBase) and entry.key.startswith(own):
            entry.key = saved + entry.key.removeprefix(own)
            if not saved:  # the model itself reads the same tensor; Megatron wants one main reader
                *others, last = entry.replica_id
                entry.replica_id = (*others, last + SECOND_READER)


def copy_structure(state: Any) -> Any:
    """Return a copy of the dicts and lists of a state dict, with the same values in them."""
    if isinstance(state, dict):
        return {key: copy_structure(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_structure(value) for value in state]
    return state


def in_own_form(own: Any, loaded: Any, *, steps: int) -> Any:
    """Return tensors as loaded and everything else as this optimizer has it.

    Args:
        own: `copy_structure` of the sharded state dict that was to be filled.
        loaded: what was loaded into it.
        steps: optimizer steps that the checkpoint has taken.
    """
    if isinstance(own, LocalNonpersistentObject):
        return own.unwrap()
    if isinstance(own, ShardedBase):
        return loaded
    if isinstance(own, dict):
        filled = {
            key: in_own_form(value, loaded.get(key, {}), steps=steps)
            for key, value in own.items()
            if key != "param_groups"
        }
        if "param_groups" in own:
            groups = [in_own_form(group, {}, steps=steps) for group in own["param_groups"]]
            filled["param_groups"] = [{**group, "step": steps} for group in groups]
        return filled
    if isinstance(own, list):
        return [in_own_form(a, b, steps=steps) for a, b in zip(own, loaded, strict=True)]
    return own
