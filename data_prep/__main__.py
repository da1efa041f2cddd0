# SPDX-License-Identifier: Apache-2.0
"""`python -m data_prep <command>`: text to token shards, and what goes with it."""

import argparse
import os
import signal
import sys
from pathlib import Path

from bt_megatron.errors import BtError, DataError
from data_prep.folder_commands import add_folder_commands
from data_prep.report import say
from data_prep.run_commands import add_run_commands
from data_prep.tokenize import TokenizeOptions, tokenize
from data_prep.tokenizer import AUTOMATIC, DEFAULT_EOS, ENGINES
from data_prep.train_tokenizer import train_tokenizer
from data_prep.worklist import load_plan, task_folder

_INTERRUPTED = 130
_INPUTS = (
    'files of The Pile\'s layout, one {"text", "meta": {"pile_set_name"}} a line: .jsonl, '
    ".jsonl.zst, .jsonl.gz; `-` alone reads standard input"
)
_ENGINE = "what makes the ids; auto: fastokens where it equals tokenizers (default %(default)s)"
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
        say(
            f"error: {error.filename or getattr(options, 'out', options.command)} - "
            f"{error.strerror} - make room or get the "
            "rights, and run the same command again: what is finished is kept"
        )
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
    add_folder_commands(commands)
    add_run_commands(commands)
    return parser


def _add_tokenize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "write Megatron token shards and a manifest; run again, it does what is missing"
    command = commands.add_parser("tokenize", help=text, description=text)
    command.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help=_INPUTS)
    command.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    command.add_argument("--out", type=Path, help="data folder to make or extend")
    command.add_argument("--plan", type=Path, help="a plan.json, instead of all of the above")
    command.add_argument("--task", type=int, help="number of the task of --plan")
    command.add_argument("--workers", type=_positive, help="cores to use (default: all)")
    command.add_argument("--strict", action="store_true", help=_STRICT)
    command.add_argument("--eos-token", default=DEFAULT_EOS, help="default %(default)s")
    command.add_argument("--engine", choices=ENGINES, default=AUTOMATIC, help=_ENGINE)
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
    by_plan = (options.plan is not None, options.task is not None)
    by_hand = (bool(options.inputs), options.tokenizer is not None, options.out is not None)
    if (all(by_plan), any(by_hand)) == (True, False):
        plan = load_plan(options.plan)
        options.inputs = plan.inputs_of(options.task, plan=options.plan)
        options.tokenizer, options.eos_token = Path(plan.tokenizer), plan.eos_token
        options.out = task_folder(options.plan, options.task)
    elif (any(by_plan), all(by_hand)) != (False, True):
        raise DataError(
            "tokenize - takes INPUT, --tokenizer and --out, or --plan and --task - give either"
        )
    tokenize(
        TokenizeOptions(
            inputs=options.inputs,
            tokenizer=options.tokenizer,
            out=options.out,
            workers=options.workers or len(os.sched_getaffinity(0)),
            strict=options.strict,
            eos_token=options.eos_token,
            engine=options.engine,
        )
    )
    return 0


def _run_train_tokenizer(options: argparse.Namespace) -> int:
    train_tokenizer(
        options.inputs, vocab_size=options.vocab_size, out=options.out, strict=options.strict
    )
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
