# SPDX-License-Identifier: Apache-2.0
"""`python -m bt_megatron plan`: check a run and print its plan; needs no GPU and no torch."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from bt_megatron.config.arguments import add_run_arguments, positive_int
from bt_megatron.config.banner import device_line, plan_lines
from bt_megatron.config.comm import step_communication
from bt_megatron.config.comm_table import communication_lines, communication_mapping
from bt_megatron.config.devices import DEVICES, fit
from bt_megatron.config.load import load_run
from bt_megatron.config.plan import make_plan, plan_mapping
from bt_megatron.config.show import resolved_yaml
from bt_megatron.errors import BtError


def main_plan(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after `plan`.

    Returns:
        Exit status: 0, or the exit code of the error that was printed.
    """
    arguments = _parser().parse_args(argv)
    try:
        text = _answer(arguments)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(text)  # noqa: T201
    return 0


def _answer(arguments: argparse.Namespace) -> str:
    """Return what the command prints."""
    loaded = load_run(arguments.files, arguments.settings)
    world_size = arguments.world_size or max(1, loaded.config.layout.replica_size)
    plan = make_plan(loaded.config, world_size)
    sent = step_communication(loaded.config, world_size) if arguments.comm else None
    fits = None
    if arguments.device is not None:
        fits = fit(loaded.config, device=arguments.device, dp=plan.dp)
    if arguments.json:
        mapping = plan_mapping(plan)
        if fits is not None:
            mapping["device"] = {**asdict(fits), "fits": fits.fits}
        if sent is not None:
            mapping["communication"] = communication_mapping(sent)
        return json.dumps(mapping, indent=2)
    lines = plan_lines(plan, loaded.config)
    if fits is not None:
        lines.append(device_line(fits, loaded.config))
    if sent is not None:
        lines += communication_lines(sent, loaded.config)
    if arguments.resolved:
        lines += ["", resolved_yaml(loaded).rstrip()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bt_megatron plan",
        description="Check a run and print its layout, parameters, FLOPs and memory estimate.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--world-size",
        type=positive_int,
        metavar="N",
        help="number of processes (default: one replica, tp x cp x pp)",
    )
    parser.add_argument(
        "--device",
        choices=sorted(DEVICES),
        help="say whether a process fits, and the largest micro-batch that does",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--comm",
        action="store_true",
        help="also list what each process sends in an optimizer step",
    )
    parser.add_argument(
        "--resolved",
        action="store_true",
        help="also print the whole configuration and where each value came from",
    )
    return parser
