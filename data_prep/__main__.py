# SPDX-License-Identifier: Apache-2.0
"""`python -m data_prep <command>`: text to token shards, and what goes with it."""

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console

from bt_megatron.data.manifest import load_manifest
from bt_megatron.errors import BtError, DataError
from data_prep.describe import subset_table
from data_prep.progress import ByteProgress
from data_prep.report import describe_problems, say
from data_prep.run_commands import add_run_commands
from data_prep.tokenize import TokenizeOptions, tokenize
from data_prep.tokenizer import DEFAULT_EOS
from data_prep.train_tokenizer import train_tokenizer
from data_prep.verify import bytes_to_check, find_faults

_INTERRUPTED = 130
_INPUTS = (
    'files of The Pile\'s layout, one {"text", "meta": {"pile_set_name"}} a line: .jsonl, '
    ".jsonl.zst, .jsonl.gz; `-` alone reads standard input"
)
_STRICT = "stop at the first problem of an input instead of skipping and counting it"


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program; none: sys.argv.

    Returns:
        The exit code: 0, or that of the error.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except BtError as error:
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        say(f"error: {error.filename or options.command} - {error.strerror} - free space or rights")
        return DataError.exit_code
    except KeyboardInterrupt:
        say("interrupted - run the same command again: what is finished is kept")
        return _INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_tokenize(commands)
    _add_train_tokenizer(commands)
    add_run_commands(commands)
    for name, run, text in (
        ("describe", _run_describe, "show documents, tokens and bytes by subset"),
        ("verify", _run_verify, "check every file of a data folder against its manifest"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, metavar="DIR", help="a data folder")
        command.set_defaults(run=run)
    return parser


def _add_tokenize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "write Megatron token shards and a manifest; run again, it does what is missing"
    command = commands.add_parser("tokenize", help=text, description=text)
    command.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=_INPUTS)
    command.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    command.add_argument("--out", type=Path, required=True, help="data folder to make or extend")
    command.add_argument("--workers", type=_positive, default=1, help="processes (default 1)")
    command.add_argument("--strict", action="store_true", help=_STRICT)
    command.add_argument("--eos-token", default=DEFAULT_EOS, help="default %(default)s")
    command.set_defaults(run=_run_tokenize)


def _add_train_tokenizer(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "train a byte-level BPE tokenizer built like GPT-NeoX's"
    command = commands.add_parser("train-tokenizer", help=text, description=text)
    command.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=_INPUTS)
    command.add_argument("--vocab-size", type=_positive, required=True, help="entries in all")
    command.add_argument("--out", type=Path, required=True, help="tokenizer.json to write")
    command.add_argument("--strict", action="store_true", help=_STRICT)
    command.set_defaults(run=_run_train_tokenizer)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _run_tokenize(options: argparse.Namespace) -> int:
    tokenize(
        TokenizeOptions(
            inputs=options.inputs,
            tokenizer=options.tokenizer,
            out=options.out,
            workers=options.workers,
            strict=options.strict,
            eos_token=options.eos_token,
        )
    )
    return 0


def _run_train_tokenizer(options: argparse.Namespace) -> int:
    train_tokenizer(
        options.inputs, vocab_size=options.vocab_size, out=options.out, strict=options.strict
    )
    return 0


def _run_describe(options: argparse.Namespace) -> int:
    manifest = load_manifest(options.folder)
    Console().print(subset_table(manifest))
    for line in describe_problems([shard.problems for shard in manifest.shards]):
        print(line)  # noqa: T201
    return 0


def _run_verify(options: argparse.Namespace) -> int:
    done = 0
    with ByteProgress("verify", total_bytes=bytes_to_check(options.folder)) as progress:

        def advance(size: int) -> None:
            nonlocal done
            done += size
            progress.advance_to(done)

        faults = list(find_faults(options.folder, on_bytes=advance))
    for fault in faults:
        say(f"fault: {fault}")
    if faults:
        raise DataError(
            f"{options.folder} - {len(faults)} faults - copy the folder again, or remove the named "
            "shards and run `python -m data_prep tokenize` on their inputs"
        )
    print(f"{options.folder}: sound, {done:,} bytes checked")  # noqa: T201
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
