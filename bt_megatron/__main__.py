# SPDX-License-Identifier: Apache-2.0
"""`python -m bt_megatron COMMAND`: dispatch, importing no more than the command needs."""

import importlib
import sys

COMMANDS = {
    "plan": ("bt_megatron.config.plan_command", "main_plan"),
    "train": ("bt_megatron.training.command", "main_train"),
    "track": ("bt_megatron.observe.track_command", "main_track"),
}
USAGE = """usage: python -m bt_megatron COMMAND ...

  plan   check a run and print its layout, parameters, FLOPs and memory; needs no torch
  train  train a run, or resume it
  track  send the metrics of a run to MLflow, if the server was away

Each has --help.
"""


def main() -> int:
    """Run the command named by the first argument and return its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
        return 0 if len(sys.argv) > 1 else 2
    if sys.argv[1] not in COMMANDS:
        print(f"error: unknown command '{sys.argv[1]}'\n\n{USAGE}", end="", file=sys.stderr)  # noqa: T201
        return 2
    module, function = COMMANDS[sys.argv[1]]
    result: int = getattr(importlib.import_module(module), function)(sys.argv[2:])
    return result


if __name__ == "__main__":
    sys.exit(main())
