# SPDX-License-Identifier: Apache-2.0
"""Configuration files to frozen values, and back.

Order of precedence, lowest first: defaults of the schema, files left to right (what
a file includes comes before the file itself), `--set a.b=c` left to right. There is
no other source.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bt_megatron.config.convert import Conversion
from bt_megatron.config.schema import ModelConfig, RunConfig
from bt_megatron.config.source import Section, Value, from_plain, merge, parse_setting, read_files
from bt_megatron.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A run's configuration and where each of its values came from."""

    config: RunConfig
    """The values."""
    provenance: dict[str, str]
    """file:line, --set or default of each dotted key."""


def load_run(paths: Sequence[str | Path], settings: Sequence[str] = ()) -> LoadedConfig:
    """Load a run.

    Args:
        paths: YAML files, composed left to right.
        settings: `a.b=c` of the command line, applied last.

    Raises:
        ConfigError: listing every unknown key, wrong type and missing key.
    """
    tree = read_files(paths)
    for setting in settings:
        tree = merge(tree, parse_setting(setting))
    conversion = Conversion()
    config = conversion.build(RunConfig, tree)
    _raise_problems(conversion, " + ".join(str(path) for path in paths) or "--set")
    return LoadedConfig(config, conversion.provenance)


def load_model(path: str | Path) -> ModelConfig:
    """Load the `model` section of one file, such as those in configs/model.

    Raises:
        ConfigError: as `load_run`, or if the file has no such section.
    """
    entry = read_files([path]).entries.get("model")
    if not isinstance(entry, Section):
        raise ConfigError(f"{path}: there is no section 'model'. Add 'model:' with its keys below.")
    conversion = Conversion()
    config: ModelConfig = conversion.build(ModelConfig, entry, "model.")
    _raise_problems(conversion, str(path))
    return config


def load_file[T](cls: type[T], path: str | Path) -> T:
    """Load one configuration dataclass from one file, e.g. a cluster's.

    Raises:
        ConfigError: listing every unknown key, wrong type and missing key.
    """
    conversion = Conversion()
    config: T = conversion.build(cls, read_files([path]))
    _raise_problems(conversion, str(path))
    return config


def from_mapping[T](cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build one configuration dataclass from plain values.

    Args:
        cls: A dataclass of the schema, e.g. ModelConfig.
        mapping: Nested mappings, e.g. from a manifest.
        where: Where they came from, for messages.

    Raises:
        ConfigError: listing every unknown key, wrong type and missing key.
    """
    section = from_plain(dict(mapping), where)
    assert not isinstance(section, Value), "a dict becomes a section"
    conversion = Conversion()
    config: T = conversion.build(cls, section)
    _raise_problems(conversion, where)
    return config


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as nested plain values, for JSON and YAML."""
    return asdict(config)


def dotted_values(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as one flat mapping, e.g. model.vocab_size: 50304."""
    flat: dict[str, Any] = {}

    def walk(mapping: Mapping[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(to_mapping(config), "")
    return flat


def _raise_problems(conversion: Conversion, where: str) -> None:
    """Raise one error with all problems of a conversion."""
    problems = list(conversion.problems)
    if conversion.missing:
        keys = ", ".join(conversion.missing)
        problems.append(f"{where}: missing required keys: {keys}. Add them or include a file.")
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"the configuration has {len(problems)} problems:\n{listed}")
