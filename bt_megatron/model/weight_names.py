# SPDX-License-Identifier: Apache-2.0
"""Checkpoint keys and canonical names.

Canonical names are the parameter names of the model in one process. Checkpoint
keys are the same but for the norms, which carry the names that they have inside
of Transformer Engine's fused modules, so that both implementations can load them.
"""

import re

FUSED_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Canonical prefix to checkpoint prefix, inside a layer."""

_VOCABULARY_TABLES = re.compile(r"(^|\.)(table|word|token_embedding|head)\.weight$")


def canonical_name(key: str) -> str:
    """Return the canonical name of a checkpoint key."""
    for plain, fused in FUSED_NORMS.items():
        key = key.replace(fused, plain)
    return key


def is_module_state(key: str) -> bool:
    """Return whether a key of a state dict is what a module keeps besides its weights."""
    return key.endswith("_extra_state")


def is_vocabulary_table(name: str) -> bool:
    """Return whether the first axis of a weight is the vocabulary."""
    return _VOCABULARY_TABLES.search(name) is not None
