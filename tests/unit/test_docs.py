# SPDX-License-Identifier: Apache-2.0
"""What the documents say can be followed: links, paths, commands."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from bt_megatron.__main__ import COMMANDS
from bt_megatron.config.load import load_run
from bt_megatron.config.plan import make_plan
from slurm.cluster import load_cluster
from tools.demo import CONFIG, plan_steps

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data_prep/README.md"])
README = (ROOT / "README.md").read_text()
FOLDERS = ("bt_megatron", "configs", "data_prep", "docs", "slurm", "tests", "tools")
MAX_TABLE_ROWS = 15
MAX_CONTRIBUTING_LINES = 150

by_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def commands(text):
    """Return the lines of indented blocks, without what a shell does around a command."""
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return [re.sub(r"\s+(#|>) .*$", "", line) for line in lines]


class ParsedError(Exception):
    """A command line was understood; what it asks for is not done."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function that lets a command parse its arguments and do nothing else."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, args=None, namespace=None):
        raise ParsedError(original(parser, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)

    def parse_command(module, arguments):
        if module == "bt_megatron":
            command, *arguments = arguments
            file, function = COMMANDS[command]
            main = getattr(importlib.import_module(file), function)
        else:
            package = (ROOT / module).is_dir()
            main = importlib.import_module(f"{module}.__main__" if package else module).main
        with pytest.raises(ParsedError) as parsed:
            main(arguments)
        return parsed.value.args[0]

    return parse_command


def split_command(line):
    """Return module, arguments and processes of a line that starts Python, else None."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    processes = 1
    if words[:2] == ["torchrun", "--nproc-per-node"]:
        processes, words = int(words[2]), ["python", *words[3:]]
    if words[:2] != ["python", "-m"]:
        return None
    return words[2], words[3:], processes


PYTHON_LINES = [line for line in commands(README) if split_command(line)]
OTHER_LINES = [line for line in commands(README) if not split_command(line)]


@by_document
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@by_document
def test_paths_exist(path):
    for quoted in re.findall(r"`([^`\s]+)`", path.read_text()):
        if (
            quoted.split("/")[0] in FOLDERS
            and "/" in quoted
            and not re.search("[<*.]{3}|N", quoted)
        ):
            assert (ROOT / quoted).exists(), f"{path.name}: {quoted}"


@pytest.mark.parametrize("line", PYTHON_LINES)
def test_commands_of_the_readme_are_understood(line, parse, monkeypatch):
    monkeypatch.chdir(ROOT)
    module, arguments, processes = split_command(line)
    options = parse(module, arguments)

    files = getattr(options, "files", None) or getattr(options, "configs", None)
    if files:
        config = load_run(files, options.settings).config
        world_size = getattr(options, "world_size", None) or getattr(options, "gpus", None)
        assert make_plan(config, world_size or processes)
    if hasattr(options, "cluster"):
        assert load_cluster(options.cluster)


def test_other_commands_of_the_readme_are_known():
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {f"make {target}" for target in targets} | {
        "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db",
        "sbatch job.sbatch",
    }
    assert set(OTHER_LINES) <= known


def test_the_readme_shows_the_commands_of_the_demo(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_run([CONFIG]).config
    steps = plan_steps(config, settings=[], processes=2)
    generating = [step for step in steps if "tools.generate" in step.command]
    for step in [step for step in steps if step not in generating[1:]]:
        assert step.typed in commands(README)


def test_the_table_of_the_readme_is_short_and_right():
    table = README.split("## To change")[1].split("\n\n**Read")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]

    assert 10 <= len(rows) <= MAX_TABLE_ROWS
    for row in rows:
        paths = re.findall(r"`([^`]+)`", row.split("|")[2])
        assert paths
        assert all((ROOT / path).exists() for path in paths), row


def test_six_files_are_named_to_read_first():
    paragraph = re.search(r"\*\*Read in this order:\*\*(.*?)Then", README, re.DOTALL)[1]
    files = re.findall(r"`([^`]+)`", paragraph)

    assert len(files) == 6
    assert all((ROOT / file).is_file() for file in files)


def test_contributing_is_short():
    text = (ROOT / "CONTRIBUTING.md").read_text()

    assert len(text.splitlines()) < MAX_CONTRIBUTING_LINES
    assert "Proof of value" in text


def test_the_changelog_has_an_unreleased_part():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()
