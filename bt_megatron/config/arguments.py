# SPDX-License-Identifier: Apache-2.0
"""How every command takes a run: files composed left to right, then --set."""

import argparse


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `files` and `settings`, the arguments of `load.load_run`."""
    parser.add_argument("files", nargs="+", help="YAML files, composed left to right")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, e.g. --set optimizer.lr=3e-4",
    )


def positive_int(text: str) -> int:
    """Read a whole number of at least 1, as the `type` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
