# SPDX-License-Identifier: Apache-2.0
"""`python -m slurm render RUN.yaml --cluster CLUSTER.yaml`: print the sbatch script of a run."""

import argparse
import sys
from collections.abc import Sequence

from bt_megatron.config.arguments import add_run_arguments
from bt_megatron.config.load import load_run
from bt_megatron.config.plan import make_plan
from bt_megatron.errors import BtError
from slurm.cluster import load_cluster
from slurm.render import render


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        text = _rendered(arguments)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(text, end="")  # noqa: T201
    return 0


def _rendered(arguments: argparse.Namespace) -> str:
    config = load_run(arguments.files, arguments.settings).config
    cluster = load_cluster(arguments.cluster)
    plan = make_plan(config, arguments.gpus or cluster.gpus_per_node)
    settings = [word for setting in arguments.settings for word in ("--set", setting)]
    return render(config, cluster, plan, arguments=[*arguments.files, *settings])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    text = "print the sbatch script of a run; submit it with `sbatch FILE`"
    command = commands.add_parser("render", help=text, description=text)
    add_run_arguments(command)
    command.add_argument("--cluster", required=True, help="YAML file as in configs/cluster")
    command.add_argument(
        "--gpus", type=_positive, metavar="N", help="processes in all (default: one whole node)"
    )
    return parser


def _positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
