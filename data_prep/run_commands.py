# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m data_prep` that are about token shards and runs, not text alone."""

import argparse
import re
from pathlib import Path

from bt_megatron.config.arguments import add_run_arguments
from bt_megatron.config.load import load_run
from bt_megatron.errors import DataError
from data_prep.checksum import STATE_NAME, find_wanted, hash_all, total_bytes
from data_prep.index import index_run
from data_prep.progress import ByteProgress
from data_prep.report import say


def add_run_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""
    _add_index(commands)
    _add_checksum(commands)


def _add_index(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "save where a run's documents lie, so that it starts at once; run again, it checks"
    command = commands.add_parser("index", help=text, description=text)
    add_run_arguments(command)
    command.set_defaults(run=_run_index)


def _run_index(options: argparse.Namespace) -> int:
    loaded = load_run(options.files, options.settings)
    for done in index_run(loaded.config, on_stage=say):
        what = f"made in {done.seconds:.1f} s" if done.made else "whole, kept"
        print(  # noqa: T201
            f"{done.folder}: {done.subset} {done.split}, {done.documents:,} documents, "
            f"{done.samples:,} samples, {what}"
        )
    return 0


def _add_checksum(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "check published .bin and .idx files against their sha256; goes on where it stopped"
    command = commands.add_parser("checksum", help=text, description=text)
    command.add_argument("folder", type=Path, metavar="DIR", help="folder of the files")
    given = command.add_mutually_exclusive_group()
    given.add_argument("--sums", type=Path, metavar="FILE", help="hashes as sha256sum writes them")
    given.add_argument("--sha256", type=_sha256, help="hash of the .bin file, its pieces joined")
    command.add_argument(
        "--state", type=Path, metavar="FILE", help=f"what was done (default DIR/{STATE_NAME})"
    )
    command.set_defaults(run=_run_checksum)


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 64 hex digits")
    return text.lower()


def _run_checksum(options: argparse.Namespace) -> int:
    wanted = find_wanted(options.folder, sums=options.sums, sha256=options.sha256)
    done = 0
    with ByteProgress("checksum", total_bytes=total_bytes(wanted)) as progress:

        def advance(size: int) -> None:
            nonlocal done
            done += size
            progress.advance_to(done)

        kept_in = options.state or options.folder / STATE_NAME
        hashes = hash_all(wanted, kept_in=kept_in, on_bytes=advance)
    wrong = 0
    for item in wanted:
        found = hashes[item.name]
        verdict = "as published" if found == item.sha256 else f"published is {item.sha256}"
        wrong += item.sha256 is not None and found != item.sha256
        print(f"{found}  {item.name}: {verdict if item.sha256 else 'no published hash'}")  # noqa: T201
    if wrong:
        raise DataError(
            f"{options.folder} - {wrong} of {len(wanted)} files are not what was published - copy "
            "them again"
        )
    return 0
