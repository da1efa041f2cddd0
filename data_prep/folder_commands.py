# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m data_prep` that share out work and look at data folders."""

import argparse
from pathlib import Path

from rich.console import Console

from bt_megatron.data.manifest import load_manifest
from bt_megatron.errors import DataError
from data_prep.describe import plot_subsets, subset_table
from data_prep.engines import REFERENCE
from data_prep.merge import bytes_to_merge, merge
from data_prep.progress import ByteProgress
from data_prep.report import describe_problems, say
from data_prep.tokenizer import DEFAULT_EOS, TextTokenizer
from data_prep.verify import bytes_to_check, find_faults
from data_prep.worklist import FILE_NAME, load_plan, make_plan, save_plan, task_folder


def add_folder_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add plan, merge, describe and verify."""
    _add_plan(commands)
    _add_merge(commands)
    text = "show documents, tokens and bytes by subset"
    command = commands.add_parser("describe", help=text, description=text)
    command.add_argument("folder", type=Path, metavar="DIR", help="a data folder")
    command.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it, too")
    command.set_defaults(run=_run_describe)
    text = "check every file of a data folder against its manifest"
    command = commands.add_parser("verify", help=text, description=text)
    command.add_argument("folder", type=Path, metavar="DIR", help="a data folder")
    command.set_defaults(run=_run_verify)


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "share inputs out between tasks, for `tokenize --plan` on many machines"
    command = commands.add_parser("plan", help=text, description=text)
    command.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="as of tokenize")
    command.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    command.add_argument("--out", type=Path, required=True, help="folder of plan.json and tasks/")
    command.add_argument("--tasks", type=int, required=True, help="at most as many tasks")
    command.add_argument("--eos-token", default=DEFAULT_EOS, help="default %(default)s")
    command.set_defaults(run=_run_plan)


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "make one data folder of several; the kernel copies, or nothing is copied at all"
    command = commands.add_parser("merge", help=text, description=text)
    command.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="data folders")
    command.add_argument("--plan", type=Path, help="merge all tasks of a plan.json instead")
    command.add_argument("--out", type=Path, required=True, help="the folder to make")
    command.add_argument("--join", metavar="NAME", help="join all shards into one of this name")
    command.set_defaults(run=_run_merge)


def _run_plan(options: argparse.Namespace) -> int:
    if options.tasks < 1:
        raise DataError(f"--tasks - {options.tasks} is not positive - give 1 or more")
    tokenizer = TextTokenizer(options.tokenizer, eos_token=options.eos_token, engine=REFERENCE)
    plan = make_plan(options.inputs, tokenizer, tasks=options.tasks, eos=options.eos_token)
    path = options.out / FILE_NAME
    save_plan(plan, path)
    sizes = [sum(planned.size for planned in task) for task in plan.tasks]
    print(  # noqa: T201
        f"{path}: {len(options.inputs)} inputs in {len(sizes)} tasks of {min(sizes):,} to "
        f"{max(sizes):,} bytes; submit with --array=0-{len(sizes) - 1}"
    )
    return 0


def _run_merge(options: argparse.Namespace) -> int:
    folders = options.folders
    if bool(folders) == (options.plan is not None):
        raise DataError("merge - takes data folders or --plan - give either")
    if options.plan:
        tasks = len(load_plan(options.plan).tasks)
        folders = [task_folder(options.plan, task) for task in range(tasks)]
    times = 2 if options.join else 1  # a joined file is hashed
    total = times * bytes_to_merge(folders)
    with ByteProgress("merge", total_bytes=total) as progress:
        manifest = merge(folders, options.out, join_as=options.join, on_bytes=progress.advance_by)
    print(  # noqa: T201
        f"{options.out}: {manifest.documents:,} documents, {manifest.tokens:,} tokens in "
        f"{len(manifest.shards)} shards"
    )
    return 0


def _run_describe(options: argparse.Namespace) -> int:
    manifest = load_manifest(options.folder)
    Console().print(subset_table(manifest))
    for line in describe_problems([shard.problems for shard in manifest.shards]):
        print(line)  # noqa: T201
    if options.plot:
        plot_subsets(manifest, options.plot)
    return 0


def _run_verify(options: argparse.Namespace) -> int:
    total = bytes_to_check(options.folder)
    with ByteProgress("verify", total_bytes=total) as progress:
        faults = list(find_faults(options.folder, on_bytes=progress.advance_by))
    for fault in faults:
        say(f"fault: {fault}")
    if faults:
        raise DataError(
            f"{options.folder} - {len(faults)} faults - copy the folder again, or remove the named "
            "shards and run `python -m data_prep tokenize` on their inputs"
        )
    print(f"{options.folder}: sound, {total:,} bytes checked")  # noqa: T201
    return 0
