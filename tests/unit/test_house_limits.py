# SPDX-License-Identifier: Apache-2.0
"""Sizes and names that keep the code readable. An exemption needs a reason, written here."""

import ast
import io
import statistics
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 450
MEDIAN_FILE_LINES = 180
MAX_FUNCTION_LINES = 80
MAX_TRAIN_LINES = 60
MAX_ARGUMENTS = 8
MAX_DEPTH = 2
MAX_PART_CODE_LINES = 3_000  # of a folder of the package; no docstrings, comments, blank lines
BAD_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}
SPDX = "# SPDX-License-Identifier: Apache-2.0"

EXEMPT_FILES = {
    "bt_megatron/inference/modeling_block_transformer.py": (
        "travels with an exported model, which Transformers loads as a single file"
    ),
}

SOURCES = ("bt_megatron", "data_prep", "slurm", "tools", "tests")
SHIPPED = SOURCES[:-1]


def python_files(*folders):
    """Return files that git has or would add, so that nobody's leftovers are judged."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name.endswith(".py")]
    return sorted(path for path in files if path.exists())


def line_count(path):
    return len(path.read_text().splitlines())


def functions(path):
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def code_lines(source):
    """Count lines that hold code: no docstrings, comments or blank lines."""
    prose = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(held - prose)


def function_lines(node):
    return node.end_lineno - node.lineno + 1


def argument_count(node):
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([argument for argument in named if argument.arg not in ("self", "cls")])


def name(path):
    return str(path.relative_to(ROOT))


ALL = python_files(*SOURCES)
by_path = pytest.mark.parametrize("path", ALL, ids=name)


def test_there_are_files_to_judge():
    assert len(ALL) > 100
    assert set(EXEMPT_FILES) <= {name(path) for path in ALL}, "an exemption outlived its file"


@by_path
def test_files_are_short_and_licensed(path):
    first, *_ = path.read_text().splitlines() or [""]

    assert first == SPDX
    assert path.name not in BAD_NAMES, "name it after what it holds"
    if name(path) not in EXEMPT_FILES:
        assert line_count(path) <= MAX_FILE_LINES, "one idea, one file: split it"


@by_path
def test_functions_are_short_with_few_arguments(path):
    for node in functions(path):
        where = f"{name(path)}:{node.lineno} {node.name}"
        assert function_lines(node) <= MAX_FUNCTION_LINES, f"{where} is too long"
        assert argument_count(node) <= MAX_ARGUMENTS, f"{where}: group arguments in a dataclass"


@pytest.mark.parametrize("suffix", [".yaml", ".sh"])
def test_configurations_and_scripts_are_licensed(suffix):
    folders = ("configs", "tools", "slurm")
    files = [path for folder in folders for path in (ROOT / folder).rglob(f"*{suffix}")]

    assert files
    for path in files:
        assert SPDX in path.read_text().splitlines()[:2], name(path)


def test_files_are_short_on_the_whole():
    lengths = [line_count(path) for path in python_files(*SHIPPED)]
    assert statistics.median(lengths) <= MEDIAN_FILE_LINES


def test_the_package_stays_small_and_flat():
    files = python_files("bt_megatron")

    parts = Counter()
    for path in files:
        parts[path.relative_to(ROOT / "bt_megatron").parts[0]] += code_lines(path.read_text())
    assert {part: count for part, count in parts.items() if count > MAX_PART_CODE_LINES} == {}
    for path in files:
        assert len(path.relative_to(ROOT / "bt_megatron").parts) <= MAX_DEPTH + 1, name(path)


def test_the_loop_can_be_read_at_once():
    (loop,) = [
        node
        for node in functions(ROOT / "bt_megatron" / "training" / "loop.py")
        if node.name == "train"
    ]
    assert function_lines(loop) <= MAX_TRAIN_LINES


def test_tests_mirror_what_they_test():
    """tests/unit/x/test_y.py is about x/y.py or bt_megatron/x/y.py, so that both are found."""
    strays = []
    for path in python_files("tests/unit"):
        parts = path.relative_to(ROOT / "tests" / "unit").parts
        if len(parts) == 1 or not parts[-1].startswith("test_"):
            continue
        stem = parts[-1].removeprefix("test_").removesuffix(".py")
        folders = [ROOT.joinpath(*parts[:-1]), ROOT.joinpath("bt_megatron", *parts[:-1])]
        names = (f"{stem}.py", f"__{stem}__.py")
        if not any((folder / file).exists() for folder in folders for file in names):
            strays.append(name(path))
    assert strays == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [("def f(self, a, b, *, c): ...", 3), ("def f(a, /, b, *rest, c, **more): ...", 3)],
    ids=["method", "every kind"],
)
def test_arguments_are_counted(source, expected):
    assert argument_count(ast.parse(source).body[0]) == expected


def test_only_code_is_counted_as_code():
    source = '"""Doc.\n\nMore."""\n\nx = """a\nb"""  # note\n# note\n\ny = 1\n"""Of y."""\n'
    assert code_lines(source) == 3
