# SPDX-License-Identifier: Apache-2.0
"""The resolved configuration as YAML text, with the origin of each value beside it."""

import json
import re
from typing import Any

from bt_megatron.config.load import LoadedConfig, to_mapping

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./|-]*")
_RESERVED = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def resolved_yaml(loaded: LoadedConfig) -> str:
    """Write a configuration so that loading the text gives the same configuration.

    Each value has a comment with the place it came from: file:line, --set or default.
    """
    lines: list[tuple[str, str]] = []
    _write(to_mapping(loaded.config), "", loaded.provenance, lines)
    width = max(len(text) for text, _ in lines)
    return "".join(
        f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines
    )


def scalar_text(value: Any) -> str:
    """Write one value so that our loader and any YAML reader take it for the same."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")  # YAML 1.1 wants a point: 1.0e-08
        return f"{mantissa}{'' if '.' in mantissa or not e else '.0'}{e}{exponent}"
    return json.dumps(value, ensure_ascii=False)


def _write(
    mapping: dict[str, Any], prefix: str, origins: dict[str, str], lines: list[tuple[str, str]]
) -> None:
    """Append (text, origin) for each key below prefix."""
    indent = "  " * prefix.count(".")
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            lines.append((f"{indent}{scalar_text(key)}:", ""))
            _write(value, f"{prefix}{key}.", origins, lines)
        else:
            lines.append(
                (f"{indent}{scalar_text(key)}: {scalar_text(value)}", origins.get(prefix + key, ""))
            )
