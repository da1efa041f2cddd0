# SPDX-License-Identifier: Apache-2.0
"""YAML text to a tree of values that know where they were written.

Scalars are read as YAML 1.2 reads them: 1e-3 is a number, and yes, on, 010 and
1:30 are not booleans, octal or sexagesimal numbers but text, which a typed field
then refuses. Duplicate keys are refused. `include` is resolved here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bt_megatron.errors import ConfigError

MAX_DEPTH = 20
"""Deeper nesting means an alias that contains itself."""

_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(slots=True)
class Value:
    """A scalar or a list, and the place it came from."""

    value: Any
    """What YAML says it is."""
    where: str
    """file:line of its key, or --set."""


@dataclass(slots=True)
class Section:
    """A mapping, and the place it came from."""

    entries: "dict[str, Section | Value]"
    """Values by key."""
    where: str
    """file:line of its key, or --set."""


class _Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema (decimal numbers only)."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def read_files(paths: Sequence[str | Path]) -> Section:
    """Read files and compose them left to right, later ones overriding earlier ones.

    Raises:
        ConfigError: for a file that cannot be read or parsed, a duplicate key, or an
            include that leads back to itself.
    """
    tree = Section({}, "")
    for path in paths:
        tree = merge(tree, _read_with_includes(Path(path), ()))
    return tree


def parse_setting(text: str) -> Section:
    """Read one `a.b=c` of the command line; c is YAML.

    Raises:
        ConfigError: if there is no key, no `=`, or c is not YAML.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected key=value, e.g. --set optimizer.lr=3e-4")
    node: Section | Value = _parse(value, "--set", f"--set {key}")
    for part in reversed(parts):
        node = Section({part: node}, "--set")
    assert isinstance(node, Section), "there is at least one part"
    return node


def merge(base: Section, over: Section) -> Section:
    """Return base with the keys of over on top; mappings are merged, the rest replaced."""
    entries = dict(base.entries)
    for key, new in over.entries.items():
        old = entries.get(key)
        both = isinstance(old, Section) and isinstance(new, Section)
        entries[key] = merge(old, new) if both else new  # type: ignore[arg-type]
    return Section(entries, over.where or base.where)


def from_plain(mapping: object, where: str) -> Section | Value:
    """Wrap plain Python values, all from one place."""
    if not isinstance(mapping, dict):
        return Value(mapping, where)
    return Section({str(key): from_plain(value, where) for key, value in mapping.items()}, where)


def _read_with_includes(path: Path, parents: tuple[Path, ...]) -> Section:
    """Read one file on top of what it includes."""
    if path.resolve() in [parent.resolve() for parent in parents]:
        chain = " -> ".join(str(file) for file in (*parents, path))
        raise ConfigError(f"{parents[-1]}: include goes in a circle: {chain}. Remove one of them.")
    tree = _read(path, parents)
    include = tree.entries.pop("include", None)
    base = Section({}, "")
    for name in _included_names(include):
        included = path.parent / name
        base = merge(base, _read_with_includes(_tidy(included), (*parents, path)))
    return merge(base, tree)


def _included_names(include: Section | Value | None) -> list[str]:
    """Check the value of `include`."""
    if include is None:
        return []
    names = include.value if isinstance(include, Value) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{include.where}: include must be a list of files, e.g. include: [../model/x.yaml]"
        )
    return names


def _tidy(path: Path) -> Path:
    """Resolve `x/../` so that places are short; keep the path relative if it was."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] not in ("..", path.anchor):
            parts.pop()
        else:
            parts.append(part)
    return Path(*parts)


def _read(path: Path, parents: tuple[Path, ...]) -> Section:
    """Read one file."""
    by = f" (included by {parents[-1]})" if parents else ""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}{by}: not UTF-8 text ({error}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}{by}: {error.strerror}. Check the path.") from None
    tree = _parse(text, str(path), str(path))
    if isinstance(tree, Value) and tree.value is None:
        return Section({}, str(path))
    if not isinstance(tree, Section):
        raise ConfigError(f"{path}{by}: expected 'key: value' lines, got {tree.value!r}.")
    return tree


def _parse(text: str, source: str, label: str) -> Section | Value:
    """Parse YAML; places are source:line for files and source alone for --set."""
    try:
        loader = _Yaml12Loader(text)
        node = loader.get_single_node()
        return Value(None, source) if node is None else _tree(loader, node, source, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark and label == source else ""
        raise ConfigError(f"{label}{line}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{label}: not valid YAML: {str(error).splitlines()[0]}.") from None


def _tree(loader: _Yaml12Loader, node: yaml.Node, source: str, depth: int) -> Section | Value:
    """Turn a YAML node into sections and values."""
    where = _place(node, source)
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where}: nested more than {MAX_DEPTH} deep. Write it flat.")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
        raise ConfigError(f"{where}: not valid YAML here: the tag {node.tag}. Remove it.")
    if isinstance(node, yaml.SequenceNode):
        items = [_tree(loader, item, source, depth + 1) for item in node.value]
        return Value([i.value if isinstance(i, Value) else i.entries for i in items], where)
    if not isinstance(node, yaml.MappingNode):
        return Value(loader.construct_object(node), where)
    entries: dict[str, Section | Value] = {}
    for key_node, value_node in node.value:
        key, place = key_node.value, _place(key_node, source)
        if not isinstance(key, str):
            raise ConfigError(f"{place}: a key must be a word, got a list or mapping.")
        if key in entries:
            raise ConfigError(
                f"{place}: duplicate key '{key}', first at {entries[key].where}. Remove one."
            )
        entries[key] = _tree(loader, value_node, source, depth + 1)
        entries[key].where = place
    return Section(entries, where)


def _place(node: yaml.Node, source: str) -> str:
    """Return file:line of a node; --set has no lines."""
    return source if source == "--set" else f"{source}:{node.start_mark.line + 1}"
