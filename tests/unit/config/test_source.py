# SPDX-License-Identifier: Apache-2.0
"""YAML files: scalars, places, includes, faults."""

import pytest

from bt_megatron.config.source import Section, Value, merge, parse_setting, read_files
from bt_megatron.errors import ConfigError


def plain(node):
    if isinstance(node, Value):
        return node.value
    return {key: plain(entry) for key, entry in node.entries.items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("6E4", 6e4),
        (".5", 0.5),
        ("3.", 3.0),
        ("572_000", 572000),
        ("-3", -3),
        ("010", 10.0),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("1.2b", "1.2b"),
        ('"7"', "7"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_does(write_yaml, text, value):
    found = plain(read_files([write_yaml("a.yaml", f"key: {text}\n")]))["key"]

    assert found == value
    assert type(found) is type(value)


def test_values_know_their_line(write_yaml):
    path = write_yaml("a.yaml", "# comment\na: 1\nb:\n  c: 2\n")
    tree = read_files([path])

    assert tree.entries["a"].where == f"{path}:2"
    assert tree.entries["b"].where == f"{path}:3"
    assert tree.entries["b"].entries["c"].where == f"{path}:4"


def test_later_files_override_key_by_key(write_yaml):
    first = write_yaml("a.yaml", "s: {x: 1, y: 2}\nt: 1\n")
    second = write_yaml("b.yaml", "s: {y: 3}\nu: 4\n")

    assert plain(read_files([first, second])) == {"s": {"x": 1, "y": 3}, "t": 1, "u": 4}


def test_null_replaces_a_section_and_a_section_replaces_null(write_yaml):
    section, null = write_yaml("a.yaml", "s: {x: 1}\n"), write_yaml("b.yaml", "s: null\n")

    assert plain(read_files([section, null])) == {"s": None}
    assert plain(read_files([null, section])) == {"s": {"x": 1}}


def test_includes_come_first_and_are_relative_to_the_file(write_yaml):
    write_yaml("model/small.yaml", "include: [base.yaml]\nm: {b: 2}\n")
    write_yaml("model/base.yaml", "m: {a: 1, b: 1, c: 1}\n")
    run = write_yaml("run/x.yaml", "include: [../model/small.yaml]\nm: {c: 3}\n")

    tree = read_files([run])

    assert plain(tree) == {"m": {"a": 1, "b": 2, "c": 3}}
    assert tree.entries["m"].entries["a"].where == f"{run.parents[1]}/model/base.yaml:1"


def test_one_file_may_be_included_on_two_ways(write_yaml):
    write_yaml("base.yaml", "a: 1\n")
    write_yaml("left.yaml", "include: [base.yaml]\n")
    top = write_yaml("top.yaml", "include: [left.yaml, base.yaml]\n")

    assert plain(read_files([top])) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"a.yaml:3: duplicate key 'a', first at .*a.yaml:1"),
        ("s:\n  x: 1\n  x: 1\n", r"a.yaml:3: duplicate key 'x'"),
        ("a: [1, 2\nb: 3\n", r"a.yaml:2: not valid YAML"),
        ("a: \t- x: [\n", "not valid YAML"),
        ("- 1\n- 2\n", "expected 'key: value' lines"),
        ("just text\n", "expected 'key: value' lines, got 'just text'"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
        ("include: other.yaml\n", "include must be a list of files"),
        ("include: [1]\n", "include must be a list of files"),
        ("include: {a: b}\n", "include must be a list of files"),
        ("include: [absent.yaml]\n", r"absent.yaml \(included by .*a.yaml\): No such file"),
        ("include: [a.yaml]\n", r"include goes in a circle: .*a.yaml -> .*a.yaml"),
        ("a: &x\n  b: *x\n", "nested more than 20 deep"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
        ("a: !!python/name:os.system x\n", "not valid YAML"),
        ("a: 1\x00\n", "not valid YAML"),
    ],
)
def test_a_faulty_file_is_refused_with_the_place(write_yaml, text, message):
    path = write_yaml("a.yaml", text)

    with pytest.raises(ConfigError, match=message):
        read_files([path])


def test_a_longer_circle_is_refused(write_yaml):
    write_yaml("b.yaml", "include: [a.yaml]\n")

    with pytest.raises(ConfigError, match=r"a.yaml -> .*b.yaml -> .*a.yaml"):
        read_files([write_yaml("a.yaml", "include: [b.yaml]\n")])


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")

    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "latin.yaml", "not UTF-8")):
        with pytest.raises(ConfigError, match=message):
            read_files([path])


def test_an_empty_file_says_nothing(write_yaml):
    assert plain(read_files([write_yaml("a.yaml", "# only a comment\n")])) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a.b=1e-3", {"a": {"b": 1e-3}}),
        ("a=null", {"a": None}),
        ("a=", {"a": None}),
        ("a={x: 1}", {"a": {"x": 1}}),
        ("a.b=Eb|tL", {"a": {"b": "Eb|tL"}}),
        ("a=x=y", {"a": "x=y"}),
    ],
)
def test_settings_are_keys_and_yaml(text, value):
    tree = parse_setting(text)

    assert plain(tree) == value
    assert tree.where == "--set"


@pytest.mark.parametrize("text", ["a.b", "=3", "a..b=3", ".a=3", "a=[1"])
def test_a_malformed_setting_is_refused(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_setting(text)


def test_merging_leaves_its_arguments_alone():
    base = Section({"s": Section({"x": Value(1, "a")}, "a")}, "a")
    over = Section({"s": Section({"y": Value(2, "b")}, "b")}, "b")

    merge(base, over)

    assert plain(base) == {"s": {"x": 1}}
    assert plain(over) == {"s": {"y": 2}}
