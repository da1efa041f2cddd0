# SPDX-License-Identifier: Apache-2.0
"""A tree of values to frozen dataclasses, strictly.

Nothing is guessed: an unknown key, a wrong type or a missing key is a problem, and
all problems of a configuration are reported together.
"""

import math
import re
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bt_megatron.config.source import Section, Value

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_NAMES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}


@dataclass(slots=True)
class Conversion:
    """One conversion: what was wrong, what was missing, where each value came from."""

    problems: list[str] = field(default_factory=list)
    """Messages of the form where: key: what."""
    missing: list[str] = field(default_factory=list)
    """Dotted keys without a value and without a default."""
    provenance: dict[str, str] = field(default_factory=dict)
    """file:line, --set or default of each dotted key."""

    def build(self, cls: type, section: Section, prefix: str = "") -> Any:
        """Build a dataclass, or return None after noting why it cannot be built."""
        before = len(self.problems) + len(self.missing)
        hints = field_types(cls)
        for key, entry in section.entries.items():
            if key not in hints:
                self.problems.append(unknown_key(entry.where, prefix, key, cls))
        values = {
            name: self._field(hint, section.entries.get(name), f"{prefix}{name}")
            for name, hint in hints.items()
            if name in section.entries or not self._has_default(cls, name, f"{prefix}{name}")
        }
        failed = len(self.problems) + len(self.missing) > before
        return None if failed else cls(**values)

    def _has_default(self, cls: type, name: str, key: str) -> bool:
        """Tell whether a field that is not given has a default; if so, note it."""
        default = default_of(cls, name)
        if default is MISSING:
            return False
        self._note_default(default, key)
        return True

    def _note_default(self, default: object, key: str) -> None:
        if not is_dataclass(default):
            self.provenance[key] = "default"
            return
        for part in fields(default):
            self._note_default(getattr(default, part.name), f"{key}.{part.name}")

    def _field(self, hint: Any, entry: Section | Value | None, key: str) -> Any:
        """Convert one field; entry is None if a required one was not given."""
        inner, optional = split_optional(hint)
        if entry is None and is_dataclass(inner):
            return self.build(inner, Section({}, ""), f"{key}.")  # type: ignore[arg-type]
        if entry is None:
            self.missing.append(key)
            return None
        if isinstance(entry, Value) and entry.value is None and optional:
            self.provenance[key] = entry.where
            return None
        if is_dataclass(inner) and isinstance(entry, Section):
            return self.build(inner, entry, f"{key}.")  # type: ignore[arg-type]
        if get_origin(inner) is dict and isinstance(entry, Section):
            return self._named(get_args(inner)[1], entry, key)
        return self._scalar(inner, entry, key)

    def _named(self, hint: Any, section: Section, key: str) -> dict[str, Any]:
        """Convert values by names that the user chose."""
        for name, entry in section.entries.items():
            if not _NAME.fullmatch(name):
                self.problems.append(
                    f"{entry.where}: {key}: got the name {name!r}, expected letters, digits, '_' "
                    "and '-'."
                )
        if not section.entries:
            self.provenance[key] = section.where
        return {
            name: self._field(hint, entry, f"{key}.{name}")
            for name, entry in section.entries.items()
        }

    def _scalar(self, wanted: Any, entry: Section | Value, key: str) -> Any:
        """Convert a number, a flag, a text or a choice."""
        value = entry.value if isinstance(entry, Value) else dict(entry.entries)
        wanted = get_origin(wanted) if get_origin(wanted) is dict else wanted
        self.provenance[key] = entry.where
        try:
            return convert_scalar(wanted, value)
        except ValueError as error:
            self.problems.append(f"{entry.where}: {key}: {error}")
            return None


def convert_scalar(wanted: Any, value: Any) -> Any:
    """Return value as the wanted type.

    Whole numbers pass as numbers, and texts such as "1e-3", which YAML 1.1 leaves as
    texts; true and false are not numbers.

    Raises:
        ValueError: saying what was got and what is expected.
    """
    if get_origin(wanted) is Literal:
        return _choice(get_args(wanted), value)
    if wanted is float:
        return _number(value)
    if type(value) is wanted:
        return value
    hint = ""
    if wanted is int and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    if wanted is str and isinstance(value, int | float):
        hint = f'; write "{value}" with quotes'
    if wanted is bool and value in ("yes", "no", "on", "off"):
        hint = f"; write {str(value in ('yes', 'on')).lower()}"
    raise ValueError(f"got {describe(value)}, expected {_expected(wanted)}{hint}.")


def describe(value: Any) -> str:
    """Name a value and its type for a message."""
    if isinstance(value, dict):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r} ({_NAMES.get(type(value), type(value).__name__)})"


def unknown_key(where: str, prefix: str, key: str, cls: type) -> str:
    """Write the message for a key that the schema does not have."""
    near = get_close_matches(key, list(field_types(cls)), n=1)
    if near:
        return f"{where}: {prefix}{key}: unknown key. Did you mean '{near[0]}'?"
    elsewhere = [path for path in schema_keys(cls) if path.rpartition(".")[2] == key]
    if elsewhere:
        suggestion = " or ".join(f"'{prefix}{path}'" for path in elsewhere[:3])
        return f"{where}: {prefix}{key}: unknown key. Did you mean {suggestion}?"
    return f"{where}: {prefix}{key}: unknown key. Known here: {', '.join(field_types(cls))}."


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved types of a dataclass's fields."""
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


@cache
def schema_keys(cls: type) -> tuple[str, ...]:
    """Return all dotted keys below a dataclass, sections left out."""
    keys: list[str] = []
    for name, hint in field_types(cls).items():
        inner, _ = split_optional(hint)
        below = schema_keys(inner) if is_dataclass(inner) else None  # type: ignore[arg-type]
        keys += [name] if below is None else [f"{name}.{key}" for key in below]
    return tuple(keys)


def split_optional(hint: Any) -> tuple[Any, bool]:
    """Return X and whether None is allowed, for X or X | None."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    (inner,) = (part for part in get_args(hint) if part is not NoneType)
    return inner, True


def default_of(cls: type, name: str) -> Any:
    """Return the default of a field, or MISSING."""
    (item,) = (item for item in fields(cls) if item.name == name)
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    if value in choices and type(value) in {type(choice) for choice in choices}:
        return value
    listed = ", ".join(str(choice) for choice in choices)
    near = get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"got {describe(value)}, expected one of {listed}.{hint}")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"got {describe(value)}, expected a number.")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"got {describe(value)}, expected a number.") from None
    if not math.isfinite(number):
        raise ValueError(f"got {describe(value)}, expected a finite number.")
    return number


def _expected(wanted: Any) -> str:
    if is_dataclass(wanted):
        return f"a mapping with {', '.join(field_types(wanted))}"  # type: ignore[arg-type]
    return _NAMES.get(wanted, str(wanted))
