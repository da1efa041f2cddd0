# SPDX-License-Identifier: Apache-2.0
"""Imports point one way, and what runs on a login node needs neither torch nor Megatron."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What the files of a part may import of this project, besides their own part.
ALLOWED = {
    "errors": set(),
    "versions": set(),
    "kernels": {"errors"},
    "config": {"errors", "parallel.layout"},  # layout strings are pure arithmetic
    "parallel": {"errors", "config"},
    "faults": {"errors", "config", "parallel"},
    "data": {"errors", "config"},
    "model": {"errors", "config", "parallel", "kernels"},
    "observe": {"errors", "config"},
    "checkpoint": {"errors", "config", "data", "model", "observe"},
    "inference": {"errors", "config", "checkpoint"},
    "evaluation": {"errors", "config", "data", "observe"},
    "training": {
        *("errors", "versions", "config", "parallel", "data", "model", "observe", "checkpoint"),
        "faults",
    },
    "__init__": set(),
    "__main__": set(),
}
NO_TORCH = (
    *("bt_megatron.__main__", "bt_megatron.config.plan_command", "bt_megatron.parallel.layout"),
    *("bt_megatron.data.manifest", "bt_megatron.checkpoint.manifest"),
    *("bt_megatron.checkpoint.folder", "bt_megatron.observe.plot", "data_prep.__main__"),
    *("slurm.__main__", "slurm.submit", "slurm.through_submitit", "tools.demo", "tools.plot_loss"),
    *("tools.ngram_baseline", "tools.compare_layouts", "tools.bench_scaling", "tools.fetch_tasks"),
    *("bt_megatron.evaluation.likelihood", "tools.goodput"),
)
NO_MEGATRON = (
    *("bt_megatron.inference.modeling_block_transformer", "tools.generate", "tools.evaluate"),
    *("bt_megatron.inference.engine.folder", "tools.bench_inference"),
)


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part_of(path):
    return path.relative_to(ROOT / "bt_megatron").parts[0].removesuffix(".py")


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_lies_below_it(part):
    for path in (ROOT / "bt_megatron").rglob("*.py"):
        if part_of(path) != part:
            continue
        ours = {m for m in imported_modules(path) if m.startswith("bt_megatron.")}
        below = {m.removeprefix("bt_megatron.") for m in ours}
        allowed = ALLOWED[part] | {part}
        strays = {
            m for m in below if not any(m == good or m.startswith(f"{good}.") for good in allowed)
        } - {m.rpartition(".")[0] for m in below}  # `parallel` of `from parallel import layout`
        assert strays == set(), f"{path.relative_to(ROOT)} imports {sorted(strays)}"


def test_every_part_has_its_place():
    assert {part_of(path) for path in (ROOT / "bt_megatron").rglob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("folder", ["bt_megatron", "data_prep", "slurm"])
def test_tools_and_tests_are_not_imported(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for module in imported_modules(path):
            assert module.split(".")[0] not in ("tools", "tests"), path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("modules", "absent"),
    [(NO_TORCH, "torch"), (NO_MEGATRON, "megatron")],
    ids=["no torch", "no Megatron"],
)
def test_light_parts_stay_light(modules, absent):
    program = "import importlib, sys\n" + "".join(
        f"importlib.import_module({module!r})\n"
        f"assert {absent!r} not in sys.modules, {f'{module} imports {absent}'!r}\n"
        for module in modules
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
