# SPDX-License-Identifier: Apache-2.0
"""The commands of `python -m data_prep` that are about token shards and runs, not text alone."""

import argparse
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bt_megatron.config.arguments import add_run_arguments
from bt_megatron.config.load import load_run
from bt_megatron.data.manifest import write_json
from bt_megatron.errors import DataError
from data_prep.checksum import STATE_NAME, find_wanted, hash_all, total_bytes
from data_prep.contamination import REPORT_NAME, contamination_table, count_corpus, report_set
from data_prep.corpus_inputs import corpus_inputs
from data_prep.deduplicate import deduplicate, deduplicated_table, open_folders
from data_prep.evaluation_sets import read_evaluation_set
from data_prep.index import index_run
from data_prep.progress import ByteProgress
from data_prep.report import say


def add_run_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the parser."""
    _add_index(commands)
    _add_checksum(commands)
    _add_contamination(commands)
    _add_deduplicate(commands)


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
    with ByteProgress("checksum", total_bytes=total_bytes(wanted)) as progress:
        kept_in = options.state or options.folder / STATE_NAME
        hashes = hash_all(wanted, kept_in=kept_in, on_bytes=_adding_up(progress))
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


def _add_contamination(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "report which examples of evaluation sets share n-grams of words with a corpus"
    command = commands.add_parser("contamination", help=text, description=text)
    command.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="data folders, or files of text"
    )
    command.add_argument(
        "--set",
        dest="sets",
        action="append",
        required=True,
        type=_named_path,
        metavar="NAME=FILE",
        help="an evaluation set, JSON lines with one example each; may be given again",
    )
    command.add_argument(
        "--fields",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="keys whose texts make an example (default: every text of the line)",
    )
    command.add_argument(
        "--words",
        type=_ngram_words,
        default=13,
        metavar="N",
        help="words of an n-gram, or `auto` for GPT-3's rule, 8 to 13 by set (default 13)",
    )
    command.add_argument(
        "--max-documents",
        type=int,
        metavar="N",
        help="n-grams of more documents do not count (GPT-3: 10; default: all count)",
    )
    command.add_argument("--tokenizer", type=Path, help="of data folders without a manifest")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the report")
    command.set_defaults(run=_run_contamination)


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(path)


def _ngram_words(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is neither `auto` nor a number from 1 to 100")
    return int(text)


def _run_contamination(options: argparse.Namespace) -> int:
    sets = [
        read_evaluation_set(path, name=name, size=options.words, fields=options.fields)
        for name, path in options.sets
    ]
    inputs = corpus_inputs(options.inputs, tokenizer=options.tokenizer)
    total = sum(item.size for item in inputs)
    with ByteProgress("contamination", total_bytes=total) as progress:
        counter, counts, documents = count_corpus(
            inputs, sets, folder=options.out, on_bytes=progress.advance_to
        )
    reports = [report_set(s, counter, counts, max_documents=options.max_documents) for s in sets]
    body = {
        "inputs": [item.name for item in inputs],
        "documents": documents,
        "max_documents": options.max_documents,
        "sets": [asdict(report) for report in reports],
    }
    write_json(options.out / REPORT_NAME, body)
    Console().print(contamination_table(reports, documents=documents))
    return 0


def _add_deduplicate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "list the documents that repeat an earlier one, for data.drop; goes on where it stopped"
    command = commands.add_parser("deduplicate", help=text, description=text)
    command.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="data folders, the first one's stay"
    )
    command.add_argument(
        "--near",
        type=_similarity,
        metavar="J",
        help="also near duplicates, from this Jaccard similarity of runs of tokens on, e.g. 0.8",
    )
    command.add_argument("--tokenizer", type=Path, help="of data folders without a manifest")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the lists")
    command.set_defaults(run=_run_deduplicate)


def _similarity(text: str) -> float:
    value = float(text)
    if not 0.3 <= value <= 0.99:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.3 to 0.99")
    return value


def _run_deduplicate(options: argparse.Namespace) -> int:
    folders = open_folders(options.folders, tokenizer=options.tokenizer)
    passes = 1 if options.near is None else 2
    total = passes * sum(
        path.stat().st_size
        for folder in folders
        for header in folder.corpus.headers
        for path in header.bin_paths
    )
    with ByteProgress("deduplicate", total_bytes=total) as progress:
        results = deduplicate(
            folders,
            threshold=options.near,
            out=options.out,
            on_bytes=_adding_up(progress),
            on_stage=progress.begin_stage,
        )
    Console().print(deduplicated_table(results))
    for result in results:
        print(f"{result.name}: data.drop={result.list_path}")  # noqa: T201
    return 0


def _adding_up(progress: ByteProgress) -> Callable[[int], None]:
    """Return a function that takes the bytes done since its last call, and shows each megabyte."""
    done = shown = 0

    def add(size: int) -> None:
        nonlocal done, shown
        done += size
        if done - shown >= 1 << 20:
            shown = done
            progress.advance_to(done)

    return add
